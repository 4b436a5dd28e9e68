"""Models and atlases that several visitors name at once."""

import dataclasses
import shutil
import threading

import pytest

from vitviz_hf import load_model
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.search import search_recipe
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.errors import AtlasError, BusyError, ConfigError, ModelNotFoundError
from vitviz_hf.sites import Site
from vitviz_hf.stream import open_source
from vitviz_hf.ui.made import UPLOADED, made_folder, made_name
from vitviz_hf.ui.shelf import Shelf, weight_bytes


@pytest.fixture
def shelf():
    return Shelf("builtin")


def publish(hub, tiny_folder, name, family="vit"):
    hub.publish(name, tiny_folder(family))
    return name


def test_two_visitors_who_name_one_model_download_it_once(hub, tiny_folder, shelf):
    name = publish(hub, tiny_folder, "shelf/one")
    hub.held[name], before, found = threading.Event(), len(hub.log), []
    threads = [threading.Thread(target=lambda: found.append(shelf.snapshot(name))) for _ in range(3)]
    for thread in threads:
        thread.start()
    hub.held.pop(name).set()
    for thread in threads:
        thread.join()

    assert len({id(s) for s in found}) == 1 and len(found) == 3
    assert [path for _, path, _ in hub.log[before:]].count(f"api/models/{name}") == 1


def test_a_download_that_takes_long_stops_nobody_else(hub, tiny_folder, shelf):
    slow, quick = publish(hub, tiny_folder, "shelf/slow"), publish(hub, tiny_folder, "shelf/quick", "deit")
    hub.held[slow] = threading.Event()
    waiting = threading.Thread(target=shelf.snapshot, args=(slow,))
    waiting.start()

    view = shelf.view(shelf.snapshot(quick))

    assert view.model_id == quick and waiting.is_alive()
    hub.held.pop(slow).set()
    waiting.join()
    assert shelf.snapshot(slow).model_id == slow


def test_models_stay_loaded_up_to_so_many_bytes_of_weights(hub, tiny_folder, monkeypatch):
    names = [publish(hub, tiny_folder, f"shelf/m{i}") for i in range(3)]
    size = weight_bytes(Shelf("builtin").view(Shelf("builtin").snapshot(names[0])))
    monkeypatch.setenv("VITVIZ_KEEP_GB", str(2.5 * size / 1e9))
    monkeypatch.setenv("VITVIZ_MAX_GB", str(2.5 * size / 1e9))
    shelf = Shelf("builtin")

    first, second = (shelf.view(shelf.snapshot(n)) for n in names[:2])
    assert shelf.view(shelf.snapshot(names[0])) is first
    third = shelf.view(shelf.snapshot(names[2]))

    assert shelf.view(shelf.snapshot(names[0])) is first
    assert shelf.view(shelf.snapshot(names[2])) is third
    assert shelf.view(shelf.snapshot(names[1])) is not second


def test_a_model_larger_than_the_shelf_is_kept_while_it_is_used(hub, tiny_folder, monkeypatch):
    name = publish(hub, tiny_folder, "shelf/large")
    monkeypatch.setenv("VITVIZ_KEEP_GB", "1e-6")
    monkeypatch.setenv("VITVIZ_MAX_GB", "1e-3")
    shelf = Shelf("builtin")

    assert shelf.view(shelf.snapshot(name)) is shelf.view(shelf.snapshot(name))


def test_a_failed_download_is_tried_again(hub, tiny_folder, shelf):
    with pytest.raises(ModelNotFoundError):
        shelf.snapshot("shelf/later")
    publish(hub, tiny_folder, "shelf/later")

    assert shelf.snapshot("shelf/later").model_id == "shelf/later"


@pytest.mark.parametrize("name", ["/etc", "../x", "", "no/such/id"])
def test_a_visitor_names_hub_ids_only(shelf, name):
    with pytest.raises(ModelNotFoundError, match="is not a Hub id"):
        shelf.snapshot(name)
    with pytest.raises(AtlasError, match="is not a Hub id"):
        shelf.atlas(name)


def test_a_model_that_is_known_by_its_commit_is_not_asked_for_again(hub, tiny_folder, shelf):
    known = shelf.snapshot(publish(hub, tiny_folder, "shelf/pinned"))
    before = len(hub.log)

    assert shelf.snapshot("shelf/pinned", known.revision) is known
    assert hub.log[before:] == []


def make_here(view, limit=None, source="builtin", **options):
    """An atlas of photographs as the app makes one, on this server."""
    config, stream = SearchConfig(k=2, limit=limit, **options), open_source("builtin")
    stream = dataclasses.replace(stream, dataset=source)
    name = made_name(search_recipe(view, stream, config))
    made = make_atlas(view, stream, config, made_folder(name) / "new")
    (made_folder(name) / "new").rename(made_folder(name) / f"{made.manifest['n_images']:08}")
    return name


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path))


@pytest.fixture
def vit_here(hub, tiny_folder):
    return load_model(publish(hub, tiny_folder, "shelf/vit"), device="cpu")


def test_the_atlas_in_use_is_the_servers_own_else_the_one_made_here_with_most_images(
    cache, shelf, vit_here, monkeypatch, tmp_path
):
    vit = shelf.snapshot("shelf/vit")
    nothing = shelf.atlas_for(vit)
    few, many = make_here(vit_here, 3), make_here(vit_here, 5)
    best = shelf.atlas_for(vit)
    make_atlas(vit_here, open_source("builtin"), SearchConfig(limit=2), tmp_path / "own")
    monkeypatch.setenv("VITVIZ_ATLAS", str(tmp_path / "own"))

    own = Shelf("builtin").atlas_for(vit)

    assert nothing is None
    assert (best.name, best.manifest["n_images"]) == (many, 5)
    assert [a.name for a in shelf.made_atlases(vit)] == [many, few]
    assert own.manifest["n_images"] == 2


def test_the_atlas_in_use_for_a_site_covers_it(cache, shelf, vit_here):
    vit = shelf.snapshot("shelf/vit")
    one, both = make_here(vit_here, 5, layers=(1,)), make_here(vit_here, 3)

    assert shelf.atlas_for(vit, Site(1, "mlp_act")).name == one
    assert shelf.atlas_for(vit, Site(2, "mlp_act")).name == both
    assert shelf.atlas_for(vit, Site(2, "resid")) is None


def test_an_atlas_of_another_model_or_revision_is_not_in_use(cache, shelf, vit_here, hub, tiny_folder):
    make_here(vit_here)
    other = shelf.snapshot(publish(hub, tiny_folder, "shelf/other", "deit"))
    vit = shelf.snapshot("shelf/vit")

    assert shelf.atlas_for(vit)
    assert shelf.atlas_for(other) is None
    assert shelf.atlas_for(dataclasses.replace(vit, revision="0" * 40)) is None


def test_an_atlas_of_uploaded_photographs_is_opened_by_its_name_and_listed_for_nobody(cache, shelf, vit_here):
    name = make_here(vit_here, source=UPLOADED)

    assert shelf.atlas_for(shelf.snapshot("shelf/vit")) is None
    assert shelf.atlas(name).manifest["n_images"] == 19


def test_an_atlas_made_here_has_its_name_and_a_newer_one_takes_its_place(cache, shelf, vit_here):
    name = make_here(vit_here, 3)
    before = shelf.atlas(name)
    shutil.copytree(before.folder, before.folder.with_name("00000009"))

    assert before.name == name
    assert shelf.atlas(name).folder.name == "00000009"


def test_an_atlas_that_was_put_away_is_told(cache, shelf):
    with pytest.raises(AtlasError, match="no longer on this server"):
        shelf.atlas("made:0123456789abcdef")
    with pytest.raises(AtlasError, match="is not a Hub id"):
        shelf.atlas("made:../../etc")


def test_no_more_visitors_wait_for_the_hub_than_the_server_has_threads_for(hub, tiny_folder, monkeypatch):
    monkeypatch.setattr("vitviz_hf.ui.shelf.MOST_DOWNLOADS", 1)
    shelf, name, other = (
        Shelf("builtin"),
        publish(hub, tiny_folder, "shelf/one"),
        publish(hub, tiny_folder, "shelf/two"),
    )
    known = shelf.snapshot(name)
    assert shelf.snapshot(other).model_id == other  # the first one left

    with shelf._asking:
        with pytest.raises(BusyError, match="1 visitors wait for the Hub already"):
            shelf.snapshot(publish(hub, tiny_folder, "shelf/three"))
        assert shelf.snapshot(name, known.revision) is shelf.snapshot(name) is known
        with pytest.raises(BusyError, match="wait for the Hub already"):
            shelf.atlas("shelf/no-atlas")
    with pytest.raises(AtlasError):
        shelf.atlas("shelf/no-atlas")


def test_an_atlas_that_is_open_is_there_however_many_wait_for_the_hub(hub, vit_here, tmp_path, monkeypatch):
    monkeypatch.setattr("vitviz_hf.ui.shelf.MOST_DOWNLOADS", 1)
    make_atlas(vit_here, open_source("builtin"), SearchConfig(k=2, layers=(1,)), tmp_path / "atlas")
    hub.publish("datasets/shelf/atlas", tmp_path / "atlas")
    shelf = Shelf("builtin")
    atlas = shelf.atlas("shelf/atlas")

    with shelf._asking:
        assert shelf.atlas("shelf/atlas") is atlas


def test_models_that_are_compared_fit_on_the_shelf_together(hub, tiny_folder, monkeypatch):
    names = [publish(hub, tiny_folder, f"shelf/compared-{i}") for i in range(3)]
    size = weight_bytes(Shelf("builtin").view(Shelf("builtin").snapshot(names[0])))
    for limit in ("VITVIZ_KEEP_GB", "VITVIZ_MAX_GB"):
        monkeypatch.setenv(limit, str(2.5 * size / 1e9))
    shelf = Shelf("builtin")
    snapshots = [shelf.snapshot(name) for name in names]

    assert [view.model_id for view in shelf.views(snapshots[:2])] == names[:2]
    with pytest.raises(ConfigError, match="GB together; compare fewer"):
        shelf.views(snapshots)
