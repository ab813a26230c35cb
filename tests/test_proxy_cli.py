"""`nar-hw proxy` and `nar-hw search --proxy` through their real entry point."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_cli import DATA, NET, SHORT, SPACE, Run, ok, reachable, refused, run

__all__ = ["run"]

STUDY = f"proxy study --model {NET} --data {DATA} --batch 32 --epochs 3 --lr 0.02"


def test_a_study_is_told_and_resumed(run: Run, tmp_path: Path) -> None:
    found = ok(run(f"{STUDY} --out s --json"))
    assert (found["epochs"], found["batches"]) == (3, 8)
    assert [item["verdict"] == "not tested" for item in found["findings"]] == [False, True, True, True, False]
    code, out, _ = run(f"{STUDY} --out s --resume")
    assert code == 0
    assert "s/study.html" in out
    assert "holds a study already (study.json): resume it" in refused(run(f"{STUDY} --out s"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (STUDY.replace("--batch 32", "--batch 300"), "8 * batch <= training images must hold, but got (batch=300, images=280)"),
        (f"{STUDY} --metric shine", "unknown metric 'shine'"),
        (STUDY.replace("--lr 0.02", "--lr 1e5"), "diverged in epoch 1"),
        (f"{STUDY} --device cuda", "finds no GPU: use cpu"),
        (STUDY.replace(DATA, "faces:x"), "holds identities, not classes"),
        (f"proxy select --model {NET} --data {DATA} --size 281", "1 <= size <= training images must hold"),
        (f"proxy select --model {NET} --data {DATA} --size 9 --by luck", "unknown way to select 'luck'"),
    ],
)
def test_a_users_error_is_one_line(run: Run, line: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert message in refused(run(f"{line} --out x"))


def test_a_search_uses_a_proxy_of_its_data_set_only(run: Run, tmp_path: Path) -> None:
    line = f"proxy select --model {NET} --data {DATA} --size 64 --by gradient --score-epochs 1 --out p.json"
    made: dict[str, Any] = ok(run(f"{line} --json"))
    assert made["gradient_error"] < made["random_gradient_error"]
    assert len(json.loads((tmp_path / "p.json").read_text())["indices"]) == 64
    ok(run(f"profile {SPACE} --classes 4 --runtime fake --validate 0 -o t.json --json"))
    search = f"search --model {NET} --table t.json --target-ms {reachable(tmp_path / 't.json')} {SHORT} --proxy p.json"
    ok(run(f"{search} --data {DATA} --out x --json"))
    splits = json.loads((tmp_path / "x/run.json").read_text())["identity"]["data"]["splits"]
    assert (splits["train"]["size"], splits["valid"]["size"]) == (64, 40)
    assert f"this one is of '{DATA}' and the images of 'fake:3x8x8x5' differ" in refused(
        run(f"{search} --data fake:3x8x8x5 --out y")
    )


def test_a_selection_tells_how_it_ranks_children(run: Run, tmp_path: Path) -> None:
    (tmp_path / "short.json").write_text(json.dumps({"epochs": 1, "batch": 32}))
    line = f"proxy select --model {NET} --data {DATA} --size 40 --by metric --check 3 --recipe short.json --out p.json"
    code, out, err = run(line)
    assert code == 0, err
    assert "40 of 280 images by metric" in out
    assert "3 children: Kendall's tau" in out
