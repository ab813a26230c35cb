"""The README of a bundle: what it is and how to run it, for someone who has never heard of nar_hw."""

import re

from nar_hw.bundles.manifest import Checked, Latency, Manifest, Network, Output
from nar_hw.errors import printable
from nar_hw.runtimes import RUNTIMES, runtime_class

_TEXT = """# {name}: {what} in one folder

It {does} {channels}x{height}x{width} (channels, height, width).
{operators_sentence}

| file | what it is |
|---|---|
{files}
| weights.safetensors | the trained weights, for PyTorch |
| arch.json | the operators of the network, slot by slot |
| manifest.json | everything about this bundle for programs: hashes, preprocessing, classes, accuracy, latency, versions |

{latency_sentence}

Preprocessing: convert to {mode}, scale the image until it covers {width}x{height} (bilinear, antialiased) and cut out its centre,
divide by 255, subtract the mean {mean} and divide by the standard deviation {std} of each channel. Images per run: {batch}.

`export/run.py` of nar_hw, which made this folder, runs its files on images and needs no nar_hw itself: `python run.py . photos`.

{parser}{usage}"""


_WHAT = {"classification": "an image classifier", "embedding": "an image embedding", "own": "a network of images"}


def readme(manifest: Manifest) -> str:
    """The text for a bundle's manifest, in which the README's own hash is not needed."""
    channels, height, width = manifest.input.shape
    fewest, most = manifest.input.batch
    classes, preparation = manifest.classes, manifest.preprocessing
    usages = (runtime_class(name).usage(manifest.deployed(name)) for name in RUNTIMES)
    return _TEXT.format(
        name=_plain(manifest.model.name),
        what=_WHAT[manifest.task],
        does=f"tells {len(classes)} classes apart ({_some(classes)}) in images of"
        if classes
        else f"makes {_outputs(manifest.outputs)} of each image of",
        channels=channels,
        height=height,
        width=width,
        batch=f"{fewest}" if fewest == most else f"{fewest} to {most}",
        operators_sentence=_operators(manifest.model),
        files="\n".join(_file_rows(manifest)),
        latency_sentence=_latency(manifest.latency),
        mode=manifest.deployed("onnxruntime").mode,
        mean=_numbers(preparation.mean),
        std=_numbers(preparation.std),
        parser="".join(f"TensorRT parser on {name}: {said}.\n\n" for name, said in manifest.tensorrt_parser.items()),
        usage="\n".join(filter(None, usages)),
    )


def _outputs(outputs: tuple[Output, ...]) -> str:
    """What it gives, in words; code for one output takes the first of several."""
    if len(outputs) == 1 and len(outputs[0].shape) == 1:
        return f"{outputs[0].shape[0]} numbers (an embedding)"
    named = [f"`{_plain(output.name)}` ({'x'.join(map(str, output.shape)) or 'one number'})" for output in outputs]
    return ", ".join(named) + (", in this order (the lines of Python below take the first)," if len(named) > 1 else "")


def _plain(name: str) -> str:
    """A user's name as text in Markdown: on one line, nothing of it markup."""
    return re.sub(r"[\\`*\[\]<>|&~#!]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", printable(name))


def _operators(model: Network) -> str:
    slots = f" with these operators in its {len(model.operators)} slots: {', '.join(map(_plain, model.operators))}"
    return f"It is {_plain(model.name)}{slots if model.operators else ''}; {model.parameters:,} parameters."


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(map(_plain, classes[:5])) + (", ..." if len(classes) > 5 else "")


def _file_rows(manifest: Manifest) -> list[str]:
    def row(item: Checked, what: str) -> str:
        right = (
            ""
            if item.accuracy is None
            else f", {100 * item.accuracy:.2f} % right on {manifest.validation.images} validation images"
        )
        untried = ", not run where it was made" if item.max_abs_error is None else ""
        return f"| {', '.join(item.names)} | {what}{right}{untried} |"

    rows = [row(item, f"the network in {precision}") for precision, item in manifest.variants.items()]
    if (dense := manifest.dense) is not None:
        smallest, stride = ("x".join(map(str, sizes)) for sizes in (dense.smallest, dense.stride))
        rows.append(
            f"| {dense.file} | the network for images of any size from {smallest} on: output `map` has an answer every "
            f"{stride} pixels, `output` is their mean |"
        )
    for target, items in manifest.compiled.items():
        runtime = runtime_class(target)
        rows += [row(item, runtime.described(precision, item.exported)) for precision, item in items.items()]
    return rows


def _latency(latency: Latency) -> str:
    device = latency.fingerprint
    where = f" on {device['device']} with {device.get('runtime')}, batch {device.get('batch')}" if device.get("device") else ""
    parts = []
    if latency.measured:
        parts.append("measured: " + ", ".join(f"{name.removesuffix('_ms')} {ms:.3g} ms" for name, ms in latency.measured.items()))
    if latency.predicted_ms is not None:
        parts.append(f"predicted by its latency table: {latency.predicted_ms:.3g} ms")
    return f"Latency{where}: {'; '.join(parts)}." if parts else "Its latency was not measured when it was made."


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
