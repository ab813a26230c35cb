"""An ssh server on loopback for tests: `python sshserver.py HOME KEY` prints its port and runs commands in HOME until stopped."""

import asyncio
import subprocess
import sys
from typing import Any

import asyncssh


class Accepts(asyncssh.SSHServer):  # type: ignore[misc,unused-ignore]
    """Only the owner of one key."""

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: Any) -> bool:
        return bool(key == OWN)


async def runs(process: Any) -> None:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    started = await asyncio.create_subprocess_exec("sh", "-c", process.command, cwd=HOME, **pipes)  # type: ignore[arg-type]
    await process.redirect(stdin=started.stdin, stdout=started.stdout, stderr=started.stderr)
    code = await started.wait()
    await process.stdout.drain()
    process.exit(code)


async def listen() -> None:
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    options = {"server_host_keys": [host_key], "process_factory": runs, "encoding": None}
    acceptor = await asyncssh.create_server(Accepts, "127.0.0.1", 0, **options)
    sys.stdout.write(f"{acceptor.get_port()}\n")
    sys.stdout.flush()
    await acceptor.wait_closed()


if __name__ == "__main__":
    HOME, OWN = sys.argv[1], asyncssh.read_private_key(sys.argv[2]).convert_to_public()
    asyncio.run(listen())
