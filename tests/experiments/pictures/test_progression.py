"""The experiment progression."""

from vitviz_hf.config import parse_features
from vitviz_hf.experiments.config import ProgressionConfig
from vitviz_hf.experiments.run import run_experiment


def test_progression_has_a_row_of_pictures_for_each_layer(vit, tmp_path):
    config = ProgressionConfig(columns=2, steps=3)

    result = run_experiment("progression", [vit], None, config, tmp_path / "w")
    made = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "w" / "pictures").iterdir()}
    again = run_experiment("progression", [vit], None, config, tmp_path / "w")

    layers = [row["feature"].split(".")[0] for row in result.tables["table"].records()]
    assert layers == ["0", "0", "1", "1", "2", "2"]
    assert again.tables["table"].to_csv() == result.tables["table"].to_csv()
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "w" / "pictures").iterdir()} == made
    chosen = run_experiment(
        "progression",
        [vit],
        None,
        ProgressionConfig(features=parse_features("2.mlp_act:3, 0.attn_k:1"), steps=3),
        tmp_path / "x",
    )
    assert [r["feature"] for r in chosen.tables["table"].records()] == ["0.attn_k:1", "2.mlp_act:3"]
