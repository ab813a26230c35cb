"""ONNX files of children by surgery on one export of the network: milliseconds instead of seconds each.

A latency profile needs dozens of children whose weights do not matter. The network is exported once with a placeholder at every
site; a child is that graph with each placeholder replaced by its operator's nodes, which are built once per site and operator.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nar_hw.errors import ExportError
from nar_hw.export.graph import CHILD_WEIGHTS, bypass, clean, constant, fold_norms, initializer, node_path, rename_values, scopes
from nar_hw.export.leaves import emit
from nar_hw.export.onnx import Batch, traced
from nar_hw.files import write_bytes
from nar_hw.space.network import inference_copy, plain_copy
from nar_hw.space.space import SearchSpace, Site

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_DOMAIN = "nar_hw"
_ASIDE = 1024
"""Bytes from which a weight is put aside: runtimes read small ones, such as shapes, before they open other files."""
_PAGE = 4096
"""Bytes of which a weight's place in a file is a multiple, so that it can be mapped into memory."""


@dataclass(frozen=True, kw_only=True)
class _Norm:
    """A BatchNorm: scale, shift, mean and variance, each (channels,), and its node's attributes."""

    path: str
    arrays: tuple[NDArray[Any], ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One call of a site's convolution in the forward pass: one placeholder of the template."""

    slot: int
    site: Site
    path: str
    """What it was called by: the site's path or an alias."""
    norm: _Norm | None
    """The network's norm behind it, which becomes part of what replaces it."""
    weights: str
    """What the names of its weights begin with; the same for calls that share their weights."""


@dataclass(frozen=True, kw_only=True)
class _Fragment:
    """An operator at one call. No nodes: an operator that does nothing."""

    nodes: tuple["onnx.NodeProto", ...]
    weights: tuple["onnx.TensorProto", ...]


class ChildExporter:
    """Children of a space as ONNX files with the nodes and names that `export_onnx` gives them, for measuring only.

    What the network keeps has the network's own weights, what replaces it has random ones, and a bias where its norm is
    folded, as after training (`export_onnx` leaves out a bias that is zero). An operator that does nothing, right behind a
    layer, keeps the norm that `export_onnx` would fold into that layer.
    """

    def __init__(self, space: SearchSpace, *, batch: Batch = (1, 64), weights_in: Path | None = None) -> None:
        """Export the network once. Raises ExportError when that fails, and SpaceError for a space with free skips.

        With ``weights_in``, a folder, the files of children hold no weights: they must lie in that folder, in which one file,
        CHILD_WEIGHTS, grows by what no child had before. A child then takes a millisecond and a few kilobytes.
        """
        space.require_fixed_skips()
        import onnx_ir as ir
        from onnxscript import optimizer

        self.space = space
        self.batch = batch
        with torch.random.fork_rng(devices=[]):
            network = _with_placeholders(space)
        model = traced(network, space.input_shape, batch)
        self._calls = _take_sites(model.graph, space)
        model.opset_imports[_DOMAIN] = 1
        fold_norms(model.graph)
        optimizer.optimize(model)
        self._weights = weights_in / CHILD_WEIGHTS if weights_in is not None else None
        self._template = ir.to_proto(model)
        self._put_aside(self._template.graph.initializer)
        self._fragments: dict[tuple[int, int], _Fragment] = {}
        self._traced: dict[object, onnx.ModelProto] = {}

    def export(self, arch: Sequence[int], path: Path | str) -> None:
        """Write the child ``arch`` to ``path``. Raises SpaceError when the space does not have it."""
        data = self.model(arch).SerializeToString(deterministic=True)
        if self._weights is None:
            write_bytes(Path(path), data)
        else:  # lost with its folder: flushing it to the disk would cost more than making it
            Path(path).write_bytes(data)

    def model(self, arch: Sequence[int], child: nn.Module | None = None) -> "onnx.ModelProto":
        """The child ``arch``; its slots hold the weights of ``child`` where one is given (from ``space.build(arch)``)."""
        import onnx
        from onnx import helper

        codes = self.space.validate(arch)
        template = self._template.graph
        graph = onnx.GraphProto(input=template.input, output=template.output, initializer=template.initializer)
        present = {tensor.name for tensor in template.initializer}
        same: dict[str, str] = {}  # what an operator without nodes gives -> what it reads
        for node in template.node:
            if node.domain != _DOMAIN:
                graph.node.append(node)
                continue
            fragment = self._fragment(node, codes, child)
            if not fragment.nodes:
                same[node.output[0]] = node.input[0]
            graph.node.extend(fragment.nodes)
            graph.initializer.extend(tensor for tensor in fragment.weights if tensor.name not in present)
            present.update(tensor.name for tensor in fragment.weights)
        _join(graph, same)
        opset = next(item.version for item in self._template.opset_import if item.domain == "")
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=self._template.ir_version)
        clean(proto)
        return proto

    def _fragment(self, node: "onnx.NodeProto", codes: Sequence[int], child: nn.Module | None) -> _Fragment:
        index = node.attribute[0].i
        call = self._calls[index]
        site, code = call.site, codes[call.slot]
        if child is not None:
            norm = child.get_submodule(site.norm) if site.norm else None
            return self._build(node, call, child.get_submodule(site.conv), norm, None)
        if (index, code) not in self._fragments:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                operator = self.space.module_for(site, code)
            specs = self.space.site_specs(site, code)
            # An operator's graph is the same wherever its spec is; a convolution kept from the network is only like itself.
            key = specs[0] if specs[0] != site.incumbent else site.conv
            fragment = self._build(node, call, operator, self.space.norm_for(site, code), key)
            self._put_aside(fragment.weights)
            self._fragments[index, code] = fragment
        return self._fragments[index, code]

    def _put_aside(self, tensors: Iterable["onnx.TensorProto"]) -> None:
        """Move what ``tensors`` hold into the file of all children's weights, if there is one."""
        from onnx.external_data_helper import set_external_data

        if self._weights is None:
            return
        with self._weights.open("ab") as file:
            for tensor in tensors:
                if len(tensor.raw_data) >= _ASIDE:
                    file.write(bytes(-file.tell() % _PAGE))
                    set_external_data(tensor, CHILD_WEIGHTS, offset=file.tell(), length=len(tensor.raw_data))
                    file.write(tensor.raw_data)
                    tensor.ClearField("raw_data")

    def _build(self, node: "onnx.NodeProto", call: _Call, operator: nn.Module, norm: nn.Module | None, key: object) -> _Fragment:
        import onnx_ir as ir
        from onnxscript import optimizer

        operator = inference_copy(operator)
        spec = call.site.incumbent
        graph = emit(operator, torch.zeros(2, spec.c_in, spec.h, spec.w))
        plain = graph is not None
        model = self._trace(call, operator, key) if graph is None else ir.Model(graph, ir_version=self._template.ir_version)
        for inner in model.graph:
            path = node_path(inner.metadata_props)
            inner.metadata_props.update(scopes(f"{call.path}.{path}" if path else call.path))
        if call.norm is not None:
            own = isinstance(norm, _BatchNorm) and norm.running_mean is not None
            _append_norm(model.graph, call.norm, _statistics(norm) if own else call.norm.arrays)
        fold_norms(model.graph)
        if not plain:
            optimizer.optimize(model)
        return _inlined(ir.to_proto(model).graph, node, call)

    def _trace(self, call: _Call, operator: nn.Module, key: object) -> "ir.Model":
        import onnx_ir as ir

        if key is not None and key in self._traced:
            return ir.from_proto(self._traced[key])
        spec = call.site.incumbent
        model = traced(operator, (spec.c_in, spec.h, spec.w), self.batch)
        if key is not None:
            self._traced[key] = ir.to_proto(model)
        return model


def _with_placeholders(space: SearchSpace) -> nn.Module:
    """A copy of the network in which every site is one plain convolution of the same output size."""
    network = plain_copy(space.model)
    for slot in space.slots:
        for site in slot.sites:
            placeholder = _placeholder(network.get_submodule(site.conv), site)
            for path in (site.conv, *site.aliases):
                network.set_submodule(path, placeholder)
    return network


def _placeholder(conv: Any, site: Site) -> nn.Conv2d:
    channels = (conv.in_channels, conv.out_channels)
    like = nn.Conv2d(*channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, bias=False)
    # A subclass may pad on its own: then a 1x1 convolution with its stride is what keeps the size.
    for candidate in (like, nn.Conv2d(*channels, 1, conv.stride, groups=conv.groups, bias=False)):
        probe = plain_copy(candidate).to("meta")
        try:
            sizes = [probe(torch.empty(1, channels[0], *size, device="meta")).shape[2:] for size, _ in site.calls]
        except RuntimeError:  # its kernel is larger than the image
            continue
        if sizes == [out for _, out in site.calls]:
            return candidate
    raise ExportError(f"{site.conv} must change the image size as a strided convolution does: leave it out with slots=")


def _take_sites(graph: "ir.Graph", space: SearchSpace) -> list[_Call]:
    """Put a node without weights where each site is called, which also stands for the norm behind the site."""
    import onnx_ir as ir

    sites = {
        f"{path}.weight": (position, site)
        for position, slot in enumerate(space.slots)
        for site in slot.sites
        for path in (site.conv, *site.aliases)
    }
    calls: list[_Call] = []
    for conv in [node for node in graph if node.op_type == "Conv"]:
        weight = conv.inputs[1]
        if weight is None or str(weight.name) not in sites:
            continue
        slot, site = sites[str(weight.name)]
        norm = _take_norm(conv)
        path = node_path(conv.metadata_props)
        before = [call for call in calls if call.site is site]
        shared = [call.weights for call in before if (call.norm and call.norm.path) == (norm and norm.path)]
        weights = shared[0] if shared else f"{site.conv}@{len(before)}" if before else site.conv
        placeholder = ir.node("Site", [conv.inputs[0]], {"index": len(calls)}, domain=_DOMAIN)
        placeholder.outputs[0].name, placeholder.outputs[0].shape = f"site_{len(calls)}", conv.outputs[0].shape
        placeholder.outputs[0].type = conv.outputs[0].type
        graph.insert_before(conv, placeholder)
        bypass(conv, placeholder.outputs[0])
        calls.append(_Call(slot=slot, site=site, path=path, norm=norm, weights=weights))
    return calls


def _take_norm(conv: "ir.Node") -> _Norm | None:
    output = conv.outputs[0]
    if len(output.uses()) != 1 or output.is_graph_output():
        return None
    norm = next(iter(output.uses())).node
    arrays = [constant(value) for value in norm.inputs[1:]]
    if norm.op_type != "BatchNormalization" or any(array is None for array in arrays):
        return None
    bypass(norm, output)
    statistics = tuple(array for array in arrays if array is not None)
    return _Norm(path=node_path(norm.metadata_props), arrays=statistics, attributes=dict(norm.attributes))


def _statistics(norm: nn.Module | None) -> tuple[NDArray[Any], ...]:
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    ones, zeros = torch.ones_like(norm.running_var), torch.zeros_like(norm.running_mean)
    tensors = (ones if norm.weight is None else norm.weight, zeros if norm.bias is None else norm.bias)
    return tuple(tensor.detach().cpu().float().numpy() for tensor in (*tensors, norm.running_mean, norm.running_var))


def _append_norm(graph: "ir.Graph", norm: _Norm, arrays: tuple[NDArray[Any], ...]) -> None:
    import onnx_ir as ir

    names = ("scale", "shift", "mean", "variance")
    weights = [initializer(graph, f"norm.{name}", array) for name, array in zip(names, arrays, strict=True)]
    node = ir.node("BatchNormalization", [graph.outputs[0], *weights], norm.attributes)
    node.outputs[0].name = "norm"
    node.metadata_props.update(scopes(norm.path))
    graph.append(node)
    graph.outputs[0] = node.outputs[0]


def _inlined(graph: "onnx.GraphProto", node: "onnx.NodeProto", call: _Call) -> _Fragment:
    """``graph`` reading and giving what the placeholder ``node`` reads and gives."""
    names = {tensor.name: f"{call.weights}.{tensor.name}" for tensor in graph.initializer}
    names.update({value: f"{node.output[0]}/{value}" for inner in graph.node for value in inner.output})
    names[graph.output[0].name] = node.output[0]
    names[graph.input[0].name] = node.input[0]
    rename_values(graph, names)
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    return _Fragment(nodes=tuple(graph.node), weights=tuple(graph.initializer))


def _join(graph: "onnx.GraphProto", same: Mapping[str, str]) -> None:
    """Let the readers of an operator that does nothing read what it reads; the network's own output becomes a copy."""
    from onnx import helper

    for target in same:
        source = same[target]
        while source in same:
            source = same[source]
        rename_values(graph, {target: source})
        if graph.output[0].name == target:
            graph.node.append(helper.make_node("Identity", [source], [target]))
