"""Running experiments by name."""

import json
from dataclasses import replace

import pytest

from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.config import (
    BackgroundConfig,
    LowPassConfig,
    OcclusionConfig,
    PositionConfig,
)
from vitviz_hf.experiments.figures import bars, encode_figure
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.stream import open_source

N = 20


@pytest.mark.parametrize(
    ("name", "families", "config"),
    [
        ("background", ("vit", "resnet"), BackgroundConfig(batch=4)),
        ("low-pass", ("vit", "timm-resnet"), LowPassConfig(batch=40, filter_at="original")),
        ("position", ("vit", "resnet"), PositionConfig(batch=4)),
        ("occlusion", ("vit", "resnet"), OcclusionConfig(batch=16, grid=4, shuffles=(2,))),
    ],
)
def test_comparisons_do_not_depend_on_the_batch_and_go_on_after_a_stop(
    name, families, config, tiny_view, labelled, tmp_path
):
    views, source = [tiny_view(f) for f in families], open_source(str(labelled))
    straight = run_experiment(name, views, source, config, tmp_path / "straight")

    class Stopped(BaseException):
        pass

    def stop(done, n):
        assert n == N
        if done >= 8:
            raise Stopped

    with pytest.raises(Stopped):
        run_experiment(name, views, source, config, tmp_path / "work", stop)
    with pytest.raises(ConfigError, match=r"holds a run with config\.seed 0, not 9"):
        run_experiment(name, views, source, replace(config, seed=9), tmp_path / "work")
    resumed = run_experiment(name, views, source, config, tmp_path / "work")

    assert resumed.tables["table"].to_csv() == straight.tables["table"].to_csv()
    resumed.save(tmp_path / "out")
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"table.md", "table.csv", "table.json", "figure.png", "figure.svg", "manifest.json"} <= files
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [m["model_id"] for m in manifest["models"]] == [v.model_id for v in views]
    assert manifest["data"]["dataset"] == str(labelled) and manifest["config"]["batch"] == config.batch


def test_a_run_killed_before_it_claimed_its_folder_can_be_begun(tiny_view, labelled, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".run-0a1b2c3d.json").write_text("{")
    source = open_source(str(labelled))

    run_experiment("position", [tiny_view("vit")], source, PositionConfig(batch=20), tmp_path / "work")

    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == ["flags.npz", "run.json"]


def test_the_same_figure_gives_the_same_bytes():
    first, second = (encode_figure(bars({"a": {"x": (1.0, 0.5, 1.5)}}, "share"), "svg") for _ in range(2))

    assert first == second
