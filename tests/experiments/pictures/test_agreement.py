"""The experiment `agreement` over again in plain transformers and numpy, and what its measure says of known answers."""

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.by_hand import read_pictures
from tests.conftest import draw_noise
from vitviz_hf import VisualizeConfig, load_model, make_atlas, visualize
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.errors import ConfigError, SiteError
from vitviz_hf.experiments.config import AgreementConfig
from vitviz_hf.experiments.pictures import judge as judging
from vitviz_hf.experiments.pictures.agreement import embed_all, judge_pictures, layers_of
from vitviz_hf.experiments.pictures.judge import open_judge
from vitviz_hf.experiments.pictures.realism import kernel_distance, percentile, spectrum_distance
from vitviz_hf.experiments.pictures.trials import (
    Photographs,
    ask,
    choose_depths,
    draw_candidates,
    exemplars,
    live_features,
    look_of,
    queries,
    read_photographs,
    share_right,
    spectrum_of,
)
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.images import image_to_pixels
from vitviz_hf.models.view import at_size
from vitviz_hf.optimize.objectives import to_objective
from vitviz_hf.optimize.scores import transfer_scores
from vitviz_hf.reading.recording import activations
from vitviz_hf.sites import Feature, Site, parse_feature
from vitviz_hf.stream import open_source

QUICK = AgreementConfig(layers=(0, 2), per_layer=3, preset="fast", steps=6, seeds=2, seed=5)


@pytest.fixture(scope="module")
def ran(trained, trained_other, shapes, tmp_path_factory):
    work = tmp_path_factory.mktemp("agreement")
    config = replace(QUICK, judge=trained_other.model_id)
    return run_experiment("agreement", [trained], open_source(str(shapes)), config, work), work


class ByHand:
    """What the experiment must find, without any of its code."""

    def __init__(self, model, judge, shapes):
        rows = read_pictures(shapes)
        self.keys = [int.from_bytes(sha256(d).digest()[:8], "big") >> 1 for d in self.stored(shapes)]
        self.pixels = torch.from_numpy(np.stack([p.pixels for p in rows])).permute(0, 3, 1, 2).float() / 255
        self.model, self.judge = model, judge
        self.helps = np.array([k % 2 == 0 for k in self.keys])
        raw = self.embed(self.pixels)
        self.centers = {name: (v.mean(0), v.std(0)) for name, v in raw.items()}

    @staticmethod
    def stored(shapes):
        import pyarrow.parquet as pq

        return [row["bytes"] for row in pq.read_table(next(shapes.rglob("*.parquet")))["image"].to_pylist()]

    def scores(self, pixels, layer):
        """Mean over patches of the activation's output, [N, F]."""
        found = []
        inner = self.model.module.vit.layers[layer].mlp.fc2
        hook = inner.register_forward_pre_hook(lambda _, args: found.append(args[0][:, 1:].mean(1).numpy()))
        with torch.no_grad():
            self.model.module(pixel_values=pixels * 2 - 1)
        hook.remove()
        return found[0].astype(np.float64)

    def embed(self, pixels):
        with torch.no_grad():
            states = self.judge.module(pixel_values=pixels * 2 - 1, output_hidden_states=True).hidden_states
        return {f"layer {i}": states[i + 1][:, 1:].mean(1).numpy().astype(np.float64) for i in range(2)}

    def seen(self, pixels, depths):
        raw = self.embed(pixels)
        parts = [(raw[d] - self.centers[d][0]) / self.centers[d][1] for d in depths]
        whole = np.concatenate(parts, 1)
        return whole / np.linalg.norm(whole, axis=1, keepdims=True)

    def order(self, feature, helps):
        column = self.scores(self.pixels, feature.site.layer)[:, feature.index]
        own = [i for i in range(len(column)) if self.helps[i] == helps]
        return sorted(own, key=lambda i: -column[i])

    def share(self, seen, references, best, others):
        """A trial at a time."""
        toward = references.mean(0)
        won = [float(seen[b] @ toward > seen[o] @ toward) for b in best for o in others]
        return 100 * np.mean(won)

    def alike(self, seen, references, best, between):
        colors = self.pixels.flatten(2)
        looks = torch.cat([colors.mean(2), colors.std(2)], 1).numpy().astype(np.float64)
        looks = (looks - looks.mean(0)) / looks.std(0)
        won = []
        for b in best:
            near = sorted(between, key=lambda i: np.linalg.norm(looks[i] - looks[b]))[:5]
            won += [float(seen[b] @ references.mean(0) > seen[o] @ references.mean(0)) for o in near]
        return 100 * np.mean(won)


@pytest.fixture(scope="module")
def by_hand(trained, trained_other, shapes):
    return ByHand(trained, trained_other, shapes)


def pictures_of(work, feature):
    files = [work / f"seed-{s}" / "pictures" / f"{str(feature).replace(':', '-')}.png" for s in (5, 6)]
    return torch.stack([torch.from_numpy(np.asarray(Image.open(f)).copy()).permute(2, 0, 1) / 255 for f in files])


def test_every_share_is_that_of_asking_one_trial_at_a_time(ran, by_hand):
    result, work = ran
    rows = result.data["features"].records()
    depths = tuple(next(iter(result.manifest["depths"])).split(" + "))
    seen = by_hand.seen(by_hand.pixels, depths)
    features = [parse_feature(row["feature"]) for row in rows]
    own = {f: by_hand.seen(pictures_of(work, f), depths) for f in features}
    noise = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    assert [f.site.layer for f in features] == [0, 0, 0, 2, 2, 2]
    for f, row in zip(features, rows, strict=True):
        helping, asked = by_hand.order(f, True), by_hand.order(f, False)
        best, n = asked[:20], len(asked)
        middle, between = asked[n // 2 - 10 : n // 2 + 10], asked[n // 4 : n - n // 4]
        others = [e for other, pair in own.items() if other.site == f.site and other != f for e in pair]
        ways = {
            "picture": [e[None] for e in own[f]],
            "1 exemplar": [seen[helping[:1]]],
            "9 exemplars": [seen[helping[:9]]],
            "another's picture": [e[None] for e in others],
            "noise": [e[None] for e in by_hand.seen(noise, depths)],
        }
        for way, references in ways.items():
            plain = np.mean([by_hand.share(seen, r, best, middle) for r in references])
            alike = np.mean([by_hand.alike(seen, r, best, between) for r in references])
            assert row[way] == pytest.approx(plain, abs=0.6), (f, way)
            assert row[f"{way}, alike"] == pytest.approx(alike, abs=2.1), (f, way)
        column = by_hand.scores(by_hand.pixels, f.site.layer)
        score = by_hand.scores(pictures_of(work, f)[:1], f.site.layer)[0]
        assert row["score"] == pytest.approx(score[f.index], abs=1e-4)
        assert row["percentile"] == pytest.approx(100 * (column[:, f.index] < score[f.index]).mean())
        (turned,) = transfer_scores(by_hand.model, [to_objective(f)], pictures_of(work, f)[:1]).tolist()
        assert row["transfer"] == pytest.approx(turned / column[:, f.index].max(), rel=1e-3)
        deviations = (score - column.mean(0)) / np.maximum(column.std(0), 0.1 * np.median(column.std(0)))
        assert row["rank"] == 1 + (deviations > deviations[f.index]).sum()
        assert row["stability"] == pytest.approx(own[f][0] @ own[f][1], abs=1e-4)
    for name in ("picture", "9 exemplars", "1 exemplar, alike", "rank", "stability", "percentile"):
        assert len({row[name] for row in rows}) > 2, f"all rows say the same of {name}"


def test_the_table_is_the_mean_over_features_with_its_interval(ran):
    result, _ = ran
    rows, features = result.tables["table"].records(), result.data["features"].records()

    assert [row["site"] for row in rows] == ["0.mlp_act", "2.mlp_act", "all"]
    for row in rows:
        own = [f for f in features if row["site"] == "all" or f["feature"].startswith(row["site"])]
        assert row["features"] == len(own)
        for way in ("picture", "1 exemplar", "9 exemplars", "another's picture", "noise"):
            values = [f[way] for f in own]
            assert row[way] == pytest.approx(np.mean(values)) and row[f"{way} low"] <= row[way] <= row[f"{way} high"]
            assert min(values) <= row[f"{way} low"] and row[f"{way} high"] <= max(values)
        apart = np.mean([f["picture"] - f["1 exemplar"] for f in own])
        assert row["picture minus 1 exemplar"] == pytest.approx(apart)
    alike = result.tables["alike"].records()[-1]
    assert alike["9 exemplars"] == pytest.approx(np.mean([f["9 exemplars, alike"] for f in features]))


def test_the_table_of_pictures_tells_of_the_first_picture_of_each_feature(ran, by_hand):
    result, work = ran
    rows, features = result.tables["pictures"].records(), result.data["features"].records()
    found = {row["measure"]: row for row in rows}
    made = torch.cat([pictures_of(work, parse_feature(f["feature"]))[:1] for f in features])
    looks = []
    for pixels in (made, by_hand.pixels):
        flat = pixels.double().numpy().reshape(len(pixels), 3, -1)
        looks.append(((flat.max(1) - flat.min(1)).mean(1), flat.mean(1).std(1, ddof=1)))

    for title, column in (
        ("percentile of the score among the images', %", "percentile"),
        ("transfer score / best image's score", "transfer"),
        ("cosine between seeds", "stability"),
    ):
        assert found[title]["pictures"] == pytest.approx(np.mean([f[column] for f in features]))
    (rank,) = (row for title, row in found.items() if title.startswith("median rank"))
    assert rank["pictures"] == np.median([f["rank"] for f in features])
    for name, own, usual in zip(("saturation", "contrast"), *looks, strict=True):
        assert found[name]["pictures"] == pytest.approx(own.mean(), abs=1e-3)
        assert found[name]["photographs"] == pytest.approx(usual.mean(), abs=1e-3)
        inside = np.mean([0.05 <= (usual < x).mean() + (usual == x).mean() / 2 <= 0.95 for x in own])
        assert found[f"{name} within the middle 90 % of photographs, %"]["pictures"] == pytest.approx(100 * inside)
    spectra = (spectrum_of(pixels).numpy() for pixels in (made, by_hand.pixels))
    assert found["distance of log spectra"]["pictures"] == pytest.approx(spectrum_distance(*spectra), rel=1e-3)
    distance = found["kernel distance to the photographs"]
    assert distance["pictures"] > 2 * abs(distance["photographs"])


def test_the_judges_depth_is_chosen_in_the_half_that_helps(ran, by_hand):
    result, _ = ran
    features = [parse_feature(row["feature"]) for row in result.data["features"].records()]
    found = result.manifest["depths"]

    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert set(found) == {"layer 0", "layer 1", "layer 0 + layer 1"}
    assert features and next(iter(found)) in result.tables["table"].notes[2]


def made_up(scores, embeddings, helps=None):
    """Photographs of one feature with known scores and judge's values."""
    n = len(scores)
    helps = np.arange(n) % 2 == 0 if helps is None else helps
    feature = Feature(Site(0, "mlp_act"), 7)
    values = {name: np.asarray(v, np.float32) for name, v in embeddings.items()}
    looks = np.random.default_rng(0).random((n, 8), dtype=np.float32)
    centers = {name: (v.mean(0) * 0, v.std(0) * 0 + 1) for name, v in values.items()}
    column = np.asarray(scores, np.float32)[:, None]
    return Photographs([feature], column, helps, list(range(n)), values, looks, looks, {}, {}, centers), feature


def test_a_judge_that_sees_what_the_feature_sees_is_always_right_and_a_blind_one_half_of_the_time():
    rng = np.random.default_rng(1)
    scores = rng.permutation(400) / 400.0
    knows = np.stack([scores - 0.5, np.full(400, 0.05)], 1)
    blind = rng.standard_normal((400, 30))
    photographs, feature = made_up(scores, {"knows": knows, "blind": blind})

    found = choose_depths(photographs)

    assert found[("knows",)] == 1.0 and abs(found[("blind",)] - 0.5) < 0.15
    assert list(found)[-1] == ("blind",)
    asked = queries(photographs, feature)
    seen = photographs.seen(("knows",))
    assert ask(seen, asked, seen[asked.best[:1]]).plain == 1.0
    assert ask(seen, asked, -seen[asked.best[:1]]).plain == 0.0
    assert ask(seen * 0, asked, seen[:1]).plain == 0.5


def test_what_is_asked_about_changes_nothing_in_the_choice_of_depth():
    rng = np.random.default_rng(2)
    scores = rng.permutation(400) / 400.0
    values = {"a": rng.standard_normal((400, 5)), "b": rng.standard_normal((400, 5)) + scores[:, None]}
    photographs, _ = made_up(scores, values)
    changed = {
        name: np.where(photographs.helps[:, None], v, rng.standard_normal(v.shape)) for name, v in values.items()
    }

    assert choose_depths(made_up(scores, changed)[0]) == choose_depths(photographs)


def test_shares_count_ties_as_half_and_each_rival_with_its_own():
    reference = np.array([[1.0, 0]], np.float32)
    best = np.array([[1.0, 0], [0, 1]], np.float32)

    assert share_right(reference, best, np.array([[0.0, 1], [0.6, 0.8]], np.float32)) == pytest.approx((2 + 0.5) / 4)
    own = np.array([[[1.0, 0], [0.6, 0.8]], [[0, 1.0], [0, -1.0]]], np.float32)
    assert share_right(reference, best, own) == pytest.approx((0.5 + 1 + 0.5 + 0.5) / 4)


def test_dead_features_are_passed_over():
    photographs, feature = made_up(np.zeros(10), {"a": np.ones((10, 2))})
    dead = Feature(feature.site, 8)
    constant = Feature(feature.site, 9)
    photographs.features[:0] = [dead, constant]
    scores = np.full(10, -0.2), np.full(10, 0.7), np.linspace(-1, 1, 10)
    photographs.scores = np.stack(scores, 1).astype(np.float32)

    assert live_features(photographs, 3) == [feature]


def test_a_feature_that_hardly_varies_takes_no_rank_from_others(trained, trained_other, shapes):
    site, judge = Site(1, "mlp_act"), open_judge(trained_other.model_id, trained)
    photographs = read_photographs(
        trained, judge, open_source(str(shapes)), draw_candidates(trained, [site], 4, 0), None, 64
    )
    feature, depths = live_features(photographs, 1)[0], next(iter(choose_depths(photographs)))
    picture = {feature: image_to_pixels(photographs.image(int(exemplars(photographs, feature)[0])))[None]}
    values = activations(trained, picture[feature], [site])[site].scores()[0].numpy()
    before = judge_pictures(trained, judge, photographs, depths, picture)[0].rank
    mean, std = (x.copy() for x in photographs.moments[site])
    last = int(((values - mean) / std).argmin())
    mean[last], std[last] = values[last] - 0.01 * np.median(std), 1e-9

    photographs.moments[site] = (mean, std)

    assert last != feature.index and before < 10
    assert judge_pictures(trained, judge, photographs, depths, picture)[0].rank == before


def test_the_kernel_distance_is_that_of_loops_and_zero_in_the_mean_for_one_distribution():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((5, 4)), rng.standard_normal((7, 4)) + 0.5

    def kernel(a, b):
        return (float(a @ b) / 4 + 1) ** 3

    own = np.mean([kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    other = np.mean([kernel(y[i], y[j]) for i in range(7) for j in range(7) if i != j])
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(own + other - 2 * across)
    same = [kernel_distance(rng.standard_normal((20, 4)), rng.standard_normal((30, 4))) for _ in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 200**0.5


def test_percentiles_and_looks_are_those_of_numpy():
    assert percentile(2.0, np.array([1.0, 2, 2, 3])) == 50 and percentile(9.0, np.array([1.0, 2])) == 100
    pixels = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(4))
    values = pixels.numpy()

    found = look_of(pixels).numpy()

    for i in range(2):
        expected = [*values[i].mean((1, 2)), *values[i].std((1, 2), ddof=1)]
        expected += [(values[i].max(0) - values[i].min(0)).mean(), values[i].mean(0).std(ddof=1)]
        np.testing.assert_allclose(found[i], expected, rtol=1e-5)


def test_spectra_tell_waves_of_different_length_apart_and_not_brightness():
    x = torch.arange(64) * 2 * torch.pi / 64
    slow, fast = (0.5 + 0.2 * torch.sin(k * x).expand(1, 3, 64, 64) for k in (4, 24))

    spectra = [spectrum_of(p)[0] for p in (slow, fast)]

    assert [abs(int(s.argmax()) - k) <= 1 for s, k in zip(spectra, (4, 24), strict=True)] == [True, True]
    dim = spectrum_of(0.5 * slow).numpy()
    assert spectrum_distance(dim, spectrum_of(slow).numpy()) < 0.3
    assert spectrum_distance(spectra[0][None].numpy(), spectra[1][None].numpy()) > 2
    ramp = np.arange(5.0)[None]
    assert spectrum_distance(ramp + 7, ramp) == 0 and spectrum_distance(3 * ramp, ramp) == pytest.approx(8**0.5)


def test_a_judge_is_another_network_than_the_model(trained, trained_other, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="the judge is the model itself"):
        open_judge(trained.model_id, trained)
    with pytest.raises(ConfigError, match="the judge is the model itself"):
        open_judge(trained.model_id, at_size(trained, (80, 80)))
    elsewhere, finer = (
        Path(shutil.copytree(trained.snapshot.folder, tmp_path / name)) for name in ("elsewhere", "finer")
    )
    config = json.loads((elsewhere / "config.json").read_text())
    (elsewhere / "config.json").write_text(json.dumps(config | {"_name_or_path": "elsewhere"}))
    with pytest.raises(ConfigError, match="the judge is the model itself"):
        open_judge(str(elsewhere), trained)
    weights = load_file(finer / "model.safetensors")
    name = next(n for n in weights if "layer.2" in n)
    save_file(weights | {name: weights[name] + 1e-3}, finer / "model.safetensors", {"format": "pt"})
    assert open_judge(str(finer), trained).view.model_id == str(finer)
    assert [str(s) for s in open_judge(trained_other.model_id, trained).sites] == ["0.resid", "1.resid"]
    asked = []
    monkeypatch.setattr(judging, "load_model", lambda name, device: asked.append(name) or trained_other)
    for reachable in (True, False):
        monkeypatch.setattr(judging, "hub_reachable", lambda is_there=reachable: is_there)
        open_judge(None, replace(trained, snapshot=replace(trained.snapshot, model_id="facebook/dinov2-base")))
    assert asked == ["openai/clip-vit-base-patch32", "builtin-cnn"]


def test_a_network_without_layers_judges_after_each_stage(tiny_folder, trained):
    judge = open_judge(str(tiny_folder("resnet")), trained)
    pixels = torch.rand(3, 3, 50, 40, generator=torch.Generator().manual_seed(5))

    found = judge.embed(pixels)

    view = judge.view
    sized = torch.nn.functional.interpolate(pixels, view.input_size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(x)[:, None, None] for x in (view.mean, view.std))
    with torch.no_grad():
        states = view.module(pixel_values=(sized - mean) / std, output_hidden_states=True).hidden_states
    assert list(found) == [f"stage {i}" for i in range(len(states))]
    for own, state in zip(found.values(), states, strict=True):
        torch.testing.assert_close(own, state.mean((2, 3)), atol=1e-4, rtol=1e-4)


def test_too_few_images_a_missing_layer_and_no_dataset_are_told(trained, trained_other, labelled, tmp_path):
    config = replace(QUICK, judge=trained_other.model_id)
    with pytest.raises(ConfigError, match="at least 200 different images; the dataset gave 20"):
        run_experiment("agreement", [trained], open_source(str(labelled)), config, tmp_path / "a")
    with pytest.raises(ConfigError, match="needs a dataset of at least 200 images"):
        run_experiment("agreement", [trained], None, config, tmp_path / "b")
    with pytest.raises(SiteError, match="layers 0-2"):
        layers_of(trained, (1, 9))
    assert layers_of(trained, None) == [0, 1, 2]


def test_an_interrupted_run_goes_on_with_the_pictures_it_has(ran, trained, shapes):
    result, work = ran
    times = {p: p.stat().st_mtime_ns for p in work.rglob("*.png")}
    config = replace(QUICK, judge=json.loads(json.dumps(result.manifest["config"]["judge"])))

    again = run_experiment("agreement", [trained], open_source(str(shapes)), config, work)

    assert again.data["features"].rows == result.data["features"].rows and len(times) == 12
    assert {p: p.stat().st_mtime_ns for p in work.rglob("*.png")} == times


@pytest.fixture
def silenced(trained):
    """With a feature that is below 0 everywhere, and one of its size that is 0 on nearly every image, as of a ReLU."""
    view = load_model(trained.model_id, device="cpu")
    inner = view.module.vit.layers[1].mlp.fc1
    with torch.no_grad():
        inner.weight[3], inner.bias[3] = 0, -0.3
        inner.weight[4], inner.bias[4] = 0, 0
    return view


@pytest.mark.parametrize("preset", ["fast", "aligned", "accent"])
def test_features_that_nothing_excites_are_left_out_and_told_if_there_is_no_other(
    preset, silenced, trained_other, shapes, tmp_path
):
    dead, live = Feature(Site(1, "mlp_act"), 3), Feature(Site(1, "mlp_act"), 5)
    config = replace(QUICK, judge=trained_other.model_id, steps=1, seeds=1, preset=preset, features=(dead, live))
    source = open_source(str(shapes))

    found = run_experiment("agreement", [silenced], source, config, tmp_path / "both")

    assert [row["feature"] for row in found.data["features"].records()] == [str(live)]
    assert found.tables["table"].notes[-1] == "Features as given, of them those whose best score is above 0."
    with pytest.raises(ConfigError, match=r"excites any of 1\.mlp_act:3, so there is nothing to ask about"):
        run_experiment("agreement", [silenced], source, replace(config, features=(dead,)), tmp_path / "dead")


def test_the_images_that_rank_are_those_that_are_kept_where_scores_are_alike(silenced, trained_other, shapes):
    silent = Feature(Site(1, "mlp_act"), 4)
    judge = open_judge(trained_other.model_id, silenced)

    photographs = read_photographs(silenced, judge, open_source(str(shapes)), [silent], None, 16)

    assert np.ptp(photographs.scores) == 0
    for i in (*exemplars(photographs, silent), *queries(photographs, silent).best):
        assert photographs.image(int(i)).size == (64, 64)


def test_an_image_counts_once_wherever_its_copies_are(trained, trained_other, tmp_path):
    for name, files in (("once", range(200)), ("again", (*range(200), 0, 3, 3, 150))):
        (tmp_path / name).mkdir()
        for place, i in enumerate(files):
            draw_noise(i).save(tmp_path / name / f"{place:03}.png")
    judge, features = open_judge(trained_other.model_id, trained), [Feature(Site(1, "mlp_act"), i) for i in (2, 5)]

    once, again = (
        read_photographs(trained, judge, open_source(str(tmp_path / name)), features, None, 16)
        for name in ("once", "again")
    )

    assert once.keys == again.keys and len(once.keys) == 200
    for a, b in zip(values_of(once), values_of(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def values_of(photographs):
    own = photographs.scores, photographs.looks, photographs.spectra
    return [*own, *photographs.moments[Site(1, "mlp_act")], *photographs.embeddings.values()]


def test_pictures_beyond_the_first_batch_are_embedded_as_the_others(trained, trained_other):
    judge = open_judge(trained_other.model_id, trained)
    pixels = torch.rand(37, 3, *trained.input_size, generator=torch.Generator().manual_seed(0))

    together = embed_all(judge, pixels)

    for depth, values in together.items():
        alone = torch.cat([judge.embed(one)[depth] for one in pixels.split(1)])
        assert values.shape == alone.shape
        torch.testing.assert_close(values, alone, atol=1e-5, rtol=1e-4)


def test_beside_an_atlas_the_pictures_of_further_seeds_are_made(trained, trained_other, shapes, tmp_path):
    source, liked = open_source(str(shapes)), Feature(Site(2, "mlp_act"), 5)
    atlas = make_atlas(trained, source, SearchConfig(k=2, layers=(2,)), tmp_path / "atlas")
    stored = atlas.folder / "visualizations" / "2.mlp_act-5.png"
    visualize(trained, [liked], VisualizeConfig.preset("fast", steps=2, seed=9))[0].save(stored)
    config = replace(QUICK, judge=trained_other.model_id, layers=None, atlas=str(atlas.folder), steps=1)

    result = run_experiment("agreement", [trained], source, config, tmp_path / "work")

    (row,) = result.data["features"].records()
    assert row["feature"] == str(liked) and row["stability"] < 0.999
    made = sorted(p.relative_to(tmp_path / "work").as_posix() for p in (tmp_path / "work").rglob("*.png"))
    assert made == ["seed-6/pictures/2.mlp_act-5.png"]
