"""The experiment `narrow-sites`: live features only, pairs, and directions as wide as the wide site."""

import base64
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vitviz_hf.errors import SiteError
from vitviz_hf.experiments.config import NarrowSitesConfig
from vitviz_hf.experiments.pictures import narrow_sites
from vitviz_hf.experiments.pictures.choosing import Picture
from vitviz_hf.experiments.pictures.narrow_sites import directions, high_frequency_share
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.optimize.objectives import Direction
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.sites import Site

QUICK = NarrowSitesConfig(layers=(0, 2), columns=5, steps=2, preset="fast", seed=3)


@pytest.fixture(scope="module")
def ran(tiny_view, tmp_path_factory):
    work = tmp_path_factory.mktemp("narrow")
    return run_experiment("narrow-sites", [tiny_view("vit")], None, QUICK, work), work / "pictures"


def wave(strength, size=32):
    """Gray with waves of 2 and of 12 cycles; the stronger the second, the higher the share."""
    x = np.arange(size) * 2 * math.pi / size
    row = 127 + 40 * np.sin(2 * x) + strength * np.sin(12 * x)
    return Image.fromarray(np.tile(row, (size, 1)).round().astype(np.uint8)).convert("RGB")


def made_up(vit, tmp_path, monkeypatch, alive):
    """The experiment on pictures of known shares, scores and life."""
    expected = {}

    def fake(view, targets, how, work, progress=None):
        for n, t in enumerate(targets):
            expected[t] = Picture(wave(n % 29), 2.0, 0.1 * n, alive(n))
        return expected

    monkeypatch.setattr(narrow_sites, "optimized", fake)
    return run_experiment("narrow-sites", [vit], None, QUICK, tmp_path / "w"), expected


def test_every_column_is_of_live_features_and_dead_ones_are_counted(vit, tmp_path, monkeypatch):
    result, pictures = made_up(vit, tmp_path, monkeypatch, lambda n: n % 4 != 1)

    kinds = [k for k in narrow_sites.SHOWN_KINDS if k in vit.layers[0].taps]
    groups = [(layer, kind) for layer in (0, 2) for kind in (*kinds, "mlp_act, random", "mlp_act, rotated")]
    rows = result.tables["table"].records()
    assert [(r["layer"], r["kind"]) for r in rows] == groups
    own = [list(pictures.values())[5 * g : 5 * g + 5] for g in range(len(groups))]
    for (layer, kind), row, some in zip(groups, rows, own, strict=True):
        alive = [p for p in some if p.alive]
        shares = [100 * high_frequency_share(p.image) for p in alive]
        assert row["features"] == 5 and row["dead, %"] == pytest.approx(100 * (5 - len(alive)) / 5)
        assert row["high-frequency, %"] == pytest.approx(np.mean(shares))
        assert (row["least"], row["most"]) == (min(shares), max(shares))
        assert row["score kept, %"] == pytest.approx(np.median([50 * p.transfer_score for p in alive]))
        assert row["width"] == (64 if kind.startswith("mlp_act") else 32)
        assert row[""] == ("wide" if kind == "mlp_act" else "control" if "," in kind else "narrow")
        wide = own[groups.index((layer, "mlp_act"))]
        pairs = [(a, b) for a, b in zip(some, wide, strict=True) if a.alive and b.alive]
        apart = [100 * (high_frequency_share(a.image) - high_frequency_share(b.image)) for a, b in pairs]
        if kind == "mlp_act":
            assert row["minus wide"] is None
        elif len(apart) > 1:
            assert row["minus wide"] == pytest.approx(np.mean(apart))
            draws = np.random.default_rng(0).choice(apart, (4000, len(apart))).mean(1)
            low, high = np.quantile(draws, (0.025, 0.975))
            assert row["minus wide low"] == pytest.approx(low, abs=0.1 * np.ptp(apart) + 1e-9)
            assert row["minus wide high"] == pytest.approx(high, abs=0.1 * np.ptp(apart) + 1e-9)
    assert any(r["dead, %"] for r in rows) and any(r["minus wide"] is not None for r in rows)


def test_a_site_without_a_live_feature_has_no_numbers(vit, tmp_path, monkeypatch):
    result, _ = made_up(vit, tmp_path, monkeypatch, lambda n: n >= 5)

    first = result.tables["table"].records()[0]
    assert first["dead, %"] == 100
    assert all(first[c] is None for c in ("high-frequency, %", "least", "most", "minus wide", "score kept, %"))


def test_pictures_are_of_the_drawn_features_with_matched_smoothness(ran):
    _, folder = ran
    numbers = sorted(np.random.default_rng(3).choice(32, 5, replace=False).tolist())

    for kind in ("attn_q", "resid", "mlp_act"):
        for i in numbers:
            recipe = read_recipe(folder / f"2.{kind}-{i}.png")
            assert recipe["config"]["smoothness"] == "auto" and recipe["config"]["seed"] == 3
    assert len(list(folder.glob("0.mlp_act-random*.png"))) == len(list(folder.glob("0.mlp_act-rotated*.png"))) == 5


@pytest.mark.parametrize(
    ("changes", "weight", "told"),
    [({}, "auto", "smoothness matched to the gradient of each site"), ({"smoothness": 0.02}, 0.02, "smoothness 0.02")],
)
def test_smoothness_is_matched_whatever_the_preset_unless_it_is_given(changes, weight, told, vit, tmp_path):
    config = NarrowSitesConfig(layers=(1,), columns=1, steps=1, preset="paper", **changes)

    result = run_experiment("narrow-sites", [vit], None, config, tmp_path)

    for path in (tmp_path / "pictures").iterdir():
        assert read_recipe(path)["config"]["smoothness"] == weight
    assert told in " ".join(result.tables["table"].notes)


def test_random_directions_are_unit_vectors_and_axes_of_a_rotation_stand_at_right_angles(vit):
    site = Site(1, "mlp_act")
    random, rotated = (np.array([d.vector for d in directions(vit, site, way, 12, 7)]) for way in ("random", "rotated"))

    np.testing.assert_allclose(np.linalg.norm(random, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(rotated @ rotated.T, np.eye(12), atol=1e-6)
    assert abs(random @ random.T - np.eye(12)).max() > 0.05
    assert (random != rotated).all()
    # Neither axis-aligned nor with a sign of its own: a mean of 0 and the spread of a random unit vector.
    many = np.array([d.vector for s in range(40) for d in directions(vit, site, "rotated", 4, s)])
    assert abs(many[:, 0].mean()) < 3 / math.sqrt(64 * 160) and many[:, 0].std() == pytest.approx(1 / 8, rel=0.2)
    assert directions(vit, site, "random", 3, 7) == directions(vit, site, "random", 12, 7)[:3]
    assert directions(vit, site, "random", 3, 8) != directions(vit, site, "random", 3, 7)
    assert directions(vit, Site(2, "mlp_act"), "random", 1, 7)[0].vector != tuple(random[0])


def test_the_recipe_of_a_control_holds_its_direction(ran, vit):
    _, folder = ran
    recipe = read_recipe(folder / "2.mlp_act-rotated3.png")

    (term,) = recipe["objective"]
    wanted = directions(vit, Site(2, "mlp_act"), "rotated", 5, 3)[3]
    vector = np.frombuffer(base64.b64decode(term["float32"]), np.float32)
    assert isinstance(wanted, Direction) and vector.tolist() == list(wanted.vector)


@pytest.mark.parametrize(("device", "n"), [("cpu", 8), ("meta", 32)])
def test_the_default_number_of_features_is_by_device(device, n, tiny_folder, tmp_path, monkeypatch):

    from vitviz_hf import load_model

    asked = []

    def stop(view, targets, *_):
        asked.extend(targets)
        raise KeyboardInterrupt

    monkeypatch.setattr(narrow_sites, "optimized", stop)
    view = load_model(str(tiny_folder("vit")), device="cpu")
    view = replace(view, module=view.module.to(torch.device(device)))
    with pytest.raises(KeyboardInterrupt):
        run_experiment("narrow-sites", [view], None, NarrowSitesConfig(layers=(1,)), tmp_path)

    assert len([t for t in asked if t.site == Site(1, "attn_q")]) == n


@pytest.mark.parametrize(("depth", "layers"), [(12, [2, 6, 9]), (3, [0, 1, 2]), (24, [4, 12, 19])])
def test_layers_stand_at_a_sixth_the_middle_and_five_sixths(depth, layers):
    assert narrow_sites._layers(SimpleNamespace(layers=range(depth)), None) == layers


def test_the_high_frequency_share_of_known_pictures():
    x = np.mgrid[:64, :64][1]
    white = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)

    def wave(k):
        return Image.fromarray((127 + 100 * np.cos(2 * np.pi * k * x / 64)).astype(np.uint8)).convert("RGB")

    assert high_frequency_share(Image.fromarray(white)) == pytest.approx(1 - math.pi / 16, abs=0.01)
    assert high_frequency_share(wave(4)) < 0.01 and high_frequency_share(wave(25)) > 0.99
    assert high_frequency_share(Image.new("RGB", (64, 64), "teal")) == 0


def test_narrow_sites_compare_the_same_features_at_every_kind(vit, tmp_path):
    result = run_experiment(
        "narrow-sites", [vit], None, NarrowSitesConfig(layers=(0, 2), columns=2, steps=2, preset="fast"), tmp_path / "w"
    )

    rows = result.tables["table"].records()
    kinds = [k for k in narrow_sites.SHOWN_KINDS if k in vit.layers[0].taps] + ["mlp_act, random", "mlp_act, rotated"]
    assert [(r["layer"], r["kind"]) for r in rows] == [(layer, kind) for layer in (0, 2) for kind in kinds]
    with pytest.raises(SiteError, match="layers 0-2; got 7"):
        run_experiment("narrow-sites", [vit], None, NarrowSitesConfig(layers=(7,)), tmp_path / "x")
