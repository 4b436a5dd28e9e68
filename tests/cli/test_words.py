"""Texts and labels in the command line."""

import json

import pytest
import torch

from vitviz_hf import Feature, Site, activations, open_atlas, open_image, to_pixels
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


def test_texts_are_searched_and_an_atlas_of_them_has_their_pages_and_pictures(tiny_view, tiny_folder, tmp_path, capsys):
    folder, atlas, texts = str(tiny_folder("clip")), str(tmp_path / "atlas"), ["striped fur", "a bus"]
    asked = [x for t in texts for x in ("--text", t)]
    view = with_words(tiny_view("clip"), texts)
    photographs = [(name, to_pixels(view, open_image(path))) for name, path in builtin_paths().items()]
    scores = [float(activations(view, x, ["2.text"])[Site(2, "text")].scores()[0, 1]) for _, x in photographs]
    best = photographs[scores.index(max(scores))][0]

    assert main(["search", folder, "builtin", *asked, "--out", atlas, "-k", "3"]) == 0
    assert main(["atlas", "build", atlas, 'text:"a bus"', "--preset", "fast", "--device", "cpu"]) == 0
    assert main(["page", folder, 'text:"a bus"', "--atlas", atlas, "--out", str(tmp_path / "bus.html")]) == 0

    opened = open_atlas(atlas)
    assert {str(s): n for s, n in opened.sites.items()} == {"2.text": 2}
    hit = opened.hits(Feature(Site(2, "text"), 1))[0]
    assert best in opened.image(hit.row).name and hit.score == pytest.approx(max(scores), abs=1e-5)
    page = (tmp_path / "bus.html").read_text()
    assert "<code>2.text:1</code> (a bus) of" in page and "The picture optimized for this feature" in page
    assert opened.best_word(Feature(Site(2, "text"), 0)) == "striped fur"
    assert main(["page", folder, "text:grass", "--atlas", atlas, "--out", str(tmp_path / "grass.html")]) == 2
    assert "the atlas has no text 'grass'; it has 'striped fur', 'a bus'." in capsys.readouterr().err


def test_labels_are_searched_beside_neurons(tiny_folder, tmp_path):
    folder, atlas = str(tiny_folder("vit")), str(tmp_path / "atlas")

    assert main(["search", folder, "builtin", "--kinds", "mlp_act,label", "--layers", "2", "--out", atlas]) == 0
    assert main(["page", folder, "label:bus", "--atlas", atlas, "--out", str(tmp_path / "bus.html")]) == 0

    assert {str(s): n for s, n in open_atlas(atlas).sites.items()} == {"2.mlp_act": 64, "2.label": 3}
    assert "<code>2.label:2</code> (bus) of" in (tmp_path / "bus.html").read_text()


def test_a_search_for_texts_says_what_it_cannot(tiny_folder, tmp_path, capsys):
    command = ["search", str(tiny_folder("clip")), "builtin", "--out", str(tmp_path / "atlas")]

    assert main([*command, "--kinds", "text"]) == 2
    assert "unknown kind 'text'" in capsys.readouterr().err
    assert main([*command, "--text", "fur", "--text", "a bus", "--limit", "2"]) == 0
    page = ["page", str(tiny_folder("clip")), "label:bus", "--atlas", str(tmp_path / "atlas")]
    assert main([*page, "--out", str(tmp_path / "a.html")]) == 2
    assert "the atlas was not searched for label:bus" in capsys.readouterr().err
