"""Jobs on a Ray cluster of two nodes: lost processes and machines, slow workers, failures; and without Ray."""

import os
import signal
import socket
import sys
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.inline_ray import InlineRay, RayError
from vitviz_hf.cluster import Cluster, Work, _plan, _Spread, _Worker, open_cluster, spread
from vitviz_hf.errors import ClusterError, ConfigError, DatasetError


def first_time(folder, name):
    """Whether nobody has said this before."""
    try:
        Path(folder, name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def wait_for(folder, name):
    while not Path(folder, name).exists():
        time.sleep(0.02)


def prepare(folder):
    return folder


def add(*parts):
    return [one for part in parts for one in part]


def squares(folder, job, note, tell):
    tell(len(job))
    return [(n, n * n, os.getpid(), note) for n in job]


def results(cluster, do, folder, n=12, size=lambda left, done: 1, note=lambda: None):
    """Everything that was given, and how many jobs were under way, in the order of the turns."""
    turns = list(spread(cluster, Work(prepare, (str(folder),), do, add), range(n), size, note))
    found = [one for turn in turns for one in turn.result or []]
    assert sorted(n for turn in turns for n in turn.job) == list(range(n))
    return found, turns


@pytest.fixture
def cluster(machines):
    with open_cluster("ray") as cluster:
        yield cluster


@pytest.mark.slow
def test_every_number_is_done_once_by_two_workers_whatever_is_taken_together(cluster, tmp_path):
    sizes = iter([3, 1, 4] + [1] * 20)

    def together(folder, job, note, tell):
        Path(folder, f"pid-{os.getpid()}").touch()
        while len(list(Path(folder).iterdir())) < 2:  # until both have begun
            time.sleep(0.02)
        return squares(folder, job, note, tell)

    found, turns = results(cluster, together, tmp_path, 20, lambda left, done: next(sizes), lambda: "note")

    assert sorted((n, square) for n, square, _, _ in found) == [(n, n * n) for n in range(20)]
    assert cluster.n_workers == len(list(tmp_path.iterdir())) == 2
    assert {note for *_, note in found} == {"note"}
    assert all(0 <= turn.under_way <= 20 for turn in turns)


@pytest.mark.slow
def test_a_killed_process_costs_its_unfinished_job_only(cluster, tmp_path):
    def fatal(folder, job, note, tell):
        with Path(folder, f"tried-{job[0]}").open("a") as file:
            file.write("x")
        if job == (5,) and first_time(folder, "killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return squares(folder, job, note, tell)

    found, _ = results(cluster, fatal, tmp_path)

    assert sorted((n, square) for n, square, _, _ in found) == [(n, n * n) for n in range(12)]
    tried = {n: len((tmp_path / f"tried-{n}").read_text()) for n in range(12)}
    assert tried[5] >= 2 and sum(tried.values()) - tried[5] <= 12  # the last job may be done by an idle worker too


@pytest.mark.slow
def test_a_slow_worker_is_not_waited_for(cluster, tmp_path):
    def dawdling(folder, job, note, tell):
        while job == (3,) and first_time(folder, "slow"):
            wait_for(folder, "never")
        return squares(folder, job, note, tell)

    found, _ = results(cluster, dawdling, tmp_path)

    assert sorted((n, square) for n, square, _, _ in found) == [(n, n * n) for n in range(12)]


@pytest.mark.slow
def test_what_a_job_raises_is_raised_here(cluster, tmp_path):
    def failing(folder, job, note, tell):
        raise DatasetError(f"row {job[0]} is bad.", "Mend it.")

    with pytest.raises(DatasetError, match=r"row \d is bad. Mend it."):
        results(cluster, failing, tmp_path)


@pytest.mark.slow
def test_a_job_that_always_ends_its_process_is_given_up(cluster, tmp_path):
    def fatal(folder, job, note, tell):
        if job == (1,):
            os.kill(os.getpid(), signal.SIGKILL)
        return squares(folder, job, note, tell)

    with pytest.raises(ClusterError, match="part 1 ended its process 3 times; the last time: "):
        results(cluster, fatal, tmp_path)


@pytest.mark.slow
def test_more_gpus_than_there_are_and_an_address_without_a_cluster_are_told(machines, monkeypatch):
    with pytest.raises(ConfigError, match="the cluster has 0 GPUs; got --gpus 2"), open_cluster("ray", 2):
        pass
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at '127\.0\.0\.1:1'"), open_cluster("ray"):
        pass


@pytest.mark.parametrize(
    ("listens", "address", "kept"),
    [
        ("127.0.0.1", "127.0.0.1", "0"),
        ("127.0.0.1", "localhost", "0"),
        ("127.0.0.1", "auto", "0"),
        ("", "127.0.0.1", None),
        ("", "auto", None),
        ("127.0.0.1", "192.0.2.7", None),
    ],
)
def test_ray_keeps_to_the_loopback_address_only_where_its_cluster_does(listens, address, kept, tmp_path, monkeypatch):
    known = SimpleNamespace(is_initialized=lambda: True, nodes=lambda: [{"Alive": True, "Resources": {"CPU": 3}}])
    monkeypatch.setitem(sys.modules, "ray", known)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    with socket.create_server((listens, 0)) as listening:
        port = listening.getsockname()[1]
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray/ray_current_cluster").write_text(f"127.0.0.1:{port}")
        monkeypatch.setenv("RAY_ADDRESS", address if address == "auto" else f"{address}:{port}")
        with open_cluster("ray") as cluster:
            assert cluster.n_cpus == 3 and os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == kept


def test_what_two_workers_did_counts_once():
    run = _Spread(Cluster(InlineRay, 2, 1, False), Work(prepare, (), squares, add), deque(), None, None, left=1)
    first, second = _Worker(None, (7,), True), _Worker(None, (7,), True)
    run.workers = [first, second]

    run._ran(second, [49], 1)
    (turn, _) = run._results()
    run._ran(first, [49], 1)

    assert turn.job == (7,) and turn.result == [49] and run.left == 0
    assert [t.result for t in run._results()] == [None] and not run.again
    assert not first.job and not second.job


@pytest.mark.parametrize("lost", ["worker", "result", "merge"])
def test_what_is_lost_is_done_again_and_nothing_else(lost, tmp_path):
    merging = []

    def losing(folder, job, note, tell):
        if job == (2,) and lost == "worker" and first_time(folder, "lost"):
            raise RayError("its node died.")
        return squares(folder, job, note, tell)

    def join(*parts):
        merging.append(len(parts))
        if lost == "merge" and len(merging) == 1:
            raise RayError("its node died.")
        return add(*parts)

    class Losing(SimpleNamespace):
        def get(self, ref):
            value = InlineRay.get(ref)
            if lost == "result" and isinstance(value, list) and first_time(tmp_path, "lost"):
                raise RayError("it was on a node that died.")
            return value

    cluster = Cluster(Losing(**{k: v for k, v in vars(InlineRay).items() if k != "get"}), 3, 1, False)
    turns = list(spread(cluster, Work(prepare, (str(tmp_path),), losing, join), range(11), lambda *_: 1, list))

    assert sorted(n for turn in turns for n in turn.job) == list(range(11))
    assert sorted(one[0] for turn in turns for one in turn.result or []) == list(range(11))
    assert max(merging) == 3 and (lost == "merge" or (tmp_path / "lost").exists())


@pytest.mark.parametrize("connected", [True, False])
def test_a_lost_connection_is_told_and_starts_no_cluster_here(connected):
    killed = []

    def lost(*_, **__):
        raise ConnectionError("Client is shutting down.")

    there = {"wait": lost, "is_initialized": lambda: connected, "kill": killed.append}
    cluster = Cluster(SimpleNamespace(**{**vars(InlineRay), **there}), 1, 1, False)

    with pytest.raises(ClusterError, match=r"was lost: Client is shutting down\.\. What was done is kept for --resume"):
        list(spread(cluster, Work(prepare, ("",), squares, add), range(3), lambda *_: 1, list))
    assert len(killed) == connected


@pytest.mark.parametrize("address", ["nonsense", "ray://host", "ray://", "host:port"])
def test_what_is_no_address_of_a_cluster_is_told_before_it_is_tried(address, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_ADDRESS", address)

    told = pytest.raises(ConfigError, match=f"HOST:PORT or ray://HOST:PORT; got '{address}'")
    with told, open_cluster(address if address.startswith("ray") else "ray"):
        pass


def test_an_empty_address_stands_for_this_machine(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_ADDRESS", "")

    with pytest.raises(ClusterError, match="needs Ray"), open_cluster("ray"):
        pass


def test_a_machine_that_lacks_the_package_is_told_at_once():
    tried = []

    def start(*_):
        tried.append(1)
        raise RayError("The actor died in its creation task, _Actor.__init__()\nSystem error: No module named 'timm.x'")

    with pytest.raises(ClusterError, match=r"lacks the Python package 'timm.x'; install vitviz_hf \d.* on every one"):
        list(spread(Cluster(InlineRay, 1, 1, False), Work(start, (), squares, add), range(3), lambda *_: 1, list))
    assert tried == [1]


@pytest.mark.parametrize(
    ("there", "gpus", "plan"),
    [
        ([{"CPU": 32, "GPU": 8}, {"CPU": 16, "GPU": 1}], None, (9, 4, True)),
        ([{"CPU": 32, "GPU": 8}, {"CPU": 16}], 2, (2, 4, True)),
        ([{"CPU": 32, "GPU": 8}, {"CPU": 16}, {}], 0, (2, 16, False)),
        ([{"CPU": 4}], None, (1, 4, False)),
    ],
)
def test_workers_have_a_gpu_each_or_a_machines_cpus(there, gpus, plan):
    assert _plan(there, gpus) == plan


def test_machines_without_a_cpu_for_every_worker_are_refused():
    with pytest.raises(ClusterError, match="no CPU for every worker"):
        _plan([{"CPU": 1, "GPU": 8}], None)


def test_what_is_no_address_and_a_missing_package_are_told(monkeypatch):
    with pytest.raises(ConfigError, match="--on must be ray or ray://HOST:PORT; got 'spark'"), open_cluster("spark"):
        pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"needs Ray: pip install 'vitviz_hf\[ray\]'"), open_cluster("ray"):
        pass
