"""Classify images with a bundle, in ONNX Runtime. Needs numpy, onnxruntime and Pillow; nothing else of the project that made it.

    python run_onnx.py BUNDLE IMAGE_OR_FOLDER [--precision fp32] [--batch 1] [--top 1] [--time] [--json]

An image's class and probability per line; --time adds the latency of one run (median and 90th percentile). Where the folder has
one subfolder per class, the share of right answers follows. Exit code 2 and one line on stderr when something is wrong.
"""

import argparse
import contextlib
import hashlib
import io
import json
import re
import sys
import time
from pathlib import Path

import numpy as np

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")


def printable(text: str) -> str:
    """``text`` with everything escaped that is no character to print: line ends, terminal commands."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class InputError(Exception):
    """Something the user can mend."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Classify images with a bundle, in ONNX Runtime.")
    parser.add_argument("bundle", type=Path, help="folder with manifest.json")
    parser.add_argument("images", type=Path, help="an image, or a folder of images")
    parser.add_argument("--precision", default="fp32", help="which of the bundle's precisions to run")
    parser.add_argument("--batch", type=int, default=1, help="images per run")
    parser.add_argument("--threads", type=int, default=1, help="threads of one run on the CPU")
    parser.add_argument("--top", type=int, default=1, help="how many classes to name per image")
    parser.add_argument("--cuda", action="store_true", help="run on the first NVIDIA GPU instead of the CPU")
    parser.add_argument("--time", action="store_true", help="measure the latency of one run as well")
    parser.add_argument("--runs", type=int, default=100, help="runs to measure")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        report(run(arguments), arguments.json)
    except InputError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace) -> dict:
    """Everything that is asked for, as JSON values."""
    for name in ("batch", "threads", "top", "runs"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name} must be at least 1, but is {getattr(arguments, name)}")
    manifest, model = read_bundle(arguments.bundle, arguments.precision)
    fewest, most = manifest["input"]["batch"]
    if not fewest <= arguments.batch <= most:
        raise InputError(f"--batch must be from {fewest} to {most} for this bundle, but is {arguments.batch}")
    files = find_images(arguments.images)
    session = open_session(model, arguments.threads, arguments.cuda)
    scores = []
    for start in range(0, len(files), arguments.batch):
        images = [prepare(file, manifest) for file in files[start : start + arguments.batch]]
        scores.append(classify(session, np.stack(images), arguments.batch))
    classes = manifest["classes"]
    found = []
    for file, row in zip(files, softmax(np.concatenate(scores)), strict=True):
        best = np.argsort(-row, kind="stable")[: arguments.top]
        named = [{"name": classes[index], "probability": float(row[index])} for index in best]
        found.append({"file": str(file), "classes": named})
    result: dict = {"images": found, "precision": arguments.precision, "device": session.get_providers()[0]}
    folders = [file.parent.name for file in files]
    if arguments.images.is_dir() and set(folders) <= set(classes):
        right = [item["classes"][0]["name"] == folder for item, folder in zip(found, folders, strict=True)]
        result["accuracy"] = sum(right) / len(right)
    if arguments.time:
        result["time"] = measure(session, manifest, arguments.batch, arguments.runs)
    return result


def report(result: dict, as_json: bool) -> None:
    """Print the result."""
    if as_json:
        print(json.dumps(result))
        return
    for item in result["images"]:
        named = ", ".join(f"{entry['name']} ({100 * entry['probability']:.1f} %)" for entry in item["classes"])
        print(printable(f"{item['file']}: {named}"))
    if "accuracy" in result:
        print(f"{100 * result['accuracy']:.2f} % of {len(result['images'])} images are in the folder of their class")
    if "time" in result:
        took = result["time"]
        print(
            f"batch {took['batch']} in {result['precision']} on {result['device']}: median {took['median_ms']:.3f} ms, "
            f"90th percentile {took['p90_ms']:.3f} ms, {took['images_per_second']:.0f} images/s over {took['runs']} runs"
        )


def read_bundle(folder: Path, precision: str) -> tuple[dict, Path]:
    """The manifest and the network's file, whose hash is right."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        variants, files = manifest["variants"], {**manifest["files"]}
        names = {key: value["file"] for key, value in variants.items()}
        check_sizes(manifest)
    except FileNotFoundError:
        raise InputError(f"{folder} is not a bundle: it has no manifest.json") from None
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as problem:
        raise InputError(f"{path} is damaged ({repr(problem)[:150]}): copy the bundle again") from None
    if not manifest["classes"]:
        raise InputError("this bundle gives embeddings, not classes: its README.md shows how to compute them")
    if precision not in names:
        raise InputError(f"this bundle has {', '.join(names)}, but --precision is {precision}")
    name = names[precision]
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name not in files:
        raise InputError(f"{path} is damaged: {str(name)[:60]!r} is not a file of the bundle")
    try:
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    except OSError as problem:
        raise InputError(f"{folder / name} cannot be read: {problem}") from None
    if digest != files[name]:
        raise InputError(f"{folder / name} is not the file that was exported (its SHA-256 differs): copy the bundle again")
    return manifest, folder / name


def check_sizes(manifest: dict) -> None:
    """Raises KeyError, TypeError or ValueError when what the network needs is not there or makes no sense."""
    (channels, height, width), (fewest, most) = sizes = manifest["input"]["shape"], manifest["input"]["batch"]
    if not all(type(size) is int and size >= 1 for size in (channels, height, width, fewest, most)):
        raise ValueError(f"shape and batch are {sizes}")
    if channels * height * width * fewest > 2**28:
        raise ValueError(f"images of {channels}x{height}x{width} are too large")
    mean, std = (np.asarray(manifest["preprocessing"][name], np.float32) for name in ("mean", "std"))
    if not mean.shape == std.shape == (channels,) or not np.isfinite(mean).all() or not (std > 0).all():
        raise ValueError("mean and std are not one number per channel")
    if not isinstance(manifest["classes"], list) or not all(isinstance(name, str) for name in manifest["classes"]):
        raise TypeError("classes are not texts")


def find_images(path: Path) -> list[Path]:
    """The image itself, or all images below a folder."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path} does not exist")
    found = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    files = [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    files.sort(key=lambda file: file.parts)
    if not files:
        raise InputError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    return files


def shown(path: Path):
    """The image as training saw it: upright, clear places white, 16 bits as 8. Only formats of photographs are opened."""
    from PIL import Image, ImageOps

    with Image.open(path, formats=FORMATS) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PNG"):
            return Image.fromarray(np.rint(np.asarray(image, np.float64) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode!r}, of which nobody knows what is white")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour).convert("RGB")
    return image.convert("RGB")


def prepare(path: Path, manifest: dict) -> np.ndarray:
    """The image as the network expects it: (C, H, W) float32."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise InputError("images are read with Pillow, which is not installed: pip install pillow") from None
    channels, height, width = manifest["input"]["shape"]
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise InputError(f"this network takes {channels} channels, which image files do not have")
    try:
        fitted = ImageOps.fit(shown(path).convert(mode), (width, height), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise InputError(f"{path} is not a readable image: {problem}") from None
    pixels = np.asarray(fitted, np.float32).reshape(height, width, channels).transpose(2, 0, 1) / np.float32(255)
    mean, std = (np.asarray(manifest["preprocessing"][name], np.float32).reshape(-1, 1, 1) for name in ("mean", "std"))
    return (pixels - mean) / std


def open_session(model: Path, threads: int, cuda: bool):
    """The network in ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError("networks are run with ONNX Runtime, which is not installed: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that wait in a loop take the cores from whatever else runs there, this program included.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
    if cuda:
        onnxruntime.set_default_logger_severity(4)  # what goes wrong is told below, in one line
        if hasattr(onnxruntime, "preload_dlls"):
            with contextlib.redirect_stdout(io.StringIO()):
                onnxruntime.preload_dlls()  # finds CUDA and cuDNN where pip put them
    if wanted not in onnxruntime.get_available_providers():
        raise InputError("this ONNX Runtime has no CUDA support: pip install onnxruntime-gpu")
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=[wanted])
    except Exception as problem:  # ONNX Runtime's errors share no public base class
        raise InputError(f"ONNX Runtime cannot load {model}: {str(problem).splitlines()[0]}") from None
    if session.get_providers()[0] != wanted:
        raise InputError("ONNX Runtime fell back to the CPU: check that a GPU, its driver, CUDA and cuDNN are there")
    return session


def classify(session, images: np.ndarray, batch: int) -> np.ndarray:
    """The scores (B, classes) of images (B, C, H, W), B <= batch; a smaller last batch is filled up and cut."""
    filled = np.concatenate([images, np.repeat(images[-1:], batch - len(images), axis=0)])
    source = session.get_inputs()[0]
    try:
        return session.run(None, {source.name: filled})[0][: len(images)]
    except Exception as problem:  # see open_session
        raise InputError(f"the network does not run: {str(problem).splitlines()[0]}") from None


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities (B, classes)."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def measure(session, manifest: dict, batch: int, runs: int) -> dict:
    """The latency of one run on random images, after a tenth as many runs to warm up (at least ten)."""
    images = np.random.default_rng(0).standard_normal((batch, *manifest["input"]["shape"]), dtype=np.float32)
    took = []
    for _ in range(runs + max(10, runs // 10)):
        start = time.perf_counter()
        classify(session, images, batch)
        took.append((time.perf_counter() - start) * 1e3)
    kept = np.asarray(took[-runs:])
    median, p90 = (float(value) for value in np.quantile(kept, (0.5, 0.9)))
    return {"batch": batch, "runs": runs, "median_ms": median, "p90_ms": p90, "images_per_second": batch / median * 1e3}


if __name__ == "__main__":
    sys.exit(main())
