"""The command experiment."""

import json

import pytest

from vitviz_hf.cli.main import main
from vitviz_hf.experiments.accuracy import classifiers
from vitviz_hf.experiments.registry import EXPERIMENTS


def test_every_experiment_has_a_command_with_its_options(capsys):
    for name in (*EXPERIMENTS, "all"):
        with pytest.raises(SystemExit) as exit_:
            main(["experiment", name, "--help"])
        assert exit_.value.code == 0 and "--resume" in capsys.readouterr().out


def test_the_command_writes_a_folder_and_overwrites_none(tiny_folder, labelled, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["experiment", "position", str(tiny_folder("vit")), str(tiny_folder("resnet")), str(labelled)]
    command += ["--limit", "10", "--tile", "8", "--out", str(out), "--device", "cpu"]

    assert main(command) == 0
    assert "| model | tile |" in capsys.readouterr().out
    assert json.loads((out / "manifest.json").read_text())["config"]["limit"] == 10
    assert not (tmp_path / "out.experiment").exists()
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["token-mixing", "{vit}"], "give a model and then a dataset"),
        (["token-mixing", "{resnet}", "{data}"], "it has no transformer layers"),
        (["background", "{dinov2}", "{data}"], "has no trained classifier and no text tower"),
        (["background", "{vit}", "builtin"], "has no boxes"),
        (["low-pass", "{vit}", "builtin"], "no picture of 'builtin' could be scored"),
        (["position", "{vit}", "{data}", "--tile", "7"], "do not divide the input"),
        (["position", "{vit}", "{data}", "--limit", "-3"], "limit must be a whole number from 1"),
        (["progression", "{resnet}"], "has no features"),
        (["progression", "{vit}", "--features", "9.mlp_act:1"], "has layers 0-2"),
        (["spatial", "{vit}", "--atlas", "/nowhere"], "there is no atlas"),
        (["triplets", "{vit}", "{vit}", "{data}"], "triplets takes one model"),
    ],
)
def test_what_does_not_fit_is_told_and_leaves_nothing(arguments, message, tiny_folder, labelled, tmp_path, capsys):
    names = {f: str(tiny_folder(f)) for f in ("vit", "resnet", "dinov2")} | {"data": str(labelled)}

    code = main(["experiment", *(a.format(**names) for a in arguments), "--out", str(tmp_path / "out")])

    assert code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_writes_a_report_with_every_table_and_says_what_could_not_be_run(
    tiny_folder, labelled, tmp_path, capsys, monkeypatch
):
    command = ["experiment", "all", str(tiny_folder("vit")), str(tiny_folder("resnet")), str(labelled)]
    for name in ("progression", "narrow-sites", "triplets", "concepts"):
        defaults = EXPERIMENTS[name].config.__init__.__kwdefaults__
        for knob in {"steps", "columns", "rows"} & set(defaults):
            monkeypatch.setitem(defaults, knob, 1)

    assert main([*command, "--limit", "8", "--out", str(tmp_path / "all"), "--device", "cpu"]) == 0

    text = (tmp_path / "all" / "report.md").read_text()
    assert "## agreement" in text and "Not run: " in text
    for name in set(EXPERIMENTS) - {"agreement"}:
        assert f"## {name}" in text and f"({name}/figure.png)" in text
        assert (tmp_path / "all" / name / "table.csv").is_file()
    capsys.readouterr()
    assert main([*command, "--limit", "4", "--out", str(tmp_path / "all"), "--device", "cpu", "--resume"]) == 2
    assert "holds a run with config.limit 8, not 4" in capsys.readouterr().err


def test_an_interrupted_run_is_not_begun_again_by_accident(tiny_folder, labelled, tmp_path, capsys):
    (tmp_path / "out.experiment").mkdir()
    command = ["experiment", "position", str(tiny_folder("vit")), str(labelled), "--out", str(tmp_path / "out")]

    assert main([*command, "--device", "cpu"]) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert main([*command, "--device", "cpu", "--resume"]) == 0


@pytest.fixture
def three_experiments():
    """The order of the others is kept."""
    known = dict(EXPERIMENTS)
    for name in known:
        if name not in ("token-mixing", "position", "occlusion"):
            del EXPERIMENTS[name]
    yield
    EXPERIMENTS.clear()
    EXPERIMENTS.update(known)


def test_all_makes_a_classifier_by_words_once(tiny_folder, labelled, tmp_path, capsys, monkeypatch, three_experiments):
    calls = []
    made = classifiers.load_zero_shot
    monkeypatch.setattr(classifiers, "load_zero_shot", lambda *given: calls.append(given) or made(*given))
    command = ["experiment", "all", str(tiny_folder("clip")), str(labelled), "--limit", "4", "--device", "cpu"]

    assert main([*command, "--out", str(tmp_path / "all")]) == 0

    assert len(calls) == 1
    manifest = json.loads((tmp_path / "all" / "occlusion" / "manifest.json").read_text())
    assert manifest["models"][0]["zero_shot"]


def test_what_the_command_line_takes_for_nothing_is_written_so(tiny_folder, labelled, tmp_path, capsys):
    command = ["experiment", "position", str(tiny_folder("vit")), str(labelled), "--limit", "0", "--device", "cpu"]

    assert main([*command, "--out", str(tmp_path / "out")]) == 0

    config = json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]
    assert (config["limit"], config["tile"]) == (0, 0)
