"""The controller of NAR: an LSTM that writes an arch operator by operator (ENAS, section 2; NAR, section 3).

Shape legend: N archs, R sums of a cost, S slots, V operator codes, H hidden units. Codes are the space's own everywhere: what a
slot does not admit, or what would leave no way to meet the latency target, is masked and never renumbered.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nar_hw.search.feasible import Feasible


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """What a policy thinks of given archs."""

    log_prob: Tensor
    """(N, S) natural logarithm of the probability of each decision, given those before; their sum is the arch's."""
    entropy: Tensor
    """(N, S) entropy of the whole distribution of each decision, given those before."""


class LSTMController(nn.Module):
    """An autoregressive policy over the archs that meet the target.

    One LSTM layer; at each slot its input is the embedding of the operator chosen before, and the slot's own linear head
    gives the logits ``tanh_constant * tanh(logits / temperature)``. The heads start at zero: a uniform policy.
    """

    def __init__(
        self, feasible: Feasible, *, seed: int, hidden: int = 64, temperature: float = 1.0, tanh_constant: float = 2.5
    ) -> None:
        super().__init__()
        self.feasible = feasible
        self.temperature = temperature
        self.tanh_constant = tanh_constant
        with torch.random.fork_rng(devices=[]):  # torch's layers draw weights, which ours replace
            self.embedding = nn.Embedding(feasible.codes + 1, hidden)  # the last row starts the sequence
            self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.heads = nn.Parameter(torch.zeros(feasible.slots, hidden, feasible.codes))
        self.biases = nn.Parameter(torch.zeros(feasible.slots, feasible.codes))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in (*self.embedding.parameters(), *self.lstm.parameters()):
                parameter.uniform_(-0.1, 0.1, generator=generator)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, S) archs drawn from the policy, all of them at or under the target."""
        noise = torch.rand((self.feasible.slots, n, self.feasible.codes), generator=generator)
        return self._decode(n, -(-noise.clamp_min(1e-20).log()).log())

    @torch.no_grad()
    def greedy(self) -> Tensor:
        """(1, S) the arch of the most probable operator at each step."""
        return self._decode(1, torch.zeros(self.feasible.slots, 1, self.feasible.codes))

    def _decode(self, n: int, noise: Tensor) -> Tensor:
        """The largest logit plus noise (S, N, V) at each step: Gumbel noise makes it a draw from the policy."""
        weight_ih, weight_hh, bias_ih, bias_hh = self.lstm.all_weights[0]
        inputs = self.embedding.weight @ weight_ih.T + bias_ih + bias_hh  # (V + 1, 4 H)
        recurrent = weight_hh.T.contiguous()
        cost = torch.from_numpy(self.feasible.cost.entries)  # (R, S, V)
        archs = torch.empty(n, self.feasible.slots, dtype=torch.long)
        code = torch.full((n,), self.feasible.codes)
        hidden = memory = torch.zeros(n, self.lstm.hidden_size)
        spent = torch.zeros(n, len(cost), dtype=torch.float64)
        for position in range(self.feasible.slots):
            gates = torch.addmm(inputs[code], hidden, recurrent)  # (N, 4 H)
            write, forget, value, show = gates.chunk(4, dim=1)
            memory = forget.sigmoid() * memory + write.sigmoid() * value.tanh()
            hidden = show.sigmoid() * memory.tanh()
            logits = self._squash(hidden @ self.heads[position] + self.biases[position])
            allowed = torch.from_numpy(self.feasible.allowed(position, spent.numpy()))
            code = (logits + noise[position]).masked_fill(~allowed, -torch.inf).argmax(dim=1)
            archs[:, position] = code
            spent = spent + cost[:, position, code].T
        return archs

    def _squash(self, logits: Tensor) -> Tensor:
        return self.tanh_constant * torch.tanh(logits / self.temperature)

    def log_probs(self, archs: Tensor) -> Tensor:
        """(N, S, V) log-probability of every code at every step along (N, S) archs; -inf where a code is masked."""
        start = torch.full_like(archs[:, :1], self.feasible.codes)
        hidden, _ = self.lstm(self.embedding(torch.cat([start, archs[:, :-1]], dim=1)))  # (N, S, H)
        logits = self._squash(torch.einsum("nsh,shv->nsv", hidden, self.heads) + self.biases)
        return logits.masked_fill(~self._masks(archs), -torch.inf).log_softmax(dim=2)

    def _masks(self, archs: Tensor) -> Tensor:
        """(N, S, V): what was open at each step. The codes of the archs themselves are: archs may come from elsewhere."""
        cost = torch.from_numpy(self.feasible.cost.entries)
        steps = cost[:, torch.arange(self.feasible.slots), archs].permute(1, 2, 0)  # (N, S, R)
        spent = torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(dim=1)[:, :-1]], dim=1)
        allowed = [
            torch.from_numpy(self.feasible.allowed(position, spent[:, position].numpy()))
            for position in range(self.feasible.slots)
        ]
        return torch.stack(allowed, dim=1).scatter(2, archs[:, :, None], True)

    def forward(self, archs: Tensor) -> Likelihood:
        """Log-probabilities and entropies of the decisions of (N, S) archs, differentiable."""
        log_probs = self.log_probs(archs)
        taken = log_probs.gather(2, archs[:, :, None])[:, :, 0]
        # 0 * -inf is not a number, and neither is its gradient
        finite = log_probs.masked_fill(log_probs.isneginf(), 0.0)
        entropy = -(log_probs.exp() * finite).sum(dim=2)
        return Likelihood(log_prob=taken, entropy=entropy)
