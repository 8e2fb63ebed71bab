"""Run a reader in a child process that a bomb, a hang or a crash cannot leave."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from ann2snn.errors import LONGEST, UserError

SECONDS, BYTES = 20, 1 << 30


def refusal(work: Callable[[], object]) -> str | None:
    """The UserError's message, None if `work` succeeds. Fails on messages that are not one printable line."""
    try:
        work()
    except UserError as error:
        message = str(error)
        assert message.isprintable() and 0 < len(message) <= LONGEST + 10, message
        return message
    return None


def contained(work: Callable[[], object], seconds: int = SECONDS, memory: int = BYTES) -> str | None:
    """`refusal(work)` in a forked child with `memory` more bytes than now, stopped by a signal after `seconds`.

    Fails with the child's traceback, or with the signal it died of.
    """
    with tempfile.TemporaryFile("w+") as out:
        child = os.fork()
        if child == 0:
            code = 3
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(seconds)
                limit(memory)
                message = refusal(work)
                out.write(message or "")
                code = 0 if message is None else 2
            except BaseException:
                out.write(traceback.format_exc())
            finally:
                out.flush()
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        text = out.read()
    assert status in (0, 2), f"ended with {status}: {text[-3000:]}"
    return text if status == 2 else None


def limit(memory: int) -> None:
    """Let this process have `memory` bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def tree(folder: Path) -> dict[str, str]:
    """Relative path → hash of the content, of every plain file below `folder`."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    small = ((path, path.stat().st_size) for path in files)
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if size < 1 << 27 else str(size)
        for path, size in small
    }


def sixteenths(data: bytes) -> list[bytes]:
    """`data` cut after 0, 1, …, 15 sixteenths."""
    return [data[: len(data) * part // 16] for part in range(16)]
