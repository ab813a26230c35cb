"""Classify images with a TensorRT engine. Needs numpy, Pillow, tensorrt and torch; nothing else of the project that made it.

    python run_engine.py MODEL.engine IMAGE_OR_FOLDER [--batch 1] [--top 1] [--gpu 0] [--time] [--json]

The engine's own description MODEL.engine.json must lie beside it: it holds the hash, without which no engine is loaded, and the
classes and the normalisation. An image's class and probability per line; --time adds the latency of one run on the GPU (median
and 90th percentile). Where the folder has one subfolder per class, the share of right answers follows. Exit code 2 and one line
on stderr when something is wrong.
"""

import argparse
import contextlib
import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np

try:
    import tensorrt
    import torch
except ImportError as problem:
    print(f"error: engines are run with tensorrt and torch ({problem}): pip install tensorrt torch", file=sys.stderr)
    sys.exit(2)

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
    parser = argparse.ArgumentParser(description="Classify images with a TensorRT engine.")
    parser.add_argument("engine", type=Path, help="the engine; its description (.json) lies beside it")
    parser.add_argument("images", type=Path, help="an image, or a folder of images")
    parser.add_argument("--batch", type=int, help="images per run; by default as few as the engine takes")
    parser.add_argument("--top", type=int, default=1, help="how many classes to name per image")
    parser.add_argument("--gpu", type=int, default=0, help="which of the GPUs")
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
    for name, least in (("top", 1), ("runs", 1), ("gpu", 0)):
        if getattr(arguments, name) < least:
            raise InputError(f"--{name} must be at least {least}, but is {getattr(arguments, name)}")
    plan, info = read_engine(arguments.engine)
    fewest, _, most = info["batch"]
    batch = fewest if arguments.batch is None else arguments.batch
    if not fewest <= batch <= most:
        raise InputError(f"--batch must be from {fewest} to {most} for this engine, but is {batch}")
    files = find_images(arguments.images)
    network = Network(plan, info, batch, arguments.gpu)
    scores = []
    for start in range(0, len(files), batch):
        images = [prepare(file, network.shape, info) for file in files[start : start + batch]]
        scores.append(network.classify(np.stack(images)))
    classes = info["classes"]
    found = []
    for file, row in zip(files, softmax(np.concatenate(scores)), strict=True):
        best = np.argsort(-row, kind="stable")[: arguments.top]
        named = [{"name": classes[index], "probability": float(row[index])} for index in best]
        found.append({"file": str(file), "classes": named})
    result: dict = {"images": found, "precision": info["precision"], "device": info["gpu"]}
    folders = [file.parent.name for file in files]
    if arguments.images.is_dir() and set(folders) <= set(classes):
        right = [item["classes"][0]["name"] == folder for item, folder in zip(found, folders, strict=True)]
        result["accuracy"] = sum(right) / len(right)
    if arguments.time:
        took = network.time_ms(arguments.runs)
        median, p90 = (float(value) for value in np.quantile(took, (0.5, 0.9)))
        result["time"] = {
            "batch": batch,
            "runs": arguments.runs,
            "median_ms": median,
            "p90_ms": p90,
            "images_per_second": batch / median * 1e3,
        }
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


def read_engine(path: Path) -> tuple[bytes, dict]:
    """The engine, whose hash is right, and its description with the classes and the normalisation."""
    beside = path.with_name(f"{path.name}.json")
    try:
        info = json.loads(beside.read_text(encoding="utf-8"))
        plan = path.read_bytes()
    except OSError as problem:
        raise InputError(f"{problem.filename} cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{beside} is damaged ({problem}): copy it again") from None
    try:
        if info["schema"] != 1:
            raise ValueError(f"schema {info['schema']}, not 1")
        kinds = {**dict.fromkeys(("gpu", "compute_capability", "tensorrt", "precision"), str), "version_compatible": bool}
        for name, kind in {**kinds, "hardware_compatibility": str | None}.items():
            if not isinstance(info[name], kind):
                raise TypeError(f"{name} is {info[name]!r}")
        wanted, metadata = info["engine_sha256"], info["metadata"]
        info["batch"] = [int(size) for size in info["batch"]]
        if len(info["batch"]) != 3 or not numbers(info["tensorrt"]):
            raise ValueError("batch or tensorrt")
        if not {"classes", "normalisation"} <= metadata.keys():
            raise InputError(f"{beside} tells of no classes and normalisation: build the engine from a bundle's ONNX file")
        info["classes"] = [str(name) for name in json.loads(metadata["classes"])]
        normalisation = json.loads(metadata["normalisation"])
        for name in ("mean", "std"):
            info[name] = np.asarray(normalisation[name], np.float32).reshape(-1, 1, 1)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as problem:
        raise InputError(f"{beside} is damaged ({repr(problem)[:150]}): copy it again") from None
    if hashlib.sha256(plan).hexdigest() != wanted:
        raise InputError(f"{path} is not the file that was built (its SHA-256 differs): copy it again")
    return plan, info


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


def prepare(path: Path, shape: tuple[int, int, int], info: dict) -> np.ndarray:
    """The image as the network expects it: (C, H, W) float32."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise InputError("images are read with Pillow, which is not installed: pip install pillow") from None
    channels, height, width = shape
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise InputError(f"this network takes {channels} channels, which image files do not have")
    if len(info["mean"]) != channels or len(info["std"]) != channels:
        raise InputError(f"this network takes {channels} channels, but its mean and std are for {len(info['mean'])}")
    try:
        fitted = ImageOps.fit(shown(path).convert(mode), (width, height), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise InputError(f"{path} is not a readable image: {problem}") from None
    pixels = np.asarray(fitted, np.float32).reshape(height, width, channels).transpose(2, 0, 1) / np.float32(255)
    return (pixels - info["mean"]) / info["std"]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities (B, classes)."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class Errors(tensorrt.ILogger):
    """What TensorRT complains of; anything less is dropped."""

    def __init__(self) -> None:
        tensorrt.ILogger.__init__(self)
        self.told: list[str] = []

    def log(self, severity, msg: str) -> None:
        """Called by TensorRT."""
        if severity in (tensorrt.ILogger.ERROR, tensorrt.ILogger.INTERNAL_ERROR):
            self.told.append(" ".join(msg.split()))

    def must(self, result, task: str):
        """``result``, unless it is one of those by which TensorRT says that it failed."""
        if result is None or result is False:
            raise InputError(f"TensorRT cannot {task}: {'; '.join(self.told) or 'it does not say why'}")
        return result


class Network:
    """The engine on a GPU, for one batch size, captured as one CUDA graph."""

    def __init__(self, plan: bytes, info: dict, batch: int, gpu: int) -> None:
        self.stream, self.errors = CudaStream(gpu), Errors()
        if reason := misfit(info, tensorrt.__version__, *self.stream.gpu()):
            raise InputError(f"this engine {reason}: build it again here")
        must = self.errors.must
        with self.stream.active():
            try:
                runtime = tensorrt.Runtime(self.errors)
            except TypeError:  # the bindings got a null pointer
                must(None, "start on this machine")
            runtime.engine_host_code_allowed = info["version_compatible"]  # such an engine brings code of its own
            self.engine = must(runtime.deserialize_cuda_engine(plan), "load the engine")
            names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
            modes = {self.engine.get_tensor_mode(name): name for name in names}
            source, result = modes[tensorrt.TensorIOMode.INPUT], modes[tensorrt.TensorIOMode.OUTPUT]
            self.shape = tuple(self.engine.get_tensor_shape(source))[1:]
            self.context = must(self.engine.create_execution_context(), "make a context (out of GPU memory?)")
            must(self.context.set_input_shape(source, (batch, *self.shape)), f"run batch {batch}")
            self.input = torch.zeros((batch, *self.shape), device=self.stream.device)
            self.output = torch.zeros(tuple(self.context.get_tensor_shape(result)), device=self.stream.device)
            for name, tensor in ((source, self.input), (result, self.output)):
                must(self.context.set_tensor_address(name, tensor.data_ptr()), f"take the address of {name}")
            self.replay = self.stream.captured(self.enqueue)
        if (scores := self.output.shape[1]) != len(info["classes"]):
            raise InputError(f"this engine gives {scores} scores, but is said to have {len(info['classes'])} classes")

    def enqueue(self) -> None:
        """Start one run."""
        self.errors.must(self.context.execute_async_v3(self.stream.handle), "run the network")

    def classify(self, images: np.ndarray) -> np.ndarray:
        """The scores (B, classes) of images (B, C, H, W), B <= batch; what is left of the batch runs along unused."""
        with self.stream.active():
            self.input[: len(images)] = torch.from_numpy(images).to(self.stream.device)
            self.replay()
            return self.output[: len(images)].cpu().numpy().copy()

    def time_ms(self, runs: int) -> list[float]:
        """The milliseconds of each run, after a tenth as many to warm up (at least ten); the images lie on the GPU."""
        with self.stream.active():
            return [self.stream.time_ms(self.replay) for _ in range(runs + max(10, runs // 10))][-runs:]


class CudaStream:
    """A stream of its own on one GPU."""

    def __init__(self, index: int) -> None:
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if index >= found:
            raise InputError(f"torch finds {found} GPUs, but GPU {index} (the first is 0) is asked for: check nvidia-smi")
        self.device = torch.device("cuda", index)
        self.stream = torch.cuda.Stream(self.device)
        self.handle = self.stream.cuda_stream

    def gpu(self) -> tuple[str, str]:
        """(name, compute capability)."""
        found = torch.cuda.get_device_properties(self.device)
        return found.name, f"{found.major}.{found.minor}"

    @contextlib.contextmanager
    def active(self):
        """Torch and TensorRT work on this GPU and stream inside the block."""
        with torch.inference_mode(), torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            yield

    def captured(self, work):
        """What replays ``work`` as one CUDA graph, after one run without."""
        work()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            work()
        return graph.replay

    def time_ms(self, work) -> float:
        """The milliseconds of ``work`` on the GPU's clock."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def misfit(info: dict, version: str, gpu: str, capability: str) -> str | None:
    """Why the engine does not run in this version of TensorRT on this GPU; None when it does."""
    built, here = numbers(info["tensorrt"]), numbers(version)
    if not (built == here or (info["version_compatible"] and built[0] == here[0] and built <= here)):
        return f"was built by TensorRT {info['tensorrt']}, but this is {version}"
    same = info["compute_capability"] == capability
    fits = {
        None: same and info["gpu"] == gpu,
        "same_compute_capability": same,
        "ampere_plus": numbers(capability) >= (8, 0),
    }
    if not fits.get(info["hardware_compatibility"], False):
        return f"was built for {info['gpu']} (compute capability {info['compute_capability']}), but this is {gpu} ({capability})"
    return None


def numbers(version: str) -> tuple[int, ...]:
    """(10, 16, 1, 11) for "10.16.1.11"."""
    return tuple(map(int, re.findall(r"\d{1,9}", version)))


if __name__ == "__main__":
    sys.exit(main())
