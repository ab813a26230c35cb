"""Kits over ssh: against a stand-in for ssh that runs commands here, and with OpenSSH's client against a server on loopback."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nar_hw.cli.app import app
from nar_hw.errors import NarError
from nar_hw.latency.kit import Times
from nar_hw.latency.ssh import FOLDER, measured_over_ssh, while_connected
from tests.test_kit import NET, loaded, make

FAKE = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift 2; done
[ "$1" = pi@gone ] && { echo "ssh: connect to host gone port 22: Connection refused" >&2; exit 255; }
shift; cd "$DEVICE_HOME" && exec sh -c "$*"
"""


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kit") / "kit"
    make(path, rounds=2, validate=0, budget_s=3.0)
    return path


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of a device that a stand-in for ssh reaches."""
    home, programs = tmp_path / "home", tmp_path / "programs"
    home.mkdir()
    programs.mkdir()
    (programs / "ssh").write_text(FAKE)
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("DEVICE_HOME", str(home))
    return home


def copies(kit: Path, **changes: Any) -> Callable[[Path], object]:
    def copy(folder: Path) -> None:
        shutil.copytree(kit, folder)
        plan = json.loads((folder / "plan.json").read_text())
        (folder / "plan.json").write_text(json.dumps({**plan, **changes}))

    return copy


def left(home: Path) -> list[Path]:
    return sorted((home / FOLDER).iterdir())


def refused(kit: Path, host: str = "pi@board", python: str = sys.executable, **changes: Any) -> str:
    with pytest.raises(NarError) as problem, measured_over_ssh(copies(kit, **changes), host, python=python):
        pytest.fail("nothing was measured")
    assert "\n" not in str(problem.value)
    return str(problem.value)


def test_a_kit_is_measured_on_a_device_and_leaves_nothing_there(kit: Path, device: Path) -> None:
    said: list[str] = []
    with measured_over_ssh(copies(kit), "pi@board", python=sys.executable, say=said.append) as times:
        assert {path.name for path in left(device)[0].iterdir()} == {"children", "measure.py", "plan.json", "times.json"}
        assert times == Times.load(left(device)[0] / "times.json")
    assert said[0] == "making a kit for pi@board"
    assert left(device) == []


def test_what_was_measured_is_kept_and_gone_on_from(kit: Path, device: Path) -> None:
    assert "pi@board: exit code 1" in refused(kit, python="/bin/false")
    folder = left(device)[0]
    module, part = loaded(folder), folder / "times.part"
    original = module.Clock.time_ms

    def stops(clock: Any, network: Any, repeats: int) -> list[float]:
        if part.exists() and len(part.read_text().splitlines()) == 2:
            raise KeyboardInterrupt
        found: list[float] = original(clock, network, repeats)
        return found

    module.Clock.time_ms = stops
    assert module.main(module.NETWORK, folder) == 130
    first = json.loads(part.read_text().splitlines()[1])
    found: list[Times] = []

    def no_table() -> None:
        with measured_over_ssh(copies(kit), "pi@board", python=sys.executable) as times:
            found.append(times)
            raise ValueError("no table")

    with pytest.raises(ValueError, match="no table"):
        no_table()
    times = found[0]
    assert times.batches[0].runs[0] == tuple(map(tuple, first["rounds"][0][0]))
    # What is complete is brought again, with nothing measured
    with measured_over_ssh(copies(kit), "pi@board", python="/bin/false") as again:
        assert again == times
    assert left(device) == []


def test_what_keeps_a_device_from_measuring_is_one_line(kit: Path, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused(kit, host="pi@gone")
    assert said.startswith("the connection to pi@gone failed (ssh: connect to host gone port 22: Connection refused): see that")
    assert "like user@raspberrypi, but got '-oProxyCommand=x'" in refused(kit, host="-oProxyCommand=x")
    assert "but got 'pi board'" in refused(kit, host="pi board")
    assert "pi@board has no python9 (" in refused(kit, python="python9")
    assert "the kit is for onnxruntime 1.2.3, but" in refused(kit, runtime_version="1.2.3")
    for folder in left(device):
        (folder / "times.json").write_text("{")
    assert "is not valid JSON" in refused(kit)
    (device / FOLDER).chmod(0o500)
    if os.geteuid() != 0:
        assert "Permission denied" in refused(kit, budget_s=4.0)
    (device / FOLDER).chmod(0o700)
    monkeypatch.setenv("PATH", "")
    assert "there is no ssh on this machine" in refused(kit)


def test_a_measurement_ends_with_its_connection() -> None:
    with subprocess.Popen(["sh", "-c", while_connected("sleep 100")], stdin=subprocess.PIPE) as running:
        running.communicate()
    assert running.returncode == 128 + 15
    done = subprocess.run(["sh", "-c", while_connected("sh -c 'exit 7'")], stdin=subprocess.DEVNULL)
    assert done.returncode in (7, 128 + 15)  # whichever is first


def test_the_command_writes_the_table(kit: Path, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nar_hw.latency.kit.write_kit", lambda space, folder, **options: copies(kit)(folder))
    words = f"profile --model {NET.name} --input 3x16x16 --classes 5 --operators dwsep3x3,max3x3 --validate 0 --ssh pi@board"
    with pytest.raises(SystemExit) as stopped:
        app([*words.split(), "--ssh-python", sys.executable, "-o", str(tmp_path / "table.json")])
    assert stopped.value.code == 0
    assert json.loads((tmp_path / "table.json").read_text())["method"]["name"] == "in-context"
    assert left(device) == []


# A real connection


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home folder of a device that OpenSSH's client reaches as "board" on loopback."""
    pytest.importorskip("asyncssh", reason="no ssh server here: pip install asyncssh")
    client, keygen = shutil.which("ssh"), shutil.which("ssh-keygen")
    if client is None or keygen is None:
        pytest.skip("no ssh client here")
    home, programs, key = tmp_path / "home", tmp_path / "programs", tmp_path / "key"
    home.mkdir()
    programs.mkdir()
    subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    script = Path(__file__).with_name("sshserver.py")
    with subprocess.Popen([sys.executable, script, home, key], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        port = int(running.stdout.readline())
        (tmp_path / "config").write_text(
            f"Host board\n HostName 127.0.0.1\n Port {port}\n User pi\n IdentityFile {key}\n IdentitiesOnly yes\n"
            f" StrictHostKeyChecking no\n UserKnownHostsFile {tmp_path / 'known'}\n LogLevel ERROR\n"
        )
        (programs / "ssh").write_text(f'#!/bin/sh\nexec {client} -F {tmp_path / "config"} "$@"\n')
        (programs / "ssh").chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        yield home
        running.terminate()


def test_a_real_connection_measures(kit: Path, server: Path) -> None:
    with measured_over_ssh(copies(kit), "board", python=sys.executable) as times:
        assert times.fingerprint["runtime"] == "onnxruntime"
    assert left(server) == []
    assert "the kit is for onnxruntime 1.2.3, but" in refused(kit, host="board", runtime_version="1.2.3")
