"""Real images on the command line."""

import shutil
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from tests.conftest import draw_noise
from tests.inline_ray import InlineRay
from vitviz_hf import (
    Guide,
    builtin_images,
    feature_page,
    guide_by_images,
    load_model,
    open_atlas,
    open_image,
    parse_feature,
    to_pixels,
)
from vitviz_hf.atlas.guiding import guide_from_atlas
from vitviz_hf.cli.main import main
from vitviz_hf.cluster import Cluster
from vitviz_hf.images import image_to_pixels
from vitviz_hf.models.view import at_precision
from vitviz_hf.optimize.config import PRESETS, WHEN, VisualizeConfig
from vitviz_hf.optimize.recipe import read_recipe


@pytest.fixture
def picture(photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.fixture
def model(tiny_folder):
    return str(tiny_folder("vit"))


@pytest.fixture(scope="module")
def folder_of_pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(4):
        draw_noise(i).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def small_atlas(tiny_folder, folder_of_pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("atlases") / "atlas"
    command = [
        "search",
        str(tiny_folder("vit")),
        str(folder_of_pictures),
        "--out",
        str(out),
        "-k",
        "3",
        "--workers",
        "0",
    ]
    assert main(command) == 0
    return out


SHORT = ["--steps", "2", "--copies", "1", "--margin", "4"]


def guide_in(path):
    return Guide.from_json(read_recipe(path)["guide"])


def test_pictures_are_guided_by_files_and_folders_and_say_so(model, folder_of_pictures, tmp_path, capsys):
    files = [str(folder_of_pictures), str(folder_of_pictures / "1.png")]
    command = ["visualize", model, "1.mlp_act:5", "2.resid:3", "--preset", "aligned", *SHORT, "--seed", "1", "--images"]

    assert main([*command, *files, "--out", str(tmp_path / "out")]) == 0

    told = capsys.readouterr().out
    assert told.count(", made from 5 images") == 2
    view = load_model(model, device="cpu")
    images = [Image.open(folder_of_pictures / f"{i}.png") for i in (0, 1, 2, 3, 1)]
    pixels = torch.cat([to_pixels(view, image) for image in images])
    expected = guide_by_images(view, "2.resid:3", pixels, 1)
    assert expected.start != guide_by_images(view, "2.resid:3", pixels).start
    assert guide_in(tmp_path / "out" / "2.resid-3.png").to_json() == expected.to_json()
    assert main(["replay", str(tmp_path / "out" / "1.mlp_act-5.png")]) == 0
    assert capsys.readouterr().out.startswith("identical; score")


def test_pictures_are_guided_by_the_images_that_an_atlas_stores_of_each_feature(model, small_atlas, tmp_path, capsys):
    command = ["visualize", model, "1.mlp_act:5", "2.mlp_act:7@cls", "--preset", "aligned", *SHORT, "--margin", "4"]

    assert main([*command, "--atlas", str(small_atlas), "--out", str(tmp_path / "out")]) == 0

    assert capsys.readouterr().out.count(", made from 3 images") == 2
    view, atlas = load_model(model, device="cpu"), open_atlas(str(small_atlas))
    for address, name in (("1.mlp_act:5", "1.mlp_act-5"), ("2.mlp_act:7@cls", "2.mlp_act-7-cls")):
        hits = atlas.hits(parse_feature(address.partition("@")[0]))
        images = [to_pixels(view, open_image(atlas.image(h.row).jpeg)) for h in hits]
        expected = guide_by_images(view, address, torch.cat(images))
        found = guide_in(tmp_path / "out" / f"{name}.png")
        assert list(found.moments) == list(expected.moments) and found.best == pytest.approx(expected.best, rel=1e-4)
        assert all(torch.allclose(found.moments[s], m, atol=1e-5) for s, m in expected.moments.items())


def test_without_any_the_built_in_photographs_that_excite_most_are_taken(model, tmp_path, capsys):
    assert main(["visualize", model, "1.mlp_act:5", "--preset", "aligned", *SHORT, "--out", str(tmp_path / "out")]) == 0

    assert ", made from 9 images" in capsys.readouterr().out
    view = load_model(model, device="cpu")
    expected = guide_by_images(view, "1.mlp_act:5", builtin_images(view, "1.mlp_act:5"))
    assert guide_in(tmp_path / "out" / "1.mlp_act-5.png").to_json() == expected.to_json()


def test_a_picture_starts_from_a_photograph_and_says_so(model, picture, tmp_path, capsys):
    command = ["visualize", model, "1.mlp_act:5", "--preset", "accent", *SHORT, "--photo", picture]

    assert main([*command, "--out", str(tmp_path / "out")]) == 0

    assert ", from a photograph" in capsys.readouterr().out
    view = load_model(model, device="cpu")
    expected = to_pixels(view, Image.open(picture))[0]
    assert (guide_in(tmp_path / "out" / "1.mlp_act-5.png").photograph - expected).abs().mean() < 0.02


def test_an_atlas_is_given_pictures_guided_by_its_own_images(model, small_atlas, tmp_path, capsys, monkeypatch):
    for preset in ("aligned", "accent"):
        monkeypatch.setitem(PRESETS, preset, {**PRESETS[preset], "steps": 4})
    atlas = tmp_path / "atlas"
    shutil.copytree(small_atlas, atlas)

    assert main(["atlas", "build", str(atlas), "1.mlp_act:5", "--preset", "aligned"]) == 0
    assert main(["atlas", "build", str(atlas), "1.mlp_act:6", "--preset", "accent"]) == 0

    told = capsys.readouterr().out
    assert ", made from 3 images" in told and ", from a photograph" in told
    opened = open_atlas(str(atlas))
    view = load_model(model, device="cpu")
    pages = [feature_page(view, opened, parse_feature(f"1.mlp_act:{i}")) for i in (5, 6)]
    assert ", made from 3 real images" in pages[0] and ", made from 1 real image<" in pages[1]
    best = open_image(opened.image(opened.hits(parse_feature("1.mlp_act:6"))[0].row).jpeg)
    start = guide_in(atlas / "visualizations" / "1.mlp_act-6.png").photograph
    assert (start - image_to_pixels(best)).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--preset", "accent"], "needs a photograph to start from: give --photo; got none"),
        (["--preset", "aligned", "--images", "PICTURE", "--atlas", "a"], "give --images or --atlas; got --images and"),
        (["--preset", "fast", "--photo", "PICTURE"], "preset 'fast' takes no real images; choose 'aligned' or"),
        (["--images", "PICTURE"], "the default preset takes no real images"),
        (["--preset", "aligned", "--photo", "PICTURE"], "preset 'aligned' takes --images or --atlas; got --photo"),
        (["--preset", "accent", "--images", "PICTURE"], "preset 'accent' takes --photo; got --images"),
        (["--preset", "aligned", "--images", "nowhere.png"], "'nowhere.png' cannot be read"),
        (["--preset", "aligned", "--images", "EMPTY"], "there is no image in"),
        (["--preset", "aligned", "--images", *["PICTURE"] * 65], "takes up to 64 images; got 65"),
        (["--preset", "aligned", "--atlas", "./nowhere"], "there is no atlas './nowhere'"),
        (["--preset", "aligned", "--atlas", "ATLAS", "--minimize"], "not of '-1.mlp_act:5'; give --images"),
    ],
)
def test_real_images_that_do_not_fit_are_told_before_the_model_is_loaded(
    arguments, text, model, picture, small_atlas, tmp_path, capsys, monkeypatch
):
    (tmp_path / "empty").mkdir()
    places = {"PICTURE": picture, "EMPTY": str(tmp_path / "empty"), "ATLAS": str(small_atlas)}
    monkeypatch.setattr("vitviz_hf.cli.optimization.load_worded", lambda *_: pytest.fail("the model was loaded"))
    given = [places.get(a, a) for a in arguments]

    assert main(["visualize", model, "1.mlp_act:5", *given, "--out", str(tmp_path / "out")]) == 2

    assert text in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["visualize"], ["atlas", "build"]])
def test_help_says_when_to_take_which_preset(verb, capsys):
    with pytest.raises(SystemExit):
        main([*verb, "--help"])

    lines = capsys.readouterr().out.splitlines()
    assert set(WHEN) == set(PRESETS)
    for name, when in WHEN.items():
        assert any(line.split() == [name, *when.split()] for line in lines)


def test_the_photographs_are_read_in_the_precision_of_the_picture(model, tmp_path):
    found = {}
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        command = ["visualize", model, "1.mlp_act:5", "--preset", "aligned", *SHORT, "--precision", precision]
        assert main([*command, "--out", str(out)]) == 0
        view = at_precision(load_model(model, device="cpu"), precision)
        expected = guide_by_images(view, "1.mlp_act:5", builtin_images(view, "1.mlp_act:5"))
        found[precision] = read_recipe(out / "1.mlp_act-5.png")["guide"]
        assert found[precision] == expected.to_json()
    assert found["float32"]["best"] != found["bfloat16"]["best"]


def test_a_cluster_makes_pictures_from_images_read_in_what_all_its_machines_have(
    model, small_atlas, tmp_path, monkeypatch
):
    @contextmanager
    def opened(address, gpus):
        yield Cluster(InlineRay, 2, 1, False)

    atlas = tmp_path / "atlas"
    shutil.copytree(small_atlas, atlas)
    monkeypatch.setattr("vitviz_hf.cluster.open_cluster", opened)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert main(["atlas", "build", str(atlas), "1.mlp_act:5", "--preset", "aligned", "--on", "ray"]) == 0

    recipe = read_recipe(atlas / "visualizations" / "1.mlp_act-5.png")
    config = VisualizeConfig.preset("aligned", precision="float32")
    expected = guide_from_atlas(
        load_model(model, device="cpu"), open_atlas(str(atlas)), parse_feature("1.mlp_act:5"), config
    )
    assert recipe["config"]["precision"] == "float32" and recipe["guide"] == expected.to_json()
