"""Results and the folders they are kept in."""

import pytest

from vitviz_hf import open_source
from vitviz_hf.errors import OutputExistsError
from vitviz_hf.experiments import run
from vitviz_hf.experiments.config import BackgroundConfig, PositionConfig, ProgressionConfig
from vitviz_hf.experiments.result import describe_run
from vitviz_hf.experiments.run import run_experiment


def test_results_are_not_saved_over_others(vit, tmp_path):
    result = run_experiment("progression", [vit], None, ProgressionConfig(columns=1, steps=1), tmp_path / "w")
    result.save(tmp_path / "out")

    with pytest.raises(OutputExistsError):
        result.save(tmp_path / "out")


def test_boxes_in_files_of_any_case_decide_a_run(vit, labelled, tmp_path):
    (tmp_path / "a.XML").write_text("<annotation/>")
    source, config = open_source(str(labelled)), BackgroundConfig(boxes=str(tmp_path))
    first = describe_run("background", [vit], source, config)

    (tmp_path / "a.XML").write_text("<annotation> </annotation>")

    assert describe_run("background", [vit], source, config)["boxes"] != first["boxes"]


def test_boxes_are_read_once_for_a_run(vit, labelled, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(run, "describe_run", lambda *given: calls.append(given) or describe_run(*given))

    made = run_experiment("position", [vit], open_source(str(labelled)), PositionConfig(limit=6), tmp_path / "w")

    assert len(calls) == 1 and made.manifest["experiment"] == "position" and made.manifest["tiles"] == [16]
    assert made.manifest["config"] == {"limit": 6, "batch": 32, "tile": 0, "seed": 0}
