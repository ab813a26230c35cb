"""The search space: which convolutions of a network may be replaced, and by what.

Shape legend: an arch holds one operator code per slot; a batch of archs is (N, slots).
"""

import copy
import fnmatch
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nar_hw.errors import SpaceError, unknown_name
from nar_hw.records import replace
from nar_hw.space.fixed import why_fixed
from nar_hw.space.network import plain_copy
from nar_hw.space.operators import FAMILIES, OPERATORS, Builder, build_operator, describe, family
from nar_hw.space.skips import NoSkip, free_skips
from nar_hw.space.spec import INCUMBENT, NO_SKIP, SKIP, Arch, Manner, OpSpec, Pair
from nar_hw.space.trace import Trace, TracedConv, trace
from nar_hw.userfile import is_file_name, load_function

Pattern = str | Callable[[str, nn.Conv2d], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One spatial convolution of the network."""

    conv: str
    """Path of the module that an operator replaces."""
    norm: str | None
    """Path of the BatchNorm that belongs to it (each candidate gets its own in the supernet)."""
    aliases: tuple[str, ...]
    """Other paths of the same convolution where modules are shared."""
    norm_aliases: tuple[str, ...]
    """Other paths of the same norm."""
    incumbent: OpSpec
    calls: tuple[tuple[Pair, Pair], ...]
    """(input, output) height and width of each call in one forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One decision of the search: one convolution (manner conv) or all of one block (manner block)."""

    name: str
    sites: tuple[Site, ...]
    candidates: tuple[int, ...]
    """Operator codes that may stand here, ascending."""
    incumbent: int
    """The code that leaves the network as it is."""
    reason: str | None = None
    """Why there is nothing to choose, where there is not."""

    @property
    def skip(self) -> bool:
        """Whether it is a skip connection, which stays or goes."""
        return self.sites[0].incumbent.operator == SKIP

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.candidates) == 1


class SearchSpace:
    """The children of one network: its skips, widths, stem and head with other operators in its slots."""

    def __init__(
        self,
        model: nn.Module,
        input_shape: tuple[int, int, int],
        num_classes: int,
        manner: Manner,
        slots: tuple[Slot, ...],
        operators: tuple[str, ...],
        builders: dict[str, Builder],
        asked: dict[str, Any],
        hidden: Mapping[str, str],
    ) -> None:
        self.model = model
        self.input_shape = input_shape
        self.num_classes = num_classes
        """Outputs of the network."""
        self.manner = manner
        self.slots = slots
        self.operators = operators
        """Code -> name: the paper's six, the user's own, the other families, "incumbent"."""
        self._builders = builders
        self.asked = asked
        """operators, slots and limit_params as in `ModelInfo`: what was asked beside the network and the manner."""
        self.hidden = hidden
        """Path of a module with convolutions that cannot be slots -> why not."""

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        input_shape: tuple[int, int, int],
        *,
        operators: Sequence[str | Builder] | None = None,
        manner: Manner = "conv",
        slots: Pattern | None = None,
        blocks: Callable[[str], str] | None = None,
        limit_params: bool = True,
        skips: bool = False,
    ) -> "SearchSpace":
        """The search space of any network.

        Args:
            model: the network; it is copied, never changed. What only wraps it or a part of it (DataParallel, torch.compile,
                averages) is taken off the copy.
            input_shape: (C, H, W) of one image.
            operators: names from OPERATORS and builders of your own, as functions or as ``path/to/file.py:function`` (the
                function's name is the operator's); by default every operator that suits the slot's family (dense,
                depthwise, grouped).
            manner: "conv" gives one slot per spatial convolution, "block" one per residual block (paper 4.2.2).
            slots: glob over module paths ("layer[34].*") or predicate (path, module) of the convolutions to search;
                by default all with a kernel larger than 1x1 except the stem.
            blocks: path of a convolution -> name of its block; by default found from where the network adds its skips.
            limit_params: admit only operators with no more parameters than the incumbent (paper 3.1).
            skips: the network's skip connections are slots too, behind the others: each stays or goes (`free_skips`).

        Raises:
            ModelError: the model rejects the input shape or fails on it, or cannot be copied.
            SpaceError: no slot is found, an operator of yours does not keep the shape, or there is no skip to be free.
            UnknownNameError: an operator that does not exist.
        """
        if manner not in ("conv", "block"):
            raise unknown_name("manner", manner, ("conv", "block"))
        own = {name: operator.build for name, operator in OPERATORS.items() if operator.family is None}
        named = [_named(item) for item in operators or ()]
        for name, builder in named:
            if builder is not None:
                if name in own or name in OPERATORS:
                    raise SpaceError(f"an operator of yours must have a name of its own, but {name!r} is taken: rename it")
                own[name] = builder
        admitted = None if operators is None else {name for name, _ in named}
        if admitted is not None and (unknown := sorted(admitted - OPERATORS.keys() - own.keys())):
            raise unknown_name("operator", unknown[0], OPERATORS)
        vocabulary = (*FAMILIES["dense"], *own, *FAMILIES["depthwise"], *FAMILIES["grouped"], INCUMBENT)
        model = plain_copy(model, input_shape)
        traced = trace(model, input_shape)
        asked: dict[str, Any] = {
            "operators": None
            if operators is None
            else tuple(item if isinstance(item, str) else item.__name__ for item in operators),
            "slots": slots if isinstance(slots, str) else None,
            "limit_params": limit_params,
            **({"skips": True} if skips else {}),
        }
        space = cls(model, input_shape, traced.num_classes, manner, (), vocabulary, own, asked, traced.hidden)
        convs = _choose(traced, slots)
        fixed = why_fixed(model, traced, convs, input_shape)
        groups: dict[str, list[Site]] = {}
        for conv in convs:
            path = conv.path
            name = path if manner == "conv" else blocks(path) if blocks else traced.block_of(path, space.model)
            groups.setdefault(name, []).append(
                Site(
                    conv=path,
                    norm=conv.norm,
                    aliases=conv.aliases,
                    norm_aliases=conv.norm_aliases,
                    incumbent=describe(conv.module, conv.calls[0][0]),
                    calls=conv.calls,
                )
            )
        space.slots = tuple(space._slot(name, tuple(sites), admitted, limit_params, fixed) for name, sites in groups.items())
        if skips:
            space._free_skips(traced)
        return space

    def _free_skips(self, traced: Trace) -> None:
        """Make slots of the network's skips."""
        if taken := {SKIP, NO_SKIP} & set(self.operators):
            raise SpaceError(f"an operator of yours must have a name of its own, but {taken.pop()!r} is taken: rename it")
        searched = [site.conv for slot in self.slots for site in slot.sites]
        codes = len(self.operators), len(self.operators) + 1
        self.operators = (*self.operators, SKIP, NO_SKIP)
        found = free_skips(self.model, traced, searched, self.input_shape)
        sites = [
            Site(conv=skip.path, norm=None, aliases=(), norm_aliases=(), incumbent=skip.spec, calls=skip.calls) for skip in found
        ]
        self.slots += tuple(Slot(name=site.conv, sites=(site,), candidates=codes, incumbent=codes[0]) for site in sites)

    def _slot(
        self, name: str, sites: tuple[Site, ...], admitted: set[str] | None, limit_params: bool, fixed: Mapping[str, str]
    ) -> Slot:
        incumbents = {site.incumbent.operator for site in sites}
        incumbent = self.operators.index(incumbents.pop() if len(incumbents) == 1 else INCUMBENT)
        for site in sites:
            if site.conv in fixed:
                why = fixed[site.conv] if len(sites) == 1 else f"{site.conv}: {fixed[site.conv]}"
                return Slot(name=name, sites=sites, candidates=(incumbent,), incumbent=incumbent, reason=why)
        candidates = [incumbent]
        limit = sum(self._parameters(site, incumbent) for site in sites)
        left_out = set()
        for code, operator in enumerate(self.operators):
            suits = all(operator in FAMILIES[_family(site)] or operator in self._builders for site in sites)
            if code == incumbent or operator == INCUMBENT or not suits or (admitted is not None and operator not in admitted):
                continue
            if not all(self._keeps_shape(site, code) for site in sites):
                left_out.add("give another size than its convolution, as theirs is padded by half their kernel")
            elif limit_params and sum(self._parameters(site, code) for site in sites) > limit:
                left_out.add("have more parameters")
            else:
                candidates.append(code)
        reason = None
        if len(candidates) == 1:
            reason = (
                f"the operators that suit it {' or '.join(sorted(left_out))}" if left_out else "no operator asked for suits it"
            )
        return Slot(name=name, sites=sites, candidates=tuple(sorted(candidates)), incumbent=incumbent, reason=reason)

    def _keeps_shape(self, site: Site, code: int) -> bool:
        for spec, (_, out) in zip(self.site_specs(site, code), site.calls, strict=True):
            operator = self._meta(site, code)
            try:
                shape = tuple(operator(torch.empty(1, spec.c_in, spec.h, spec.w, device="meta")).shape)
            except Exception as problem:  # whatever a user's operator raises
                raise SpaceError(
                    f"operator {spec.operator!r} must run on the {spec.c_in}x{spec.h}x{spec.w} input of {site.conv}, "
                    f"but failed: {problem}"
                ) from problem
            expected = (1, spec.c_out, *out)
            if shape != expected:
                if spec.operator in self._builders:
                    raise SpaceError(
                        f"operator {spec.operator!r} must keep the shape of its slot: {site.conv} needs "
                        f"{expected[1:]} (C, H, W), but got {shape[1:]}"
                    )
                return False
        return True

    def _parameters(self, site: Site, code: int) -> int:
        return sum(parameter.numel() for parameter in self._meta(site, code).parameters())

    def _meta(self, site: Site, code: int) -> nn.Module:
        if self._keeps(site, code):
            return self.model.get_submodule(site.conv)
        with torch.device("meta"):
            return self.module_for(site, code)

    def _keeps(self, site: Site, code: int) -> bool:
        return self.operators[code] in (INCUMBENT, site.incumbent.operator)

    def narrowed(self, candidates: Mapping[str, Iterable[int]]) -> "SearchSpace":
        """The same space with other candidates: slot name -> codes that may stand there; its own operator always may."""
        space = copy.copy(self)
        space.slots = tuple(
            replace(slot, candidates=tuple(sorted({slot.incumbent, *candidates[slot.name]}))) for slot in self.slots
        )
        return space

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        sizes = f"{len(self.slots)} slots ({self.manner}), {self.size:.4g} archs"
        return f"<SearchSpace of {type(self.model).__name__} {shape}: {sizes}>"

    @property
    def incumbent(self) -> Arch:
        """The arch that is the network itself."""
        return tuple(slot.incumbent for slot in self.slots)

    @property
    def size(self) -> int:
        """How many archs there are."""
        return math.prod(len(slot.candidates) for slot in self.slots)

    @property
    def free_skips(self) -> tuple[bool, ...]:
        """Per slot, whether it is a skip connection."""
        return tuple(slot.skip for slot in self.slots)

    def require_fixed_skips(self) -> None:
        """Raises SpaceError where skips are free, for what knows children by their operators alone."""
        if any(self.free_skips):
            raise SpaceError(
                "latencies of operators are of a network with all its skips, but this space has free ones: measure a child as a "
                "whole (nar-hw bench), or the space without skips=True"
            )

    def sample(self, rng: random.Random) -> Arch:
        """A uniformly random arch."""
        return tuple(rng.choice(slot.candidates) for slot in self.slots)

    def validate(self, arch: Sequence[int]) -> Arch:
        """``arch`` as a tuple of ints. Raises SpaceError when its length or one of its codes is wrong."""
        if len(arch) != len(self.slots):
            raise SpaceError(f"an arch must have one code per slot: {len(self.slots)} slots, but got {len(arch)} codes")
        for position, (code, slot) in enumerate(zip(arch, self.slots, strict=True)):
            if int(code) not in slot.candidates:
                allowed = ", ".join(f"{item} ({self.operators[item]})" for item in slot.candidates)
                raise SpaceError(f"slot {position} ({slot.name}) admits the codes {allowed}, but got {code}")
        return tuple(int(code) for code in arch)

    def parse(self, text: str | Sequence[str | int]) -> Arch:
        """An arch from codes, names or both: "0,0,2" or "conv3x3,max3x3,..."; "incumbent" is the network itself.

        Raises SpaceError, UnknownNameError.
        """
        if text == INCUMBENT:
            return self.incumbent
        items = text.replace("[", "").replace("]", "").split(",") if isinstance(text, str) else text
        codes = []
        for item in (str(item).strip() for item in items):
            if re.fullmatch(r"-?[0-9]{1,9}", item):
                codes.append(int(item))
            elif item in self.operators:
                codes.append(self.operators.index(item))
            else:
                raise unknown_name("operator", item, self.operators)
        return self.validate(codes)

    def names(self, arch: Sequence[int]) -> tuple[str, ...]:
        """The operators' names of an arch."""
        return tuple(self.operators[code] for code in self.validate(arch))

    def site_specs(self, site: Site, code: int) -> tuple[OpSpec, ...]:
        """The specs that operator ``code`` has at ``site``, one per call in one forward pass."""
        own = site.incumbent
        if self._keeps(site, code):
            return tuple(replace(own, h=size[0], w=size[1]) for size, _ in site.calls)
        return tuple(
            OpSpec(
                operator=self.operators[code],
                c_in=own.c_in,
                c_out=own.c_out,
                h=size[0],
                w=size[1],
                stride=own.stride,
                groups=own.groups,
                bias=own.bias,
            )
            for size, _ in site.calls
        )

    def specs(self, arch: Sequence[int]) -> Iterator[tuple[int, Site, OpSpec]]:
        """The one walk over an arch: (slot index, site, spec) of every operator call in one forward pass."""
        for position, (code, slot) in enumerate(zip(arch, self.slots, strict=True)):
            for site in slot.sites:
                for spec in self.site_specs(site, code):
                    yield position, site, spec

    def module_for(self, site: Site, code: int) -> nn.Module:
        """A fresh operator for ``site``; a copy of the network's own convolution where ``code`` keeps it."""
        if self._keeps(site, code):
            return plain_copy(self.model.get_submodule(site.conv))
        spec = self.site_specs(site, code)[0]
        if spec.operator == NO_SKIP:
            return NoSkip()
        builder = self._builders.get(spec.operator)
        return builder(spec) if builder else build_operator(spec)

    def norm_for(self, site: Site, code: int) -> nn.Module | None:
        """The norm behind an operator: the network's own (copied) behind its own convolution, else one just initialised."""
        if site.norm is None:
            return None
        norm = plain_copy(self.model.get_submodule(site.norm))
        if not self._keeps(site, code):
            assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
            norm.reset_parameters()
        return norm

    def build(self, arch: Sequence[int]) -> nn.Module:
        """A standalone child: a copy of the network with ``arch``'s operators (freshly initialised) in its slots."""
        placed: dict[str, nn.Module] = {}
        for code, slot in zip(self.validate(arch), self.slots, strict=True):
            for site in slot.sites:
                if self._keeps(site, code):
                    continue
                operator = self.module_for(site, code).train(self.model.get_submodule(site.conv).training)
                placed |= dict.fromkeys((site.conv, *site.aliases), operator)
                if site.norm is not None and (norm := self.norm_for(site, code)) is not None:
                    placed |= dict.fromkeys((site.norm, *site.norm_aliases), norm)
        # What is replaced need not be copied, but a user's own __deepcopy__ may do so
        child = plain_copy(self.model, instead={self.model.get_submodule(path): module for path, module in placed.items()})
        for path, module in placed.items():
            child.set_submodule(path, module)
        return child

    def inherit(self, child: nn.Module, model: nn.Module) -> tuple[str, ...]:
        """Copy into ``child`` every weight of the trained ``model`` that still fits; returns the keys that did not.

        A replaced operator's norm keeps its own values: the trained ones describe another operator's output.
        """
        source, target = model.state_dict(), child.state_dict()
        replaced = tuple(
            f"{path}."
            for slot in self.slots
            for site in slot.sites
            if _layout(source, site.conv) != _layout(target, site.conv)
            for path in (site.conv, *site.aliases, site.norm, *site.norm_aliases)
            if path is not None
        )
        fits = {
            key: value
            for key, value in source.items()
            if key in target and target[key].shape == value.shape and not key.startswith(replaced)
        }
        child.load_state_dict({**target, **fits})
        return tuple(key for key in target if key not in fits)


def _named(item: str | Builder) -> tuple[str, Builder | None]:
    """An operator's name and, where it is the user's own, its builder."""
    if isinstance(item, str) and not is_file_name(item):
        return item, None
    builder = load_function(item, what="operator", error=SpaceError) if isinstance(item, str) else item
    return builder.__name__, builder


def _layout(state: dict[str, torch.Tensor], path: str) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items() if key.startswith(f"{path}.")}


def _family(site: Site) -> str:
    return family(site.incumbent.c_in, site.incumbent.c_out, site.incumbent.groups)


def _choose(traced: Trace, pattern: Pattern | None) -> list[TracedConv]:
    if pattern is None:
        stem = traced.stem()
        chosen = [conv for conv in traced.convs if conv.path not in stem and conv.module.kernel_size != (1, 1)]
        if not chosen:
            hidden = "".join(f"; {path or 'the whole'} cannot be searched: {why}" for path, why in traced.hidden.items())
            raise SpaceError(
                "a space needs a convolution with a kernel larger than 1x1 behind the stem, but the model has none: "
                f"name its slots with slots={hidden}"
            )
    elif isinstance(pattern, str):
        chosen = [conv for conv in traced.convs if fnmatch.fnmatchcase(conv.path, pattern)]
        if not chosen:
            hidden = "".join(f"; {path} cannot be searched: {why}" for path, why in traced.hidden.items())
            known = ", ".join(conv.path for conv in traced.convs[:8])
            raise SpaceError(f"slots={pattern!r} must match a convolution that runs, but matches none of {known}, ...{hidden}")
    else:
        chosen = [conv for conv in traced.convs if pattern(conv.path, conv.module)]
        if not chosen:
            raise SpaceError("the slots predicate must accept a convolution that runs, but accepts none")
    return chosen
