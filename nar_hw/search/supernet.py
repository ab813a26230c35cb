"""One network that holds every operator of every slot and runs one of them per slot.

Shape legend: B images, K candidates of a slot, S slots, V operator codes.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nar_hw.search.approximate import approximate
from nar_hw.space.space import SearchSpace, Slot
from nar_hw.space.spec import Arch
from nar_hw.userfile import user_code


class Switch(nn.Module):
    """The candidates of one slot at one convolution or norm, of which one is active."""

    def __init__(self, choices: dict[int, nn.Module], active: int) -> None:
        super().__init__()
        self.choices = nn.ModuleDict({str(code): module for code, module in choices.items()})
        self.active = str(active)
        self.gate: Tensor | None = None
        self.weights: Tensor | None = None
        self.stacks = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the active module returns, times the gate where there is one; with ``weights`` (K,), the mixture of all."""
        if self.weights is not None:
            return self._mixed(*args, **kwargs)
        output = self.choices[self.active](*args, **kwargs)
        return output if self.gate is None else self.gate * output

    def _mixed(self, features: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Of a convolution with a norm, (K * B, C, H, W): one output after the other, for each of which there is a norm."""
        modules = self.choices.values()
        if self.stacks:
            return torch.cat([module(features, *args, **kwargs) for module in modules])
        assert self.weights is not None
        count = len(self.choices)
        inputs = features.chunk(count) if isinstance(self.current(), _BatchNorm) else [features] * count
        outputs = [module(each, *args, **kwargs) for module, each in zip(modules, inputs, strict=True)]
        return torch.stack([weight * output for weight, output in zip(self.weights, outputs, strict=True)]).sum(0)

    def __getattr__(self, name: str) -> Any:
        """What the network reads of its own norms, read of the active one."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("choices", "active"):  # not yet there
                raise
            return getattr(self.current(), name)

    def current(self) -> nn.Module:
        """The active module."""
        return self.choices[self.active]

    def running(self) -> list[nn.Module]:
        """The active module; all of them in a mixture."""
        return [self.current()] if self.weights is None else list(self.choices.values())


class Supernet(nn.Module):
    """Shared weights for all children of a space; the space's network gives everything outside the slots.

    Each candidate has its own copy of the BatchNorm behind its slot, since convolutions and pools have different statistics. The
    incumbents start from the network's own weights, the others as approximations of them (nar_hw/search/approximate.py).
    Slots with nothing to choose are left as they are. Operators that do not run get no gradient: with
    ``zero_grad(set_to_none=True)``, which is torch's default, neither momentum nor weight decay moves them.
    """

    def __init__(self, space: SearchSpace, head: nn.Module | None = None) -> None:
        """``head``: what a task trains with the shared weights, no part of any child."""
        super().__init__()
        self.space = space
        self.head = head
        self.network = space.build(space.incumbent)
        self.arch = space.incumbent
        self._switches = tuple(tuple(self._install(slot)) for slot in space.slots)

    def _install(self, slot: Slot) -> Iterator[Switch]:
        if slot.fixed:
            return
        for site in slot.sites:
            operators = {code: self.space.module_for(site, code) for code in slot.candidates}
            # The network's own, not a copy: it may share its weight with another.
            operators[slot.incumbent] = self.network.get_submodule(site.conv)
            norms = {code: norm for code in slot.candidates if (norm := self.space.norm_for(site, code)) is not None}
            if not slot.skip:
                _inherit(operators, norms, slot.incumbent)
            switch = Switch(operators, slot.incumbent)
            for path in (site.conv, *site.aliases):
                self.network.set_submodule(path, switch)
            yield switch
            if site.norm is not None:
                switch = Switch(norms, slot.incumbent)
                for path in (site.norm, *site.norm_aliases):
                    self.network.set_submodule(path, switch)
                yield switch

    def forward(self, images: Tensor) -> Any:
        """What the active child returns for (B, C, H, W) images. Raises ModelError when it fails."""
        with user_code("the network with other operators must run, but its forward pass"):
            return self.network(images)

    def activate(self, arch: Sequence[int]) -> None:
        """Let ``arch`` be the path that runs. Raises SpaceError when it is not of the space."""
        self.arch = self.space.validate(arch)
        for code, switches in zip(self.arch, self._switches, strict=True):
            for switch in switches:
                switch.active = str(code)

    @contextmanager
    def gated(self, gates: Tensor) -> Iterator[None]:
        """Within it, what each slot puts out is multiplied by its element of ``gates`` (S,): behind the norm, if it has one."""
        switches = [
            (cast(Switch, self.network.get_submodule(site.norm or site.conv)), gate)
            for slot, gate in zip(self.space.slots, gates, strict=True)
            for site in slot.sites
            if not slot.fixed
        ]
        for switch, gate in switches:
            switch.gate = gate
        try:
            yield
        finally:
            for switch, _ in switches:
                switch.gate = None

    @contextmanager
    def mixed(self, weights: Tensor) -> Iterator[None]:
        """Within it, each slot puts out the sum of its candidates times their ``weights`` (S, V): behind the norm, if any."""
        sites = [(slot, row, site) for slot, row in zip(self.space.slots, weights, strict=True) for site in slot.sites]
        switches = []
        for slot, row, site in sites:
            if slot.fixed:
                continue
            for path in filter(None, (site.conv, site.norm)):
                switch = cast(Switch, self.network.get_submodule(path))
                switch.weights, switch.stacks = row[list(slot.candidates)], path == site.conv and site.norm is not None
                switches.append(switch)
        try:
            yield
        finally:
            for switch in switches:
                switch.weights, switch.stacks = None, False

    def path(self) -> Iterator[nn.Module]:
        """Every module of the active child, or of the mixture, without the operators that do not run."""
        yield from _path(self.network)

    @torch.no_grad()
    def recalibrate(self, batches: Iterable[Tensor]) -> None:
        """Estimate the BatchNorm statistics of the active path anew: the averages over ``batches`` of (B, C, H, W) images.

        Use training images: statistics of random paths rank children at random, and validation images would leak. Only the
        norms are in training mode meanwhile; weights, the norms' momentum and the modes of all modules stay as they are.
        """
        modes = [(module, module.training) for module in self.path()]
        norms = [module for module, _ in modes if isinstance(module, _BatchNorm) and module.track_running_stats]
        momenta = [norm.momentum for norm in norms]
        calls = Counter[nn.Module]()

        def average(norm: nn.Module, inputs: object) -> None:
            # What momentum=None does, without waiting for the device. A norm may be called more than once in a forward pass.
            calls[norm] += 1
            norm.momentum = 1 / calls[norm]  # type: ignore[assignment]

        hooks = [norm.register_forward_pre_hook(average) for norm in norms]
        try:
            for module, _ in modes:
                module.training = False
            for norm in norms:
                norm.reset_running_stats()
                norm.training = True
            for images in batches:
                self(images)
        finally:
            for hook in hooks:
                hook.remove()
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            for module, training in modes:
                module.training = training

    def child(self, arch: Sequence[int]) -> nn.Module:
        """A standalone network of ``arch`` with the shared weights and statistics: its outputs are the active path's."""
        child = self.space.build(arch)
        inside: list[str] = []
        for code, slot in zip(self.space.validate(arch), self.space.slots, strict=True):
            for site in () if slot.fixed else slot.sites:
                for path in filter(None, (site.conv, *site.aliases, site.norm, *site.norm_aliases)):
                    switch = cast(Switch, self.network.get_submodule(path))
                    child.get_submodule(path).load_state_dict(switch.choices[str(code)].state_dict())
                    inside.append(f"{path}.")
        prefixes = tuple(inside)
        shared = {key: value for key, value in self.network.state_dict().items() if not key.startswith(prefixes)}
        left_out = child.load_state_dict(shared, strict=False)
        assert all(key.startswith(prefixes) for key in left_out.missing_keys)
        assert not left_out.unexpected_keys
        reference = next(self.network.parameters())
        child.to(reference.device)
        child.train(self.training)
        return child


def _inherit(operators: dict[int, nn.Module], norms: dict[int, nn.Module], incumbent: int) -> None:
    """Let all operators of a site begin as approximations of its convolution, and their norms with its norm's weights."""
    conv, norm = operators[incumbent], norms.get(incumbent)
    assert isinstance(conv, nn.Conv2d)
    for code, operator in operators.items():
        if code != incumbent and approximate(operator, conv) and norm is not None:
            parameters = dict(norm.named_parameters())
            norms[code].load_state_dict(parameters, strict=False)


def _path(module: nn.Module) -> Iterator[nn.Module]:
    for running in module.running() if isinstance(module, Switch) else [module]:
        yield running
        for child in running.children():
            yield from _path(child)


class FairPaths:
    """Archs without replacement per slot, so that no operator gets ahead (strict fairness, FairNAS section 3.2).

    Each slot deals its candidates from a shuffled deck of its own. Whatever the numbers of candidates, after m archs each
    operator of a slot with K candidates has run m // K or m // K + 1 times.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._candidates = [slot.candidates for slot in space.slots]
        self._decks: list[list[int]] = [[] for _ in space.slots]

    def draw(self, rng: random.Random) -> Arch:
        """The next arch."""
        for deck, candidates in zip(self._decks, self._candidates, strict=True):
            if not deck:
                deck += rng.sample(candidates, len(candidates))
        return tuple(deck.pop() for deck in self._decks)

    def state_dict(self) -> dict[str, Any]:
        """The undealt codes of each slot."""
        return {"decks": [list(deck) for deck in self._decks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._decks = [list(deck) for deck in state["decks"]]
