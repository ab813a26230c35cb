"""Weights and training states on disk: safetensors for networks, a tensors-only file for what a training needs to go on."""

import io
from pathlib import Path
from typing import Any

import torch

from nar_hw.errors import RunError, TrainingError
from nar_hw.files import write_bytes
from nar_hw.records import as_record, check_same, plain, replace
from nar_hw.training.recipes import Recipe

SCHEMA = 1
"""Of the training state."""


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a dict of tensors, numbers, strings, lists and dicts, atomically."""
    content = io.BytesIO()  # not into the file: of a full disk torch says nothing that could be told from its own faults
    torch.save(state, content)
    write_bytes(path, content.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """What :func:`save_state` wrote, its tensors on the CPU; nothing but data is unpickled. Raises RunError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # torch raises many kinds for a damaged file
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise RunError(f"training state {path} cannot be read ({reason}): delete its folder and train again") from problem
    if not isinstance(state, dict):
        raise RunError(f"training state {path} must hold a dict, but holds a {type(state).__name__}: train again")
    return state


def check_resumable(state: dict[str, Any], out: Path, *, recipe: Recipe, seed: int, task: dict[str, Any]) -> None:
    """Whether the training whose ``state`` lies in ``out`` can go on with ``recipe``, ``seed`` and the task's record.

    Only the number of epochs may be another: not less than are done, and not where all of them are one cycle of the rate.

    Raises:
        RunError: naming what differs.
    """
    whole = all(isinstance(state.get(name), kind) for name, kind in {"seed": int, "history": list, "task": dict}.items())
    if state.get("schema") != SCHEMA or not whole:
        raise RunError(
            f"{out} must have a training state of schema {SCHEMA}: it was written by another version of nar_hw, train anew"
        )
    old, done = as_record(state.get("recipe"), Recipe, where="recipe", error=TrainingError), len(state["history"])
    if recipe.epochs < min(done, old.epochs):
        raise RunError(f"{out} has trained for {done} epochs already, but {recipe.epochs} were asked for: ask for {done} or more")
    if recipe.epochs != old.epochs and done > old.epochs:
        raise RunError(
            f"a training goes on from a whole epoch, but {out} has ended after {old.epochs} and {recipe.epochs} were asked for: "
            "train anew"
        )
    if recipe.epochs != old.epochs and recipe.one_cycle and old.one_cycle:
        raise RunError(
            "a training whose learning rate falls once (one-cycle, two phases) cannot change its number of epochs, but "
            f"{out} was started for {old.epochs} and {recipe.epochs} were asked for: ask for the same, or train anew"
        )
    there = {"training seed": state["seed"], "data": state["task"], **plain(replace(old, epochs=recipe.epochs))}
    here = {"training seed": seed, "data": task, **plain(recipe)}
    check_same(there, here, where=str(out))
