"""What is trained for the tests has learned something, and each condition costs it another share of that."""

import numpy as np
import pytest

from tests.shapes import CLASSES, draw_shapes, save_trained
from vitviz_hf.experiments.config import (
    BackgroundConfig,
    LowPassConfig,
    OcclusionConfig,
    PositionConfig,
    TokenMixingConfig,
)
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.stream import open_source


def top_1(result, table="table"):
    """Percentages of the only model, without their intervals and top-5."""
    record = result.tables[table].records()[0]
    return {
        k: v
        for k, v in record.items()
        if isinstance(v, float) and not k.endswith((" low", " high")) and "top-5" not in k
    }


@pytest.mark.parametrize(
    ("name", "config", "table", "natural", "same"),
    [
        ("token-mixing", TokenMixingConfig(batch=50), "table", "natural", set()),
        ("position", PositionConfig(tile=8), "table", "natural", set()),
        ("background", BackgroundConfig(), "table-plain", "top-1 full", set()),
        (
            "low-pass",
            LowPassConfig(batch=100),
            "table",
            "r = 1",
            {"r = 0.9", "r = 0.8", "r = 0.7", "r = 0.6", "r = 0.5"},
        ),
    ],
)
def test_each_condition_costs_accuracy(name, config, table, natural, same, trained, shapes, tmp_path):
    found = top_1(run_experiment(name, [trained], open_source(str(shapes)), config, tmp_path), table)

    assert 50 < found[natural] < 95
    for condition in set(found) - {natural} - same:
        assert 100 / len(CLASSES) + 5 < found[condition] < found[natural] - 2, (condition, found)


def test_blacked_out_and_shuffled_tiles_cost_accuracy(trained, shapes, tmp_path):
    config = OcclusionConfig(grid=8, shuffles=(2, 8), batch=100)

    result = run_experiment("occlusion", [trained], open_source(str(shapes)), config, tmp_path)

    by_way = {}
    for row in result.tables["table"].records():
        by_way.setdefault(row["change"], []).append(row["top-1, %"])
    natural, shuffled = by_way["natural"][0], by_way["shuffle"]
    assert by_way["random"][-1] < by_way["random"][2] < natural and by_way["salient"][-1] < natural - 5
    assert by_way["random"][-1] < by_way["salient"][-1] < by_way["non-salient"][-1]
    assert max(shuffled) < natural - 5 and shuffled[0] != shuffled[1]


def test_two_models_differ_and_one_does_not_know_all_classes(trained, trained_other, shapes, tmp_path):
    result = run_experiment("position", [trained, trained_other], open_source(str(shapes)), PositionConfig(), tmp_path)

    one, other = result.tables["table"].records()
    assert 100 / 6 + 5 < other["natural"] < one["natural"] - 2 and len(trained_other.labels) == 6


@pytest.mark.slow
def test_training_is_the_same_every_time(tmp_path):
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        save_trained(tmp_path / name, width=16, layers=2, heads=2, steps=3, seed=seed)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())

    assert weights[0] == weights[1] != weights[2]
    drawn = [draw_shapes(3, np.random.default_rng(s)).pixels for s in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
