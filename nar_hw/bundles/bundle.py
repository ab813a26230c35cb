"""A trained network as one folder that runs without this package, each file compared with torch before it is handed over."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from torch import nn

from nar_hw._version import versions
from nar_hw.bundles.config import ExportConfig
from nar_hw.bundles.judge import COMPILED_FP32, TOLERANCES, BundleImages, Judge
from nar_hw.bundles.manifest import (
    ARCH_SCHEMA,
    MANIFEST,
    SCHEMA,
    Arch,
    Calibrated,
    Check,
    Compiled,
    Dense,
    Input,
    Latency,
    Manifest,
    Network,
    Preparation,
    Validation,
    Variant,
    load_bundle,
    read_manifest,
)
from nar_hw.bundles.readme import readme
from nar_hw.bundles.targets import FILES, config_for, plan, targets as export_targets
from nar_hw.bundles.verify import parsed
from nar_hw.data.preprocessing import Preprocessing
from nar_hw.errors import DataError, ExportError, RunError, RuntimeUnavailableError
from nar_hw.export.dense import DENSE_FILE, export_dense, run_dense
from nar_hw.export.forms import Form
from nar_hw.export.onnx import export_onnx, open_session, run_session
from nar_hw.export.quantize import check_calibration, to_fp16, to_int8
from nar_hw.files import atomic_folder, sha256, write_bytes, write_text
from nar_hw.locks import one_writer
from nar_hw.records import plain, replace, write_record
from nar_hw.runtimes import runtime_class
from nar_hw.runtimes.exporting import Source

__all__ = ["Arch", "BundleImages", "ExportConfig", "Latency", "Preprocessing", "export_bundle"]


@one_writer(whole=True)
def export_bundle(
    network: nn.Module,
    out: Path | str,
    *,
    arch: Arch,
    preprocessing: Preprocessing,
    config: ExportConfig = ExportConfig(),
    images: BundleImages = BundleImages(),
    latency: Latency = Latency(),
) -> Path:
    """Write the bundle ``out``; when anything fails, what was there before stays as it was.

    Example::

        from nar_hw.bundles.bundle import Arch, ExportConfig, Preprocessing, export_bundle

        export_bundle(
            network,
            "bundle",
            arch=Arch(name="resnet18", input_shape=(3, 32, 32)),
            preprocessing=Preprocessing(mean=(0.5,) * 3, std=(0.2,) * 3, classes=("cat", "dog")),
            config=ExportConfig(targets=("onnx", "openvino"), batch=(1, 8)),
        )

    Args:
        network: the trained network; it is left as it is.
        out: a folder that does not exist, is empty, or holds a bundle of the same network, which is replaced
            when all its files are made again.
        arch: its name, the shape of its images and, where it was searched, the operators in its slots.
        preprocessing: a network without classes gives embeddings; it is judged by its error and, in int8, by the cosine
            similarity with torch's.
        config: which files.
        images: to judge them by, and to calibrate int8 with.
        latency: kept in the manifest.

    Raises:
        UnknownNameError: an unknown target, precision or calibration.
        RuntimeUnavailableError: a target that does not work here.
        DataError: images, labels and classes do not go together, or the normalisation is per pixel.
        ExportError: a file differs from torch by more than its tolerance, or ``out`` cannot be written.
    """
    out = Path(out)
    if preprocessing.mean_image:
        raise DataError(
            "a bundle subtracts one mean of each channel, but the network was trained with the mean of each pixel: train with "
            "another normalisation, such as --data NAME,mean"
        )
    compiled, left_out = plan(config.targets, config.precisions, config.device)
    for target, precision in compiled:
        absent = runtime_class(target).left_out(precision, config.gpus)
        left_out |= {f"{target} {precision} {gpu}": reason for gpu, reason in absent.items()}
    made_again = {("onnx", "fp32"), *(("onnx", precision) for precision in config.precisions), *compiled}
    _check_nothing_is_lost(out, arch.name, made_again | ({("dense", "fp32")} if config.dense else set()))
    shape, classes = arch.input_shape, preprocessing.classes
    arch = replace(arch, parameters=sum(parameter.numel() for parameter in network.parameters()))
    model = Network(name=arch.name, operators=arch.operators, codes=arch.codes, parameters=arch.parameters)
    properties = {
        "model": plain(model),
        "classes": list(classes),
        "normalisation": {"mean": list(preprocessing.mean), "std": list(preprocessing.std)},
        "table_hash": latency.table_hash,
    }
    if "int8" in config.precisions:
        check_calibration(images.calibration, config.calibration)
    judge = Judge(network, shape, len(classes), images)
    if len(judge.outputs) > 1:
        for target in dict.fromkeys(target for target, _ in compiled):
            if not runtime_class(target).several:
                names = ", ".join(output.name for output in judge.outputs)
                able = " or ".join(["onnx", *(name for name, kind in export_targets().items() if kind.several)])
                raise ExportError(f"{target} takes networks of one output, but this one gives {names}: use {able}")
    with _replacing(out) as folder:
        files = {precision: folder / name for precision, name in FILES.items() if precision in ("fp32", *config.precisions)}
        export_onnx(network, files["fp32"], input_shape=shape, batch=config.batch, metadata=properties)
        source = Source(
            network=network,
            onnx=files,
            input_shape=shape,
            batch=config.batch,
            metadata=properties,
            folder=folder,
            gpus=config.gpus,
        )
        variants = _variants(judge, files, config, images)
        dense = _dense(judge, source, config.dense) if config.dense else None
        made: dict[str, dict[str, Compiled]] = {}
        for target, precision in compiled:
            made.setdefault(target, {})[precision] = _compiled(judge, target, precision, source, config)
        _write_weights(network, folder / "weights.safetensors")
        write_record(folder / "arch.json", arch, schema=ARCH_SCHEMA)
        manifest = Manifest(
            task="classification" if classes else "embedding" if judge.embeds else "own",
            model=model,
            input=Input(shape=shape, batch=config.batch),
            outputs=judge.outputs,
            preprocessing=Preparation(channels={1: "L", 3: "RGB"}.get(shape[0]), mean=preprocessing.mean, std=preprocessing.std),
            classes=classes,
            variants=variants,
            compiled=made,
            left_out=left_out,
            tensorrt_parser=parsed(files, folder / DENSE_FILE if config.dense else None),
            dense=dense,
            validation=Validation(
                images=0 if images.validation is None else len(images.validation), torch_accuracy=judge.accuracy
            ),
            latency=latency,
            check=Check(outputs=judge.check_outputs),
            versions={**versions("torch", "onnx", "numpy"), "onnxruntime": onnxruntime.__version__},
            files=_hashes(folder),
        )
        write_text(folder / "README.md", readme(manifest))
        hashes = {**manifest.files, "README.md": sha256(folder / "README.md")}
        write_record(folder / MANIFEST, replace(manifest, files=dict(sorted(hashes.items()))), schema=SCHEMA)
        read_manifest(folder)
    return out


def _variants(judge: Judge, files: dict[str, Path], config: ExportConfig, images: BundleImages) -> dict[str, Variant]:
    """Make the ONNX files of the other precisions from that in fp32, and judge all; their entries in the manifest."""
    calibrated = None
    if "fp16" in files:
        to_fp16(files["fp32"], files["fp16"])
    if "int8" in files:
        samples = np.empty(0, np.float32) if images.calibration is None else images.calibration
        to_int8(files["fp32"], files["int8"], samples, method=config.calibration)
        calibrated = Calibrated(method=config.calibration, images=len(samples))
    found = {}
    for precision, file in files.items():
        run = partial(run_session, open_session(file, threads=0))
        drop = math.inf if precision == "fp32" else config.max_accuracy_drop
        judged = judge(run, precision, tolerance=TOLERANCES.get(precision), max_drop=drop)
        found[precision] = Variant(file=file.name, calibration=calibrated if precision == "int8" else None, **judged)
    return found


def _dense(judge: Judge, source: Source, form: Form) -> Dense:
    """Make the dense file; its entry in the manifest. At the training size its one answer is the network's."""
    file = source.folder / DENSE_FILE
    sizes = export_dense(
        source.network, file, input_shape=source.input_shape, batch=source.batch, metadata=source.metadata, form=form
    )
    judged = judge(partial(run_dense, file), "dense", tolerance=TOLERANCES["fp32"])
    return Dense(file=file.name, **sizes, **judged)


def _compiled(judge: Judge, target: str, precision: str, source: Source, config: ExportConfig) -> Compiled:
    """Make the files of a target; their entry in the manifest."""
    kind = runtime_class(target)
    here = config_for(target, precision, config.device, source.batch[0])
    made = kind.export(source, here)
    tolerance = COMPILED_FP32 if precision == "fp32" else TOLERANCES.get(precision)
    try:
        with kind(source.folder / made.files[0], source.input_shape, here) as runtime:
            judged = judge(runtime.predict, f"{target} {precision}", tolerance=tolerance, max_drop=config.max_accuracy_drop)
    except RuntimeUnavailableError:
        if not kind.exports_anywhere:
            raise
        judged = judge.not_run(tolerance)
    return Compiled(file=made.files[0], **made._asdict(), **judged)


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in sorted(folder.iterdir())}


def _check_nothing_is_lost(out: Path, name: str, made: set[tuple[str, str]]) -> None:
    """Raises ExportError where ``out`` has a whole bundle of another network, or files that are not ``made`` again."""
    try:
        old = load_bundle(out).manifest
    except RunError:  # none, or a damaged one
        return
    if old.model.name != name:
        raise ExportError(f"{out} holds a bundle of {old.model.name}, not {name}: choose another folder, or delete it")
    if lost := [f"{target} {precision}" for target, precision, _ in old.entries() if (target, precision) not in made]:
        raise ExportError(
            f"{out} holds a bundle with {', '.join(lost)}, which this export would not make again: ask for these too, "
            "choose another folder, or delete it"
        )


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A new folder beside ``out`` that takes its place when the block succeeds and vanishes when it does not."""
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"a bundle replaces only another bundle, but {out} holds something else: choose another folder")
    try:
        with atomic_folder(out) as folder:
            yield folder
    except OSError as problem:
        raise ExportError(f"bundle {out} cannot be written: {problem}") from problem


def _write_weights(network: nn.Module, path: Path) -> None:
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    # Modules that are reachable twice share their memory, which the format refuses: each name but the first gets its own copy.
    seen: set[int] = set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    write_bytes(path, save(tensors))
