"""Processes that can be killed, measured and starved, each a fork of one that has imported everything."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.stress.preloaded"])
_PATIENCE = 300
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "sqlite3.connect")


@dataclass(frozen=True)
class Ended:
    """What came of a child."""

    code: int
    """Below 0 the signal that ended it."""
    output: str
    peak: float
    """Megabytes by which its memory grew at most; 0 if it was killed."""


def run(job: Callable[..., Any], *args: Any, folder: Path, seconds: float | None = None, change: int = 0) -> Ended:
    """Call a function in a child, and wait for its end; its result is the exit code.

    Args:
        folder: for its output.
        seconds: kill -9 after so many; None waits for its end.
        change: kill -9 just before its n-th change of a file, counted from 1; 0 never.
    """
    told = folder / "told"
    told.unlink(missing_ok=True)
    child = _SERVER.Process(target=_live, args=(str(told), change, job, args))
    child.start()
    child.join(_PATIENCE if seconds is None else seconds)
    if child.is_alive():
        child.kill()
        child.join()
    output = told.read_text("utf-8", "replace") if told.exists() else ""
    output, _, facts = output.partition("\0")
    return Ended(int(child.exitcode), output, float(facts or 0))


def command(argv: Sequence[str]) -> int:
    """The command line, here."""
    from vitviz_hf.cli.main import main

    return main(argv)


def changes(job: Callable[..., Any], *args: Any, folder: Path) -> int:
    """How many changes of files a job makes."""
    counted = folder / "changes"
    ended = run(_counting, str(counted), job, args, folder=folder)
    assert ended.code == 0, ended.output
    return int(counted.read_text())


def _counting(path: str, job: Callable[..., Any], args: Sequence[Any]) -> int:
    n = [0]
    _on_change(lambda: n.__setitem__(0, n[0] + 1))
    code = job(*args)
    Path(path).write_text(str(n[0]))
    return int(code or 0)


def _on_change(tell: Callable[[], None]) -> None:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & _WRITING):
            tell()

    sys.addaudithook(hook)


def _live(told: str, change: int, job: Callable[..., Any], args: Sequence[Any]) -> None:
    out = os.open(told, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 99
    before = _resident("VmRSS")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    if change:
        left = [change]

        def count_down() -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        _on_change(count_down)
    try:
        code = int(job(*args) or 0)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(out, f"\0{_resident('VmHWM') - before}".encode())
        os._exit(code)


def _resident(name: str) -> float:
    """Megabytes by a line of the process's status; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024
