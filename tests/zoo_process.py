"""Runs `pad zoo ...` in a process of its own, with an environment of its own, as the console command does.

The environment variables of huggingface_hub are read when it is imported, so each command needs a fresh
process. They are forked from a server that has imported torch once, which saves seconds for each.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from hub_server import TOKEN, Hub

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "safetensors.torch", "yaml", "pad.commands.parser", "pad.commands.zoo", "pad.config"]
)


def environment(hub: Hub | str, home: Path, **more: str) -> dict[str, str]:
    """A clean environment whose hub is this one, with an empty cache at `home`."""
    own = ("HF_", "HUGGING")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(own) and "proxy" not in k.lower()}
    return {
        **clean,
        "HF_HOME": str(home),
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.url,
        "HF_HUB_DISABLE_XET": "1",  # the LFS protocol, which is what our hub speaks
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **more,
    }


@dataclass
class Command:
    """A command that runs."""

    process: ForkServerProcess
    out: Path
    err: Path
    memory: Path  # where it leaves the most memory that it had, in kB

    def peak(self) -> int:
        """The most memory that it had, in bytes, after its end."""
        return int(self.memory.read_text()) * 1024

    def result(self) -> tuple[int, str, str]:
        """(exit status, stdout, stderr); neither a traceback nor the token is in them."""
        self.process.join(100)
        assert self.process.exitcode is not None, "it hangs"
        out, err = self.out.read_text(), self.err.read_text()
        assert TOKEN not in out + err
        assert "Traceback" not in err, err
        return self.process.exitcode, out, err

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


_count = 0


def start(*words: str, env: dict[str, str], file_limit: int = 0) -> Command:
    """Starts `pad zoo WORDS`; no file may grow above `file_limit` bytes, if it is given."""
    global _count
    _count += 1
    home = Path(env["HF_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    out, err, memory = (home / f"{name}{_count}" for name in ("out", "err", "memory"))
    process = CONTEXT.Process(target=_child, args=(words, env, out, err, memory, file_limit))
    process.start()
    return Command(process, out, err, memory)


def zoo(*words: str, env: dict[str, str], file_limit: int = 0) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of `pad zoo WORDS`."""
    return start(*words, env=env, file_limit=file_limit).result()


def refused(*words: str, env: dict[str, str], file_limit: int = 0) -> str:
    """The one line on stderr of a command that must end with status 2."""
    status, out, err = zoo(*words, env=env, file_limit=file_limit)
    lines = [line for line in err.splitlines() if line.startswith("pad: ")]
    assert (status, len(lines)) == (2, 1), out + err
    return lines[0]


def _child(
    words: tuple[str, ...], env: dict[str, str], out: Path, err: Path, memory: Path, file_limit: int
) -> None:
    os.environ.clear()
    os.environ.update(env)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    try:
        sys.exit(main(list(words)))
    finally:
        memory.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def main(words: list[str]) -> int:
    """`pad zoo WORDS` in this process."""
    from pad.commands.parser import main

    return main(["zoo", *words])
