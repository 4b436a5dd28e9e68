"""bfloat16 beside float32 on a model that has learned something: rankings, pictures, and what recipes say of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from safetensors.torch import save_file

from tests.by_hand import read_pictures
from vitviz_hf import VisualizeConfig, activations, load_model, make_atlas, open_source, replay, visualize
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.search import search, search_recipe
from vitviz_hf.errors import ConfigError, OutputExistsError
from vitviz_hf.experiments.pictures.judge import open_judge
from vitviz_hf.experiments.pictures.trials import read_photographs
from vitviz_hf.images import open_image
from vitviz_hf.models import view as views
from vitviz_hf.models.view import at_precision, list_sites, to_pixels
from vitviz_hf.optimize.guides import guide_by, guide_by_images, guide_by_photograph
from vitviz_hf.reading.recording import record, record_each
from vitviz_hf.sites import Feature, Site
from vitviz_hf.stream import builtin_paths

PRECISIONS = ("float32", "bfloat16")
SITE = Site(2, "mlp_act")


def test_auto_is_bfloat16_on_a_cuda_card_that_has_it_and_float32_elsewhere(trained, monkeypatch):
    class Cuda(views.ModelView):
        device = torch.device("cuda")

    on_cuda = Cuda(**{name: getattr(trained, name) for name in trained.__dataclass_fields__})
    for has_it, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has_it=has_it: has_it)

        assert at_precision(on_cuda, "auto").precision == expected
        assert at_precision(on_cuda, "float32").precision == "float32"


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}, "float32"),
        ({}, "float32"),
    ],
)
def test_auto_is_bfloat16_on_a_cpu_that_has_it_in_pictures_and_in_search(able, expected, trained, shapes, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", lambda: able)
        made = visualize(trained, ["2.mlp_act:5"], VisualizeConfig.preset("fast", steps=2))[0]
        recipe = search_recipe(trained, open_source(str(shapes)), SearchConfig())
        asked = at_precision(trained, "float32").precision

    assert (made.recipe["config"]["precision"], recipe["precision"], asked) == (expected, expected, "float32")


def test_a_torch_that_cannot_tell_what_the_cpu_has_computes_in_float32(trained, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")

    assert at_precision(trained, "auto").precision == "float32"
    assert at_precision(trained, "bfloat16").precision == "bfloat16"


def test_every_family_computes_in_bfloat16_what_it_does_in_float32(view):
    sites = [site for site, _ in list_sites(view)]
    pixels = torch.rand(2, 3, *view.input_size, generator=torch.Generator().manual_seed(0))

    exact, other = (activations(at_precision(view, name), pixels, sites) for name in PRECISIONS)

    assert torch.bfloat16 in {acts.values.dtype for acts in other.values()}
    for site in sites:
        apart = other[site].in_float32().values - exact[site].in_float32().values
        assert float(apart.square().mean()) <= 0.03**2 * float(exact[site].in_float32().values.square().mean()), site


def test_weights_of_another_type_compute_in_it(tiny_folder):
    half = load_model(str(tiny_folder("vit")), device="cpu", dtype=torch.bfloat16)

    assert at_precision(half, "bfloat16").precision == "float32"


def test_only_the_model_computes_in_bfloat16_not_what_is_made_of_its_values(trained):
    pixels, seen = torch.rand(2, 3, *trained.input_size, generator=torch.Generator().manual_seed(0)), []
    view = at_precision(trained, "bfloat16")

    record_each(view, pixels, [SITE], lambda acts: seen.append((acts.values, torch.is_autocast_enabled("cpu"))))

    exact = activations(trained, pixels, [SITE])[SITE].values
    assert [(values.dtype, on) for values, on in seen] == [(torch.bfloat16, False)]
    assert not torch.equal(seen[0][0].float(), exact)
    torch.testing.assert_close(seen[0][0].float(), exact, atol=0.05 * float(exact.abs().max()), rtol=0.05)
    assert record(trained, pixels, [SITE])[SITE].values.dtype == torch.float32


def test_rankings_in_bfloat16_are_those_of_float32(trained, shapes, tmp_path):
    """Of the 20 first images 19 or more are the same on average; scores differ by 2 % of their spread at most."""
    source = open_source(str(shapes))
    folds = [search(trained, source, SearchConfig(precision=name), tmp_path / name).folds for name in PRECISIONS]

    same, apart = [], []
    for site, exact in folds[0].items():
        other = folds[1][site]
        for a, b in zip(exact.top.keys.tolist(), other.top.keys.tolist(), strict=True):
            same.append(len(set(a) & set(b)) / 20)
        apart.append((exact.top.values - other.top.values).abs().mean(1) / torch.tensor(exact.squares / exact.n) ** 0.5)

    assert sum(same) / len(same) >= 0.95
    assert float(torch.cat(apart).median()) < 0.02


def test_pictures_made_in_bfloat16_excite_their_features_as_those_of_float32(trained, shapes):
    """Transfer scores, which are taken in float32, agree within 10 % on average and within 30 % for each."""
    # What the fixture learns differs between processors: the features that fire most, not some that hardly do.
    pixels = torch.from_numpy(np.stack([p.pixels for p in read_pictures(shapes)[:40]])).permute(0, 3, 1, 2) / 255
    most = activations(trained, pixels, [SITE])[SITE].scores().mean(0).argsort(descending=True)[:12]
    features, config = [f"2.mlp_act:{i}" for i in most.tolist()], VisualizeConfig.preset("fast", steps=30)
    made = [visualize(trained, features, replace(config, precision=name)) for name in PRECISIONS]

    exact, other = (torch.tensor([m.transfer_score for m in side]) for side in made)
    ratios = (other / exact)[exact > 0.1 * exact.max()]

    assert len(ratios) >= 6
    assert abs(float(ratios.mean()) - 1) < 0.1
    assert (ratios - 1).abs().max() < 0.3


def test_real_images_are_read_in_the_precision_of_the_picture(trained):
    images = torch.stack([to_pixels(trained, open_image(path))[0] for path in list(builtin_paths().values())[:4]])
    feature = f"2.mlp_act:{int(activations(trained, images, [SITE])[SITE].scores().mean(0).argmax())}"
    given = {name: guide_by_images(at_precision(trained, name), feature, images, seed=1) for name in PRECISIONS}

    for name, expected in given.items():
        config = VisualizeConfig.preset("aligned", steps=1, seed=1, precision=name)
        assert guide_by(trained, feature, images, config).to_json() == expected.to_json()
        started = guide_by(trained, feature, images, VisualizeConfig.preset("accent", precision=name))
        assert started.to_json() == guide_by_photograph(trained, feature, images[0]).to_json()
    assert given["float32"].best == pytest.approx(given["bfloat16"].best, rel=0.02)
    assert given["float32"].best != given["bfloat16"].best


def test_recipes_tell_the_precision_and_are_replayed_in_it(trained, tmp_path, monkeypatch):
    config = VisualizeConfig.preset("fast", steps=4)
    made = {
        name: visualize(trained, ["2.mlp_act:5"], replace(config, precision=name))[0] for name in ("auto", *PRECISIONS)
    }

    assert [m.recipe["config"]["precision"] for m in made.values()] == ["float32", *PRECISIONS]
    assert torch.equal(made["auto"].pixels, made["float32"].pixels)
    assert not torch.equal(made["bfloat16"].pixels, made["float32"].pixels)
    made["bfloat16"].save(tmp_path / "a.png")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert torch.equal(replay(tmp_path / "a.png", trained).pixels, made["bfloat16"].pixels)


@pytest.mark.parametrize(("old", "precision"), [({}, "float32"), ({"autocast": True}, "bfloat16")])
def test_an_old_recipe_has_the_precision_that_it_had(old, precision):
    assert VisualizeConfig.from_recipe({"steps": 3, **old}) == VisualizeConfig(steps=3, precision=precision)


@pytest.mark.parametrize(
    ("old", "precision"), [({}, "float32"), ({"autocast": False}, "float32"), ({"autocast": True}, "bfloat16")]
)
def test_an_old_recipe_is_replayed_in_its_precision_on_whatever_device(old, precision, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    made = visualize(trained, ["2.mlp_act:5"], VisualizeConfig.preset("fast", steps=3, precision=precision))[0]
    known = {name: value for name, value in made.recipe["config"].items() if name != "precision"}
    info = PngInfo()
    info.add_text("vitviz", json.dumps({**made.recipe, "config": known | old}))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)

    again = replay(tmp_path / "a.png", trained)

    assert torch.equal(again.pixels, made.pixels) and again.recipe == made.recipe


def test_a_search_goes_on_only_in_its_precision_and_one_of_an_earlier_version_in_float32(trained, shapes, tmp_path):
    source, config = open_source(str(shapes)), SearchConfig(limit=8, batch=4, precision="bfloat16")
    search(trained, source, config, tmp_path)

    with pytest.raises(ConfigError, match="holds a search with precision 'bfloat16', not 'float32'"):
        search(trained, source, replace(config, precision="auto"), tmp_path, resume=True)

    path = tmp_path / "state.safetensors"
    with safe_open(path, "pt") as file:
        tensors, facts = {k: file.get_tensor(k) for k in file.keys()}, json.loads(file.metadata()["state"])  # noqa: SIM118
    del facts["recipe"]["precision"]
    save_file(tensors, path, {"state": json.dumps(facts)})
    with pytest.raises(ConfigError, match="holds a search with precision 'float32', not 'bfloat16'"):
        search(trained, source, config, tmp_path, resume=True)
    assert search(trained, source, replace(config, precision="float32"), tmp_path, resume=True).n_images == 8


@pytest.mark.parametrize(("first", "then"), [(PRECISIONS[0], {"avx512_bf16": True}), (PRECISIONS[1], {})])
def test_what_is_gone_on_with_stays_in_its_precision_on_another_machine(
    first, then, trained, shapes, tmp_path, monkeypatch
):
    source, config = open_source(str(shapes)), SearchConfig(k=3, limit=24, batch=8, layers=(2,))
    straight = make_atlas(trained, source, replace(config, precision=first), tmp_path / "straight")

    class Cut(Exception):
        pass

    def cut(state):
        if state.n_rows >= 16:
            raise Cut

    work = tmp_path / "atlas.search" / "rank-0"
    with pytest.raises(Cut):
        search(trained, source, replace(config, precision=first), work, progress=cut, checkpoint_seconds=0)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: then)
    with pytest.raises(OutputExistsError, match="go on with --resume"):
        make_atlas(trained, source, config, tmp_path / "atlas")
    atlas = make_atlas(trained, source, config, tmp_path / "atlas", resume=True)

    assert atlas.manifest["precision"] == first
    for file in ("features/features.parquet", "images/images.parquet", "manifest.json"):
        assert (atlas.folder / file).read_bytes() == (straight.folder / file).read_bytes()


def test_models_of_double_precision_are_searched_and_judged(trained, trained_other, shapes, tmp_path):
    double, source = load_model(trained.model_id, device="cpu", dtype=torch.float64), open_source(str(shapes))
    folds = [search(v, source, SearchConfig(k=5), tmp_path / str(v.dtype)).folds for v in (trained, double)]

    for site, fold in folds[0].items():
        torch.testing.assert_close(fold.top.values, folds[1][site].top.values, atol=1e-4, rtol=1e-3)
    candidates, judge = [Feature(SITE, i) for i in (3, 5)], open_judge(trained_other.model_id, trained)
    one, other = (read_photographs(v, judge, source, candidates, None, 32) for v in (trained, double))
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
