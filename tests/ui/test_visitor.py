"""What is not open to all is for visitors who may see it, by their own tokens; two of them, and one may."""

import json
from itertools import product
from pathlib import Path
from threading import Event
from uuid import uuid4

import gradio as gr
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from huggingface_hub import snapshot_download

from tests.conftest import HUB, SHARED_CACHE, draw_noise
from tests.ui.signing_in import SESSIONS, on_a_space, visitor
from tests.ui.test_shelf import make_here
from vitviz_hf import load_model
from vitviz_hf.errors import AtlasError, DatasetAccessError, GatedModelError, HubUnreachableError, ModelNotFoundError
from vitviz_hf.models.gate import fetch_model, fetch_tokenizer
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui import searching
from vitviz_hf.ui.app import App
from vitviz_hf.ui.experiments_tab import ExperimentsTab
from vitviz_hf.ui.inside_tab import InsideTab
from vitviz_hf.ui.lane import Lane
from vitviz_hf.ui.searching import Asked, Searches
from vitviz_hf.ui.shelf import Shelf
from vitviz_hf.ui.visitor import Admission, token_for, visitor_token

MAY, MAY_NOT = "hf_friend", "hf_stranger"
OTHERS = [MAY_NOT, None]
CHELSEA = str(builtin_paths()["chelsea"])


def sentence(name, kind=""):
    return f"'{name}' is gated: ask for access at {HUB.url}/{kind}{name}, or sign in with an account that has it."


@pytest.fixture(autouse=True)
def space(monkeypatch, tmp_path):
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "cache"))
    on_a_space(monkeypatch, tmp_path)


@pytest.fixture
def gated(hub, tiny_folder):
    """A model of a name of its own, that `MAY` may read."""
    name = f"closed/{uuid4().hex}"
    hub.publish(name, tiny_folder("vit"), gated=True)
    return name


@pytest.fixture
def shelf():
    return Shelf("builtin")


def by(token, function, *args):
    with visitor(token):
        return function(*args)


def sent(hub, before):
    return {authorization for _, _, authorization in hub.log[before:]}


@pytest.mark.parametrize("other", OTHERS)
def test_a_gated_model_is_for_who_may_see_it_before_and_after_it_is_loaded(hub, gated, shelf, other):
    with pytest.raises(GatedModelError) as first:
        by(other, shelf.snapshot, gated)
    seen = shelf.view(by(MAY, shelf.snapshot, gated))
    before = len(hub.log)
    with pytest.raises(GatedModelError) as then:
        by(other, shelf.snapshot, gated)
    with pytest.raises(GatedModelError):
        by(other, shelf.snapshot, gated, seen.revision)

    assert first.value.for_visitor == then.value.for_visitor == sentence(gated)
    assert f"Bearer {MAY}" not in sent(hub, before)
    assert shelf.view(by(MAY, shelf.snapshot, gated)) is seen


def test_what_one_visitor_brought_to_the_disk_is_not_another_ones(gated, shelf, monkeypatch):
    by(MAY, shelf.snapshot, gated)

    for other, later in product(OTHERS, (shelf, Shelf("builtin"))):  # after a start of the server too
        with pytest.raises(GatedModelError, match="is gated"):
            by(other, later.snapshot, gated)
    monkeypatch.setattr("vitviz_hf.models.gate.hub_reachable", lambda: False)
    for token in (MAY, *OTHERS):
        with pytest.raises(HubUnreachableError, match="is not in the cache"):
            by(token, Shelf("builtin").snapshot, gated)


@pytest.fixture
def login(monkeypatch):
    """What was done on the server by its owner, who is logged in."""

    def done(function, *args, **options):
        with monkeypatch.context() as patch:
            patch.setenv("HF_TOKEN", MAY)
            return function(*args, **options)

    return done


@pytest.mark.parametrize("fetched", [fetch_model, snapshot_download])
@pytest.mark.parametrize("kind", ["gated", "private"])
def test_without_the_hub_what_the_owner_brought_by_login_is_for_nobody_on_a_space(
    hub, tiny_folder, login, monkeypatch, kind, fetched
):
    name = f"closed/{uuid4().hex}"
    hub.publish(name, tiny_folder("vit"), **{kind: True})
    login(fetched, name)
    if fetched is snapshot_download:  # of another package, which keeps nothing of it; the first visitor learns it
        with pytest.raises((GatedModelError, ModelNotFoundError)):
            by(None, Shelf("builtin").snapshot, name)
    monkeypatch.setattr("vitviz_hf.models.gate.hub_reachable", lambda: False)

    for token in (MAY, *OTHERS):
        with pytest.raises(HubUnreachableError) as caught:  # by a server that was started anew
            by(token, Shelf("builtin").snapshot, name)
        assert caught.value.for_visitor == (
            f"the Hub cannot be reached, and without it nobody is let in to {name!r}, which is gated or private. "
            "Choose another one, or try again later."
        )
    monkeypatch.delenv("SYSTEM")
    assert Shelf("builtin").snapshot(name).revision == hub.repos[name]["sha"]


def test_what_was_closed_and_is_open_now_is_served_without_the_hub(hub, gated, tiny_folder, login, monkeypatch):
    login(fetch_model, gated)
    hub.publish(gated, tiny_folder("vit"))
    Shelf("builtin").snapshot(gated)
    monkeypatch.setattr("vitviz_hf.models.gate.hub_reachable", lambda: False)

    assert by(None, Shelf("builtin").snapshot, gated).revision


def test_a_private_model_is_for_who_may_see_it(hub, tiny_folder, shelf):
    hub.publish("closed/private", tiny_folder("vit"), private=True)

    known = by(MAY, shelf.snapshot, "closed/private")

    assert shelf.view(known).model_id == "closed/private"
    told = "'closed/private' is not on the Hub, or it is private. Check the spelling, or sign in with an account "
    for other in OTHERS:
        with pytest.raises(ModelNotFoundError) as caught:
            by(other, shelf.snapshot, "closed/private")
        assert caught.value.for_visitor == told + "that may read it."


def test_the_hub_is_asked_again_after_some_minutes(hub, gated, monkeypatch):
    monkeypatch.setattr("vitviz_hf.ui.visitor._SECONDS", 0)
    shelf = Shelf("builtin")
    by(MAY, shelf.snapshot, gated)
    del hub.repos[gated]

    with pytest.raises(ModelNotFoundError):
        by(MAY, shelf.snapshot, gated)


def test_a_visitor_who_comes_back_within_minutes_costs_no_request(hub, gated, shelf):
    by(MAY, shelf.snapshot, gated)
    before = len(hub.log)

    assert by(MAY, shelf.snapshot, gated).model_id == gated and hub.log[before:] == []


def test_what_is_open_is_asked_for_without_a_token(hub, shelf):
    before = len(hub.log)

    known = by(MAY, shelf.snapshot, "tiny/swin")

    assert sent(hub, before) == {None}
    assert by(None, shelf.snapshot, "tiny/swin") is known


def test_the_token_is_not_kept_with_the_model_and_its_tokenizer_is_there(hub, tiny_folder, shelf):
    hub.publish("closed/clip", tiny_folder("clip"), gated=True)

    known = by(MAY, shelf.snapshot, "closed/clip")
    before = len(hub.log)

    assert known.token is False and shelf.view(known).snapshot.token is False
    assert (fetch_tokenizer(known) / "tokenizer.json").is_file() and hub.log[before:] == []


def test_outside_of_an_event_there_is_no_token():
    assert visitor_token() is None
    with visitor(MAY):
        assert visitor_token() == MAY
    with visitor():
        assert visitor_token() is None


@pytest.fixture
def pictures(hub, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        draw_noise(i).save(folder / f"{i}.png")
    name = f"closed/pictures-{tmp_path.name}"
    hub.publish(f"datasets/{name}", folder, gated=True)
    return name


def find(shelf, token, dataset, model="tiny/vit"):
    """How a visitor's search ends."""
    searches = Searches(shelf, Lane(), lambda _: lambda job: job)
    with visitor(token):
        asked = shelf.snapshot(model), Asked(dataset, None, 6, 1), Event(), token_for(dataset)
        return list(searches.watch(*asked))[-1]


def test_a_gated_dataset_and_the_atlas_of_it_are_for_who_may_see_it(shelf, pictures, monkeypatch):
    monkeypatch.setattr(searching, "_WATCH_SECONDS", 0.02)
    for other in OTHERS:
        with pytest.raises(DatasetAccessError) as caught:
            find(shelf, other, pictures)
        assert caught.value.for_visitor == sentence(pictures, "datasets/")
    name = find(shelf, MAY, pictures).name

    snapshot = shelf.snapshot("tiny/vit")
    assert [a.name for a in by(MAY, shelf.made_atlases, snapshot)] == [name]
    assert by(MAY, shelf.atlas, name).manifest["n_images"] == 6
    for other, later in product(OTHERS, (shelf, Shelf("builtin"))):
        assert by(other, later.made_atlases, snapshot) == []
        with pytest.raises(AtlasError, match=f"is of '{pictures}', which you may not read"):
            by(other, later.atlas, name)
        with pytest.raises(DatasetAccessError):
            find(later, other, pictures)


def test_an_atlas_of_a_gated_model_is_for_who_may_see_that(hub, gated, shelf, monkeypatch):
    monkeypatch.setattr(searching, "_WATCH_SECONDS", 0.02)
    name = find(shelf, MAY, "builtin", gated).name

    assert by(MAY, shelf.atlas, name).manifest["model_id"] == gated
    for other in OTHERS:
        with pytest.raises(AtlasError, match=f"is of '{gated}', which you may not read"):
            by(other, shelf.atlas, name)


def test_an_atlas_of_what_is_open_has_no_mark(shelf, tiny_folder, hub, monkeypatch):
    monkeypatch.setattr(searching, "_WATCH_SECONDS", 0.02)

    name = find(shelf, MAY, "builtin").name

    assert by(None, shelf.atlas, name).manifest["n_images"] == 6


def test_a_gated_atlas_on_the_hub_is_for_who_may_see_it(hub, shelf, tmp_path):
    view = load_model("tiny/vit", device="cpu")
    made = shelf.atlas(make_here(view, 3))
    hub.publish("datasets/closed/atlas", made.folder, gated=True)

    assert by(MAY, shelf.atlas, "closed/atlas").manifest["n_images"] == 3
    for other, later in product(OTHERS, (shelf, Shelf("builtin"))):
        with pytest.raises(AtlasError) as caught:
            by(other, later.atlas, "closed/atlas")
        assert caught.value.for_visitor == sentence("closed/atlas", "datasets/")


@pytest.mark.parametrize("first", [MAY, *OTHERS])
def test_a_gated_atlas_of_the_server_is_for_who_may_see_it_whoever_comes_first(
    hub, shelf, tmp_path, monkeypatch, first
):
    made = shelf.atlas(make_here(load_model("tiny/vit", device="cpu"), 3))
    hub.publish("datasets/closed/own", made.folder, gated=True)
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("VITVIZ_ATLAS", "closed/own")
    snapshot = shelf.snapshot("tiny/vit")
    by(first, shelf.atlas_for, snapshot)

    assert by(MAY, shelf.atlas_for, snapshot).name == "closed/own"
    assert [by(other, shelf.atlas_for, snapshot) for other in OTHERS] == [None, None]


def test_a_failure_of_the_hub_is_not_remembered_as_a_refusal(monkeypatch):
    answers = iter([HubUnreachableError("down"), "sha"])

    def find_commit(*_):
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    monkeypatch.setattr("vitviz_hf.ui.visitor.find_commit", find_commit)
    admission = Admission()

    assert [by(MAY, admission.may_read, "model", "a/b") for _ in range(3)] == [False, True, True]


@pytest.fixture
def app(hub):
    return App("tiny/vit", lambda _: lambda job: job, True)


def test_values_inside_a_picture_are_for_who_may_see_the_model(app, gated):
    inside = app.page.tab(InsideTab)
    with visitor(MAY):
        inside.opened(gated, CHELSEA, "resid", "", None, "pca", "", "", "", "", "auto", "", "0")
        key = next(iter(inside._looked))
        assert "layers" in json.loads(inside.values([key, "components"]))

    for other in OTHERS:
        with visitor(other):
            assert json.loads(inside.values([key, "components"])) == {"error": sentence(gated)}


def test_a_sample_of_an_experiment_reads_a_gated_dataset_for_who_may_see_it(app, pictures):
    experiments = app.page.tab(ExperimentsTab)

    def run(token):
        with visitor(token):
            return list(experiments.moments("tiny/vit", "occlusion", "", pictures, 4))

    for other in OTHERS:
        with pytest.raises(DatasetAccessError) as caught:
            run(other)
        assert caught.value.for_visitor == sentence(pictures, "datasets/")
    with pytest.raises(Exception) as opened:  # these pictures have no labels
        run(MAY)
    assert "is gated" not in str(opened.value) and "label" in str(opened.value)


def test_the_sign_in_button_is_there_on_a_space_only(app, monkeypatch):
    def buttons(shown):
        return [b.elem_id for b in shown.demo.blocks.values() if isinstance(b, gr.LoginButton)]

    monkeypatch.delenv("OAUTH_CLIENT_ID")
    elsewhere = App("tiny/vit", lambda _: lambda job: job, True)

    assert (buttons(app), buttons(elsewhere)) == (["sign-in"], [])


@pytest.mark.slow
def test_over_the_wire_the_token_is_the_visitors_and_nothing_of_it_stays(app, hub, gated, tmp_path, caplog):
    _, address, _ = app.demo.launch(
        prevent_thread_lock=True, quiet=True, ssr_mode=False, app_kwargs={"middleware": [SESSIONS]}, _frontend=False
    )
    try:
        files = tmp_path / "client"
        clients = {
            token: Client(address, verbose=False, headers={"x-test-token": token or ""}, download_files=str(files))
            for token in (MAY, MAY_NOT, None)
        }

        def mapped(token):
            return clients[token].predict(gated, handle_file(CHELSEA), "1.mlp_act:3", api_name="/activations")

        for token in OTHERS:
            with pytest.raises(AppError) as caught:
                mapped(token)
            assert str(caught.value) == sentence(gated)
        assert mapped(MAY)["rows"] == 4
        made = clients[MAY].predict(gated, "1.mlp_act:3", "fast", 2, 0, api_name="/visualize")
        for token in OTHERS:
            with pytest.raises(AppError) as caught:
                mapped(token)
            assert str(caught.value) == sentence(gated)
        recipe = read_recipe(made[2])
    finally:
        app.demo.close()
    assert recipe["model_id"] == gated and MAY not in json.dumps(recipe)
    for folder in (tmp_path / "cache", files, SHARED_CACHE):
        found = [p for p in Path(folder).rglob("*") if p.is_file() and MAY.encode() in p.read_bytes()]
        assert found == []
    assert MAY not in caplog.text
