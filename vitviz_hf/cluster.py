"""Jobs spread over machines with Ray: each goes to whoever is free, and to another where one is lost.

Plain actors rather than Ray Data: a job reads its own part of a dataset from a position and folds it, which a `Source`
knows how to do, so no stream of pictures passes through the object store; and a result counts once whoever made it.
"""

import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from vitviz_hf import __version__
from vitviz_hf.errors import ClusterError, ConfigError, first_line

Result = TypeVar("Result")
Job = tuple[int, ...]
"""Numbers of what is done together."""
_TRIES = 3
_TOGETHER = 8
_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Work(Generic[Result]):
    """What every worker does; all functions are a module's, all values can be pickled."""

    prepare: Callable[..., Any]
    """Called with `shared` in each worker, once."""
    shared: tuple[Any, ...]
    do: Callable[[Any, Job, Any, Callable[[int], None]], Result]
    """(prepared, job, note, tell how many are done) -> result of the job."""
    merge: Callable[..., Result]
    """Results of several jobs -> one."""


@dataclass(frozen=True, slots=True)
class Turn(Generic[Result]):
    """What has happened since the last one."""

    job: Job
    """What the result is of; empty without one."""
    result: Result | None
    under_way: int
    """How many are done of what is not in a result yet, as the workers tell."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Ray, connected, and what a worker takes of it."""

    ray: Any
    n_workers: int
    n_cpus: int
    """Of each worker."""
    on_gpus: bool

    @property
    def options(self) -> dict[str, Any]:
        """What Ray gives to a worker."""
        return {"num_cpus": self.n_cpus} | ({"num_gpus": 1} if self.on_gpus else {"scheduling_strategy": "SPREAD"})


@dataclass(slots=True, eq=False)
class _Worker:
    actor: Any
    job: Job = ()
    ready: bool = False
    told: int = 0
    asked: float = 0.0


@contextmanager
def open_cluster(address: str, gpus: int | None = None) -> Iterator[Cluster]:
    """Connect to Ray, or start it on this machine alone.

    Args:
        address: `ray`: the cluster of RAY_ADDRESS, else this machine; `ray://HOST:PORT`: Ray Client of a cluster.
        gpus: workers with a GPU each; None: as many as there are, and where there is none one worker for each machine,
            on its CPUs, as 0 does.

    Raises:
        ConfigError: no such address, or more GPUs than there are.
        ClusterError: Ray is not installed or does not answer.
    """
    if address != "ray" and not address.startswith("ray://"):
        raise ConfigError(f"--on must be ray or ray://HOST:PORT; got {address!r}.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "WARNING"}
    if address == "ray":
        options["address"] = os.environ.get("RAY_ADDRESS") or "local"
    if options["address"] not in ("local", "auto") and not _parts(options["address"])[1].isdecimal():
        raise ConfigError(f"the address of a cluster is HOST:PORT or ray://HOST:PORT; got {options['address']!r}.")
    if options["address"] == "local":
        options["include_dashboard"] = False
    if options["address"] == "local" or _is_only_here(options["address"]):
        # Ray then keeps to 127.0.0.1; else it would look for the cluster at this machine's other address for ever.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise ClusterError("--on ray needs Ray: pip install 'vitviz_hf[ray]'.") from error
    joined = ray.is_initialized()
    if not joined:
        try:
            _knock(options["address"])
            ray.init(**options)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            raise ClusterError(f"no Ray cluster answers at {options['address']!r}: {first_line(error)}") from error
    try:
        yield Cluster(ray, *_plan([n["Resources"] for n in ray.nodes() if n["Alive"]], gpus))
    finally:
        if not joined:
            ray.shutdown()


def _knock(address: str) -> None:
    """Raise ConnectionError soon where nobody listens; Ray itself tries for more than a minute."""
    host, port = _parts(address)
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), 10).close()
        except OSError as error:
            raise ConnectionError(first_line(error)) from error


def _is_only_here(address: str) -> bool:
    """Whether it is a loopback address, and who listens there does not listen at all addresses of this machine."""
    if address == "auto":  # Ray keeps the address of this machine's cluster in a file
        folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
        with suppress(OSError):
            address = Path(folder, "ray", "ray_current_cluster").read_text("utf-8").strip()
    host, port = _parts(address)
    if not (host.startswith("127.") or host in ("localhost", "::1")):
        return False
    try:
        _knock(f"127.0.0.2:{port}")
    except ConnectionError:
        return True
    return False


def _parts(address: str) -> tuple[str, str]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return host.strip("[]"), port


def _plan(machines: Sequence[dict[str, float]], gpus: int | None) -> tuple[int, int, bool]:
    """Number of workers, CPUs of each, and whether each has a GPU."""
    there = int(sum(machine.get("GPU", 0) for machine in machines))
    wanted = there if gpus is None else gpus
    if not 0 <= wanted <= there:
        raise ConfigError(f"the cluster has {there} GPUs; got --gpus {gpus}.")
    cpus = [(int(m.get("CPU", 0)), int(m.get("GPU", 0))) for m in machines]
    shares = [n // n_gpus for n, n_gpus in cpus if n_gpus] if wanted else [n for n, _ in cpus if n]
    if not shares or not min(shares):
        raise ClusterError("the cluster has no CPU for every worker.")
    return wanted or len(shares), min(shares), wanted > 0


def _check_installed(error: Exception) -> None:
    """Raise if a worker could not start for want of a package, as this one on a machine that has only Ray."""
    if missing := re.search(r"No module named '([\w.]+)'", str(error)):
        raise ClusterError(
            f"a machine of the cluster lacks the Python package {missing[1]!r}; install vitviz_hf {__version__} "
            "with all that it needs on every one, in the environment that starts Ray there."
        )


class _Actor:
    """In a process of its own; `done` answers while `run` works."""

    def __init__(self, work: Work[Any]) -> None:
        self.work, self.prepared, self.n = work, None, 0

    def start(self, *shared: Any) -> str:
        self.prepared = self.work.prepare(*shared)
        return __version__

    def run(self, job: Job, note: Any) -> tuple[int, Any]:
        self.n = 0
        result = self.work.do(self.prepared, job, note, self._tell)
        return self.n, result

    def done(self) -> int:
        return self.n

    def _tell(self, n: int) -> None:
        self.n = n


def spread(
    cluster: Cluster,
    work: Work[Result],
    numbers: Sequence[int],
    size: Callable[[int, int], int],
    note: Callable[[], Any],
) -> Generator[Turn[Result]]:
    """Have every number done once.

    A worker that dies is replaced, and its job goes to another; when no other job is left, those of slow workers are
    done by idle ones too, and the first result counts. Results that arrive together are merged in the cluster, on the
    machine where this process runs, so that it takes in fewer.

    Args:
        size: (how many are left, how many were done) -> how many numbers the next job has.
        note: gives what is sent along with a job.

    Yields:
        At least once a second.

    Raises:
        ClusterError: a job or the start of a worker failed three times with its process.
        Exception: what a job raised itself.
    """
    yield from _Spread(cluster, work, deque(numbers), size, note).turns()


@dataclass(slots=True)
class _Spread(Generic[Result]):
    cluster: Cluster
    work: Work[Result]
    fresh: deque[int]
    size: Callable[[int, int], int]
    note: Callable[[], Any]
    left: int = 0
    """Numbers whose results were not given yet."""
    again: deque[Job] = field(default_factory=deque)
    workers: list[_Worker] = field(default_factory=list)
    pending: dict[Any, Callable[[Any], None]] = field(default_factory=dict)
    """What to do when an object is there."""
    counted: dict[Job, int] = field(default_factory=dict)
    """Jobs that are done, with what they told, until their result was given."""
    given: set[Job] = field(default_factory=set)
    parts: list[tuple[list[Job], Any]] = field(default_factory=list)
    merged: list[tuple[list[Job], Any]] = field(default_factory=list)
    tries: dict[Job, int] = field(default_factory=dict)
    """() stands for the start of a worker."""
    actor: Any = None
    merge: Any = None
    shared: tuple[Any, ...] = ()

    def turns(self) -> Iterator[Turn[Result]]:
        ray = self.cluster.ray
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        self.left, total = len(self.fresh), len(self.fresh)
        self.actor = ray.remote(max_concurrency=2, **self.cluster.options)(_Actor)
        self.merge = ray.remote(num_cpus=0, scheduling_strategy=here)(self.work.merge)
        self.shared = tuple(map(ray.put, self.work.shared))
        try:
            for _ in range(min(self.cluster.n_workers, total)):
                self._hire()
            while self.left:
                self._hand_out(total)
                self._wait()
                yield from self._results()
        except ConnectionError as error:
            raise ClusterError(
                f"the connection to the cluster was lost: {first_line(error)}. What was done is kept for --resume."
            ) from error
        finally:
            if ray.is_initialized():  # else it would start a cluster here to kill them
                for worker in self.workers:
                    ray.kill(worker.actor)

    def _hire(self) -> None:
        worker = _Worker(self.actor.remote(Work(self.work.prepare, (), self.work.do, self.work.merge)))
        self.workers.append(worker)
        self.pending[worker.actor.start.remote(*self.shared)] = partial(self._started, worker)

    def _hand_out(self, total: int) -> None:
        for worker in self.workers:
            if worker.ready and not worker.job and (job := self._next(total)):
                worker.job, worker.told = job, 0
                number, part = worker.actor.run.options(num_returns=2).remote(job, self.note())
                self.pending[number] = partial(self._ran, worker, part)

    def _next(self, total: int) -> Job:
        if self.again:
            return self.again.popleft()
        if self.fresh:
            n = self.size(len(self.fresh), total - self.left)
            return tuple(self.fresh.popleft() for _ in range(min(n, len(self.fresh))))
        running = [w.job for w in self.workers if w.job and not self._is_done(w.job)]
        return next((job for job in running if running.count(job) == 1), ())

    def _is_done(self, job: Job) -> bool:
        return job in self.counted or job in self.given

    def _wait(self) -> None:
        """For something to be there, then all that is; meanwhile workers are asked how far they are."""
        now = time.monotonic()
        for worker in self.workers:
            if worker.job and now - worker.asked >= _SECONDS:
                worker.asked = float("inf")  # until it has answered
                self.pending[worker.actor.done.remote()] = partial(self._told, worker)
        for timeout, n in ((_SECONDS, 1), (0, len(self.pending))):
            there, _ = self.cluster.ray.wait(list(self.pending), num_returns=min(n, len(self.pending)), timeout=timeout)
            for ref in there:
                self.pending.pop(ref)(ref)
            if not self.pending:
                return

    def _results(self) -> Iterator[Turn[Result]]:
        if len(self.parts) == 1:
            self.merged.append(self.parts.pop())
        while self.parts:
            some, self.parts = self.parts[:_TOGETHER], self.parts[_TOGETHER:]
            jobs = [job for own, _ in some for job in own]
            ref = self.merge.remote(*(part for _, part in some))
            self.pending[ref] = partial(self._was_merged, jobs)
        while self.merged:
            jobs, ref = self.merged.pop()
            found, result = self._fetch(ref)
            del ref
            for job in jobs:
                told = self.counted.pop(job)
                if found:
                    self.given.add(job)
                    self.left -= len(job)
                else:
                    self._repeat(job, f"its result of {told} was lost")
            if found:
                yield Turn(tuple(n for job in jobs for n in job), result, self._under_way())
            del result
        yield Turn((), None, self._under_way())

    def _under_way(self) -> int:
        busy = [w for w in self.workers if w.job and not self._is_done(w.job)]
        running = {w.job: w.told for w in sorted(busy, key=lambda w: w.told)}
        return sum(running.values()) + sum(self.counted.values())

    def _fetch(self, ref: Any) -> tuple[bool, Any]:
        """An object, unless it was lost with a process or a machine; what the job itself raised is raised."""
        errors = self.cluster.ray.exceptions
        try:
            return True, self.cluster.ray.get(ref)
        except errors.RayTaskError as error:
            if isinstance(error.cause, errors.RayError):
                return False, error.cause
            raise error.cause or error from error
        except errors.RayError as error:
            return False, error

    def _started(self, worker: _Worker, ref: Any) -> None:
        worker.ready, version = self._fetch(ref)
        if not worker.ready:
            _check_installed(version)
            self._replace(worker)
            self._count_try((), first_line(version))
        elif version != __version__:
            raise ClusterError(f"a machine of the cluster has vitviz_hf {version}, this one has {__version__}.")

    def _told(self, worker: _Worker, ref: Any) -> None:
        found, n = self._fetch(ref)
        worker.told, worker.asked = n if found else 0, time.monotonic()

    def _was_merged(self, jobs: list[Job], ref: Any) -> None:
        self.merged.append((jobs, ref))

    def _ran(self, worker: _Worker, part: Any, ref: Any) -> None:
        job, worker.job = worker.job, ()
        found, n = self._fetch(ref)
        if not found:
            self._replace(worker)
        if self._is_done(job):
            return
        if found:
            self.counted[job] = n
            self.parts.append(([job], part))
        elif all(w.job != job for w in self.workers):
            self._repeat(job, first_line(n))

    def _replace(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        self.cluster.ray.kill(worker.actor)
        self._hire()

    def _repeat(self, job: Job, why: str) -> None:
        self.again.append(job)
        self._count_try(job, why)

    def _count_try(self, job: Job, why: str) -> None:
        self.tries[job] = self.tries.get(job, 0) + 1
        if self.tries[job] >= _TRIES:
            what = f"part {job[0]}" if job else "the start of a worker"
            raise ClusterError(
                f"{what} ended its process {_TRIES} times; the last time: {why}. What was done is kept for --resume."
            )
