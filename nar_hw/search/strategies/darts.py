"""The mixture of all operators, whose weights descend the loss of held-out images (DARTS, Liu et al. 2019).

Shape legend: S slots, V operator codes.
"""

import numpy as np
import torch

from nar_hw.errors import TrainingError
from nar_hw.search.feasible import Feasible, Floats
from nar_hw.search.strategies.gradient import GradientStrategy
from nar_hw.space.spec import Arch


class DartsStrategy(GradientStrategy):
    """Continuous relaxation (section 2.2) and first-order alternating optimisation (section 2.3) of DARTS.

    Every slot puts out the mean of its operators, weighted by the softmax of its logits. Each update is one step of Adam on the
    logits, down the loss of the mixture on held-out images with the shared weights as they are (the paper's xi = 0). With
    ``paths="strategy"`` the shared weights are trained in that mixture too, as in the paper; with fair paths, one operator per
    slot at a time. Draws from the softmax are scored, but told archs teach it nothing. The expected latency by the table is added
    to the loss, as in the Gumbel strategy.

    Args:
        lr: learning rate of the logits; the paper's 3e-4 is for 25 times as many steps.
        weight_decay: of the logits (section A.1).
        latency_weight: loss that an expected latency of twice the target is worth.
    """

    wants_slopes = False
    wants_mixture = True

    def __init__(
        self, feasible: Feasible, *, seed: int, lr: float = 0.05, weight_decay: float = 1e-3, latency_weight: float = 1.0
    ) -> None:
        super().__init__(feasible, seed=seed, latency_weight=latency_weight)
        self.optimizer = torch.optim.Adam([self.logits], lr=lr, betas=(0.5, 0.999), weight_decay=weight_decay)

    def mixture(self) -> Floats:
        """(S, V) softmax of the logits; 0 for no candidates."""
        return np.asarray(self._log_probs().detach().exp().numpy(), dtype=np.float64)

    def descend(self, slopes: Floats) -> None:
        """One step of the logits down the (S, V) slopes."""
        if not np.isfinite(slopes).all():
            raise TrainingError(
                "the slopes of the mixture must be finite numbers, but are not: the shared weights have diverged, lower the "
                "learning rate"
            )
        shares = self._log_probs().exp()
        loss = (torch.from_numpy(slopes) * shares).sum() + self._over(shares)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def learn(self, archs: list[Arch], rewards: Floats, slopes: Floats | None) -> None:
        """Nothing: what is learned is the mixture."""
