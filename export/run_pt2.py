"""Classify images with a bundle's compiled package (.pt2). Needs numpy, torch and Pillow; nothing of the project that made it.

    python run_pt2.py BUNDLE IMAGE_OR_FOLDER [--precision fp32] [--threads 1] [--top 1] [--time] [--json]

An image's class and probability per line; --time adds the latency of one run (median and 90th percentile). Where the folder has
one subfolder per class, the share of right answers follows. Exit code 2 and one line on stderr when something is wrong.

A package holds machine code. It is loaded only if its hash is the one that the bundle notes, which shows damage, not bad
intentions: run bundles of people whom you trust.
"""

import argparse
import hashlib
import json
import logging
import platform
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
    parser = argparse.ArgumentParser(description="Classify images with a bundle's compiled package (.pt2).")
    parser.add_argument("bundle", type=Path, help="folder with manifest.json")
    parser.add_argument("images", type=Path, help="an image, or a folder of images")
    parser.add_argument("--precision", default="fp32", help="which of the bundle's precisions to run")
    parser.add_argument("--threads", type=int, default=1, help="threads of one run on the CPU")
    parser.add_argument("--top", type=int, default=1, help="how many classes to name per image")
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
    for name in ("threads", "top", "runs"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name} must be at least 1, but is {getattr(arguments, name)}")
    manifest, entry, package = read_bundle(arguments.bundle, arguments.precision)
    files = find_images(arguments.images)
    network = Network(package, entry, arguments.threads)
    batch = network.batch
    parts = [files[start : start + batch] for start in range(0, len(files), batch)]
    scores = [network.classify(np.stack([prepare(file, manifest) for file in part])) for part in parts]
    classes = manifest["classes"]
    found = []
    for file, row in zip(files, softmax(np.concatenate(scores)), strict=True):
        best = np.argsort(-row, kind="stable")[: arguments.top]
        named = [{"name": classes[index], "probability": float(row[index])} for index in best]
        found.append({"file": str(file), "classes": named})
    result: dict = {"images": found, "precision": arguments.precision, "device": entry["device"]}
    folders = [file.parent.name for file in files]
    if arguments.images.is_dir() and set(folders) <= set(classes):
        right = [item["classes"][0]["name"] == folder for item, folder in zip(found, folders, strict=True)]
        result["accuracy"] = sum(right) / len(right)
    if arguments.time:
        result["time"] = network.measure(manifest["input"]["shape"], arguments.runs)
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


def read_bundle(folder: Path, precision: str) -> tuple[dict, dict, Path]:
    """The manifest, its entry of the package, and the package's file, whose hash is right."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        packages, files = manifest["compiled"].get("aoti", {}), {**manifest["files"]}
        entries = {key: check_entry(value) for key, value in packages.items()}
        check_sizes(manifest)
    except FileNotFoundError:
        raise InputError(f"{folder} is not a bundle: it has no manifest.json") from None
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as problem:
        raise InputError(f"{path} is damaged ({repr(problem)[:150]}): copy the bundle again") from None
    if not manifest["classes"]:
        raise InputError("this bundle gives embeddings, not classes: its README.md shows how to compute them")
    if precision not in entries:
        have = ", ".join(entries) or "none: export it with --to aoti"
        raise InputError(f"--precision must be one of this bundle's packages ({have}), but is {precision}")
    entry = entries[precision]
    name = entry["file"]
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name not in files:
        raise InputError(f"{path} is damaged: {str(name)[:60]!r} is not a file of the bundle")
    try:
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    except OSError as problem:
        raise InputError(f"{folder / name} cannot be read: {problem}") from None
    if digest != files[name]:
        raise InputError(f"{folder / name} is not the file that was exported (its SHA-256 differs): copy the bundle again")
    return manifest, entry, folder / name


def check_entry(entry: dict) -> dict:
    """An entry of a package. Raises KeyError, TypeError or ValueError when what is needed is not there."""
    found = {"file": entry["file"], "batch": int(entry["batch"][0]), "device": entry["device"], **entry["requires"]}
    for name in ("file", "device", "AOTI_MACHINE", "AOTI_CPU_ISA"):
        if not isinstance(found[name], str):
            raise TypeError(f"{name} is no text")
    if not 1 <= found["batch"] <= 2**16:
        raise ValueError(f"batch {found['batch']}")
    return found


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


class Network:
    """The package in torch, for one batch size."""

    def __init__(self, package: Path, entry: dict, threads: int) -> None:
        try:
            import torch
        except ImportError:
            raise InputError("packages are run with torch, which is not installed: pip install torch") from None
        if reason := misfit(entry, torch.cuda.is_available()):
            raise InputError(f"this package {reason}: export it again here")
        logging.disable(logging.WARNING)  # torch looks for a CUDA compiler, which is not needed, and says so
        torch.set_num_threads(threads)
        self.torch, self.batch, self.device = torch, entry["batch"], entry["device"]
        try:
            self.network = torch._inductor.aoti_load_package(str(package), run_single_threaded=True)
        except RuntimeError as problem:
            raise InputError(f"torch {torch.__version__} cannot load {package}: {str(problem).splitlines()[0]}") from None

    def run(self, images):
        """The scores of a tensor of images, when they are there."""
        try:
            scores = self.network(images)
        except RuntimeError as problem:
            raise InputError(f"the network does not run: {str(problem).splitlines()[0]}") from None
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return scores

    def classify(self, images: np.ndarray) -> np.ndarray:
        """The scores (B, classes) of images (B, C, H, W), B <= batch; a smaller last batch is filled up and cut."""
        filled = np.concatenate([images, np.repeat(images[-1:], self.batch - len(images), axis=0)])
        return self.run(self.torch.from_numpy(filled).to(self.device)).cpu().numpy()[: len(images)]

    def measure(self, shape: list[int], runs: int) -> dict:
        """The latency of one run on random images, after a tenth as many runs to warm up (at least ten)."""
        noise = np.random.default_rng(0).standard_normal((self.batch, *shape), dtype=np.float32)
        images = self.torch.from_numpy(noise).to(self.device)
        took = []
        for _ in range(runs + max(10, runs // 10)):
            start = time.perf_counter()
            self.run(images)
            took.append((time.perf_counter() - start) * 1e3)
        median, p90 = (float(value) for value in np.quantile(took[-runs:], (0.5, 0.9)))
        return {
            "batch": self.batch,
            "runs": runs,
            "median_ms": median,
            "p90_ms": p90,
            "images_per_second": self.batch / median * 1e3,
        }


def misfit(entry: dict, cuda: bool) -> str | None:
    """Why the package does not run on this machine; None when it does."""
    if entry["AOTI_MACHINE"] != platform.machine():
        return f"was made for {entry['AOTI_MACHINE']}, but this is {platform.machine()}"
    if entry["device"] == "cuda" and not cuda:
        return "was made for an NVIDIA GPU, but torch finds none"
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None  # not Linux
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.M)
    have = set(flags[1].split()) if flags else set()
    names = {"AVX512": "avx512f", "ASIMD": "asimd"}  # the rest are called the same in lower case
    lacking = [name for name in entry["AOTI_CPU_ISA"].split() if have and names.get(name, name.lower()) not in have]
    return f"was made for a CPU with {', '.join(lacking)}, which this one has not" if lacking else None


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities (B, classes)."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


if __name__ == "__main__":
    sys.exit(main())
