import json
import os
import subprocess
import sys

import pytest

from vitviz_hf.cli.main import main
from vitviz_hf.models.families import FAMILIES


@pytest.fixture
def picture(photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.fixture
def model(tiny_folder):
    return str(tiny_folder("vit"))


def test_help_is_quick_and_teaches():
    """It imports nothing that takes long."""
    command = [sys.executable, "-X", "importtime", "-m", "vitviz_hf", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "vitviz_hf.cli.main" in imported
    assert not imported & {"torch", "numpy", "PIL", "transformers", "timm", "gradio", "datasets", "huggingface_hub"}
    assert "vitviz visualize builtin" in done.stdout


@pytest.mark.parametrize("verb", ["models", "sites", "map", "top", "visualize", "replay", "classify", "app"])
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help"])

    assert exit_.value.code == 0
    assert "usage: vitviz" in capsys.readouterr().out


def test_sites_lists_layers(model, capsys):
    assert main(["sites", model]) == 0

    out = capsys.readouterr().out.splitlines()
    assert len(out) == 5
    assert "4x4" in out[2] and "mlp_act 64" in out[2]


def test_sites_as_json(model, capsys):
    main(["sites", model, "--json", "--size", "32x48"])

    assert {
        "site": "2.mlp_act",
        "features": 64,
        "stage": 0,
        "patch_grid": [4, 6],
        "prefix_tokens": 1,
        "layout": "sequence",
    } in json.loads(capsys.readouterr().out)


def test_sites_of_a_pyramid_name_stages_grids_and_windows(tiny_folder, capsys):
    main(["sites", str(tiny_folder("timm-twins-svt"))])
    lines = capsys.readouterr().out.splitlines()

    assert lines[2].split()[:3] == ["0", "0", "16x16"] and "sequence, windows" in lines[2]
    assert lines[9].split()[:3] == ["7", "3", "2x2"]
    assert "attn_k 16 (2x2)" in lines[3]


def test_a_network_without_features_says_what_it_is_good_for(tiny_folder, picture, capsys):
    main(["sites", str(tiny_folder("timm-resnet"))])
    assert "no feed-forward blocks, so no features" in capsys.readouterr().out

    assert main(["top", str(tiny_folder("timm-resnet")), "--image", picture, "--site", "0.mlp_act"]) == 2
    assert "has no features; it can be used in the classification experiments" in capsys.readouterr().err


def test_models_lists_every_family_with_an_id(capsys):
    main(["models"])
    table = capsys.readouterr().out
    main(["models", "--json"])
    listed = json.loads(capsys.readouterr().out)

    for family in FAMILIES:
        assert family.name in table and family.example in table
    assert [f["example"] for f in listed] == [f.example for f in FAMILIES]


def test_classify_names_the_labels_of_the_repository(model, picture, capsys):
    assert main(["classify", model, "--image", picture]) == 0
    lines = capsys.readouterr().out.splitlines()
    main(["classify", model, "--image", picture, "--json"])
    found = json.loads(capsys.readouterr().out)

    assert "its own 3 labels" in lines[0]
    assert {line.split()[1] for line in lines[1:]} == {"cat", "dog", "bus"}
    assert sum(x["probability"] for x in found) == pytest.approx(1)


def test_classify_by_words(tiny_folder, picture, capsys):
    command = ["classify", str(tiny_folder("siglip")), "--image", picture, "--labels", "a cat, the dog"]
    assert main([*command, "--template", "{}"]) == 0

    assert "zero-shot among 2 labels" in capsys.readouterr().out
    assert main(["classify", str(tiny_folder("dinov2")), "--image", picture]) == 2
    assert "has no trained classifier" in capsys.readouterr().err


def test_map_writes_a_panel_and_its_values(model, picture, tmp_path, capsys):
    out = tmp_path / "out"

    assert main(["map", model, "1.mlp_act:5", "2.attn_q:3", "--image", picture, "--out", str(out)]) == 0

    assert sorted(p.name for p in out.iterdir()) == [
        "1.mlp_act-5.json",
        "1.mlp_act-5.png",
        "2.attn_q-3.json",
        "2.attn_q-3.png",
    ]
    facts = json.loads((out / "1.mlp_act-5.json").read_text())
    assert len(facts["map"]) == 4 and facts["feature"] == "1.mlp_act:5"
    assert "values" in capsys.readouterr().out


def test_top_ranks_each_layer(model, picture, capsys):
    assert main(["top", model, "--image", picture, "-k", "3", "--patch", "1,2"]) == 0

    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4 and "patch 1,2" in out[0] and "no other images" in out[0]
    assert out[2].count("1.mlp_act:") == 3


def test_top_by_unusualness_says_against_what(model, picture, capsys):
    assert main(["top", model, "--image", picture, "--site", "1.resid", "--by", "unusual", "--json"]) == 0

    ranked = json.loads(capsys.readouterr().out)
    assert len(ranked) == 8 and all(r["feature"].startswith("1.resid:") for r in ranked)
    values = [r["unusual"] for r in ranked]
    assert values == sorted(values, reverse=True)


def test_visualize_then_replay(model, tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        "visualize",
        model,
        "1.mlp_act:5",
        "1.mlp_act:5 - 2.resid:1",
        "--preset",
        "fast",
        "--steps",
        "3",
        "--margin",
        "4",
        "--out",
        str(out),
    ]

    assert main(command) == 0
    first = capsys.readouterr()
    assert main(["replay", str(out / "1.mlp_act-5.png"), "--out", str(tmp_path / "again.png")]) == 0
    second = capsys.readouterr()

    assert len(list(out.iterdir())) == 2
    assert "turned, zoomed and blurred" in first.out and "built-in photographs: mean" in first.out
    assert "optimizing" in first.err
    assert second.out.startswith("identical; score")
    assert (tmp_path / "again.png").read_bytes()[:100] == (out / "1.mlp_act-5.png").read_bytes()[:100]


def test_tokens_are_visualized_and_only_what_is_a_mean_is_compared_with_photographs(model, tmp_path, capsys):
    out, options = tmp_path / "out", ["--preset", "fast", "--steps", "2", "--margin", "4"]
    addresses = ["1.mlp_act:5", "1.mlp_act:5@cls", "1.mlp_act:5@3,2", "2.resid:1@cls - 0.5*2.resid:1"]

    assert main(["visualize", model, *addresses, *options, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert main(["replay", str(out / "1.mlp_act-5-3-2.png")]) == 0
    again = capsys.readouterr()

    assert sorted(p.name for p in out.iterdir()) == [
        "1.mlp_act-5-3-2.png",
        "1.mlp_act-5-cls.png",
        "1.mlp_act-5.png",
        "2.resid-1-cls---0.5-2.resid-1.png",
    ]
    compared = [line for line in told.splitlines() if "built-in photographs" in line]
    assert len(compared) == 1 and compared[0].startswith("1.mlp_act:5: picture")
    assert again.out.startswith("identical; score") and again.err.startswith("1.mlp_act:5@3,2 of ")


def test_nothing_is_overwritten_and_no_time_is_lost(model, tmp_path, capsys):
    (tmp_path / "1.mlp_act-5.png").write_text("mine")

    assert main(["visualize", model, "1.mlp_act:5", "--out", str(tmp_path)]) == 2

    assert "already exists; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "1.mlp_act-5.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["sites", "./nowhere"], "there is no folder"),
        (["map", "MODEL", "--image", "x", "--out", "o"], "no feature given after the model"),
        (["map", "MODEL", "1.mlp_act:5", "--image", "nowhere.png", "--out", "o"], "'nowhere.png' cannot be read"),
        (["map", "MODEL", "9.mlp_act:5", "--image", "PICTURE", "--out", "o"], "has layers 0-2; got layer 9"),
        (["top", "MODEL", "--image", "PICTURE", "--patch", "1"], "--patch must be ROW,COLUMN such as 3,4; got '1'"),
        (["visualize", "MODEL", "1.mlp_act:999", "--out", "o"], "has 64 features (0-63); got 999"),
        (["visualize", "MODEL", "1.mlp_act:5", "--steps", "many", "--out", "o"], "steps must be a whole number"),
        (["visualize", "MODEL", "1.mlp_act:5@4,0", "--out", "o"], "patch 4,0 is outside the grid of 4 rows (0-3)"),
        (["visualize", "MODEL", "1.mlp_act:5@top", "--out", "o"], "write '@cls', or '@ROW,COLUMN' of a patch"),
        (["visualize", "MODEL", "0.attn_k:5@cls", "--out", "o"], "is the same for every picture at '0.attn_k'"),
        (["visualize", "MODEL", "1.mlp_act:5", "--size", "30x32", "--out", "o"], "multiple of 8"),
        (["visualize", "MODEL", "1.mlp_act:5", "--device", "warp", "--out", "o"], "device 'warp' cannot be used"),
        (["replay", "nowhere.png"], "carries no vitviz recipe"),
    ],
)
def test_errors_are_one_line_and_exit_2(arguments, text, model, picture, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = {"MODEL": model, "PICTURE": picture}

    assert main([named.get(a, a) for a in arguments]) == 2

    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("vitviz: ") and text in lines[-1]
    assert not (tmp_path / "o").exists()


def test_a_closed_pipe_is_not_an_error(model):
    command = f"{sys.executable} -m vitviz_hf sites {model} | true"

    run = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=os.environ)

    assert "Traceback" not in run.stderr


def test_minimize_negates(model, tmp_path, capsys):
    main(["visualize", model, "2.resid:3", "--minimize", "--steps", "2", "--margin", "0", "--out", str(tmp_path)])

    assert [p.name for p in tmp_path.iterdir()] == ["2.resid-3.png"]
