"""Kits that are measured on a device over ssh: copied there, measured, brought back.

The device needs a POSIX shell, tar, Python, NumPy and the runtime. A kit lies in a folder there that is called after its plan:
started again with the same words, it goes on from what the device has. Ports, keys and names belong into ~/.ssh/config.
"""

import hashlib
import io
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nar_hw.device.measure import PLAN, TIMES
from nar_hw.errors import RunError, UserError
from nar_hw.files import Scratch, write_bytes
from nar_hw.latency.kit import Times

FOLDER = ".cache/nar-hw/kits"
"""In the home folder of the device's user."""
# No questions: there is nobody to answer; a dead connection is noticed within a minute
_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15")
_FAILED = 255  # ssh's own exit code


@contextmanager
def measured_over_ssh(
    make: Callable[[Path], object], host: str, *, python: str = "python3", say: Callable[[str], object] = lambda line: None
) -> Iterator[Times]:
    """Measure a kit on ``host``; the block gets the times. What lies on the device is deleted when the block succeeds.

    Args:
        make: writes the kit into a folder (`write_kit`, `write_bench_kit`); called once the device answers.
        host: where to, as ssh takes it: "user@name".
        python: Python's name or path there, from the home folder on.
        say: is told the progress, a line at a time.

    Raises:
        UserError: a host that is none, or no ssh here.
        RunError: the connection fails, or measure.py does, with what it says.
    """
    device = _Device(host)
    device.run(f"mkdir -p {FOLDER}")
    with Scratch() as scratch:
        kit = Path(scratch) / "kit"
        say(f"making a kit for {host}")
        make(kit)
        mark = hashlib.sha256((kit / PLAN).read_bytes() + (kit / "measure.py").read_bytes()).hexdigest()[:16]
        there = f"{FOLDER}/{mark}"
        has = device.run(f"ls {there} 2>/dev/null; true").decode(errors="replace").splitlines()
        if PLAN not in has:
            unpack = f"mkdir {there}.new && tar xf - -C {there}.new && rm -rf {there} && mv {there}.new {there}"
            device.run(f"rm -rf {there}.new && {unpack}", _packed(kit))
        if TIMES not in has:
            device.measure(there, python, say)
        write_bytes(kit / TIMES, device.run(f"cat {there}/{TIMES}"))
        times = Times.load(kit / TIMES)
    yield times
    device.run(f"rm -rf {there}")


def while_connected(command: str) -> str:
    """A shell command that runs ``command`` until that ends, or until nobody writes to it any more: then that is stopped."""
    watch = "(cat <&3; kill $p) >/dev/null 2>&1 & w=$!"  # what runs beside a script reads nothing by itself
    return f"exec 3<&0; {command} & p=$!; {watch}; wait $p; c=$?; kill $w 2>/dev/null; exit $c"


class _Device:
    """Another machine."""

    def __init__(self, host: str) -> None:
        if not host or host.startswith("-") or any(char.isspace() for char in host):
            raise UserError(f"a device must be named as ssh takes it, like user@raspberrypi, but got {host!r}")
        program = shutil.which("ssh")
        if program is None:
            raise UserError("there is no ssh on this machine: install OpenSSH's client, or carry the kit yourself (--kit)")
        self.host = host
        self._ssh = [program, *_OPTIONS, host]

    def run(self, command: str, data: bytes = b"") -> bytes:
        """What a shell command there writes to stdout. Raises RunError."""
        done = subprocess.run([*self._ssh, command], input=data, capture_output=True)
        self._check(done.returncode, done.stderr.decode(errors="replace"))
        return done.stdout

    def measure(self, folder: str, python: str, say: Callable[[str], object]) -> None:
        """Run measure.py there for as long as this process is connected. Raises RunError."""
        # It ends with the connection: a second one must not measure beside it
        command = while_connected(f"{shlex.quote(python)} {folder}/measure.py")
        with subprocess.Popen(
            [*self._ssh, command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        ) as process:
            assert process.stderr is not None
            said = ""
            for line in process.stderr:
                if line.strip():
                    said = line.strip()
                    say(said)
        code = process.returncode
        if code in (126, 127):
            raise RunError(f"{self.host} has no {python} ({said}): install Python there, or name it with --ssh-python")
        self._check(code, said)

    def _check(self, code: int, said: str) -> None:
        """Raises RunError for a command that did not end well."""
        last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), f"exit code {code}")
        if code == _FAILED:
            raise RunError(
                f"the connection to {self.host} failed ({last}): see that `ssh {self.host} true` works without a question; "
                "what was measured is kept there, the same command goes on"
            )
        if code:
            raise RunError(f"on {self.host}: {last.removeprefix('measure.py: ')}")


def _packed(kit: Path) -> bytes:
    """The kit as a tar file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(kit.rglob("*")):
            if path.is_file() and path.name != TIMES:
                archive.add(path, path.relative_to(kit).as_posix())
    return stream.getvalue()
