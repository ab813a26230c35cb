"""Run a bundle's network on images, without the project that made it, in the runtime that its ending asks for.

Needs Python 3.10 or newer, numpy, Pillow and the file's runtime. A classifier gives the likeliest classes of each image and their
probabilities, an embedding network its numbers. Where the folder of images has one subfolder per class, the share of right
answers follows. Exit code 2 and one line on stderr when something is wrong.

Packages (.pt2) and engines hold machine code. They are loaded only if their hash is the one that was noted when they were made,
which shows damage, not bad intentions: run files of people whom you trust.

To add a runtime, write a subclass of `Network` and give its files' ending a line in `NETWORKS`.
"""

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import io
import json
import logging
import os
import platform
import re
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

EXAMPLES = """examples:
  python run.py bundle cat.jpg                                  the bundle's model.onnx on the CPU
  python run.py bundle photos --batch 8 --top 3                 the three likeliest classes of each image
  python run.py bundle/model.int8.onnx photos --threads 4 --time
  python run.py bundle/model.onnx photos --gpu 0                on the first NVIDIA GPU
  python run.py bundle/model.tflite photos --time               in LiteRT, as on a phone
  python run.py model.engine photos --time --json
"""
SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
MOST_VALUES = 2**28
"""Of one input: more are no images, but a number that somebody changed."""


class InputError(Exception):
    """Something the user can mend, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Parser(argparse.ArgumentParser):
    """Mistakes on the command line are one line as well."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise InputError(f"{message} (--help shows what there is)")


def main() -> int:
    """Returns the exit code."""
    parser = Parser(description=__doc__.splitlines()[0], epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, help="a bundle (its model.onnx is run) or one of its files")
    parser.add_argument("images", type=Path, help="an image, or a folder of images")
    parser.add_argument("--batch", type=int, help="images per run; by default as few as the file takes")
    parser.add_argument("--threads", type=int, default=1, help="threads of one run on the CPU (default: 1)")
    parser.add_argument(
        "--gpu", type=int, help="which NVIDIA GPU to run on, from 0; engines run on 0 by default, .onnx on the CPU"
    )
    parser.add_argument("--top", type=int, default=1, help="how many classes to name per image (default: 1)")
    parser.add_argument("--time", action="store_true", help="measure the latency of one run as well")
    parser.add_argument("--runs", type=int, default=100, help="runs to measure (default: 100)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    try:
        arguments = parser.parse_args()
        report(run(arguments), arguments.json)
        sys.stdout.flush()
    except InputError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads has seen enough, `head` for one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run(arguments: argparse.Namespace) -> dict:
    """Everything that is asked for, as JSON values."""
    for name, least in (("batch", 1), ("threads", 1), ("gpu", 0), ("top", 1), ("runs", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"--{name} must be at least {least}, but is {value}")
    file = arguments.network / "model.onnx" if arguments.network.is_dir() else arguments.network
    if file.suffix not in NETWORKS:
        raise InputError(f"{file} must be a bundle or end in {', '.join(NETWORKS)}")
    backend = NETWORKS[file.suffix]
    about = backend.describe(file)
    fewest, most = about.batch
    batch = fewest if arguments.batch is None else arguments.batch
    if not fewest <= batch <= most:
        raise InputError(f"--batch must be from {fewest} to {most} for {file}, but is {batch}")
    files = find_images(arguments.images)
    network = backend(about, batch, arguments.threads, arguments.gpu)
    parts = [files[start : start + batch] for start in range(0, len(files), batch)]
    batches = [answers(network, np.stack([prepare(file, network) for file in part])) for part in parts]
    outputs = [np.concatenate(several) for several in zip(*batches, strict=True)]
    result = {"runtime": network.runtime, "device": network.device, "precision": about.precision}
    if about.classes:
        result["images"] = found = classified(files, outputs[0], about.classes, arguments.top)
        folders = [file.parent.name for file in files]
        if arguments.images.is_dir() and set(folders) <= set(about.classes):
            right = [item["classes"][0]["name"] == folder for item, folder in zip(found, folders, strict=True)]
            result["accuracy"] = sum(right) / len(right)
    elif len(outputs) == 1 and outputs[0].ndim == 2:
        result["images"] = [{"file": str(file), "embedding": row.tolist()} for file, row in zip(files, outputs[0], strict=True)]
    else:
        rows = zip(*outputs, strict=True)
        named = [{name: array.tolist() for name, array in zip(network.names, row, strict=True)} for row in rows]
        result["images"] = [{"file": str(file), "outputs": row} for file, row in zip(files, named, strict=True)]
    if arguments.time:
        result["time"] = measured(network, arguments.runs)
        if network.loading is not None:
            result["loading"] = network.loading
    return result


def classified(files: list[Path], scores: np.ndarray, classes: list[str], top: int) -> list[dict]:
    """The ``top`` likeliest classes of each image and their probabilities, from scores (N, classes)."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    found = []
    for file, row in zip(files, powers / powers.sum(axis=1, keepdims=True), strict=True):
        best = np.argsort(-row, kind="stable")[:top]
        found.append({"file": str(file), "classes": [{"name": classes[i], "probability": float(row[i])} for i in best]})
    return found


def answers(network: "Network", images: np.ndarray) -> list[np.ndarray]:
    """The outputs (B, ...) of images (B, C, H, W), B <= batch; a smaller last batch is filled up and cut."""
    network.feed(np.concatenate([images, np.repeat(images[-1:], network.batch - len(images), axis=0)]))
    network.run()
    outputs = [output[: len(images)].astype(np.float32) for output in network.outputs()]
    have = len(network.about.classes)
    if have and [output.shape[1:] for output in outputs] != [(have,)]:
        gives = " and ".join("x".join(map(str, output.shape[1:])) for output in outputs)
        raise InputError(f"{network.about.file} gives {gives} scores, but is said to have {have} classes")
    if not all(np.isfinite(output).all() for output in outputs):
        raise InputError(f"{network.about.file} gives numbers that are not finite: its precision may be too low for it")
    return outputs


def measured(network: "Network", runs: int) -> dict:
    """The latency of one run on random images, after a tenth as many runs to warm up (at least ten)."""
    network.feed(np.random.default_rng(0).standard_normal((network.batch, *network.shape), dtype=np.float32))
    took = network.times_ms(runs + max(10, runs // 10))[-runs:]
    median, p90 = (float(value) for value in np.quantile(took, (0.5, 0.9)))
    rate = network.batch / median * 1e3
    return {"batch": network.batch, "runs": runs, "median_ms": median, "p90_ms": p90, "images_per_second": rate}


def report(result: dict, as_json: bool) -> None:
    """Print the result."""
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    for item in result["images"]:
        if "classes" in item:
            answer = ", ".join(f"{entry['name']} ({100 * entry['probability']:.1f} %)" for entry in item["classes"])
        elif "embedding" in item:
            answer = " ".join(f"{value:.6g}" for value in item["embedding"])
        else:
            answer = "; ".join(summary(name, np.array(values)) for name, values in item["outputs"].items())
        print(printable(f"{item['file']}: {answer}"))
    if "accuracy" in result:
        print(f"{100 * result['accuracy']:.2f} % of {len(result['images'])} images are in the folder of their class")
    if "time" in result:
        took = result["time"]
        print(
            f"batch {took['batch']} in {result['precision']} in {result['runtime']} on {result['device']}: "
            f"median {took['median_ms']:.3f} ms, 90th percentile {took['p90_ms']:.3f} ms, "
            f"{took['images_per_second']:.0f} images/s over {took['runs']} runs"
        )
    if "loading" in result:
        how = "with kernels that were kept" if result["loading"]["kept"] else "kernels were compiled, the next time takes less"
        print(f"loading took {result['loading']['ms']:.0f} ms: {how}")


def summary(name: str, values: np.ndarray) -> str:
    """An output in a few words; --json has its numbers."""
    shape = "x".join(map(str, values.shape)) or "one number"
    return f"{name} ({shape}) from {values.min():.6g} to {values.max():.6g}, mean {values.mean():.6g}"


# Images


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


def prepare(path: Path, network: "Network") -> np.ndarray:
    """The image as the network expects it: (C, H, W) float32."""
    with needed("images are read with Pillow", "pillow"):
        from PIL import Image, ImageOps
    channels, height, width = network.shape
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise InputError(f"this network takes {channels} channels, which image files do not have")
    mean, std = network.about.mean, network.about.std
    if not len(mean) == len(std) == channels:
        raise InputError(f"this network takes {channels} channels, but its mean and std are for {len(mean)} and {len(std)}")
    try:
        fitted = ImageOps.fit(shown(path).convert(mode), (width, height), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise InputError(f"{path} is not a readable image: {problem}") from None
    pixels = np.asarray(fitted, np.float32).reshape(height, width, channels).transpose(2, 0, 1) / np.float32(255)
    return (pixels - mean) / std


# What is noted of a file when it is made


@dataclass(kw_only=True)
class About:
    """A file whose hash is right, and what is noted of it."""

    file: Path
    precision: str
    batch: tuple[int, int]
    """Fewest and most images in one run."""
    shape: tuple[int, int, int] | None
    """(C, H, W) of an image; None where the file itself says it."""
    classes: list[str]
    """Empty for embeddings."""
    mean: np.ndarray  # (C, 1, 1)
    std: np.ndarray  # (C, 1, 1)
    requires: dict = field(default_factory=dict)
    """What the file was compiled for; its keys depend on the runtime."""

    def __post_init__(self) -> None:
        (fewest, most), (channels, height, width) = self.batch, self.shape or (1, 1, 1)
        sizes = (fewest, most, channels, height, width)
        if not all(type(size) is int and size >= 1 for size in sizes) or fewest > most:
            raise ValueError(f"batch {self.batch} of shape {self.shape}")
        if fewest * channels * height * width > MOST_VALUES:
            raise ValueError(f"{fewest} images of shape {self.shape} are too large")
        if not isinstance(self.classes, list) or not all(isinstance(name, str) for name in self.classes):
            raise TypeError("classes are not texts")
        if not np.isfinite([*self.mean, *self.std]).all() or not (self.std > 0).all():
            raise ValueError("mean or std is no number")
        if not isinstance(self.precision, str) or not isinstance(self.requires, dict):
            raise TypeError("precision or requires")


def per_channel(normalisation: dict) -> dict[str, np.ndarray]:
    """Mean and std, each (C, 1, 1)."""
    with np.errstate(over="ignore"):  # what is infinite in float32 is refused with the rest
        return {name: np.asarray(normalisation[name], np.float32).reshape(-1, 1, 1) for name in ("mean", "std")}


def from_manifest(file: Path, files_of: Callable[[dict], dict]) -> About:
    """What the manifest of its bundle notes of a file; ``files_of`` gives the entries to look in by precision."""
    manifest_file = file.with_name("manifest.json")
    manifest = read_json(manifest_file, f"{file.parent} is not a bundle")
    with undamaged(manifest_file):
        entries = {entry["file"]: (precision, entry) for precision, entry in files_of(manifest).items()}
        digests = dict(manifest["files"])
        if file.name not in entries or file.name not in digests:
            raise InputError(f"{file} is not one of this bundle's: {', '.join(map(str, entries)) or 'it has none of this kind'}")
        precision, entry = entries[file.name]
        needed_too = {str(name): digests[name] for name in entry.get("files", [file.name])}
        about = About(
            file=file,
            precision=precision,
            batch=tuple(entry.get("batch", manifest["input"]["batch"])),
            shape=tuple(manifest["input"]["shape"]),
            classes=manifest["classes"],
            requires={"device": entry.get("device", "cpu"), **entry.get("requires", {})},
            **per_channel(manifest["preprocessing"]),
        )
    for name, digest in needed_too.items():
        check_hash(file.with_name(name), digest)
    return about


def from_engine_info(file: Path) -> About:
    """What lies beside an engine, in MODEL.engine.json."""
    beside = file.with_name(f"{file.name}.json")
    info = read_json(beside, f"{file} has no description beside it")
    with undamaged(beside):
        if info["schema"] == 1:  # before TensorRT for RTX
            info |= {"library": "tensorrt", "compute_capabilities": [info["compute_capability"]]}
        elif info["schema"] != 2:
            raise ValueError(f"schema {info['schema']}, not 1 or 2")
        if info["library"] not in LIBRARIES:
            raise ValueError(f"library is {info['library']!r}")
        kinds = {"tensorrt": str, "version_compatible": bool, "hardware_compatibility": str | None, "gpu": str | None}
        for name, kind in {**kinds, "compute_capabilities": list}.items():
            if not isinstance(info[name], kind):
                raise TypeError(f"{name} is {info[name]!r}")
        fewest, _, most = info["batch"]
        if not all(numbers(version) for version in (info["tensorrt"], *info["compute_capabilities"])):
            raise ValueError(f"tensorrt is {info['tensorrt']!r}, compute_capabilities are {info['compute_capabilities']!r}")
        if not {"classes", "normalisation"} <= info["metadata"].keys():
            raise InputError(f"{beside} has no classes and normalisation: build the engine from a bundle's ONNX file")
        about = About(
            file=file,
            precision=info["precision"],
            batch=(fewest, most),
            shape=None,
            classes=json.loads(info["metadata"]["classes"]),
            requires=info,
            **per_channel(json.loads(info["metadata"]["normalisation"])),
        )
    check_hash(file, info.get("engine_sha256"))
    return about


def read_json(path: Path, missing: str) -> dict:
    """A JSON object. ``missing`` says what it means that the file is not there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{missing}: it needs {path}") from None
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{path} is damaged ({problem}): copy it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged (it is no JSON object): copy it again")
    return found


@contextlib.contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """What goes wrong inside the block is the fault of the values in ``path``."""
    try:
        yield
    except DAMAGED as problem:
        raise InputError(f"{path} is damaged ({repr(problem)[:150]}): copy it again") from None


def check_hash(file: Path, wanted: object) -> None:
    """Raises InputError when ``file`` is not what was noted."""
    try:
        actual = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as problem:
        raise InputError(f"{file} cannot be read: {problem.strerror}") from None
    if actual != wanted:
        raise InputError(f"{file} is not the file that was made (its SHA-256 differs): copy it again")


# Runtimes


class Network(ABC):
    """A file in its runtime, for one batch size. Images are fed, run (as often as one likes), and give outputs."""

    runtime: str
    """For people to read."""

    describe: Callable[[Path], About]
    """What is noted of a file with this ending."""

    device: str
    """Where it runs."""

    shape: tuple[int, int, int]
    """(C, H, W) of an image."""

    names: tuple[str, ...] = ("output",)
    """Of the outputs."""

    loading: dict | None = None
    """Of a runtime that compiles kernels as it loads a file: milliseconds "ms", and whether they were "kept" from before."""

    def __init__(self, about: About, batch: int, threads: int, gpu: int | None) -> None:
        """Load the file; ``gpu`` is None where nothing is asked for."""
        self.about, self.batch = about, batch
        if about.shape is not None:
            self.shape = about.shape

    @abstractmethod
    def feed(self, images: np.ndarray) -> None:
        """Put images (batch, C, H, W) where the runtime reads them."""

    @abstractmethod
    def run(self) -> None:
        """Run once; it is over when this returns."""

    @abstractmethod
    def outputs(self) -> list[np.ndarray]:
        """What the last run gave: (batch, ...) of each output."""

    def times_ms(self, runs: int) -> list[float]:
        """The milliseconds of each run."""
        took = []
        for _ in range(runs):
            start = time.perf_counter()
            self.run()
            took.append((time.perf_counter() - start) * 1e3)
        return took


class OnnxRuntime(Network):
    """An ONNX file in ONNX Runtime, on the CPU or an NVIDIA GPU."""

    runtime = "ONNX Runtime"

    @staticmethod
    def describe(file: Path) -> About:
        """From the manifest."""
        return from_manifest(file, lambda manifest: manifest["variants"])

    def __init__(self, about: About, batch: int, threads: int, gpu: int | None) -> None:
        super().__init__(about, batch, threads, gpu)
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it queues events on models and machine for its maker
        with needed(".onnx files are run with ONNX Runtime", "onnxruntime"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Threads that wait in a loop take the cores from whatever else runs there, this program included.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.device = "cpu" if gpu is None else f"cuda:{gpu}"
        wanted, where = ("CPUExecutionProvider", {}) if gpu is None else ("CUDAExecutionProvider", {"device_id": gpu})
        if gpu is not None:
            onnxruntime.set_default_logger_severity(4)  # what goes wrong is said below, in one line
            if hasattr(onnxruntime, "preload_dlls"):
                with contextlib.redirect_stdout(io.StringIO()):
                    onnxruntime.preload_dlls()  # finds CUDA and cuDNN where pip put them
        if wanted not in onnxruntime.get_available_providers():
            raise InputError("this ONNX Runtime has no CUDA support: pip install onnxruntime-gpu")
        try:
            self.session = onnxruntime.InferenceSession(str(about.file), options, providers=[(wanted, where)])
        except Exception as problem:  # ONNX Runtime's errors share no public base class
            raise InputError(f"ONNX Runtime cannot load {about.file}: {first_line(problem)}") from None
        self.names = tuple(output.name for output in self.session.get_outputs())
        if self.session.get_providers()[0] != wanted:
            raise InputError("ONNX Runtime fell back to the CPU: check that the GPU, its driver, CUDA and cuDNN are there")

    def feed(self, images: np.ndarray) -> None:
        """Kept until the run."""
        self._fed = {self.session.get_inputs()[0].name: images}

    def run(self) -> None:
        """With the copies to and from a GPU."""
        try:
            self._outputs = self.session.run(None, self._fed)
        except Exception as problem:  # see __init__
            raise InputError(f"{self.about.file} does not run: {first_line(problem)}") from None

    def outputs(self) -> list[np.ndarray]:
        """As they came."""
        return self._outputs


class LiteRt(Network):
    """A .tflite in LiteRT on the CPU, with XNNPACK's kernels."""

    runtime = "LiteRT"
    device = "cpu"

    @staticmethod
    def describe(file: Path) -> About:
        """From the manifest."""
        return from_manifest(file, lambda manifest: manifest["compiled"].get("litert", {}))

    def __init__(self, about: About, batch: int, threads: int, gpu: int | None) -> None:
        super().__init__(about, batch, threads, gpu)
        refuse_gpu(about, gpu)
        with needed(".tflite files are run with LiteRT", "ai-edge-litert"):
            from ai_edge_litert.interpreter import Interpreter
        try:
            self.interpreter = Interpreter(model_path=str(about.file), num_threads=threads)
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as problem:
            raise InputError(f"LiteRT cannot load {about.file}: {first_line(problem)}") from None
        self.place = self.interpreter.get_input_details()[0]["index"]
        places = {item["index"]: name for name, item in self.interpreter.get_signature_runner().get_output_details().items()}
        self.results = [item["index"] for item in self.interpreter.get_output_details()]
        self.names = tuple(places[place] for place in self.results)

    def feed(self, images: np.ndarray) -> None:
        """As (batch, H, W, C)."""
        try:
            self.interpreter.set_tensor(self.place, np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
        except ValueError as problem:
            raise InputError(f"{self.about.file} does not run: {first_line(problem)}") from None

    def run(self) -> None:
        """Without copies."""
        self.interpreter.invoke()

    def outputs(self) -> list[np.ndarray]:
        """Copies."""
        return [self.interpreter.get_tensor(place) for place in self.results]


class Ncnn(Network):
    """A .param and its .bin in ncnn on the CPU, one image at a time, in fp32."""

    runtime = "ncnn"
    device = "cpu"

    @staticmethod
    def describe(file: Path) -> About:
        """From the manifest."""
        return from_manifest(file, lambda manifest: manifest["compiled"].get("ncnn", {}))

    def __init__(self, about: About, batch: int, threads: int, gpu: int | None) -> None:
        super().__init__(about, batch, threads, gpu)
        refuse_gpu(about, gpu)
        with needed(".param files are run with ncnn", "ncnn"):
            import ncnn
        self.ncnn, self.network = ncnn, ncnn.Net()
        options = self.network.opt
        options.num_threads = threads
        # By itself it keeps weights in fp16 and, on ARM, computes in it
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_storage = False
        if self.network.load_param(str(about.file)) or self.network.load_model(str(about.file.with_suffix(".bin"))):
            raise InputError(f"ncnn cannot load {about.file}: copy it again")
        self.names = self.network.input_names()[0], self.network.output_names()[0]

    def feed(self, images: np.ndarray) -> None:
        """The one image; ncnn reads this very memory."""
        self._fed = np.ascontiguousarray(images[0])

    def run(self) -> None:
        """Without copies."""
        with self.network.create_extractor() as extractor:
            extractor.input(self.names[0], self.ncnn.Mat(self._fed))
            code, self._output = extractor.extract(self.names[1])
        if code:
            raise InputError(f"{self.about.file} does not run: ncnn answers {code}")

    def outputs(self) -> list[np.ndarray]:
        """A copy."""
        return [np.array(self._output, np.float32).reshape(1, -1)]


class Mnn(Network):
    """A .mnn in MNN on the CPU, in fp32."""

    runtime = "MNN"
    device = "cpu"

    @staticmethod
    def describe(file: Path) -> About:
        """From the manifest."""
        return from_manifest(file, lambda manifest: manifest["compiled"].get("mnn", {}))

    def __init__(self, about: About, batch: int, threads: int, gpu: int | None) -> None:
        super().__init__(about, batch, threads, gpu)
        refuse_gpu(about, gpu)
        with needed(".mnn files are run with MNN", "MNN"), unsaid():
            import MNN
        self.mnn = MNN
        with unsaid():
            try:
                self.network = MNN.Interpreter(str(about.file))
            except Exception:  # it raises no other, and prints the cause
                raise InputError(f"MNN cannot load {about.file}: copy it again") from None
            # By itself it computes in fp16 where the CPU can
            self.session = self.network.createSession({"backend": "CPU", "numThread": threads, "precision": "high"})
        self.fed, self.result = self.network.getSessionInput(self.session), self.network.getSessionOutput(self.session)
        if (takes := tuple(self.fed.getShape())) != (batch, *self.shape):
            raise InputError(f"{about.file} takes images {takes}, but its manifest says {(batch, *self.shape)}")

    def _tensor(self, array: np.ndarray):
        return self.mnn.Tensor(array.shape, self.mnn.Halide_Type_Float, array, self.mnn.Tensor_DimensionType_Caffe)

    def feed(self, images: np.ndarray) -> None:
        """Copied."""
        self.fed.copyFrom(self._tensor(np.ascontiguousarray(images, np.float32)))

    def run(self) -> None:
        """Without copies."""
        self.network.runSession(self.session)

    def outputs(self) -> list[np.ndarray]:
        """A copy."""
        held = self._tensor(np.zeros(tuple(self.result.getShape()), np.float32))
        self.result.copyToHostTensor(held)
        return [np.array(held.getNumpyData(), np.float32)]


class ExecuTorch(Network):
    """A .pte in ExecuTorch on the CPU, with XNNPACK's kernels; its Python package needs torch."""

    runtime = "ExecuTorch"
    device = "cpu"

    @staticmethod
    def describe(file: Path) -> About:
        """From the manifest."""
        return from_manifest(file, lambda manifest: manifest["compiled"].get("executorch", {}))

    def __init__(self, about: About, batch: int, threads: int, gpu: int | None) -> None:
        super().__init__(about, batch, threads, gpu)
        refuse_gpu(about, gpu)
        with needed(".pte files are run with ExecuTorch", "torch executorch"), unsaid():
            import torch
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime

            portable_lib._unsafe_reset_threadpool(threads)  # before anything is loaded, which is when it is safe
            self.torch = torch
            try:
                self.program = Runtime.get().load_program(about.file.read_bytes())
                self.execute = self.program.load_method("forward").execute
            except (RuntimeError, KeyError, OSError) as problem:
                raise InputError(f"ExecuTorch cannot load {about.file}: {first_line(problem)}") from None

    def feed(self, images: np.ndarray) -> None:
        """A tensor of the same memory."""
        self._fed = (self.torch.from_numpy(images),)

    def run(self) -> None:
        """With copies to and from its own memory."""
        try:
            self._outputs = self.execute(self._fed)
        except RuntimeError as problem:
            raise InputError(f"{self.about.file} does not run: {first_line(problem)}") from None

    def outputs(self) -> list[np.ndarray]:
        """Copies."""
        return [output.numpy() for output in self._outputs]


@contextlib.contextmanager
def unsaid() -> Iterator[None]:
    """Without what a library prints; what goes wrong is in its exceptions too."""
    with contextlib.ExitStack() as after:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        flush = ctypes.CDLL(None).fflush if os.name == "posix" else lambda nothing: None
        flush(None)
        nothing = os.open(os.devnull, os.O_WRONLY)
        after.callback(os.close, nothing)
        for number in (1, 2):
            kept = os.dup(number)
            after.callback(os.close, kept)
            after.callback(os.dup2, kept, number)
            os.dup2(nothing, number)
        after.callback(flush, None)  # what C has printed to a pipe is still in memory
        after.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.WARNING)
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield


def refuse_gpu(about: About, gpu: int | None) -> None:
    """Raises InputError where a GPU is asked for."""
    if gpu is not None:
        raise InputError(f"{about.file} runs on the CPU: leave out --gpu")


class AotInductor(Network):
    """A package that AOTInductor compiled, in torch."""

    runtime = "AOTInductor"

    @staticmethod
    def describe(file: Path) -> About:
        """From the manifest."""
        about = from_manifest(file, lambda manifest: manifest["compiled"].get("aoti", {}))
        for name in ("device", "AOTI_MACHINE", "AOTI_CPU_ISA"):
            if not isinstance(about.requires.get(name), str):
                raise InputError(f"{file.with_name('manifest.json')} is damaged ({file.name}: {name} is no text): copy it again")
        return about

    def __init__(self, about: About, batch: int, threads: int, gpu: int | None) -> None:
        super().__init__(about, batch, threads, gpu)
        with needed("packages are run with torch", "torch"):
            import torch
        if reason := package_misfit(about.requires, torch.cuda.device_count() if torch.cuda.is_available() else 0, gpu):
            raise InputError(f"{about.file} {reason}")
        logging.disable(logging.WARNING)  # torch looks for a CUDA compiler, which is not needed, and says so
        torch.set_num_threads(threads)
        self.torch, index = torch, gpu or 0
        self.device = f"cuda:{index}" if about.requires["device"] == "cuda" else "cpu"
        try:
            options = {"device_index": index} if self.device != "cpu" else {}
            self.network = torch._inductor.aoti_load_package(str(about.file), run_single_threaded=True, **options)
        except RuntimeError as problem:
            raise InputError(f"torch {torch.__version__} cannot load {about.file}: {first_line(problem)}") from None

    def feed(self, images: np.ndarray) -> None:
        """A tensor where the network runs."""
        self._fed = self.torch.from_numpy(images).to(self.device)

    def run(self) -> None:
        """Without copies."""
        try:
            self._outputs = self.network(self._fed)
        except RuntimeError as problem:
            raise InputError(f"{self.about.file} does not run: {first_line(problem)}") from None
        if self.device != "cpu":
            self.torch.cuda.synchronize(self.device)

    def outputs(self) -> list[np.ndarray]:
        """From where the network runs."""
        return [self._outputs.float().cpu().numpy()]


def package_misfit(requires: dict, gpus: int, gpu: int | None) -> str | None:
    """Why a package does not run on this machine with so many GPUs; None when it does."""
    if requires["AOTI_MACHINE"] != platform.machine():
        return f"was made for {requires['AOTI_MACHINE']}, but this is {platform.machine()}: export it again here"
    if requires["device"] == "cuda" and (gpu or 0) >= gpus:
        return f"was made for an NVIDIA GPU, but torch finds {gpus}, and GPU {gpu or 0} (the first is 0) is asked for"
    if requires["device"] != "cuda" and gpu is not None:
        return "was made for the CPU, but --gpu is given: leave it out, or export it again with --device cuda"
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None  # not Linux
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.M)
    have = set(flags[1].split()) if flags else set()
    names = {"AVX512": "avx512f", "ASIMD": "asimd"}  # the rest are called the same in lower case
    lacking = [name for name in requires["AOTI_CPU_ISA"].split() if have and names.get(name, name.lower()) not in have]
    return f"was made for a CPU with {', '.join(lacking)}, which this one has not: export it again here" if lacking else None


LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""What builds and runs engines -> its module."""


class TensorRT(Network):
    """An engine on a GPU, captured as one CUDA graph; its times are the GPU's own.

    TensorRT for RTX compiles kernels when an engine is loaded; they are kept in the user's cache folder for the next time.
    """

    runtime = "TensorRT"

    describe = staticmethod(from_engine_info)

    def __init__(self, about: About, batch: int, threads: int, gpu: int | None) -> None:
        super().__init__(about, batch, threads, gpu)
        library = about.requires["library"]
        with needed(f"this engine is run with {library}", {"tensorrt-rtx": "tensorrt-rtx-cu13"}.get(library, library)):
            trt = self.trt = importlib.import_module(LIBRARIES[library])
        self.cuda, self.errors = Cuda(gpu or 0), error_log(trt)
        if reason := engine_misfit(about.requires, trt.__version__, *self.cuda.gpu()):
            raise InputError(f"{about.file} {reason}: build it again here")
        self.device = self.cuda.gpu()[0]
        must, start = self.must, time.perf_counter()
        try:
            runtime = trt.Runtime(self.errors)
        except TypeError:  # the bindings got a null pointer
            must(None, "start on this machine")
        runtime.engine_host_code_allowed = about.requires["version_compatible"]  # such an engine brings code of its own
        self.engine = must(runtime.deserialize_cuda_engine(about.file.read_bytes()), "load the engine")
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        modes = {self.engine.get_tensor_mode(name): name for name in names}
        source, result = modes[trt.TensorIOMode.INPUT], modes[trt.TensorIOMode.OUTPUT]
        self.shape = tuple(self.engine.get_tensor_shape(source))[1:]
        self.context = must(self.made_context(library), "make a context (out of GPU memory?)")
        must(self.context.set_input_shape(source, (batch, *self.shape)), f"run batch {batch}")
        self.host = np.zeros(tuple(self.context.get_tensor_shape(result)), np.float32)
        self.fed, self.given = self.cuda.memory(4 * batch * int(np.prod(self.shape))), self.cuda.memory(self.host.nbytes)
        for name, address in ((source, self.fed), (result, self.given)):
            must(self.context.set_tensor_address(name, address), f"take the address of {name}")
        self.replay = self.cuda.captured(self._enqueue)
        if self.cache is not None:
            self.loading = {"ms": (time.perf_counter() - start) * 1e3, "kept": self.cached}
            with contextlib.suppress(OSError):  # then the next time takes as long as this one
                self.cache_file.parent.mkdir(parents=True, exist_ok=True)
                self.cache_file.write_bytes(bytes(must(self.cache.serialize(), "keep what it compiled")))

    def made_context(self, library: str):
        """What runs; of TensorRT for RTX with the kernels that an earlier time has compiled."""
        self.cache, self.cached = None, False
        if library != "tensorrt-rtx":
            return self.engine.create_execution_context()
        slug = re.sub(r"[^a-z0-9.]+", "-", "-".join((library, self.trt.__version__, *self.cuda.gpu())).lower())
        try:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:  # a user without a home
            root = Path(os.devnull)
        self.cache_file = root / "nar_hw" / f"{slug}.cache"
        config = self.engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self.cache = config.create_runtime_cache()
        kept = self.cache_file.read_bytes() if self.cache_file.is_file() else b""
        self.cached = bool(kept) and bool(self.cache.deserialize(kept))  # what another driver compiled is compiled again
        self.must(config.set_runtime_cache(self.cache), "keep what it compiles")
        return self.engine.create_execution_context(config)

    def must(self, result, task: str):
        """``result``, unless it is one of those by which TensorRT says that it failed."""
        if result is None or result is False:
            raise InputError(f"TensorRT cannot {task}: {'; '.join(self.errors.messages) or 'it does not say why'}")
        return result

    def _enqueue(self) -> None:
        self.must(self.context.execute_async_v3(self.cuda.stream.value), "run the network")

    def feed(self, images: np.ndarray) -> None:
        """Onto the GPU."""
        self.cuda.upload(self.fed, images)

    def run(self) -> None:
        """Without copies."""
        self.replay()
        self.cuda.synchronize()

    def outputs(self) -> list[np.ndarray]:
        """From the GPU."""
        self.cuda.download(self.host, self.given)
        return [self.host.copy()]

    def times_ms(self, runs: int) -> list[float]:
        """On the GPU's clock; the images lie on the GPU."""
        return [self.cuda.time_ms(self.replay) for _ in range(runs)]


def error_log(trt):
    """A logger that keeps TensorRT's errors as ``messages``; anything less is dropped."""

    class Errors(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.messages.append(" ".join(msg.split()))

    return Errors()


class Cuda:
    """One GPU with one stream, through NVIDIA's driver: engines need no other package than their own."""

    def __init__(self, index: int) -> None:
        name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
        try:
            self._driver = ctypes.CDLL(name)
        except OSError as problem:
            raise InputError(f"engines need an NVIDIA GPU, but its driver does not load ({first_line(problem)})") from problem
        count, device, context, self.stream = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if index >= count.value:
            raise InputError(f"there are {count.value} GPUs, but GPU {index} (the first is 0) is asked for: check nvidia-smi")
        self._call("cuDeviceGet", ctypes.byref(device), index)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(self.stream), 1)  # does not wait for the default stream
        self._device = device

    def _call(self, name: str, *arguments) -> None:
        if code := getattr(self._driver, name)(*arguments):
            raise InputError(f"the GPU's driver fails in {name} with error {code}: check nvidia-smi")

    def gpu(self) -> tuple[str, str]:
        """(name, compute capability)."""
        name, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
        self._call("cuDeviceGetName", name, len(name), self._device)
        for value, attribute in ((major, 75), (minor, 76)):
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self._device)
        return name.value.decode(), f"{major.value}.{minor.value}"

    def memory(self, size: int) -> int:
        """The address of ``size`` new bytes on the GPU."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy ``array`` to the GPU."""
        array = np.ascontiguousarray(array)
        source, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, self.stream)
        self.synchronize()

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy from the GPU to ``array``."""
        target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, self.stream)
        self.synchronize()

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """What replays ``work`` as one CUDA graph, after one run without."""
        work()
        self.synchronize()
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self.stream, 1)  # 1: what other threads do does not matter
        work()
        self._call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        return lambda: self._call("cuGraphLaunch", ready, self.stream)

    def time_ms(self, work: Callable[[], None]) -> float:
        """The milliseconds of ``work`` on the GPU's clock."""
        start, end, ms = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_float()
        for event in (start, end):
            self._call("cuEventCreate", ctypes.byref(event), 0)
        self._call("cuEventRecord", start, self.stream)
        work()
        self._call("cuEventRecord", end, self.stream)
        self._call("cuEventSynchronize", end)
        self._call("cuEventElapsedTime", ctypes.byref(ms), start, end)
        for event in (start, end):
            self._call("cuEventDestroy_v2", event)
        return ms.value

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        self._call("cuStreamSynchronize", self.stream)


def engine_misfit(info: dict, version: str, gpu: str, capability: str) -> str | None:
    """Why the engine does not run in this version of its library on this GPU; None when it does."""
    built, here = numbers(info["tensorrt"]), numbers(version)
    if not (built == here or (info["version_compatible"] and built[0] == here[0] and built <= here)):
        return f"was built by {info['library']} {info['tensorrt']}, but this is {version}"
    same = capability in info["compute_capabilities"]
    fits = {
        None: same and info["gpu"] in (gpu, None),
        "same_compute_capability": same,
        "ampere_plus": numbers(capability) >= (8, 0),
    }
    if not fits.get(info["hardware_compatibility"], False):
        built_for = f"compute capability {', '.join(info['compute_capabilities'])}"
        where = f"{info['gpu']} ({built_for})" if info["gpu"] else built_for
        return f"was built for {where}, but this is {gpu} ({capability})"
    return None


NETWORKS: dict[str, type[Network]] = {
    ".onnx": OnnxRuntime,
    ".tflite": LiteRt,
    ".param": Ncnn,
    ".mnn": Mnn,
    ".pte": ExecuTorch,
    ".pt2": AotInductor,
    ".engine": TensorRT,
}


# Texts


@contextlib.contextmanager
def needed(what: str, packages: str) -> Iterator[None]:
    """A failed import inside the block is one line with the command that mends it."""
    try:
        yield
    except ImportError as problem:
        raise InputError(f"{what}, which cannot be imported ({problem}): pip install {packages}") from None


def printable(text: str) -> str:
    """``text`` with everything escaped that is no character to print: line ends, terminal commands."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def first_line(problem: Exception) -> str:
    """Of what an error says; its name where it says nothing."""
    return (str(problem).splitlines() or [type(problem).__name__])[0]


def numbers(version: str) -> tuple[int, ...]:
    """(10, 16, 1, 11) for "10.16.1.11"."""
    return tuple(map(int, re.findall(r"\d{1,9}", version)))


if __name__ == "__main__":
    sys.exit(main())
