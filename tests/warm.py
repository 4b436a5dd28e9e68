"""Runs tests against a changed module: each in a fork of a process that has imported everything but the package."""

import atexit
import contextlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_loader
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "vitviz_hf"
PASSED, FAILED, TIMED_OUT = 0, 1, -1
"""Of an outcome; any other code means that the tests could not be run."""
_HEAVY = (
    "torch",
    f"{PACKAGE}._torchvision",
    "torchvision.transforms.v2",
    "transformers",
    "timm",
    "timm.data",
    "datasets",
    "pyarrow.parquet",
    "huggingface_hub",
    "safetensors.torch",
    "scipy.stats",
    "scipy.optimize",
    "sklearn.cluster",
    "sklearn.manifold",
    "sklearn.metrics",
    "matplotlib.pyplot",
    "skimage",
    "sentencepiece",
    "PIL.Image",
    "pytest",
    "hypothesis",
    "hypothesis.strategies",
    "sqlite3",
    "multiprocessing.pool",
)
_HARMLESS = "ignore::pytest.PytestAssertRewriteWarning"  # plugins are imported before pytest could rewrite them
_CLASSES = (
    "ViTForImageClassification",
    "ViTConfig",
    "ViTImageProcessor",
    "CLIPModel",
    "CLIPImageProcessor",
    "CLIPTokenizer",
    "AutoConfig",
    "AutoImageProcessor",
    "AutoTokenizer",
    "ResNetForImageClassification",
    "DeiTForImageClassification",
)


@dataclass(frozen=True)
class Job:
    """Tests to run, with one module changed or none."""

    tests: tuple[str, ...]
    path: str = ""
    """Of the changed module, from the root; empty if none is."""
    source: str = ""
    """Its text."""
    timeout: float = 300.0
    plugins: tuple[Any, ...] = ()
    """Of pytest; they live in the fork."""
    options: tuple[str, ...] = ("-x",)
    tag: Any = None


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    code: int
    """As of pytest: 0 all passed, 1 some failed; -1 after the timeout."""
    seconds: float
    output: str = field(repr=False)


def warm_up() -> None:
    """Import what the package and its tests need, with one thread each, before anything runs or is forked."""
    home = tempfile.mkdtemp(prefix="vitviz-mutants-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ.update(
        OMP_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
        HF_HOME=f"{home}/hf",
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        DISABLE_SAFETENSORS_CONVERSION="1",
        HYPOTHESIS_STORAGE_DIRECTORY=f"{home}/hypothesis",
        MPLBACKEND="Agg",
        PYTHONDONTWRITEBYTECODE="1",
    )
    os.environ.setdefault("VITVIZ_TEST_MODELS", f"{home}/models")
    sys.dont_write_bytecode = True
    import_heavy()
    for name in [n for n in sys.modules if n.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def import_heavy() -> None:
    """Import the packages that take long, with one thread."""
    for name in _HEAVY:
        importlib.import_module(name)
    import torch
    import transformers

    for name in _CLASSES:
        getattr(transformers, name)
    torch.set_num_threads(1)


def run_jobs(jobs: Iterable[Job], n_at_once: int) -> Iterator[tuple[Job, Outcome]]:
    """Each job with its outcome, in the order in which they end."""
    waiting = iter(jobs)
    running: dict[int, tuple[Job, float, Path]] = {}
    try:
        while True:
            job = next(waiting, None) if len(running) < n_at_once else None
            if job is not None:
                folder = Path(tempfile.mkdtemp(prefix="vitviz-mutants-"))
                running[_start(job, folder)] = job, time.monotonic(), folder
            elif running:
                time.sleep(0.02)
                yield from _ended(running)
            else:
                return
    finally:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _ended(running: dict[int, tuple[Job, float, Path]]) -> Iterator[tuple[Job, Outcome]]:
    for pid, (job, start, folder) in list(running.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        seconds = time.monotonic() - start
        late = not ended and seconds > job.timeout
        if late:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if ended or late:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # what it left behind
            code = TIMED_OUT if late else os.waitstatus_to_exitcode(status)
            output = (folder / "output").read_text("utf-8", "replace")
            shutil.rmtree(folder, ignore_errors=True)
            del running[pid]
            yield job, Outcome(code, seconds, output)


def _start(job: Job, folder: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)
        return pid
    code = 99
    try:
        os.setpgid(0, 0)
        out = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)  # all that the tests leave
        os.chdir(ROOT)
        code = _run_here(job)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run_here(job: Job) -> int:
    import pytest

    if job.path:
        sys.meta_path.insert(0, _Changed(job.path, job.source))
    options = ["-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--tb=line", "-W", _HARMLESS, *job.options]
    return int(pytest.main([*options, *job.tests], plugins=list(job.plugins)))


class _Changed(SourceFileLoader):
    """Finds one module, and gives it another text."""

    def __init__(self, path: str, source: str) -> None:
        self._name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self._source = source
        super().__init__(self._name, str(ROOT / path))

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        return spec_from_loader(name, self, origin=self.path, is_package=self.path.endswith("__init__.py"))

    def get_code(self, fullname: str) -> Any:
        return compile(self._source, self.path, "exec", dont_inherit=True)
