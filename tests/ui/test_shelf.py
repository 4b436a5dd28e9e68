"""Models and atlases that several visitors name at once."""

import threading

import pytest

from vitviz_hf.errors import AtlasError, ModelNotFoundError
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
