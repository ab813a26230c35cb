"""Records: what a file must hold, how a fault is named, and command lines that make a record again."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, strategies as st
from typer.testing import CliRunner

from nar_hw.cli.app import app
from nar_hw.errors import ModelError, RunError, UnknownNameError, UserError
from nar_hw.models.info import ModelInfo
from nar_hw.records import Record, as_record, command, plain, read_record, replace, settings, with_settings, write_record
from nar_hw.search.config import FitConfig, SearchConfig
from nar_hw.training.recipes import RECIPES, Recipe


class Part(Record, frozen=True, kw_only=True):
    name: str
    sizes: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ModelError("a part must have a good name, but has 'bad'")


class Whole(Record, frozen=True, kw_only=True):
    OPTIONS: ClassVar[Mapping[str, str]] = {"rate": ""}

    parts: Mapping[str, Part] = {}
    rows: tuple[Part, ...] = ()
    rate: float = 0.5
    names: tuple[str, ...] = ()
    limit: bool = True
    seed: int | None = None


def test_a_record_is_its_json(tmp_path: Path) -> None:
    whole = Whole(parts={"a": Part(name="x", sizes=(2, 3))}, rate=0.25, names=("a", "b"))
    write_record(tmp_path / "whole.json", whole, schema=2)
    assert json.loads((tmp_path / "whole.json").read_text())["schema"] == 2
    assert read_record(tmp_path / "whole.json", Whole, what="whole", schema=2) == whole


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"rate": "fast"}, "here: rate must be float, but is 'fast': mend it"),
        ({"rows": [{"name": "a"}, {"name": 3}]}, "here: rows[1].name must be str, but is 3: mend it"),
        ({"rows": [{"name": "a", "sizes": [1]}]}, "here: rows[0].sizes must be array of length 2, but is [1]: mend it"),
        ({"rows": [{}]}, "here: rows[0] must have 'name': mend it"),
        ({"rows": [{"name": "a", "size": 1}]}, "here: rows[0] has an unknown field 'size' (is 'sizes' meant?): mend it"),
        ({"parts": {"a": {"name": "a"}, "b": {"name": 1}}}, "here: parts.b.name must be str, but is 1: mend it"),
        ({"colour": 1}, "here: it has an unknown field 'colour': mend it"),
    ],
)
def test_a_fault_is_one_line_with_place_rule_and_value(value: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError) as caught:
        as_record(value, Whole, where="here", fix="mend it")
    assert str(caught.value) == message


def test_a_rule_of_the_record_raises_its_own_error() -> None:
    with pytest.raises(ModelError, match=r"^here: parts\.b: a part must have a good name, but has 'bad'$"):
        as_record({"parts": {"a": {"name": "a"}, "b": {"name": "bad"}}}, Whole, where="here")


def test_a_name_of_a_fixed_choice_is_named_with_the_choices() -> None:
    value = {"name": "m", "input_shape": [3, 8, 8], "num_classes": 2, "manner": "blocks"}
    with pytest.raises(UnknownNameError, match=r"^here: unknown manner 'blocks': use one of block"):
        as_record(value, ModelInfo, where="here", error=UserError)
    with pytest.raises(RunError, match=r"^here: unknown manner 'blocks': use one of block"):
        as_record(value, ModelInfo, where="here")


@pytest.mark.parametrize(
    ("schema", "message"), [(3, r"schema 2 or less, but has 3, made by nar_hw 9\.9: install"), (0, "but has 0: mend")]
)
def test_another_schema_is_refused(tmp_path: Path, schema: int, message: str) -> None:
    (tmp_path / "whole.json").write_text(json.dumps({"schema": schema, "nar_hw": "9.9"}))
    with pytest.raises(RunError, match=message):
        read_record(tmp_path / "whole.json", Whole, what="whole", schema=2, fix="mend it")


def test_an_older_schema_is_upgraded(tmp_path: Path) -> None:
    (tmp_path / "whole.json").write_text(json.dumps({"schema": 1, "speed": 2.0}))
    found = read_record(tmp_path / "whole.json", Whole, what="whole", schema=2, upgrade=lambda old: {"rate": old["speed"]})
    assert found == Whole(rate=2.0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(value=json_values, key=st.sampled_from([*Whole.__struct_fields__, "other"]))
def test_whatever_a_file_holds_there_is_a_record_or_one_line(value: Any, key: str) -> None:
    try:
        found = as_record({key: value}, Whole, where="here")
    except UserError as problem:
        assert "\n" not in str(problem)  # noqa: PT017
    else:
        assert as_record(plain(found), Whole, where="here") == found


# Command lines


def test_options_say_what_differs_from_the_defaults() -> None:
    assert Whole().options() == []
    assert Whole(names=("a", "b"), limit=False, seed=3, rate=1.0).options() == (
        ["--set", "rate=1.0", "--names", "a,b", "--no-limit", "--seed", "3"]
    )
    assert command("x", "a b") == "nar-hw x 'a b'"


@given(
    lr=st.floats(1e-6, 1.0, allow_subnormal=False),
    milestones=st.lists(st.integers(1, 100), unique=True).map(sorted),
    clip=st.none() | st.floats(0.01, 10.0),
    nesterov=st.booleans(),
)
def test_settings_make_the_record_again(lr: float, milestones: list[int], clip: float | None, nesterov: bool) -> None:
    recipe = replace(RECIPES["paper"], lr=lr, lr_min=0.0, milestones=tuple(milestones), clip_norm=clip, nesterov=nesterov)
    assert with_settings(RECIPES["paper"], settings(recipe, RECIPES["paper"])[1::2]) == recipe


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rate=1", r"--set takes name=value, but got 'learning_rate=1': unknown setting"),
        ("lr", "--set takes name=value, but got 'lr'"),
        ("lr=fast", "--set lr: lr must be float, but is 'fast'"),
        ("batch=2.5", "--set batch: batch must be int, but is '2.5'"),
    ],
)
def test_a_wrong_setting_is_one_line(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_settings(RECIPES["paper"], [setting])


def parsed(monkeypatch: pytest.MonkeyPatch, step: str, line: str) -> dict[str, Any]:
    """What the real command line hands to a step."""
    seen: dict[str, Any] = {}

    def stop(*_: Any, **options: Any) -> None:
        seen.update(options)
        raise RunError("stopped here")

    monkeypatch.setattr(step, stop)
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert "stopped here" in result.output, result.output
    return seen


def test_a_search_line_makes_its_settings_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = SearchConfig(
        strategy="reinforce",
        strategy_options={"lr": 0.01},
        reward="one-sided",
        reward_options={"slope": -2.0},
        combine="mean",
        weights=(1.0, 3.0),
        max_flops=10**9,
        max_params=10**7,
        max_energy=20.5,
        max_memory=30.5,
        seed=5,
        warmup_epochs=3,
        warmup_paths="uniform",
        epochs=4,
        paths="strategy",
        batch=32,
        lr=0.02,
        lr_min=0.001,
        t_0=3,
        t_mult=1,
        momentum=0.0,
        weight_decay=0.0,
        updates=6,
        samples=8,
        valid_batch=64,
        recalibration_batches=3,
        rescored=16,
        finalists=4,
        precision="bf16",
        channels_last=True,
        fit=FitConfig(epochs=3),
    )
    # skips go with neither a table nor fitting: tests/test_skips.py has a line of theirs
    changed = set(SearchConfig.__struct_fields__) - {"skips"}
    assert all(getattr(config, name) != getattr(SearchConfig(), name) for name in changed)
    monkeypatch.setattr("nar_hw.latency.table.LatencyTable.load", lambda path: path)
    words = ["--model", "m", "--data", "digits", "--table", "t.json", "--target-ms", "1", "--out", str(tmp_path)]
    line = command("search", *words, *config.options())
    assert parsed(monkeypatch, "nar_hw.steps.search.search_run", line)["config"] == config


def test_a_train_line_makes_its_recipe_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = Recipe(epochs=9, lr=0.03, schedule="step", milestones=(3, 6), clip_norm=1.0, ema_decay=0.9, precision="bf16")
    line = command(
        "train", "--arch", "incumbent", "--model", "lenet5", "--data", "digits", *recipe.options(), "--out", str(tmp_path)
    )
    assert parsed(monkeypatch, "nar_hw.steps.train.train_child", line)["recipe"] == recipe
    assert RECIPES["demo"].options() == ["--recipe", "demo"]
