"""Verdicts on tables that hold a claim, that do not, and that cannot tell; on live and on stored results alike."""

import json
import subprocess
import sys

import pytest

from vitviz_hf.experiments.registry import CLAIMS, EXPERIMENTS
from vitviz_hf.experiments.result import Result
from vitviz_hf.experiments.tables import Interval, Table
from vitviz_hf.experiments.verdict import FAILS, HOLDS, OPEN, Claim, Found, read_found

NETS = {"images": 500, "transformers": ["vit"]}


def near(value, by=1.0):
    return Interval(value, value - by, value + by)


def mixing(isolated, average):
    header = ("model", "accuracy, %", "natural, paper", "natural, ours", "isolating CLS", "patch average")
    rows = [("vit", "top-1", 99.0, near(80), isolated, average), ("vit", "top-5", 1.0, near(95), near(1), near(1))]
    return {"table": Table(header, tuple(rows))}, NETS


def background(front, behind, cnn=(80, 20)):
    rows = (("vit", near(front), behind and near(behind)), ("resnet", near(cnn[0]), near(cnn[1])))
    return {"table": Table(("model", "top-5 foreground", "top-5 background"), rows)}, NETS


def low_pass(*vit):
    shares = (0.5, 0.3, 0.1)[: len(vit)]
    rows = [("resnet", "square", r, near(50)) for r in shares]
    rows += [("vit", "square", r, near(x)) for r, x in zip(shares, vit, strict=True)]
    rows += [("vit", "circle", 0.5, near(1)), ("vit", "none", None, None)]
    return {"intervals": Table(("model", "mask", "r", "relative, %"), tuple(rows))}, NETS


def position(zeroed, shuffled):
    header = ("model", "natural", "positions zeroed", "tiles shuffled")
    return {"table": Table(header, (("vit", near(80), zeroed, shuffled),))}, NETS


def occlusion(on, off):
    rows = [("vit", "natural", None, near(100)), ("vit", "salient", "0.1", near(1)), ("vit", "salient", "0.5", on)]
    header = ("model", "change", "ratio, or tiles in a row", "relative, %")
    return {"table": Table(header, (*rows, ("vit", "non-salient", "0.5", off)))}, NETS


def spatial(*slopes, n=20):
    rows = tuple((i, n, s) for i, s in enumerate(slopes))
    return {"table": Table(("layer", "features", "active, slope"), rows)}, {}


def narrow(*gaps, n=8):
    rows = [(2, f"kind{i}", "narrow", n, g) for i, g in enumerate(gaps)]
    rows += [(2, "mlp_act", "wide", n, None), (2, "mlp_act, random", "control", n, near(-9))]
    return {"table": Table(("layer", "kind", "", "features", "minus wide"), tuple(rows))}, {}


def group(purity, cosine, scenes=30):
    rows = [("clean", "purity", scenes, purity), ("clean", "in-object cosine", scenes, cosine)]
    rows += [("clean", "silhouette", scenes, near(-9)), ("shuffle 8", "purity", scenes, near(-9))]
    return {"change": Table(("variant", "measure", "scenes", "last minus first"), tuple(rows))}, {"scenes": scenes}


def agreement(picture, nine, other, n=60):
    header = ("site", "features", "picture", "9 exemplars", "another's picture")
    rows = (("3.mlp_act", n // 6, near(1), near(1), near(99)), ("all", n, picture, nine, other))
    return {"table": Table(header, rows)}, {}


L, N = near(-1, 0.1), near(-0.2, 0.1)
CASES = [
    ("token-mixing", mixing(near(75), near(70)), HOLDS, "vit, isolating CLS: 75.00 (74.00 to 76.00)"),
    ("token-mixing", mixing(near(75), near(40)), FAILS, "vit, patch average: 40.00"),
    ("token-mixing", mixing(near(75), near(64)), OPEN, "vit, patch average: 64.00"),
    ("token-mixing", mixing(None, None), OPEN, "vit, isolating CLS is not there"),
    ("token-mixing", mixing(near(75), None), OPEN, "vit, patch average is not there"),
    ("background", background(90, 30), HOLDS, "top-5 background: vit 30.00 (29.00 to 31.00) and resnet 20.00"),
    ("background", background(90, 15), FAILS, "top-5 background: vit 15.00"),
    ("background", background(90, 21), OPEN, "top-5 background: vit 21.00"),
    ("low-pass", low_pass(60, 60, 60), HOLDS, "at r = 0.1: vit 60.00"),
    ("low-pass", low_pass(60, 60, 40), FAILS, "at r = 0.1: vit 40.00"),
    ("low-pass", low_pass(60, 51, 60), OPEN, "at r = 0.3: vit 51.00"),
    ("low-pass", low_pass(60), OPEN, "r = 0.3 is not there"),
    ("background", background(90, None), OPEN, "top-5 background of vit or resnet is not there"),
    ("position", position(near(22), near(33)), HOLDS, "tiles shuffled: 33.00"),
    ("position", position(near(22), near(79)), FAILS, "tiles shuffled: 79.00"),
    ("position", position(near(22), near(72)), OPEN, "tiles shuffled: 72.00"),
    ("position", position(None, near(33)), OPEN, "vit, positions zeroed is not there"),
    ("occlusion", occlusion(near(40), near(60)), HOLDS, "vit: on the object 40.00"),
    ("occlusion", occlusion(near(60), near(40)), FAILS, "off it 40.00"),
    ("occlusion", occlusion(near(50), near(51)), OPEN, "off it 51.00"),
    ("occlusion", occlusion(None, None), OPEN, "nothing to compare"),
    ("spatial", spatial(L, L, N), HOLDS, "layer 2, slope -0.20"),
    ("spatial", spatial(L, N, N), FAILS, "layer 1, slope -0.20 (-0.30 to -0.10)"),
    ("spatial", spatial(L, L, L), FAILS, "layer 2, slope -1.00"),
    ("spatial", spatial(L, near(-0.8, 0.1), N), OPEN, "layer 1, slope -0.80"),
    ("spatial", spatial(L, None, N), OPEN, "not every layer"),
    ("spatial", spatial(L, L, N, n=7), OPEN, "a sample of 7 says nothing yet; 8 features in each layer"),
    ("narrow-sites", narrow(near(3), near(2)), HOLDS, "2.kind1 2.00"),
    ("narrow-sites", narrow(near(3), near(-2)), FAILS, "2.kind1 -2.00"),
    ("narrow-sites", narrow(near(3), near(0.5)), OPEN, "2.kind1 0.50"),
    ("narrow-sites", narrow(near(3), None), OPEN, "2.kind1 is not there"),
    ("narrow-sites", narrow(near(3), n=1), OPEN, "a sample of 1 says nothing yet"),
    ("group", group(near(2), near(3)), HOLDS, "in-object cosine, last layer minus first 3.00"),
    ("group", group(near(-2), near(3)), FAILS, "purity, last layer minus first -2.00"),
    ("group", group(near(0.5), near(3)), OPEN, "purity, last layer minus first 0.50"),
    ("group", group(near(2), None), OPEN, "in-object cosine is not there"),
    ("group", group(near(2), near(3), scenes=3), OPEN, "a sample of 3 says nothing yet; 30 scenes"),
    ("agreement", agreement(near(70), near(85), near(55)), HOLDS, "picture 70.00 (69.00 to 71.00)"),
    ("agreement", agreement(near(48), near(85), near(47)), FAILS, "the picture is above chance"),
    ("agreement", agreement(near(52), near(85), near(58)), FAILS, "above another feature's"),
    ("agreement", agreement(near(90), near(85), near(55)), FAILS, "nine exemplars are above the picture"),
    ("agreement", agreement(near(56), near(85), near(55)), OPEN, "the picture is above another feature's"),
    ("agreement", agreement(near(70), near(79), near(55)), OPEN, "not valid here: picture 70.00"),
    ("agreement", agreement(near(70), near(85), near(60)), OPEN, "not valid here"),
    ("agreement", agreement(near(70), near(85), near(55), n=18), OPEN, "a sample of 18 says nothing yet; 30 features"),
    ("progression", ({"table": Table(("feature",), ())}, {}), OPEN, "look at the pictures"),
]


@pytest.mark.parametrize(("name", "numbers", "says", "why"), CASES)
def test_the_verdict_is_that_of_the_numbers_live_and_stored(name, numbers, says, why, tmp_path):
    tables, facts = numbers
    main = {"table": tables.get("table", Table(("model",), ()))}
    result = Result(name, main, {}, facts, {k: t for k, t in tables.items() if k != "table"})

    live = CLAIMS[name].verdict(result.found)
    result.save(tmp_path / "out")
    stored = CLAIMS[name].verdict(
        read_found(tmp_path / "out", json.loads((tmp_path / "out/manifest.json").read_text()))
    )

    assert live.says == stored.says == says
    assert why in live.why and live.why == stored.why


@pytest.mark.parametrize("n", [16, None])
def test_a_small_sample_of_pictures_says_nothing(n):
    tables, facts = position(near(22), near(33))

    verdict = CLAIMS["position"].verdict(Result("position", tables, {}, {**facts, "images": n}).found)

    assert (
        verdict.says == OPEN and (f"a sample of {n} says nothing yet" if n else "does not tell how many") in verdict.why
    )


def test_a_control_does_not_count():
    tables, facts = position(near(22), near(33))
    table = tables["table"]
    rows = (("trained", *table.rows[0]), ("random-weights", "vit", near(80), near(80), near(80)))

    verdict = CLAIMS["position"].verdict(
        Result("position", {"table": Table(("weights", *table.columns), rows)}, {}, facts).found
    )

    assert verdict.says == HOLDS


def test_every_experiment_has_a_claim_with_its_source_and_says_when_it_is_for_the_eye():
    assert set(EXPERIMENTS) < set(CLAIMS)
    for name, claim in CLAIMS.items():
        assert claim.text.endswith(".") and "arXiv" in claim.source and claim.figures["figure"], name
        assert "95 % intervals" in claim.criterion or claim.criterion == "By eye only.", name


def test_figures_are_labelled():
    assert CLAIMS["group"].label("tsne").startswith("Patches of one scene")
    assert CLAIMS["spatial"].label("figure-random-weights").endswith("is blacked out random weights")
    assert CLAIMS["spatial"].label("other-one") == "other one"


def test_many_names_are_cut():
    claim = CLAIMS["narrow-sites"]

    why = claim.verdict(Found({"table": narrow(*[near(-2)] * 6)[0]["table"].records()}, {})).why

    assert why.startswith("against it are 2.kind0") and why.endswith("and 2 more.")


def test_importing_the_claims_imports_nothing_heavy():
    code = (
        "import vitviz_hf.experiments.registry, sys; print(sorted({'torch','numpy','matplotlib'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    assert Claim.__doc__
