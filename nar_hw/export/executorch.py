"""ExecuTorch's files (.pte): a network made by torch.export for XNNPACK's kernels on a CPU, in fp32 and for one shape.

What XNNPACK does not have runs in ExecuTorch's portable kernels, as it would on the device.
"""

import importlib.metadata
import importlib.util
import logging
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from nar_hw.device.visits import Network, joined, unsaid
from nar_hw.errors import ExportError, ModelError, RuntimeUnavailableError
from nar_hw.export.onnx import Images, check_outputs
from nar_hw.files import write_bytes
from nar_hw.space.network import flat

INSTALL = "executorch is not installed: pip install 'nar-hw[executorch]'"


def save_executorch(network: nn.Module, target: Path, images: Images, threads: int) -> Path:
    """Write ``network`` as ``target`` (.pte) for inputs of exactly the shape of ``images`` (B, C, H, W).

    network: on the CPU, in float32 and evaluation mode. What the file computes for ``images``, on so many threads, is compared
    with it.

    Raises:
        RuntimeUnavailableError: ExecuTorch is not installed.
        ModelError: torch.export cannot trace the network.
        ExportError: ExecuTorch cannot have it, or computes something else.
    """
    if importlib.util.find_spec("executorch") is None:
        raise RuntimeUnavailableError(INSTALL)
    inputs = torch.from_numpy(images)
    with _quiet(), torch.inference_mode(mode=False), torch.no_grad():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        expected = flat(network(inputs.clone())).numpy()
        try:
            program = torch.export.export(network, (inputs,))
        except Exception as problem:  # whatever the network raises under the tracer
            raise ModelError(f"torch.export must be able to trace the network, but failed: {_one_line(problem)}") from problem
        _fold_norms(program)
        try:
            data = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
        except Exception as problem:  # its passes share no base class of errors
            raise ExportError(f"ExecuTorch must be able to take the network, but failed: {_one_line(problem)}") from problem
    write_bytes(target, data)
    try:
        made = ExecuTorchNetwork([str(target)], images, threads)
        try:
            outputs = made.infer(images)
        finally:
            made.close()
        check_outputs("ExecuTorch", "the network", outputs, expected)
    except BaseException:
        target.unlink()
        raise
    return target


def _fold_norms(program: torch.export.ExportedProgram) -> None:
    """Make norms part of the convolutions before them, which ExecuTorch does itself, but only after most of its slow passes."""
    names = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    state, graph = program.state_dict, program.graph
    for norm in list(graph.nodes):
        if norm.target is not torch.ops.aten.batch_norm.default:
            continue
        conv, scale, shift, mean, variance = norm.args[:5]
        if conv.target is not torch.ops.aten.conv2d.default or len(conv.users) > 1:
            continue
        images, weight, bias, *rest = (*conv.args, None)[: max(3, len(conv.args))]
        held = [part for part in (weight, bias or shift, scale, shift, mean, variance) if part is not None]
        if len(held) < 6 or any(names.get(part.name) not in state or len(part.users) > 1 for part in held):
            continue  # without learned scale and shift, or shared with other layers
        value = {part: state[names[part.name]].detach().double() for part in held}
        factor = value[scale] / torch.sqrt(value[variance] + norm.args[7])
        moved = value[shift] - value[mean] * factor + (value[bias] * factor if bias else 0)
        for part, new in ((weight, value[weight] * factor[:, None, None, None]), (bias or shift, moved)):
            state[names[part.name]] = nn.Parameter(new.float(), requires_grad=False)
        conv.args = (images, weight, bias or shift, *rest)
        norm.replace_all_uses_with(conv)
        graph.erase_node(norm)


class ExecuTorchNetwork(Network):
    """A .pte, loaded. All networks of a process share one pool of threads."""

    _loaded: ClassVar[weakref.WeakSet["ExecuTorchNetwork"]] = weakref.WeakSet()

    def __init__(self, files: Sequence[str], images: Images, threads: int, *, profile: bool = False) -> None:
        """Raises RuntimeUnavailableError where other networks use another number of threads."""
        assert not profile, "it has no per-layer times"
        data = Path(files[0]).read_bytes()
        with _quiet():
            from executorch.runtime import Runtime

            self._use(threads)
            try:
                self._program = Runtime.get().load_program(data)  # it holds the methods
                method = self._program.load_method("forward")
                assert method is not None
                takes = tuple(method.metadata.input_tensor_meta(0).sizes())
            except (RuntimeError, KeyError) as problem:
                raise ValueError(_one_line(problem)) from problem
        if takes != images.shape:
            raise ValueError(f"the file takes images of shape {takes}, but got {images.shape}")
        self._execute, self._images = method.execute, torch.from_numpy(images)
        self._loaded.add(self)

    @staticmethod
    def version() -> str:
        """Of the package."""
        return importlib.metadata.version("executorch")

    def _use(self, threads: int) -> None:
        """What is loaded holds on to the pool, so that it must not be changed."""
        from executorch.extension.pybindings import portable_lib

        if (now := portable_lib._threadpool_get_thread_count()) == threads:
            return
        if self._loaded:
            raise RuntimeUnavailableError(
                f"ExecuTorch has the same threads for all networks of a process, but {threads} are asked for while a network "
                f"with {now} is loaded: close that first"
            )
        portable_lib._unsafe_reset_threadpool(threads)

    def infer(self, images: Images) -> Images:
        """(B, D): all outputs for other images."""
        return joined([output.numpy() for output in self._execute((torch.from_numpy(images),))])

    def run(self) -> None:
        """One inference."""
        self._execute((self._images,))

    def close(self) -> None:
        """Release the network."""
        self._loaded.discard(self)
        for name in ("_execute", "_program"):
            self.__dict__.pop(name, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without its remarks on experimental interfaces, this CPU and its threads; what goes wrong is in its exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), unsaid():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _one_line(problem: BaseException) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]
