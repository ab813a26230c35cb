"""Weights as they come: state dicts and checkpoints of other trainers, prefixes of wrappers, what fits and what does not."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from nar_hw.errors import ModelError
from nar_hw.models.weights import load_fitting, load_weights, save_weights


def network(classes: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, classes))


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in network().state_dict().items()}


class Lightning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = network()
        self.teacher = nn.Linear(2, 2)


FORMS: dict[str, tuple[Any, str | None, str]] = {
    "plain": (lambda: network().state_dict(), None, ""),
    "data parallel": (lambda: prefixed("module."), None, "module."),
    "compiled and parallel": (lambda: {"model": prefixed("module._orig_mod.")}, "model", "module._orig_mod."),
    "Lightning": (
        lambda: {"state_dict": Lightning().state_dict(), "epoch": 3, "hyper_parameters": {"lr": 0.1}},
        "state_dict",
        "model.",
    ),
    "with optimizer": (lambda: {"model_state_dict": network().state_dict(), "optimizer_state_dict": {}}, "model_state_dict", ""),
    "averaged": (
        lambda: {"model": network(seed=9).state_dict(), "model_ema": AveragedModel(network()).state_dict()},
        "model_ema",
        "module.",
    ),
    "timm": (
        lambda: {"arch": "x", "state_dict": network(seed=9).state_dict(), "state_dict_ema": network().state_dict()},
        "state_dict_ema",
        "",
    ),
    "timm with its arguments": (
        lambda: {
            "state_dict": network().state_dict(),
            "args": argparse.Namespace(lr=0.1),
            "metric": np.float64(1),
            "n": np.int64(2),
        },
        "state_dict",
        "",
    ),
    "compiled": (lambda: prefixed("_orig_mod."), None, "_orig_mod."),
    "older than the count of batches": (
        lambda: {name: value for name, value in network().state_dict().items() if not name.endswith("num_batches_tracked")},
        None,
        "",
    ),
    "counted": (lambda: {**network().state_dict(), "total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)}, None, ""),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_weights(form: str, tmp_path: Path) -> None:
    content, key, prefix = FORMS[form]
    torch.manual_seed(0)
    torch.save(content(), tmp_path / "w.pt")
    loaded = load_weights(fresh := network(seed=1), tmp_path / "w.pt")
    assert (loaded.key, loaded.prefix) == (key, prefix)
    for name, value in network().state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": Lightning().state_dict()}, tmp_path / "w.pt")
    loaded = load_weights(network(), tmp_path / "w.pt")
    assert loaded.ignored == ("teacher.weight", "teacher.bias")
    assert str(loaded) == "9 tensors under 'state_dict' without the prefix 'model.'; left out: teacher.weight, teacher.bias"


def test_weights_of_another_network_are_refused_with_how_much_fits(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", network(classes=5))
    with pytest.raises(ModelError, match=r"must fit the network: 7 of 9 do, but 3\.weight is 5x144 in the file and 3x144 in the"):
        load_weights(network(), tmp_path / "w.safetensors")
    assert load_fitting(network(), tmp_path / "w.safetensors") == ("3.weight", "3.bias")


def test_whole_modules_are_never_unpickled(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"holds other objects, which are never loaded .*: save model\.state_dict\(\)"):
        load_weights(network(), tmp_path / "w.pt")
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="must hold a state dict"):
        load_weights(network(), tmp_path / "w.pt")


def test_a_backbone_in_another_network_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    state = {name if name.startswith("3.") else f"backbone.{name}": value for name, value in network().state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(
        ModelError, match=r"must fit the network: 7 of 9 do, but 3\.weight is missing from the file \(and 1 more\)"
    ):
        load_weights(network(), tmp_path / "w.pt")


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("wrapped", [lambda: argparse.Namespace(x=Runs()), lambda: [Runs()], Runs])
def test_what_is_kept_beside_weights_runs_nothing(wrapped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": network().state_dict(), "args": wrapped()}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="holds other objects, which are never loaded"):
        load_weights(network(), tmp_path / "w.pt")
    assert not Path("ran").exists()
