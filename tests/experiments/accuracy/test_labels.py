"""Labels that mean several things: told apart by WordNet id, or left out and counted."""

from dataclasses import replace

import pytest

from vitviz_hf.experiments.accuracy.labels import LabelMatcher, candidates
from vitviz_hf.experiments.config import PositionConfig
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.models.loading import imagenet_synsets
from vitviz_hf.stream import Row, open_source

WNIDS, NAMES = list(imagenet_synsets()), list(imagenet_synsets().values())
CORGI, SWEATER = WNIDS.index("n02113186"), WNIDS.index("n02963159")


def match_names(names, labels):
    """For each name its place among the labels, if there is only one."""
    return [places[0] if len(places) == 1 else None for places in candidates(names, labels)]


def test_every_class_of_imagenet_finds_itself():
    assert match_names(NAMES, NAMES) == list(range(1000))
    matcher = LabelMatcher(NAMES, NAMES)
    assert [matcher.find(Row("", name, b"", i)) for i, name in enumerate(NAMES)] == list(range(1000))
    by_wnid = LabelMatcher(NAMES)
    assert [by_wnid.find(Row("", "", b"", wnid=wnid)) for wnid in WNIDS] == list(range(1000))


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        ("Cardigan", ["n02113186", "n02963159"]),
        ("cardigan", ["n02113186", "n02963159"]),
        ("crane", ["n02012849", "n03126707"]),
        ("maillot", ["n03710637", "n03710721"]),
        ("crayfish", ["n01984695", "n01985128"]),
        ("Cardigan Welsh corgi", ["n02113186"]),
        ("Cardigan, Cardigan Welsh corgi", ["n02113186"]),
        ("maillot, tank suit", ["n03710721"]),
        ("harp", ["n03495258"]),
        ("missile", ["n03773504"]),
        ("tench", ["n01440764"]),
        ("unheard of", []),
    ],
)
def test_a_name_alone_fits_all_classes_that_it_may_mean(label, classes):
    matcher = LabelMatcher(NAMES)
    row = Row("", label, b"")
    assert sorted(WNIDS[i] for i in matcher.fitting(row)) == sorted(classes)
    assert matcher.find(row) == (WNIDS.index(classes[0]) if len(classes) == 1 else None)


def test_a_wordnet_id_tells_what_a_name_cannot():
    matcher = LabelMatcher(NAMES)
    assert matcher.find(Row("", "Cardigan", b"", wnid="n02113186")) == CORGI
    assert matcher.find(Row("", "Cardigan", b"", wnid="n02963159")) == SWEATER
    assert [matcher.find(Row("", "crane", b"", wnid=w)) for w in ("n02012849", "n03126707")] == [134, 517]
    assert matcher.find(Row("", "n02113186", b"")) == CORGI


def test_what_another_class_has_a_claim_to_is_not_meant():
    assert match_names(["cardigan", "Cardigan, Cardigan Welsh corgi"], NAMES) == [SWEATER, CORGI]
    assert match_names(["cardigan"], [NAMES[SWEATER], "tench"]) == [0]


def test_names_that_occur_twice_match_in_their_order_only_where_the_order_is_the_same():
    labels = ["crane", "tench", "goldfish", "crane"]
    assert match_names(["crane", "tench", "goldfish", "crane"], labels) == [0, 1, 2, 3]
    assert match_names(["crane", "goldfish", "tench", "crane"], labels) == [None, 2, 1, None]
    assert candidates(["crane", "goldfish", "tench", "crane"], labels)[0] == (0, 3)


def test_folders_with_ambiguous_names_are_left_out_and_counted(tiny_view, tmp_path):

    from tests.conftest import draw_noise

    vit = replace(tiny_view("vit"), labels=(NAMES[CORGI], NAMES[SWEATER], "bus"))
    for i, folder in enumerate(("Cardigan", "Cardigan", "bus", "n02113186", "zebra")):
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        draw_noise(i).save(tmp_path / "data" / folder / f"{i}.png")

    result = run_experiment("position", [vit], open_source(str(tmp_path / "data")), PositionConfig(), tmp_path / "w")

    notes = " ".join(result.tables["table"].notes)
    assert "2 images of" in notes and "Left out, 3 in all" in notes
    assert "2 because the label 'Cardigan' fits several of the model's classes" in notes
    assert "1 because class 'zebra' is not among the model's labels" in notes


def test_labels_match_in_any_order_by_synonym_and_never_by_a_shared_late_one():
    labels = ["crane", "giant panda, panda, bear", "tabby, tabby cat", "crane", "red panda, panda", "T-shirt"]

    assert match_names(["Tabby", "crane", "t shirt", "panda", "crane", "zebra"], labels) == [2, 0, 5, None, 3, None]
    assert match_names(["red panda, bear cat"], labels) == [4]
    assert match_names(["crane"], labels) == [None]  # which of the two?


def test_wordnet_ids_find_imagenets_names():
    synsets = imagenet_synsets()
    names = list(synsets.values())
    matcher = LabelMatcher(names[700:] + names[:700])

    found = [matcher.find(Row("", "", b"", wnid=w)) for w in synsets]
    assert all((place + 700) % 1000 == i for i, place in enumerate(found) if names.count(names[i]) == 1)
    assert LabelMatcher(["n01440764", "cat"]).find(Row("", "", b"", wnid="n01440764")) == 0
    assert LabelMatcher(["dog", "cat"]).find(Row("", "tench", b"", wnid="n01440764")) is None
