"""Gradients of the shared weights' loss with respect to the choice of operators.

Shape legend: N archs, R sums of a cost, S slots, V operator codes, D draws.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nar_hw.search.feasible import Feasible, Floats
from nar_hw.search.strategies.base import Strategy
from nar_hw.space.spec import Arch


class GradientStrategy(Strategy):
    """A Gumbel-softmax over the operators of each slot, trained through the paths that run (GDAS, section 3.2).

    Each told arch brings the slope of the validation loss in what its operators put out. It is passed straight through the hard
    choice to the softmax, whose noise is drawn anew given that choice and averaged over (Paulus et al. 2021, section 3), so that
    archs from elsewhere can be learned from as well. The expected latency by the table is differentiable itself.

    Args:
        lr: learning rate of the logits (Adam).
        temperature: of the softmax.
        latency_weight: loss that an expected latency of twice the target is worth.
        draws: of the noise for each arch told.
    """

    wants_slopes = True

    def __init__(
        self,
        feasible: Feasible,
        *,
        seed: int,
        lr: float = 0.05,
        temperature: float = 1.0,
        latency_weight: float = 1.0,
        draws: int = 16,
    ) -> None:
        super().__init__(feasible, seed=seed)
        self.temperature, self.latency_weight, self.draws = temperature, latency_weight, draws
        self.logits = torch.zeros(feasible.slots, feasible.codes, dtype=torch.float64, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.logits], lr=lr)
        self.generator = torch.Generator().manual_seed(seed)
        entries = feasible.cost.entries
        self._open = torch.from_numpy(np.isfinite(entries[0]))
        self._cost = torch.from_numpy(np.where(np.isfinite(entries), entries, 0.0))

    def ask(self, n: int) -> list[Arch]:
        """``n`` draws, of those operators that leave a way to meet the target."""
        noise = self._gumbel(self.feasible.slots, n, self.feasible.codes).numpy()
        logits = self.logits.detach().numpy()
        archs = np.zeros((n, self.feasible.slots), dtype=np.int64)
        spent = np.zeros((n, len(self.feasible.cost)))
        for position in range(self.feasible.slots):
            allowed = self.feasible.allowed(position, spent)
            archs[:, position] = np.where(allowed, logits[position] + noise[position], -np.inf).argmax(axis=1)
            spent += self.feasible.cost.entries[:, position, archs[:, position]].T
        return [tuple(arch) for arch in archs.tolist()]

    def paths(self, n: int) -> list[Arch]:
        """Draws: the shared weights serve the archs that are being scored."""
        return self.ask(n)

    def best(self) -> Arch:
        """The most probable arch under the target."""
        return self.feasible.best(np.where(self._open.numpy(), self._log_probs().detach().numpy(), 0.0))

    def learn(self, archs: list[Arch], rewards: Floats, slopes: Floats | None) -> None:
        """One step down the slopes."""
        assert slopes is not None
        chosen = torch.tensor(archs)  # (N, S)
        weight = self._softmax_given(chosen).gather(3, chosen.expand(self.draws, -1, -1)[..., None])[..., 0]  # (D, N, S)
        loss = (torch.from_numpy(slopes) * weight).sum(dim=2).mean()
        loss = loss + self._over(self._log_probs().exp())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _softmax_given(self, chosen: Tensor) -> Tensor:
        """(D, N, S, V) softmax of logits with Gumbel noise, of which each draw has its maximum at the code of (N, S) archs."""
        fixed = self.logits.detach().masked_fill(~self._open, -torch.inf)
        top = fixed.logsumexp(1)[None, None] + self._gumbel(self.draws, *chosen.shape)  # (D, N, S)
        free = fixed + self._gumbel(self.draws, *chosen.shape, self.feasible.codes)
        below = -torch.logaddexp(-top[..., None], -free)
        here = torch.zeros_like(below, dtype=torch.bool).scatter(3, chosen.expand(self.draws, -1, -1)[..., None], True)
        noisy = torch.where(here, top[..., None], below)
        return ((noisy + (self.logits - self.logits.detach())) / self.temperature).softmax(dim=3)

    def _over(self, shares: Tensor) -> Tensor:
        """The loss that the expected latency is worth, for (S, V) shares of the operators: 0 under the target."""
        sums = torch.from_numpy(self.feasible.cost.fixed) + (shares * self._cost).sum(dim=(1, 2))  # (R,)
        return self.latency_weight * (sums.min() / self.feasible.cost.limit(self.feasible.target_ms) - 1).clamp_min(0)

    def _log_probs(self) -> Tensor:
        return self.logits.masked_fill(~self._open, -torch.inf).log_softmax(dim=1)

    def _gumbel(self, *shape: int) -> Tensor:
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return -(-uniform.clamp_min(1e-300).log()).log()

    def scalars(self) -> dict[str, float]:
        """Entropy of the choices together, whatever the target."""
        log_probs = self._log_probs().detach()
        return {"entropy": float(-(log_probs.exp() * log_probs.masked_fill(~self._open, 0.0)).sum())}

    def state_dict(self) -> dict[str, Any]:
        """Logits, optimiser and generators."""
        return {
            **super().state_dict(),
            "logits": self.logits.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
