"""The chooser of atlases and the search, as gradio calls their handlers."""

import io
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from tests.conftest import draw_noise
from tests.ui.signing_in import on_a_space
from tests.ui.test_shelf import make_here
from vitviz_hf import load_model
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.store import open_atlas, push_atlas
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.stream import open_source
from vitviz_hf.ui import searching
from vitviz_hf.ui.app import App
from vitviz_hf.ui.atlas_panel import DATASETS
from vitviz_hf.ui.features_tab import FeaturesTab
from vitviz_hf.ui.made import UPLOADED

MODEL = "panel/vit"


@pytest.fixture
def view(hub, tiny_folder):
    hub.publish(MODEL, tiny_folder("vit"))
    return load_model(MODEL, device="cpu")


@pytest.fixture
def features(view, monkeypatch, tmp_path):
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(searching, "_WATCH_SECONDS", 0.02)
    return App(MODEL, lambda _: lambda job: job, True).page.tab(FeaturesTab)


def offered(panel, name="", before=""):
    values = panel.offer(MODEL, name, before)
    return {value: text for text, value in values[panel.atlas]["choices"]}, values


def looking():
    """What the grid of the tab asks for."""
    return [MODEL, "", "mlp_act", 1, "", "index", "live", "patch", 0]


def visitor(name="me"):
    return SimpleNamespace(session_hash=name)


def search(panel, *asked, request=None):
    """What the page shows, in order."""
    return list(panel.search(MODEL, *asked, request or visitor()))


def test_without_an_atlas_the_built_in_photographs_are_in_use(features):
    choices, values = offered(features.panel)

    assert choices == {"": "Automatic: 19 built-in photographs"}
    assert values[features.panel.facts].startswith("In use: the 19 built-in photographs")
    assert not values[features.panel.zip]["visible"]
    assert "the 19 built-in photographs" in features.open("", *looking())[features.grid.facts]


def test_the_servers_own_those_made_here_and_those_on_the_hub_are_listed_and_the_best_is_open(
    view, monkeypatch, tmp_path
):
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "cache"))
    own = make_atlas(view, open_source("builtin"), SearchConfig(k=2, limit=4), tmp_path / "own")
    push_atlas(own.folder, "friend/panel", token="hf_friend")
    few, many = make_here(view, 3), make_here(view, 6, layers=(1,))
    panel = App(MODEL, lambda _: lambda job: job, True).page.tab(FeaturesTab).panel
    without, told = offered(panel)
    monkeypatch.setenv("VITVIZ_ATLAS", str(own.folder))
    features = App(MODEL, lambda _: lambda job: job, True).page.tab(FeaturesTab)
    choices, values = offered(features.panel)

    assert list(without) == ["", many, few, "friend/panel"]
    assert without[""] == "Automatic: 6 built-in photographs in layer 1"
    assert "made on this server" in told[panel.facts]
    assert list(choices) == ["", str(own.folder), many, few, "friend/panel"]
    assert choices["friend/panel"] == "friend/panel, on the Hub"
    assert "statistics of 4 built-in photographs in 3 layers" in values[features.panel.facts]
    assert "this server's own" in values[features.panel.facts]
    automatic = features.first_look("", "", *looking())
    assert automatic[features.shown] == "" and "4 photographs of builtin" in automatic[features.grid.facts]
    assert features.open("friend/panel", *looking())[features.shown] == "friend/panel"


def test_an_unreachable_hub_is_said_in_one_sentence(features, monkeypatch):
    monkeypatch.setattr("vitviz_hf.hub.hub_reachable", lambda: False)

    _, values = offered(features.panel)

    assert values[features.panel.atlas]["info"].endswith("The Hub cannot be asked for atlases now.")


def test_what_a_link_chose_stays_and_what_was_chosen_for_another_model_goes(features, view):
    name = make_here(view, 3)

    assert offered(features.panel, name)[1][features.panel.atlas]["value"] == name
    assert offered(features.panel, name, MODEL)[1][features.panel.atlas]["value"] == name
    assert offered(features.panel, name, "other/model")[1][features.panel.atlas]["value"] == ""
    assert offered(features.panel, "no/such")[1][features.panel.atlas]["value"] == "no/such"


def test_a_search_tells_how_far_it_is_and_opens_its_atlas(features):
    panel = features.panel
    shown = search(panel, "builtin", None, 500, "one", 1.0)
    news = [v[panel.news] for v in shown if panel.news in v]
    taken = panel.take_news(news[-1], MODEL)
    name = taken[panel.atlas]["value"]

    assert shown[-1][panel.status] == "Done: 19 photographs were searched."
    assert news == [f"{name} 19"]
    assert "statistics of 19 built-in photographs in layer 1" in taken[panel.facts]
    assert taken[panel.zip]["visible"] and "vitviz atlas push FOLDER OWNER/NAME" in taken[panel.shared]
    renewed = features.renew("features", name, *looking())
    assert (renewed[features.shown], renewed[features.grid.listed]) == (name, name)
    assert features.renew("maps", name, *looking()) == {features.grid.listed: ""}
    assert panel.take_news(news[-1], "other/model") == gr.skip()
    assert search(panel, "builtin", None, 500, "one", 1.0)[-1][panel.status].startswith("It was searched before")


def test_the_tables_dataset_is_read_at_its_split(features, monkeypatch):
    asked = []
    monkeypatch.setattr(searching, "open_source", lambda *a, **k: asked.append((*a, k)) or open_source("builtin"))
    for name in DATASETS:
        search(features.panel, name, None, 500, "one", 1.0)

    assert [(a[0], a[1]) for a in asked] == [(name, split) for name, (split, _) in DATASETS.items()]
    assert all(a[2] == {"token": False} for a in asked)


def test_uploads_are_searched_and_their_atlas_is_offered_to_nobody_else(features, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, path in enumerate(paths):
        draw_noise(i).save(path)
    panel = features.panel
    news = next(v[panel.news] for v in search(panel, "builtin", paths, 500, "one", 1.0) if panel.news in v)
    mine = panel.take_news(news, MODEL)
    name = mine[panel.atlas]["value"]
    manifest = features.shelf.atlas(name).manifest

    assert (manifest["dataset"], manifest["n_images"]) == (UPLOADED, 3)
    assert ("3 photographs in layer 1, uploaded", name) in mine[panel.atlas]["choices"]
    assert name not in offered(panel)[0]


def test_a_search_that_fails_is_told_on_the_page(features):
    panel, told = features.panel, []

    with pytest.raises(gr.Error, match=r"/etc.* is not a Hub id"):
        for values in panel.search(MODEL, "/etc", None, 500, "all", 1.0, visitor()):
            told.append(values[panel.status])
    assert "is not a Hub id" in told[-1]


def test_an_atlas_made_here_is_downloaded_as_a_zip(features, view):
    name = make_here(view, 3)

    given = features.panel.pack(MODEL, "")[features.panel.file]

    names = zipfile.ZipFile(io.BytesIO(Path(given["value"]).read_bytes())).namelist()
    assert {"manifest.json", "README.md", "features/features.parquet", "images/images.parquet"} <= set(names)
    assert given["visible"] and "MB)" in given["label"] and name in offered(features.panel)[0]
    with pytest.raises(gr.Error, match="only an atlas that was made on this server"):
        features.panel.pack("tiny/deit", "")


def test_where_visitors_can_sign_in_an_atlas_goes_to_their_account(view, monkeypatch, tmp_path, hub):
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "cache"))
    on_a_space(monkeypatch, tmp_path)
    name = make_here(view, 3)
    panel = App(MODEL, lambda _: lambda job: job, True).page.tab(FeaturesTab).panel

    told = panel.push(MODEL, name, "friend/signed-in", SimpleNamespace(token="hf_friend"))

    assert "friend/signed-in" in told and open_atlas("friend/signed-in").manifest["n_images"] == 3
    with pytest.raises(gr.Error, match="sign in first"):
        panel.push(MODEL, name, "friend/other", None)
    with pytest.raises(gr.Error, match=r"may not write .*other/name.*\. Sign in again") as caught:
        panel.push(MODEL, name, "other/name", SimpleNamespace(token="hf_friend"))
    assert "hf auth login" not in str(caught.value)


@pytest.mark.parametrize(("limit", "layer"), [(None, 1), (0, 1), (500, None), (500, 0.5)])
def test_a_number_that_is_missing_is_told_before_the_photographs_are_kept(limit, layer, features, monkeypatch):
    monkeypatch.setattr("vitviz_hf.ui.atlas_panel.keep_uploads", lambda paths: pytest.fail("they were kept"))
    uploads = None if layer == 1 else ["a.png"]

    with pytest.raises(gr.Error, match="must be a whole number from"):
        search(features.panel, "builtin", uploads, limit, "one", layer)
