"""Binarised paths of which the sampled ones compete (ProxylessNAS, Cai et al. 2019).

Shape legend: N archs, S slots, V operator codes.
"""

import torch
from torch import Tensor

from nar_hw.search.feasible import Floats
from nar_hw.search.strategies.gradient import GradientStrategy
from nar_hw.space.spec import Arch


class ProxylessStrategy(GradientStrategy):
    """Binary gates with the gradient of BinaryConnect: of the loss in an operator's gate, through the probabilities.

    As in section 3.2 of the paper, each update treats the operators of a slot that were sampled as if they were all there are,
    and leaves the probabilities of the others as they were. The paper samples two paths; here they are those of the archs told
    together, and the slope of an operator is the mean over those that hold it. A slot of which one operator was sampled learns
    from the latency alone, which is differentiable as in the Gumbel strategy (section 3.3).

    Args:
        lr, latency_weight: as of `GradientStrategy`; there is no temperature.
    """

    def learn(self, archs: list[Arch], rewards: Floats, slopes: Floats | None) -> None:
        """One step down the slopes."""
        assert slopes is not None
        counts = torch.zeros(self.feasible.slots, self.feasible.codes, dtype=torch.float64)
        chosen = torch.tensor(archs).T  # (S, N)
        counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
        means = torch.zeros_like(counts).scatter_add_(1, chosen, torch.from_numpy(slopes).T) / counts.clamp_min(1)
        sampled = counts > 0
        before = self._mass(sampled)
        share = self.logits.masked_fill(~sampled, -torch.inf).softmax(1)  # (S, V), 0 for those not sampled
        loss = (means * share).sum() + self._over(self._log_probs().exp())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert self.logits.grad is not None
        self.optimizer.step()
        with torch.no_grad():
            self.logits.add_(((before - self._mass(sampled))[:, None]) * sampled)

    def _mass(self, sampled: Tensor) -> Tensor:
        """The logarithm of what the sampled operators of each slot weigh together: (S,)."""
        return self.logits.detach().masked_fill(~sampled, -torch.inf).logsumexp(1)
