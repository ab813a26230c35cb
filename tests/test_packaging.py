"""The wheel holds exactly the package and the tables, and runs from a bare environment."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).exists() and not name.startswith(("tests/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source], check=True, capture_output=True
    )
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {path.relative_to(ROOT) for pattern in ("*.py", "*.html", "py.typed") for path in (ROOT / "nar_hw").rglob(pattern)}
    tables = {
        Path("nar_hw") / path.relative_to(ROOT)
        for path in (ROOT / "latency_tables").iterdir()
        if path.suffix in (".json", ".py", ".md")
    }
    children = {Path("nar_hw/children_data") / path.name for path in (ROOT / "export/children").glob("*.*")}
    assert names == {path.as_posix() for path in package | tables | children}


def test_the_wheel_runs_in_a_bare_environment(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, symlinks=os.name != "nt")
    scripts = Path(sysconfig.get_path("scripts", "venv", {"base": str(home)}))
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python"]  # this environment's: to install another takes seconds
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home)}))
    # The dependencies of this environment, but not its editable install: .pth files are not read from there.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    def run(*command: str) -> str:
        return subprocess.run(
            [scripts / command[0], *command[1:]], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    assert str(site) in run("python", "-c", "import nar_hw; print(nar_hw.__file__)")
    assert "search" in run("nar-hw", "--help")
    assert isinstance(json.loads(run("nar-hw", "table", "list", "--json"))["tables"], list)
