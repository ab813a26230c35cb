"""The losses of face recognition against their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nar_hw.faces.heads import CHUNK, FaceHead


def head(kind: str = "arcface", identities: int = 7, **options: float) -> FaceHead:
    torch.manual_seed(0)
    return FaceHead(identities, 5, kind=kind, **options)  # type: ignore[arg-type]


EMBEDDING = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
TARGET = torch.tensor([0, 1, 2, 3, 6, 6])


def angles(module: FaceHead) -> torch.Tensor:
    """In double precision, with acos."""
    cosine = F.normalize(EMBEDDING.double()) @ F.normalize(module.weight.detach().double()).T
    return cosine.clamp(-1, 1).acos()


class TestLogits:
    @pytest.mark.parametrize("margin", [0.0, 0.3, 0.5])
    def test_arcface(self, margin: float) -> None:
        module = head(margin=margin, scale=20.0)
        theta = angles(module)
        logits, column = module(EMBEDDING, TARGET)
        assert column.equal(TARGET)
        for row, own in enumerate(TARGET.tolist()):
            for identity in range(7):
                angle = float(theta[row, identity])
                expected = math.cos(angle)
                if identity == own:
                    expected = math.cos(angle + margin) if angle < math.pi - margin else expected - margin * math.sin(margin)
                assert logits[row, identity].item() == pytest.approx(20 * expected, abs=1e-4)

    def test_arcface_falls_with_the_angle_to_the_very_end(self) -> None:
        module = head(identities=2, margin=0.5, scale=1.0)
        turns = torch.linspace(0, math.pi, 200)
        embedding = torch.stack([turns.cos(), turns.sin(), *[torch.zeros(200)] * 3], 1)
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]))
        own = module(embedding, torch.zeros(200, dtype=torch.int64))[0][:, 0]
        assert bool((own.diff() < 0).all())

    def test_cosface(self) -> None:
        module = head("cosface", margin=0.35, scale=30.0)
        expected = 30 * (angles(module).cos() - 0.35 * F.one_hot(TARGET, 7))
        assert torch.allclose(module(EMBEDDING, TARGET)[0].double(), expected, atol=1e-4)

    def test_softmax_is_a_linear_layer(self) -> None:
        module, linear = head("softmax", margin=0.0), nn.Linear(5, 7)
        assert module.bias is not None
        with torch.no_grad():
            module.bias.normal_()
            linear.weight.copy_(module.weight)
            linear.bias.copy_(module.bias)
        assert torch.allclose(module(EMBEDDING, TARGET)[0], linear(EMBEDDING))
        assert module.nearest(EMBEDDING).equal(linear(EMBEDDING).argmax(1))

    def test_the_length_of_embeddings_and_centres_does_not_count(self) -> None:
        module = head()
        before = module(EMBEDDING, TARGET)[0]
        with torch.no_grad():
            module.weight.mul_(3)
        assert torch.allclose(module(10 * EMBEDDING, TARGET)[0], before, atol=1e-4)

    def test_the_nearest_is_without_a_margin(self) -> None:
        assert head(margin=0.5).nearest(EMBEDDING).equal(angles(head()).argmin(1))

    def test_the_nearest_of_very_many(self) -> None:
        module = head(identities=2 * CHUNK + 100)
        embedding = module.weight.detach()[[0, CHUNK - 1, CHUNK, 2 * CHUNK + 99]]
        assert module.nearest(embedding).tolist() == [0, CHUNK - 1, CHUNK, 2 * CHUNK + 99]


class TestWarmUp:
    def test_the_margin_rises_in_a_line(self) -> None:
        module, cosine = head("cosface", margin=0.4, scale=1.0, warmup=24), angles(head()).cos()
        own = torch.arange(6), TARGET
        margins = [(cosine[own] - module(EMBEDDING, TARGET)[0][own]).mean().item() for _ in range(6)]
        assert margins == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4], abs=1e-6)

    def test_it_goes_on_where_a_checkpoint_was_made(self) -> None:
        module = head(warmup=24)
        module(EMBEDDING, TARGET)
        other = head(warmup=24)
        other.load_state_dict(module.state_dict())
        assert module(EMBEDDING, TARGET)[0].equal(other(EMBEDDING, TARGET)[0])


class TestPrecision:
    @pytest.mark.parametrize("kind", ["arcface", "cosface", "softmax"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_changes_nothing(self, kind: str, dtype: torch.dtype) -> None:
        module = head(kind, margin=0.0 if kind == "softmax" else 0.4)
        plain = module(EMBEDDING, TARGET)[0]
        with torch.autocast("cpu", dtype):
            assert module(EMBEDDING, TARGET)[0].equal(plain)
            assert module.nearest(EMBEDDING).equal(head(kind).nearest(EMBEDDING))

    def test_half_embeddings_are_computed_with_in_full(self) -> None:
        module = head()
        half = EMBEDDING.bfloat16()
        logits = module(half, TARGET)[0]
        assert logits.dtype == torch.float32
        assert logits.equal(module(half.float(), TARGET)[0])

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_gradients_are_finite_right_at_and_right_opposite_a_centre(self, sign: float) -> None:
        module = head(margin=0.5, scale=64.0)
        embedding = (sign * module.weight.detach()[:3]).clone().requires_grad_()
        F.cross_entropy(*module(embedding, torch.arange(3))).backward()
        assert embedding.grad is not None
        assert module.weight.grad is not None
        assert bool(embedding.grad.isfinite().all())
        assert bool(module.weight.grad.isfinite().all())

    @pytest.mark.parametrize("kind", ["arcface", "cosface"])
    def test_the_gradient_against_differences(self, kind: str) -> None:
        module = head(kind, margin=0.3, scale=4.0)
        embedding = EMBEDDING.clone().requires_grad_()
        F.cross_entropy(*module(embedding, TARGET)).backward()
        assert embedding.grad is not None
        step = torch.zeros_like(EMBEDDING)
        step[2, 1] = 1e-2
        up, down = (F.cross_entropy(*module(EMBEDDING + sign * step, TARGET)).item() for sign in (1, -1))
        assert float(embedding.grad[2, 1]) == pytest.approx((up - down) / 2e-2, abs=2e-3)


class TestSampled:
    def test_columns_are_the_sampled_ones_and_hold_every_target(self) -> None:
        module = head(identities=40, margin=0.0, scale=1.0, sampled=0.25)
        full = F.normalize(EMBEDDING) @ F.normalize(module.weight).T
        for _ in range(20):
            logits, column = module(EMBEDDING, TARGET)
            assert logits.shape == (6, 10)
            assert torch.allclose(logits.gather(1, column[:, None]), full.gather(1, TARGET[:, None]), atol=1e-6)
            for row in range(6):
                assert all(bool(torch.isclose(full[row], value, atol=1e-6).any()) for value in logits[row])

    def test_each_identity_gets_its_turn(self) -> None:
        module = head(identities=40, sampled=0.25)
        seen = torch.zeros(40, dtype=torch.bool)
        for _ in range(60):
            chosen, _ = module._sample(TARGET)
            assert chosen is not None
            seen[chosen] = True
        assert bool(seen.all())

    def test_only_the_sampled_get_a_gradient(self) -> None:
        module = head(identities=40, sampled=0.25)
        F.cross_entropy(*module(EMBEDDING, TARGET)).backward()
        assert module.weight.grad is not None
        moved = module.weight.grad.abs().sum(1) > 0
        assert int(moved.sum()) == 10
        assert bool(moved[TARGET].all())

    def test_a_share_that_is_smaller_than_the_batch_still_holds_it(self) -> None:
        logits, column = head(identities=40, sampled=0.01)(EMBEDDING, TARGET)
        assert logits.shape == (6, 6)
        assert column.max() < 6

    @pytest.mark.parametrize("kind", ["arcface", "cosface"])
    def test_with_all_sampled_it_is_the_full_head(self, kind: str) -> None:
        target = torch.tensor([3, 1, 0, 2, 1, 2])
        whole, sampled = (head(kind, identities=4, margin=0.3, sampled=share) for share in (1.0, 0.25))  # 4 in the batch
        chosen, _ = sampled._sample(target)
        assert chosen is not None
        assert chosen.tolist() == [0, 1, 2, 3]
        results = []
        for module in (whole, sampled):
            embedding = EMBEDDING.clone().requires_grad_()
            logits, column = module(embedding, target)
            F.cross_entropy(logits, column).backward()
            results.append((logits, column, embedding.grad, module.weight.grad))
        for full, part in zip(*results, strict=True):
            assert full is not None
            assert part is not None
            assert full.equal(part)

    def test_the_memory_of_a_step_is_that_of_the_share(self) -> None:
        def kept(module: FaceHead) -> int:
            sizes = {}
            hooks = torch.autograd.graph.saved_tensors_hooks
            with hooks(lambda item: sizes.setdefault(item.untyped_storage().data_ptr(), item), lambda item: item):
                F.cross_entropy(*module(EMBEDDING, TARGET))
            own = module.weight.untyped_storage().data_ptr()
            return sum(item.untyped_storage().nbytes() for place, item in sizes.items() if place != own)

        full, tenth = (kept(head(identities=10_000, sampled=share)) for share in (1.0, 0.1))
        assert 0.08 < tenth / full < 0.2
