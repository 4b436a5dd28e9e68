"""Several pictures at once, the tray of a session, the growth as an animation."""

import base64
import html
import inspect
import io
import re
import time
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import draw_noise
from vitviz_hf import activations, visualize
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.store import open_atlas
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.errors import AtlasError
from vitviz_hf.images import bytes_to_pixels, image_to_pixels, open_image, pixels_to_bytes
from vitviz_hf.inside.words import with_words
from vitviz_hf.models.view import at_precision, at_size, to_pixels
from vitviz_hf.optimize.config import PRESETS, WHEN, VisualizeConfig
from vitviz_hf.optimize.guides import PASSES, builtin_images, guide_by_images, guide_by_photograph
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.optimize.replay import replay
from vitviz_hf.reading.reference import load_reference
from vitviz_hf.sites import Feature, Site
from vitviz_hf.stream import builtin_paths, open_source
from vitviz_hf.ui import growing, guiding, optimize_tab
from vitviz_hf.ui.api import Api
from vitviz_hf.ui.app import App
from vitviz_hf.ui.growing import Wanted, gpu_seconds, grow, passes_made
from vitviz_hf.ui.growth import Growth
from vitviz_hf.ui.optimize_tab import OptimizeTab
from vitviz_hf.ui.telling import summary
from vitviz_hf.ui.tray import MOST, TrayPicture, put, tray_html

ME = SimpleNamespace(session_hash="me")


@pytest.fixture(scope="module")
def app(tiny_folder):
    return App(str(tiny_folder("vit")), lambda _: lambda job: job, True)


@pytest.fixture
def tab(app):
    return app.page.tab(OptimizeTab)


def made(app, tab, feature="1.mlp_act:3", steps=4, seed=5, pictures=1, tray=()):
    *_, last = tab.visualize(app.model.value, feature, "fast", steps, seed, pictures, tray, ME)
    return last


def test_each_of_several_pictures_is_the_one_of_its_seed_and_its_file_makes_it_again(app, tab, vit):
    values = made(app, tab, pictures=3)

    for i, seed in enumerate((5, 6, 7)):
        path = values[tab.downloads[i]]["value"]
        config = VisualizeConfig.preset("fast", steps=4, seed=seed)
        alone = visualize(vit, [Feature(Site(1, "mlp_act"), 3)], config)[0]
        assert np.array_equal(np.asarray(open_image(path)), np.asarray(alone.image))
        assert read_recipe(path)["config"] == alone.recipe["config"] and path.endswith(f"seed-{seed}.png")
        assert np.array_equal(np.asarray(replay(path).image), np.asarray(alone.image))
        assert values[tab.lives[i]]["alt_text"] == f"Optimized picture of 1.mlp_act:3, seed {seed}"
        assert f"seed {seed} score {alone.score:.3g};" in values[tab.status]
    assert values[tab.downloads[0]]["interactive"] and not values[tab.downloads[3]]["interactive"]
    assert not values[tab.places[3]]["visible"] and values[tab.lives[3]]["value"] is None


def test_in_one_batch_each_picture_is_that_of_its_seed_too(vit, monkeypatch):
    asked = Wanted("1.mlp_act:3", "fast", 4, 5, 3)
    *_, by_one = grow(vit, asked)
    sizes, steps = [], growing.seeded_steps
    monkeypatch.setattr(growing, "seeded_steps", lambda *a: sizes.append(len(a[3])) or steps(*a))
    monkeypatch.setattr(growing, "steps_together", lambda view: True)
    *_, together = grow(vit, asked)

    assert sizes == [3]
    for a, b in zip(by_one.pictures, together.pictures, strict=True):
        assert (a.seed, a.index) == (b.seed, b.index)
        assert np.abs(np.asarray(a.picture, int) - np.asarray(b.picture, int)).max() <= 1
        assert b.result.recipe["config"]["seed"] == b.seed


def test_between_the_pictures_of_a_step_others_get_their_turn(vit, monkeypatch):
    monkeypatch.setattr(growing, "_FRAME_SECONDS", 0.0)

    frames = list(grow(vit, Wanted("1.mlp_act:3", "fast", 2, 0, 3)))

    begun = [[grown.index for grown in frame.pictures] for frame in frames]
    assert begun == [[0], [0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert [frame.finished for frame in frames] == [False] * 7 + [True]


def test_several_stopped_pictures_are_kept_each_with_its_own_step(app, tab, monkeypatch):
    monkeypatch.setattr(growing, "_FRAME_SECONDS", 0.0)
    frames = tab.visualize(app.model.value, "1.mlp_act:3", "fast", 1000, 0, 2, (), ME)
    shown = (v for v in frames if v.get(tab.status, "").startswith("Step "))
    for _ in range(4):
        next(shown)
    tab.stop(ME)
    last = list(frames)[-1]

    paths = [last[tab.downloads[i]]["value"] for i in range(2)]
    assert [read_recipe(p)["stopped_after"] for p in paths] == [2, 2]
    assert [read_recipe(p)["config"]["seed"] for p in paths] == [0, 1]
    for path in paths:
        assert np.abs(np.asarray(replay(path).image, int) - np.asarray(open_image(path), int)).max() <= 1
    assert Image.open(last[tab.growth]["value"]).n_frames >= 2


@pytest.mark.parametrize("at", ["cls", "3,2"])
def test_a_token_has_its_own_score_and_nothing_of_the_mean_over_patches_beside_it(at, app, tab, vit):
    address = f"1.mlp_act:3@{at}"
    config = VisualizeConfig.preset("fast", steps=4, seed=5)
    alone = visualize(vit, [address], config)[0]

    values, mean = made(app, tab, address), made(app, tab)

    path = values[tab.downloads[0]]["value"]
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(alone.image))
    assert path.endswith(f"1.mlp_act-3-{at.replace(',', '-')}.png") and read_recipe(path)["address"] == address
    assert values[tab.status].startswith(f"**{address}** after 4 steps: score {alone.score:.3g};")
    assert "photographs" not in values[tab.status] and "photographs" in mean[tab.status]
    assert tab.show_card(app.model.value, address) == "" != tab.show_card(app.model.value, "1.mlp_act:3")
    assert values[tab.kept_pictures][0].address == address


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("1.mlp_act:3@4,0", r"patch 4,0 is outside the grid of 4 rows \(0-3\) .* of '1\.mlp_act'"),
        ("1.mlp_act:3@here", "'@here' is not a token; write '@cls', or '@ROW,COLUMN'"),
        ("logit:dog@cls", "'logit:1@cls': a class has no tokens; write 'logit:1'"),
    ],
)
def test_a_token_that_is_not_there_is_told(address, message, app, tab):
    with pytest.raises(gr.Error) as told:
        made(app, tab, address)

    assert re.search(message, html.unescape(str(told.value)))


@pytest.mark.parametrize(
    ("alive", "index", "says"),
    [
        ((True,), 9, ""),
        ((False,), 9, " The feature does not fire on it."),
        ((False,), 4, " The feature does not fire on it yet."),
        ((True, False), 9, " The feature does not fire on seed 1."),
    ],
)
def test_the_summary_says_where_the_feature_does_not_fire(alive, index, says):
    recipe = {"address": "1.mlp_act:3"}
    results = [SimpleNamespace(score=1.0, transfer_score=0.5, alive=fires, recipe=recipe) for fires in alive]
    grown = tuple(SimpleNamespace(seed=i, result=result) for i, result in enumerate(results))

    text = summary(SimpleNamespace(pictures=grown, index=index, steps=10, classes="", photograph=None, guided=None))

    assert text.endswith(f"blurred.{says}")
    assert "dead" not in text.lower()


def test_time_is_asked_for_every_picture(app, tab, monkeypatch):
    monkeypatch.setattr(tab, "pace_job", lambda snapshot: 0.15)
    tab._paces.clear()
    snapshot = SimpleNamespace(folder=SimpleNamespace(glob=lambda _: [SimpleNamespace(stat=size)]))

    assert tab.estimate(app.model.value, "fast", 0, 4) == "This takes about 2 min without a GPU."
    assert gpu_seconds(snapshot, Wanted("", "fast", 100, 0, 4)) - gpu_seconds(snapshot, Wanted("", "fast", 100, 0)) == 4


def size():
    return SimpleNamespace(st_size=1e9)


def test_too_many_pictures_are_refused(app, tab):
    with pytest.raises(gr.Error, match="pictures must be a whole number from 1 to 4; got 5"):
        list(tab.visualize(app.model.value, "1.mlp_act:3", "fast", 2, 0, 5, (), ME))


def test_the_tray_shows_a_picture_of_the_session_again_with_its_file(app, tab):
    first = made(app, tab, pictures=2)
    second = made(app, tab, feature="2.mlp_act:9", seed=1, tray=first[tab.kept_pictures])
    tray = second[tab.kept_pictures]

    again = tab.show_again("2", tray)

    assert [(kept.number, kept.address, kept.seed) for kept in tray] == [
        (3, "2.mlp_act:9", 1),
        (2, "1.mlp_act:3", 6),
        (1, "1.mlp_act:3", 5),
    ]
    assert second[tab.tray].count("data-pick") == 3 and "seed 6, fast" in second[tab.tray]
    assert again[tab.lives[0]]["value"] == first[tab.downloads[1]]["value"] == again[tab.downloads[0]]["value"]
    assert again[tab.growth]["value"] == first[tab.growth]["value"] and again[tab.status] == first[tab.status]
    assert [again[place]["visible"] for place in tab.places] == [True, False, False, False]


def a_picture(number, path="/nowhere.png", address="1.mlp_act:3"):
    return TrayPicture(number, "m", address, 4, "fast", 1.5, "label", "sentence", "data:,", path, None)


def test_the_tray_keeps_the_newest_and_escapes_what_it_is_given():
    tray = ()
    for number in range(1, MOST + 4):
        tray = put(tray, [a_picture(number, address="<b>")])

    assert len(tray) == MOST and (tray[0].number, tray[-1].number) == (MOST + 3, 4)
    assert "<b>" not in tray_html(tray) and 'alt="Optimized picture"' in tray_html(tray)
    assert tray_html(()) == ""


def test_a_picture_whose_file_is_gone_can_be_made_again(app, tab):
    with pytest.raises(gr.Error, match=r"optimize 1\.mlp_act:3 with seed 4 again"):
        tab.show_again("1", (a_picture(1),))
    with pytest.raises(gr.Error, match="no longer in the tray"):
        tab.show_again("7", (a_picture(1),))


def test_files_lie_in_gradios_cache_which_the_app_empties(app, tab):
    values = made(app, tab)

    for component, path in (
        (tab.downloads[0], values[tab.lives[0]]["value"]),
        (tab.growth, values[tab.growth]["value"]),
    ):
        assert path.startswith(component.GRADIO_CACHE) and path in component.temp_files
        assert component.temp_files in app.demo.temp_file_sets


def shade(value):
    return Image.new("RGB", (32, 16), (value, value, value))


def test_the_growth_is_evenly_spaced_bounded_and_ends_on_the_last_picture():
    growth = Growth(2)
    growth.add([shade(255)])  # the second has not begun
    for i in range(200):
        growth.add([shade(i), shade(i)])

    film = Image.open(io.BytesIO(growth.webp()))

    assert film.size == (2 * 224, 112) and 18 <= film.n_frames <= 36
    shades, times = [], []
    for i in range(film.n_frames):
        film.seek(i)
        film.load()
        times.append(film.info["duration"])
        shades.append(film.convert("RGB").getpixel((10, 10))[0])
    assert abs(shades[0]) <= 3 and abs(shades[-1] - 199) <= 3
    gaps = np.diff(shades[:-1])
    assert gaps.min() > 0 and gaps.max() - gaps.min() <= 6
    assert set(times[:-1]) == {167} and times[-1] == 2000


def test_large_pictures_are_shrunk_and_none_gives_no_film():
    growth = Growth(1)
    assert growth.webp() is None
    growth.add([Image.new("RGB", (512, 384))])

    assert Image.open(io.BytesIO(growth.webp())).size == (320, 240)


CHELSEA = str(builtin_paths()["chelsea"])


@pytest.fixture(scope="module")
def dreams(trained):
    """An app on a model that has learned, with the feature that most photographs excite."""
    app = App(str(trained.snapshot.folder), lambda _: lambda job: job, True)
    return app, app.page.tab(OptimizeTab)


@pytest.fixture(scope="module")
def liked(trained):
    scores = load_reference(trained).scores[Site(1, "mlp_act")]
    return Feature(Site(1, "mlp_act"), int((scores > 0).sum(0).argmax()))


def run(dreams, feature, preset, photo=None, atlas="", steps=3, pictures=1, tray=(), seed=5):
    app, tab = dreams
    return tab.visualize(app.model.value, str(feature), preset, steps, seed, pictures, tray, ME, photo, atlas)


def seen(trained, paths):
    """Pictures as the model sees them, with 8 bits."""
    return torch.cat([bytes_to_pixels(pixels_to_bytes(to_pixels(trained, open_image(p))[0]))[None] for p in paths])


def test_a_dream_is_the_picture_that_starts_from_the_photograph_and_is_shown_beside_it(dreams, trained, liked):
    tab = dreams[1]
    first, *_, last = run(dreams, liked, "accent", CHELSEA, pictures=2)

    guide = guide_by_photograph(trained, liked, to_pixels(trained, open_image(CHELSEA))[0])
    for i, seed in enumerate((5, 6)):
        path = last[tab.downloads[i]]["value"]
        alone = visualize(trained, [liked], VisualizeConfig.preset("accent", steps=3, seed=seed), [guide])[0]
        assert np.array_equal(np.asarray(open_image(path)), np.asarray(alone.image))
        assert read_recipe(path)["guide"] == alone.recipe["guide"] == guide.to_json()
        assert np.array_equal(np.asarray(replay(path, trained).image), np.asarray(alone.image))
        assert last[tab.lives[i]]["label"] == f"Seed {seed}"
    assert "Started from your photograph." in last[tab.status]
    compared = last[tab.compared]
    assert first[tab.compared] == "" and compared.count('type="range"') == 2
    assert compared.count(base64.b64encode(guide.start).decode()) == 2
    assert f"{liked}, seed 6" in compared


def test_nothing_of_a_dream_stays_beside_another_picture(dreams, liked):
    tab = dreams[1]
    *_, dream = run(dreams, liked, "accent", CHELSEA)
    first, *_, plain = run(dreams, liked, "fast", CHELSEA, tray=dream[tab.kept_pictures])
    again = [tab.show_again(number, plain[tab.kept_pictures]) for number in "12"]

    assert dream[tab.lives[0]]["label"] == "Optimized picture: started from your photograph"
    assert first[tab.compared] == plain[tab.compared] == again[1][tab.compared] == ""
    assert again[0][tab.compared] == dream[tab.compared] != ""
    assert "photograph" not in plain[tab.lives[0]]["label"] and "guide" not in read_recipe(
        plain[tab.downloads[0]]["value"]
    )
    wrong = run(dreams, "9.mlp_act:1", "accent", CHELSEA)
    with pytest.raises(gr.Error, match="layer"):
        for values in wrong:
            last = values
    assert last[tab.compared] == ""


def test_a_stopped_dream_keeps_its_photograph_and_is_made_again(dreams, trained, liked, monkeypatch):
    tab = dreams[1]
    monkeypatch.setattr(growing, "_FRAME_SECONDS", 0.0)
    frames = run(dreams, liked, "accent", CHELSEA, steps=1000)
    shown = (v for v in frames if v.get(tab.status, "").startswith("Step "))
    next(shown), next(shown)
    tab.stop(ME)
    *_, last = frames

    path = last[tab.downloads[0]]["value"]
    assert read_recipe(path)["stopped_after"] == 2 and read_recipe(path)["guide"]["start"]
    assert np.abs(np.asarray(replay(path, trained).image, int) - np.asarray(open_image(path), int)).max() <= 1
    assert 'type="range"' in last[tab.compared] and "Started from your photograph." in last[tab.status]


def test_without_an_atlas_the_built_in_photographs_that_excite_it_most_guide_a_picture(dreams, trained, liked):
    tab = dreams[1]
    *_, last = run(dreams, liked, "aligned", pictures=2)

    images, starts = builtin_images(trained, liked), []
    for i, seed in enumerate((5, 6)):
        path = last[tab.downloads[i]]["value"]
        guide = guide_by_images(trained, liked, images, seed)
        starts.append(guide.photograph)
        alone = visualize(trained, [liked], VisualizeConfig.preset("aligned", steps=3, seed=seed), [guide])[0]
        assert np.abs(np.asarray(open_image(path), int) - np.asarray(alone.image, int)).max() <= 1
        assert read_recipe(path)["guide"]["images"] == 9 and read_recipe(path)["guide"]["start"]
        assert np.abs(np.asarray(replay(path, trained).image, int) - np.asarray(open_image(path), int)).max() <= 1
    assert (starts[0] - starts[1]).abs().mean() > 0.05
    told = "ade from the 9 most activating of the 19 built-in photographs and their parts"
    assert f"M{told}." in last[tab.status] and last[tab.lives[1]]["label"] == "Seed 6"
    assert last[tab.compared].count('type="range"') == 2 and "The collage of images, which" in last[tab.compared]


def test_the_chosen_atlas_guides_a_picture_by_its_own_images(dreams, trained, liked, tmp_path, monkeypatch):
    tab = dreams[1]
    atlas = make_atlas(trained, open_source("builtin"), SearchConfig(k=8), tmp_path / "atlas")
    monkeypatch.setattr(dreams[0].page.shelf, "atlas", lambda name: atlas)
    *_, last = run(dreams, liked, "aligned", pictures=2, atlas="some/atlas")

    crops = torch.stack([image_to_pixels(open_image(atlas.image(hit.row).jpeg)) for hit in atlas.hits(liked)])
    guides = [guide_by_images(trained, liked, crops, seed) for seed in (5, 6)]
    assert (guides[0].photograph - guides[1].photograph).abs().mean() > 0.02
    for i, guide in enumerate(guides):
        assert read_recipe(last[tab.downloads[i]]["value"])["guide"] == guide.to_json()
    alone = visualize(trained, [liked], VisualizeConfig.preset("aligned", steps=3, seed=6), guides[1:])[0]
    made = np.asarray(open_image(last[tab.downloads[1]]["value"]), int)
    assert np.abs(made - np.asarray(alone.image, int)).max() <= 1
    *_, single = run(dreams, liked, "aligned", atlas="some/atlas")
    told = "ade from the 8 most activating of 19 photographs of builtin"
    assert f"M{told}." in last[tab.status] and single[tab.lives[0]]["label"] == f"Optimized picture: m{told}"


def test_where_the_processor_has_bfloat16_the_photographs_are_read_in_it_too(dreams, trained, liked, monkeypatch):
    tab, able = dreams[1], {"avx512_bf16": True}
    monkeypatch.setattr(dreams[0].page.jobs._guiding, "_kept", {})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    *_, last = run(dreams, liked, "aligned")

    recipe, guides = read_recipe(last[tab.downloads[0]]["value"]), []
    for precision in ("float32", "bfloat16"):
        view = at_precision(trained, precision)
        guides.append(guide_by_images(view, liked, builtin_images(view, liked), 5).to_json())
    assert recipe["config"]["precision"] == "bfloat16" and guides[0]["best"] != guides[1]["best"]
    assert recipe["guide"] == guides[1]


def test_the_images_of_a_chosen_atlas_guide_a_picture_at_one_token_by_what_they_are_there(
    dreams, trained, liked, tmp_path, monkeypatch
):
    tab = dreams[1]
    atlas = make_atlas(trained, open_source("builtin"), SearchConfig(k=8, layers=(1,)), tmp_path / "atlas")
    monkeypatch.setattr(dreams[0].page.shelf, "atlas", lambda name: atlas)
    crops = torch.stack([image_to_pixels(open_image(atlas.image(hit.row).jpeg)) for hit in atlas.hits(liked)])

    guides = []
    for token in ("", "@cls", "@1,2"):
        *_, last = run(dreams, f"{liked}{token}", "aligned", atlas="some/atlas")
        expected = guide_by_images(trained, f"{liked}{token}", crops, 5).to_json()
        guides.append(expected["start"])
        assert read_recipe(last[tab.downloads[0]]["value"])["guide"] == expected
        ranked = ", ranked by all patches" if token else ""
        assert f"Made from the 8 most activating of 19 photographs of builtin{ranked}." in last[tab.status]
    assert len(set(guides)) == 3


def test_the_card_and_the_page_of_the_feature_are_of_the_chosen_atlas(dreams, trained, liked, tmp_path, monkeypatch):
    app, tab = dreams
    for i in range(3):
        draw_noise(i).save(tmp_path / f"noise-{i}.png")
    atlas = make_atlas(trained, open_source(str(tmp_path)), SearchConfig(k=2, layers=(1,)), tmp_path / "atlas")
    monkeypatch.setattr(app.page.shelf, "atlas", lambda name: atlas)
    asked = app.model.value, str(liked)

    card, page = tab.show_card(*asked, "some/atlas"), tab.show_page(*asked, "some/atlas")

    assert "noise-" in card and "noise-" not in tab.show_card(*asked)
    assert tab.first_look(None, *asked, "some/atlas") == card
    assert "3 photographs of" in page and "19 built-in photographs" in tab.show_page(*asked)
    elsewhere = f"0.mlp_act:{liked.index}"
    assert tab.show_card(app.model.value, elsewhere, "some/atlas") == tab.show_card(app.model.value, elsewhere)
    wired = [f for f in app.demo.fns.values() if f.name in ("show_card", "show_page") or tab.card in f.outputs]
    assert len(wired) == 4 and all(app.page.atlas in f.inputs for f in wired)


def test_without_a_fitting_atlas_card_and_page_of_the_feature_are_of_the_built_in_photographs(
    dreams, trained, liked, tmp_path, monkeypatch
):
    app, tab = dreams
    asked, config = (app.model.value, str(liked)), SearchConfig(k=2, layers=(1,))
    plain = tab.show_card(*asked), tab.show_page(*asked)
    larger = make_atlas(at_size(trained, (80, 80)), open_source("builtin"), config, tmp_path / "larger")
    damaged = make_atlas(trained, open_source("builtin"), config, tmp_path / "damaged")
    for images in damaged.folder.rglob("images*.parquet"):
        images.write_bytes(images.read_bytes()[: images.stat().st_size // 2])
    damaged = open_atlas(str(damaged.folder))

    for found in (larger, damaged, AtlasError("gone"), FileNotFoundError("put away")):

        def opened(name, found=found):
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(app.page.shelf, "atlas", opened)
        assert (tab.show_card(*asked, "some/atlas"), tab.show_page(*asked, "some/atlas")) == plain, found


def test_what_a_guided_picture_lacks_is_told_with_the_way_to_it(dreams, trained, liked, monkeypatch):
    with pytest.raises(gr.Error, match="starts from a photograph: choose or upload one in Your picture"):
        list(run(dreams, liked, "accent"))

    monkeypatch.setattr(guiding, "read_builtin_images", reads_nothing)
    monkeypatch.setattr(dreams[0].page.jobs._guiding, "_kept", {})
    with pytest.raises(gr.Error, match=r"above 0 nowhere on the 0 images.*search photographs in Browse features"):
        list(run(dreams, liked, "aligned"))


def reads_nothing(view, wanted):
    yield 0, 0
    return torch.empty(0, 3, *view.input_size)


def test_what_the_built_in_photographs_gave_is_kept_for_the_next_picture(dreams, liked, monkeypatch):
    tab = dreams[1]
    monkeypatch.setattr(dreams[0].page.jobs._guiding, "_kept", {})
    first, again = (list(run(dreams, liked, "aligned")) for _ in range(2))

    read = [[v[tab.status] for v in values if "photographs: " in v[tab.status]] for values in (first, again)]
    told = "Looking for what excites it in the built-in photographs"
    assert read[0][0] == f"{told}: 1 of 91." and read[0][-1] == f"{told}: 91 of 91." and len(read[0]) == 27
    assert read[1] == [] and first[-1][tab.status] == again[-1][tab.status]
    images = [np.asarray(open_image(values[-1][tab.downloads[0]]["value"])) for values in (first, again)]
    assert np.array_equal(*images)
    for asked in ({"seed": 6}, {"pictures": 2}):
        assert not [v for v in run(dreams, liked, "aligned", **asked) if "photographs: " in v[tab.status]]
    other = list(run(dreams, f"-{liked}", "aligned"))
    assert [v for v in other if "1 of 91" in v[tab.status]]


def test_if_nothing_is_chosen_an_atlas_guides_its_features_and_nothing_else(
    dreams, trained, liked, tmp_path, monkeypatch
):
    tab = dreams[1]
    Image.new("RGB", (64, 64), "navy").save(tmp_path / "flat.png")
    config = SearchConfig(kinds=("mlp_act", "mlp_in"), layers=(1,), k=4)
    sources = {"some/atlas": open_source("builtin"), "of/flat": open_source(str(tmp_path))}
    atlases = {name: make_atlas(trained, source, config, tmp_path / name) for name, source in sources.items()}
    damaged = make_atlas(trained, sources["some/atlas"], config, tmp_path / "damaged")
    for images in damaged.folder.rglob("images*.parquet"):
        images.write_bytes(images.read_bytes()[: images.stat().st_size // 2])
    atlases["of/damaged"] = open_atlas(str(damaged.folder))

    def opened(name):
        if name not in atlases:
            raise AtlasError(f"{name!r} is not on the Hub")
        return atlases[name]

    monkeypatch.setattr(dreams[0].page.shelf, "atlas", opened)
    values = activations(trained, to_pixels(trained, open_image(tmp_path / "flat.png")), ["1.mlp_in"])
    peaks = values[Site(1, "mlp_in")].patches.amax((0, 1))
    silent = Feature(Site(1, "mlp_in"), int(peaks.argmin()))
    assert peaks.min() < 0
    for wanted, name, preset, told in (
        (liked, "some/atlas", "aligned", "Made from the 4 most activating of 19 photographs of builtin."),
        (silent, "of/flat", "fast", "Started from noise, since none of 1 photographs of "),
        (liked, "", "fast", ""),
        (liked, "no/such", "fast", ""),
        (liked, "of/damaged", "fast", "Started from noise, since its atlas cannot be read."),
        (f"0.mlp_act:{liked.index}", "some/atlas", "fast", ""),
        (f"-{liked}", "some/atlas", "fast", ""),
        (f"{liked}@cls", "some/atlas", "fast", ""),
        ("logit:0", "some/atlas", "fast", ""),
    ):
        *_, last = run(dreams, wanted, "auto", atlas=name)
        recipe = read_recipe(last[tab.downloads[0]]["value"])

        assert recipe["config"] == VisualizeConfig.preset(preset, steps=3, seed=5, precision="float32").to_dict(), (
            wanted
        )
        assert ("guide" in recipe) == ("Collage" in last[tab.compared].title()) == (preset == "aligned")
        assert last[tab.kept_pictures][0].preset == ("aligned" if preset == "aligned" else "auto")
        assert told in last[tab.status] and (told or not re.search("Made from|Started", last[tab.status])), wanted


def slow_frames():
    yield 0
    time.sleep(0.1)
    yield 5


def test_time_to_ask_for_is_learned_from_the_passes_that_were_made(dreams, trained, liked, monkeypatch):
    *_, last = grow(trained, Wanted(f"{liked}", "paper", 3, 0, 2))
    images = torch.stack([to_pixels(trained, open_image(CHELSEA))[0]])
    guided = growing.Guided({0: guide_by_images(trained, liked, images)}, "made from one")
    *_, led = grow(trained, Wanted(f"{liked}", "auto", 5, 0), guided)

    assert passes_made(last) == 3 * 8 * 2 and passes_made(led) == 5 + PASSES
    page, learned = dreams[0].page, []
    monkeypatch.setattr(page.durations, "took", lambda name, first, each: learned.append(each))
    for made in (lambda frame: 2 * frame, None):
        list(page.in_frames(lambda: 60, lambda: 1000, slow_frames, made)())
    assert learned == [pytest.approx(0.1 / 10, rel=0.5), pytest.approx(0.1 / 1000, rel=0.5)]


def test_reading_real_images_can_be_cancelled(dreams, liked, monkeypatch):
    tab = dreams[1]
    monkeypatch.setattr(dreams[0].page.jobs._guiding, "_kept", {})
    seen = []
    for values in run(dreams, liked, "aligned"):
        seen.append(values[tab.status])
        if "1 of 91" in seen[-1]:
            tab.stop(ME)

    assert seen[-1] == "Cancelled." and "1 of 91" in seen[-2]


def test_the_first_tab_leads_to_a_dream_and_a_link_of_one_tells_that_the_photograph_is_missing(app, tab):
    dream, plain = tab.take_photograph("1.mlp_act:3", "fast"), tab.take("1.mlp_act:3", "accent")

    assert (dream[tab.objective], dream[tab.preset], dream[app.page.tab_key]) == ("1.mlp_act:3", "accent", "optimize")
    assert plain[tab.preset] == "auto" and tab.take("1.mlp_act:3", "paper")[tab.preset] == "paper"
    assert set(optimize_tab._WHEN) == {"auto", *PRESETS} == set(WHEN) | {"auto"}
    link = {"tab": "optimize", "preset": "accent"}
    own, example = (next(app.open(SimpleNamespace(query_params={**link, "photo": p}))) for p in ("own", "chelsea"))
    assert own[tab.preset] == "accent" and "uploaded photograph, which is not in it" in own[tab.status]
    assert tab.status not in example


def test_the_endpoint_names_every_preset():
    told = re.search(r"preset: (.*)steps: ", inspect.getdoc(Api.visualize), re.DOTALL)[1]

    assert all(re.search(rf"\b{preset}\b", told) for preset in PRESETS)


@pytest.mark.parametrize("words", ['text:"striped fur"@cls', "striped fur"])
def test_a_text_is_an_objective(words, tiny_view):
    view = tiny_view("clip")

    *_, last = grow(view, Wanted(words, "fast", 2, 0))

    (made,) = last.pictures
    expected = visualize(with_words(view, ["striped fur"]), ["2.text:0@cls"], VisualizeConfig.preset("fast", steps=2))
    assert made.score == pytest.approx(expected[0].score) and made.result.recipe["address"] == "2.text:0@cls"
