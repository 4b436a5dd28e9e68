"""Real images in the pictures of experiments: where they come from, and where there are none."""

import numpy as np
import pytest

from tests.experiments.pictures.test_agreement import ByHand
from tests.experiments.pictures.test_benchmark import benchmark  # noqa: F401  a fixture
from vitviz_hf import make_atlas
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.config import AgreementConfig, NarrowSitesConfig, ProgressionConfig, TripletsConfig
from vitviz_hf.experiments.pictures import agreement, realism
from vitviz_hf.experiments.pictures.judge import open_judge
from vitviz_hf.experiments.pictures.realism import distance_to, kernel_distance
from vitviz_hf.experiments.pictures.trials import read_photographs
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.images import image_to_pixels
from vitviz_hf.optimize.guides import Guide
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.sites import Feature, Site, parse_feature
from vitviz_hf.stream import open_source


@pytest.fixture(scope="module")
def by_hand(trained, trained_other, shapes):
    return ByHand(trained, trained_other, shapes)


@pytest.fixture(scope="module")
def features(by_hand):
    """One of each layer that fires: what the fixture learns, and so which do, differs between processors."""
    sites = Site(2, "mlp_act"), Site(1, "mlp_act")
    return tuple(Feature(s, int(by_hand.scores(by_hand.pixels, s.layer).mean(0).argmax())) for s in sites)


def most_alike(images, among):
    """By brightness, which a JPEG keeps."""
    gray, rest = (x.mean(1).flatten(1) for x in (images, among))
    gray, rest = ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) for x in (gray, rest))
    return (gray @ rest.T).argmax(1).tolist()


@pytest.mark.parametrize(
    ("preset", "note"),
    [("aligned", "made from up to 9 images of each feature from the half"), ("accent", "start from the best image of")],
)
def test_pictures_of_agreement_are_guided_by_the_half_that_helps(
    preset, note, features, trained, trained_other, shapes, by_hand, tmp_path, monkeypatch
):
    given, make = {}, agreement.guide_by
    monkeypatch.setattr(
        agreement, "guide_by", lambda view, f, images, how: (given.update({f: images}), make(view, f, images, how))[1]
    )
    config = AgreementConfig(judge=trained_other.model_id, features=features, preset=preset, steps=2)

    result = run_experiment("agreement", [trained], open_source(str(shapes)), config, tmp_path)

    assert note in result.tables["table"].notes[0]
    for feature in features:
        nearest = most_alike(given[feature], by_hand.pixels)
        assert nearest == by_hand.order(feature, True)[:9]
        assert by_hand.helps[nearest].all() and not by_hand.helps.all()
        made = next(tmp_path.rglob(f"{str(feature).replace(':', '-')}.png"))
        guide = Guide.from_json(read_recipe(made)["guide"])
        assert guide.n_images == (9 if preset == "aligned" else 1)
        if preset == "accent":
            assert most_alike(guide.photograph[None], by_hand.pixels) == nearest[:1]


def test_the_benchmarks_pictures_are_guided_by_the_half_that_helps(
    benchmark,  # noqa: F811
    features,
    trained,
    trained_other,
    shapes,
    by_hand,
):
    judge = open_judge(trained_other.model_id, trained)
    photographs = read_photographs(trained, judge, open_source(str(shapes)), features, None, 64)

    made = benchmark.preset("accent", trained, features[0], 1, photographs, 0)
    aligned = benchmark.preset("aligned", trained, features[0], 1, photographs, 0)

    near = most_alike(image_to_pixels(made)[None], by_hand.pixels)
    assert near == by_hand.order(features[0], True)[:1] and aligned.size == made.size


@pytest.mark.parametrize("preset", ["aligned", "accent"])
def test_experiments_without_real_images_refuse_presets_that_need_them(preset, vit, tmp_path):
    for name, config in (
        ("progression", ProgressionConfig(preset=preset)),
        ("narrow-sites", NarrowSitesConfig(preset=preset)),
    ):
        with pytest.raises(ConfigError, match=f"{name} has no real images, and its preset needs .*; take 'fast'"):
            run_experiment(name, [vit], None, config, tmp_path / name)


def test_triplets_are_guided_by_the_images_of_their_atlas(vit, labelled, tmp_path):
    source = open_source(str(labelled))
    make_atlas(vit, source, SearchConfig(k=4, workers=0), tmp_path / "atlas")
    features = (parse_feature("1.mlp_act:5"), parse_feature("2.mlp_act:7"))

    for name, atlas, n in (("stored", str(tmp_path / "atlas"), 4), ("searched", None, 9)):
        config = TripletsConfig(atlas=atlas, features=features, preset="aligned", steps=2)
        work = tmp_path / name
        result = run_experiment("triplets", [vit], None if atlas else source, config, work)
        assert "made from up to 9 images of each feature from the atlas" in " ".join(result.tables["table"].notes)
        guides = [read_recipe(p)["guide"] for p in sorted((work / "pictures").glob("*.png"))]
        assert [g["images"] for g in guides] == [n, n] and guides[0]["moments"] != guides[1]["moments"]
        assert [row["picture"] for row in result.tables["table"].records()] == [f"made from {n} real images"] * 2
        told = [axes.get_xlabel() for axes in result.figures["figure"].axes]
        assert sum(text.endswith(f"\nmade from {n} real images") for text in told) == 2


def test_the_distance_is_to_a_thousand_photographs_at_most_whose_kernel_is_computed_once(monkeypatch):
    rng = np.random.default_rng(0)
    own, few, many = (rng.standard_normal((n, 6)).astype(np.float32) + s for n, s in ((8, 0.3), (50, 0), (1300, 0)))
    assert distance_to(few, 3)(own) == pytest.approx(kernel_distance(own, few))
    drawn = np.random.default_rng(3).permutation(1300)[:1000]
    assert distance_to(many, 3)(own) == pytest.approx(kernel_distance(own, many[drawn]))
    assert distance_to(many, 4)(own) != distance_to(many, 3)(own)
    sizes, kernel = [], realism._kernel
    monkeypatch.setattr(realism, "_kernel", lambda x, y: sizes.append((len(x), len(y))) or kernel(x, y))

    distance = distance_to(many, 3)
    for _ in range(3):
        distance(own)

    assert sizes.count((1000, 1000)) == 1 and len(sizes) == 7
