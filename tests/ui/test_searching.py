"""Searches that visitors ask for: through the lane, shared, stopped, kept within a limit."""

import pickle
import time
from dataclasses import replace
from threading import Event

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import draw_noise
from vitviz_hf import load_model
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.errors import AtlasError, ConfigError, DatasetAccessError, DatasetError, SiteError
from vitviz_hf.sites import Site
from vitviz_hf.stream import open_source
from vitviz_hf.ui import searching
from vitviz_hf.ui.ahead import ReadAhead, UsedUp, read_kept
from vitviz_hf.ui.lane import Lane
from vitviz_hf.ui.made import list_made, made_folder, make_room, newest_atlas
from vitviz_hf.ui.searching import Asked, Searches, keep_uploads
from vitviz_hf.ui.shelf import Shelf

N = 40
PICTURES = Asked("search/pictures", None, N, 1)


ABLE = {"avx512_bf16": True}


@pytest.fixture(scope="module")
def pictures(hub, tmp_path_factory):
    """40 pictures as the dataset `search/pictures` on the Hub, in row groups of 8."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(N):
        draw_noise(i).save(folder / "p.png")
        rows.append({"bytes": (folder / "p.png").read_bytes(), "path": f"{i:02}.png"})
    (folder / "p.png").unlink()
    pq.write_table(pa.table({"image": rows}), folder / "validation.parquet", row_group_size=8)
    hub.publish("datasets/search/pictures", folder)
    return folder


@pytest.fixture
def searches(pictures, monkeypatch, tmp_path):
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "cache"))

    def elsewhere(_):  # as on ZeroGPU, to whose process arguments are sent
        return lambda job: lambda *args: job(*pickle.loads(pickle.dumps(args)))

    return Searches(Shelf("builtin"), Lane(), elsewhere)


@pytest.fixture
def vit(searches):
    return searches._shelf.snapshot("tiny/vit")


@pytest.fixture
def small_pieces(monkeypatch):
    """A turn in the lane for every batch, and an atlas as soon as there is one."""
    monkeypatch.setattr(searching, "PIECE_SECONDS", 0)
    monkeypatch.setattr(searching, "FIRST_IMAGES", 4)
    monkeypatch.setattr(searching, "_WATCH_SECONDS", 0.02)


def run(searches, snapshot, asked=PICTURES):
    return list(searches.watch(snapshot, asked, Event()))


def stopped(searches, snapshot, asked=PICTURES, images=8):
    """What is seen of a search that is stopped when there is an atlas of so many images."""
    stop, seen = Event(), []
    for now in searches.watch(snapshot, asked, stop):
        seen.append(now)
        if now.written >= images:
            stop.set()
    return seen


def same(one, other):
    assert one.sites == other.sites and one.manifest["n_images"] == other.manifest["n_images"]
    for site in one.sites:
        a, b = one.table(site), other.table(site)
        for name in a.__slots__:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.fixture
def expected(pictures, tmp_path):
    """The atlas that the command line makes of them."""
    config = SearchConfig(layers=(1,), limit=N, batch=4)
    return make_atlas(load_model("tiny/vit", device="cpu"), open_source("search/pictures"), config, tmp_path / "whole")


def test_a_dataset_of_the_hub_is_searched_as_the_command_line_does(searches, vit, expected):
    last = run(searches, vit)[-1]

    assert last.ended and last.doing == "Done: 40 photographs were searched." and last.written == N
    atlas = searches._shelf.atlas(last.name)
    same(atlas, expected)
    assert atlas.manifest["dataset"] == "search/pictures" and searches._shelf.atlas_for(vit).name == last.name
    assert not (made_folder(last.name) / "search").exists()


def test_a_search_in_many_pieces_gives_the_same_and_shows_atlases_on_the_way(searches, vit, expected, small_pieces):
    seen = run(searches, vit)

    same(searches._shelf.atlas(seen[-1].name), expected)
    written = [s.written for s in seen]
    assert written == sorted(written) and any(0 < w < N for w in written)
    assert any("of 40 photographs, " in s.doing and " a second, about " in s.doing for s in seen)
    kept = sorted(p.name for p in made_folder(seen[-1].name).iterdir())
    assert kept[-1] == f"{N:08}" and len(kept) <= 2


def test_a_search_that_is_stopped_keeps_an_atlas_and_goes_on_when_it_is_asked_for_again(
    searches, vit, expected, small_pieces
):
    last = stopped(searches, vit)[-1]
    part = searches._shelf.atlas(last.name).manifest["n_images"]
    again = run(searches, vit)

    assert (
        last.doing == f"Stopped: {part:,} photographs were searched. Search the same again, and it goes on from there."
    )
    assert 8 <= part < N
    assert again[0].doing == "Opening search/pictures ..." and min(s.written for s in again if s.name) == part
    assert again[-1].name == last.name
    same(searches._shelf.atlas(last.name), expected)


def test_what_was_searched_before_is_not_searched_again(searches, vit, hub):
    first = run(searches, vit)[-1]
    searches._piece = None

    again = run(searches, vit)

    assert again[-1].doing == "It was searched before: here is its atlas." and again[-1].written == N
    assert again[-1].name == first.name


@pytest.mark.parametrize("change", [{"layer": 2}, {"layer": None}, {"limit": 5}])
def test_another_layer_or_number_is_another_search(searches, vit, change):
    first, other = run(searches, vit)[-1], run(searches, vit, replace(PICTURES, **change))[-1]

    assert other.name != first.name and len(list_made()) == 2
    sites = searches._shelf.atlas(other.name).sites
    assert len(sites) == (3 if change == {"layer": None} else 1)


def test_who_asks_for_the_same_shares_one_search_and_who_leaves_does_not_end_it(searches, vit, small_pieces):
    pieces, whole = [], searches._piece
    searches._piece = lambda *args: pieces.append(1) or whole(*args)
    stop = Event()
    one, other = (searches.watch(vit, PICTURES, s) for s in (stop, Event()))
    next(one), next(other)
    stop.set()
    left, stayed = list(one), list(other)

    assert left[-1].doing == "It goes on: another visitor asked for the same."
    assert stayed[-1].doing.startswith("Done") and stayed[-1].written == N
    assert len(pieces) == N // 4 + 1 or len(pieces) == N // 4


def test_who_waits_for_the_same_search_under_other_words_can_leave(searches, vit, small_pieces):
    go_on, whole = Event(), searches._piece
    searches._piece = lambda *args: go_on.wait(20) and whole(*args)
    first = searches.watch(vit, PICTURES, Event())
    while not next(first).name:
        pass
    stop = Event()
    second = searches.watch(vit, replace(PICTURES, split="validation"), stop)
    next(second)
    stop.set()
    left = list(second)
    alone = not go_on.is_set()
    go_on.set()

    assert alone and left[-1].doing == "Stopped before a photograph was searched."
    assert list(first)[-1].written == N


def test_a_page_that_is_closed_ends_its_search_and_what_was_read_is_kept(searches, vit, small_pieces):
    watching = searches.watch(vit, PICTURES, Event())
    while next(watching).written < 4:
        pass
    watching.close()

    deadline = time.monotonic() + 20
    while searches._runs and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not searches._runs and 4 <= searches._shelf.atlas_for(vit).manifest["n_images"] < N


def test_nobody_waits_for_the_device_while_a_row_is_downloaded(searches, vit, pictures, monkeypatch):
    monkeypatch.setattr(searching, "_WATCH_SECONDS", 0.02)
    source, go_on, begun, whole = open_source("search/pictures"), Event(), [], searches._piece

    def slow(rank, n_ranks, position):
        for i, item in enumerate(source.read(rank, n_ranks, position)):
            if i == 10:
                go_on.wait(30)
            yield item

    monkeypatch.setattr(searching, "open_source", lambda *_, **__: replace(source, read=slow))
    searches._piece = lambda *args: begun.append(1) or whole(*args)
    watching = searches.watch(vit, PICTURES, Event())
    while "10 photographs so far" not in next(watching).doing:
        pass
    with searches._lane.turn():
        before = list(begun)
    go_on.set()

    assert before == [] and list(watching)[-1].written == N


def test_others_have_their_turn_between_two_batches(searches, vit, monkeypatch):
    monkeypatch.setattr(searching, "_WATCH_SECONDS", 0.02)
    turns = []
    for now in searches.watch(vit, PICTURES, Event()):
        if "of 40" in now.doing:
            with searches._lane.turn():
                turns.append(now)

    assert turns


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (Asked("search/gated", None, 5, 1), DatasetAccessError, "'search/gated' is gated"),
        (Asked("search/missing", None, 5, 1), DatasetAccessError, "'search/missing' is not on the Hub"),
        (Asked("search/empty", None, 5, 1), DatasetError, "is empty"),
        (Asked("search/texts", None, 5, 1), DatasetError, "has no column of images"),
        (Asked("search/broken", None, 5, 1), DatasetError, r"held no usable image \(3 were skipped\)"),
        (Asked("search/pictures", "night", 5, 1), DatasetError, "has no split 'night'; it has validation"),
        (Asked("docs", None, 5, 1), DatasetAccessError, "'docs' is not a Hub id"),
        (Asked("tests/ui", None, 5, 1), DatasetAccessError, "'tests/ui' is not a Hub id"),
        (Asked("/etc", None, 5, 1), DatasetAccessError, "'/etc' is not a Hub id"),
        (replace(PICTURES, layer=9), SiteError, "has layers 0-2; got layer 9"),
    ],
)
def test_what_cannot_be_searched_is_told_and_leaves_nothing(
    searches, vit, hub, pictures, tmp_path, asked, error, message
):
    hub.publish("datasets/search/gated", pictures, gated=True)
    broken = {"image": [{"bytes": b"x" * i, "path": f"{i}.png"} for i in range(3)]}
    for name, table in {"empty": {"image": broken["image"][:0]}, "texts": {"a": ["b"]}, "broken": broken}.items():
        (tmp_path / name).mkdir()
        schema = pa.table(broken).schema if name == "empty" else None
        pq.write_table(pa.table(table, schema=schema), tmp_path / name / "train.parquet")
        hub.publish(f"datasets/search/{name}", tmp_path / name)

    with pytest.raises(error, match=message):
        run(searches, vit, asked)
    assert list_made() == {} and not list((tmp_path / "cache").glob("atlases/*"))


def test_an_unreachable_hub_is_told(searches, vit, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        "vitviz_hf.stream.find_commit", lambda *_: (_ for _ in ()).throw(DatasetError("the Hub failed"))
    )

    with pytest.raises(DatasetError, match="the Hub failed"):
        run(searches, vit)


def test_a_full_disk_is_told_and_leaves_nothing_half_written(searches, vit, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(searching, "write_atlas", full)

    with pytest.raises(AtlasError, match=r"could not store the search .*No space left") as caught:
        run(searches, vit)
    assert caught.value.for_visitor.endswith("Try again later, or search fewer photographs.")
    assert not list((tmp_path / "cache").glob("atlases/*"))


def test_without_space_for_atlases_nothing_is_searched(searches, vit, monkeypatch, tmp_path):
    monkeypatch.setenv("VITVIZ_ATLAS_GB", "0")

    with pytest.raises(AtlasError, match="no space is left for atlases on this server; the limit is 0 GB") as caught:
        run(searches, vit)
    assert "VITVIZ_ATLAS_GB" not in caught.value.for_visitor and "VITVIZ_ATLAS_GB" in str(caught.value)
    assert not list((tmp_path / "cache").glob("atlases/*"))


def test_at_the_limit_what_was_searched_before_is_still_there(searches, vit, monkeypatch):
    run(searches, vit)
    monkeypatch.setenv("VITVIZ_ATLAS_GB", "0")

    assert run(searches, vit)[-1].doing == "It was searched before: here is its atlas."
    with pytest.raises(AtlasError, match="no space is left"):
        run(searches, vit, replace(PICTURES, limit=5))


@pytest.mark.parametrize("given", ["much", "", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_told(searches, vit, monkeypatch, given):
    monkeypatch.setenv("VITVIZ_ATLAS_GB", given)

    with pytest.raises(ConfigError, match=rf"the disk space for atlases must be .*; got '{given}'") as caught:
        run(searches, vit)
    assert "VITVIZ_ATLAS_GB" in str(caught.value) and "VITVIZ_ATLAS_GB" not in caught.value.for_visitor
    assert caught.value.for_visitor.endswith("Tell whoever runs this server.")


def test_what_was_not_used_for_longest_goes_and_what_is_in_use_stays(searches, vit, monkeypatch):
    asked = [replace(PICTURES, limit=n) for n in (4, 5, 6)]
    first, second, third = (run(searches, vit, a)[-1].name for a in asked)
    monkeypatch.setattr("vitviz_hf.ui.made._IN_USE_SECONDS", -1)
    searches._shelf.atlas(first)  # used last
    size = sum(p.stat().st_size for p in made_folder(first).rglob("*"))
    monkeypatch.setenv("VITVIZ_ATLAS_GB", str(2.5 * size / 1e9))

    left = make_room(())
    monkeypatch.setenv("VITVIZ_ATLAS_GB", "1e-9")
    make_room({third})

    assert sorted(list_made()) == [third]
    assert size < left <= 2.5 * size
    assert newest_atlas(second) is None


def test_two_are_put_away_in_the_order_of_use(searches, vit, monkeypatch):
    first, _ = (run(searches, vit, replace(PICTURES, limit=n))[-1].name for n in (4, 5))
    monkeypatch.setattr("vitviz_hf.ui.made._IN_USE_SECONDS", -1)
    time.sleep(0.05)
    searches._shelf.atlas(first)
    size = sum(p.stat().st_size for p in made_folder(first).rglob("*"))
    monkeypatch.setenv("VITVIZ_ATLAS_GB", str(1.5 * size / 1e9))

    make_room(())

    assert list(list_made()) == [first]


def test_what_was_used_just_now_is_not_put_away(searches, vit, monkeypatch):
    name = run(searches, vit)[-1].name
    monkeypatch.setenv("VITVIZ_ATLAS_GB", "1e-9")

    make_room(())

    assert list(list_made()) == [name]


def test_uploaded_photographs_are_searched_and_their_atlas_is_listed_for_nobody(searches, vit, tmp_path):
    for i in range(3):
        draw_noise(i).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_bytes(b"no picture")
    folder = keep_uploads([str(tmp_path / name) for name in ("0.png", "1.png", "2.png", "notes.txt")])

    last = run(searches, vit, Asked("", None, 1000, 1, folder))[-1]

    atlas = searches._shelf.atlas(last.name)
    assert (atlas.manifest["n_images"], atlas.manifest["n_skipped"]) == (3, 1)
    assert last.doing == "Done: 3 photographs were searched, 1 could not be read."
    assert atlas.manifest["dataset"] == "uploaded photographs" and searches._shelf.atlas_for(vit) is None
    assert atlas.image(0).name[0] in "012" and not folder.exists()


def test_no_or_too_many_uploads_are_refused():
    for n in (0, 1001):
        with pytest.raises(DatasetError, match=rf"from 1 to 1,000 photographs; got {n:,}\."):
            keep_uploads(["x"] * n)


def test_rows_are_read_ahead_once_and_no_further_than_needed(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("vitviz_hf.ui.ahead._AHEAD", 10)
    source, folder, asked = open_source("search/pictures"), tmp_path / "ahead", []

    def reading(rank, n_ranks, position):
        for row, mark in source.read(rank, n_ranks, position):
            asked.append(row.name)
            yield row, mark

    ahead = ReadAhead(replace(source, read=reading), folder, 30)
    assert ahead.wait_for(10, 20)
    time.sleep(0.3)
    assert ahead.ready == 10
    with pytest.raises(UsedUp):
        list(read_kept(folder)(0, 1, 4))
    ahead.close()
    again = ReadAhead(replace(source, read=reading), folder, 30)
    again.drop(10)
    assert again.wait_for(10, 20)
    again.drop(25)
    assert again.wait_for(99, 20) and again.finished
    rows = [row for row, _ in read_kept(folder)(0, 1, 25)]

    assert [row.data for row in rows] == [row.data for row, _ in source.read(0, 1, None)][25:30]
    assert len(asked) == len(set(asked)) == 30


def test_a_row_that_comes_after_the_end_is_not_kept(pictures, tmp_path):
    source, waiting, go_on = open_source("search/pictures"), Event(), Event()

    def slow(rank, n_ranks, position):
        for i, item in enumerate(source.read(rank, n_ranks, position)):
            if i == 3:
                waiting.set()
                go_on.wait(20)
            yield item

    first = ReadAhead(replace(source, read=slow), tmp_path, 30)
    assert waiting.wait(20) and first.ready == 3
    first.close()
    second = ReadAhead(source, tmp_path, 30)
    assert second.wait_for(99, 20) and second.finished
    go_on.set()
    first._thread.join(20)

    assert first.failure is None and first.ready == 3 and not first.finished
    rows = [row.data for row, _ in read_kept(tmp_path)(0, 1, None)]
    assert rows == [row.data for row, _ in source.read(0, 1, None)][:30]


def test_the_end_of_a_stream_that_comes_after_the_end_is_not_kept(pictures, tmp_path):
    source, waiting, go_on = open_source("search/pictures"), Event(), Event()

    def slow(rank, n_ranks, position):
        yield next(source.read(rank, n_ranks, position))
        waiting.set()
        go_on.wait(20)

    ahead = ReadAhead(replace(source, read=slow), tmp_path, 30)
    assert waiting.wait(20)
    ahead.close()
    go_on.set()
    ahead._thread.join(20)

    assert not ahead.finished
    with pytest.raises(UsedUp):
        list(read_kept(tmp_path)(0, 1, None))


@pytest.mark.parametrize("seconds", [0, 30])
def test_a_stream_that_breaks_leaves_what_was_read(seconds, searches, vit, pictures, monkeypatch):
    source = open_source("search/pictures")

    def breaking(rank, n_ranks, position):
        for i, item in enumerate(source.read(rank, n_ranks, position)):
            if i == 30:
                raise DatasetError("the connection was lost.")
            yield item

    monkeypatch.setattr(searching, "PIECE_SECONDS", seconds)
    monkeypatch.setattr(searching, "open_source", lambda *_, **__: replace(source, read=breaking))
    last = run(searches, vit)[-1]

    assert last.doing.startswith("The rest cannot be read now: ") and last.written == 28, "all whole batches"
    monkeypatch.undo()


def test_a_model_site_that_a_search_covers_is_one_layer(searches, vit):
    assert list(searches._shelf.atlas(run(searches, vit)[-1].name).sites) == [Site(1, "mlp_act")]


@pytest.mark.parametrize(
    ("zero", "able", "precision"), [("", {}, "float32"), ("", ABLE, "bfloat16"), ("1", {}, "bfloat16")]
)
def test_what_is_searched_elsewhere_has_one_precision_for_all(zero, able, precision, tiny_view, monkeypatch):
    """On ZeroGPU the facts are of the model on the CPU, and the pieces are searched on a GPU."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setenv("SPACES_ZERO_GPU", zero)

    assert searching._config(tiny_view("vit"), PICTURES).precision == precision
