"""Benchmarks start, and the one for cards, which few can run, gives a number for everything that it names."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def read(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_what_a_benchmark_uses_of_the_package_is_there(name):
    if name == "cluster":
        pytest.importorskip("ray")
    assert read(name).__doc__


def test_every_part_of_the_benchmark_for_cards_runs(monkeypatch):
    gpu = read("gpu")
    monkeypatch.setattr(gpu, "cold_start", lambda bench: {"seconds": 0.0})  # a process of its own
    bench = gpu.Bench("cpu", True, 600)

    gpu.run_all(bench)

    failed = {name: found for name, found in bench.result.items() if isinstance(found, dict) and "error" in found}
    assert not failed and not bench.result["skipped"]
    steps = [found for name, found in bench.result.items() if name.startswith("step ")]
    assert len(steps) == 24 and all(found["ms"] > 0 and 0 < found["of_peak"] < 1 for found in steps)
    assert bench.result["search without decoding, batch 4 fp32"]["share"] > 0
