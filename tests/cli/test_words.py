"""Texts and labels in the command line."""

import json

import pytest
import torch

from vitviz_hf import Site, activations, open_image, to_pixels
from vitviz_hf.cli.main import main
from vitviz_hf.inside.words import with_words
from vitviz_hf.stream import builtin_paths


@pytest.fixture
def pixels(tiny_view):
    return lambda family: to_pixels(tiny_view(family), open_image(builtin_paths()["chelsea"]))


def test_a_text_has_a_map_in_a_file_of_its_name(tiny_view, tiny_folder, pixels, tmp_path):
    words = ['text:"striped fur"', "text:bus", "1.mlp_act:5"]

    code = main(["map", str(tiny_folder("clip")), *words, "--image", "chelsea", "--out", str(tmp_path)])

    assert code == 0
    acts = activations(with_words(tiny_view("clip"), ["striped fur", "bus"]), pixels("clip"), ["2.text"])
    for i, name in enumerate(("text-striped-fur", "text-bus")):
        found = json.loads((tmp_path / f"{name}.json").read_text())
        torch.testing.assert_close(torch.tensor(found["map"]), acts[Site(2, "text")].map(i)[0])
    assert found["feature"] == "text:bus" and (tmp_path / "1.mlp_act-5.png").is_file()


def test_a_label_has_a_map(tiny_folder, tmp_path):
    code = main(["map", str(tiny_folder("vit")), "label:bus", "--image", "chelsea", "--out", str(tmp_path)])

    assert code == 0 and (tmp_path / "label-bus.png").is_file()


def test_texts_are_ranked_by_their_scores(tiny_view, tiny_folder, pixels, capsys):
    texts = ["striped fur", "a bus", "grass"]
    command = ["top", str(tiny_folder("siglip")), "--image", "chelsea", "--json"]

    code = main([*command, *(x for t in texts for x in ("--text", t))])

    found = json.loads(capsys.readouterr().out)
    site = Site(2, "text")
    scores = activations(with_words(tiny_view("siglip"), texts), pixels("siglip"), [site])[site].scores()[0]
    order = scores.argsort(descending=True).tolist()
    assert code == 0 and [f["feature"] for f in found] == [f'text:"{texts[i]}"' for i in order]
    assert [f["score"] for f in found] == pytest.approx([float(scores[i]) for i in order])


def test_a_text_at_the_class_token_is_optimized(tiny_folder, tmp_path, capsys):
    command = ["visualize", str(tiny_folder("clip")), 'text:"striped fur"@cls - 0.5*text:bus', "--steps", "2"]

    code = main([*command, "--out", str(tmp_path)])

    assert code == 0 and (tmp_path / "text-striped-fur-cls---0.5-text-bus.png").is_file()
    assert "score" in capsys.readouterr().out


def test_words_without_a_text_tower_are_told(tiny_folder, tmp_path, capsys):
    command = ["map", str(tiny_folder("vit")), "text:fur", "--image", "chelsea", "--out", str(tmp_path)]

    assert main(command) == 2
    assert "has no text tower" in capsys.readouterr().err
