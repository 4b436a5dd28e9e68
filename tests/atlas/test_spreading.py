"""A search in shares: merged as one process, with floors or without; and on a Ray cluster that loses workers."""

import math
import os
import signal
import threading
import time
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.conftest import draw_noise
from tests.inline_ray import InlineRay
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.fold import NO_KEY
from vitviz_hf.atlas.search import empty_state, search
from vitviz_hf.atlas.spreading import (
    Searching,
    _job_size,
    floors_of,
    merge_parts,
    prepare,
    search_shares,
    share_count,
    spread_atlas,
    spread_pictures,
    take_in,
)
from vitviz_hf.atlas.state import open_crops, ranked_keys
from vitviz_hf.atlas.store import open_atlas
from vitviz_hf.atlas.write import make_atlas, search_folder
from vitviz_hf.cli.main import main
from vitviz_hf.cluster import Cluster, open_cluster
from vitviz_hf.errors import ConfigError, DatasetError, OutputExistsError
from vitviz_hf.models.view import to_pixels
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.optimize.guides import guide_by_photograph
from vitviz_hf.optimize.loop import visualize
from vitviz_hf.sites import Feature, Site
from vitviz_hf.stream import open_source

N = 40


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of which some are copies."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(N):
        draw_noise(i % 34).save(folder / f"{i * 7 % N:02}.png")
    return folder


def assert_same(one, two):
    """Two atlases, up to the last digits of scores, sums and correlations."""
    assert {**two.manifest, "skipped": []} == {**one.manifest, "skipped": []}
    assert (one.folder / "images/images.parquet").read_bytes() == (two.folder / "images/images.parquet").read_bytes()
    own, other = (pq.read_table(a.folder / "features/features.parquet").to_pydict() for a in (one, two))
    exact = {"feature", "layer", "kind", "top_rows", "bottom_rows", "top_places", "sketch_bins", "sketch_counts"}
    for name, values in own.items():
        if name in exact:
            assert values == other[name], name
        elif name not in ("neighbours", "correlations"):
            for a, b in zip(values, other[name], strict=True):
                np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)
    for a, b in zip(own["correlations"], other["correlations"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]])
def test_parts_of_shares_in_any_order_and_tree_are_the_state_of_one_process(order, vit, pictures, tmp_path):
    source, config = open_source(str(pictures)), SearchConfig(k=4, batch=3)
    task, told = Searching(vit, source, config, 5, True), []
    whole = search(vit, source, config, tmp_path / "one")

    state = empty_state(vit, config)
    (tmp_path / "crops").mkdir()
    with open_crops(tmp_path / "crops") as crops:
        take_in(state, search_shares(task, (order[0],), None, told.append), crops)
        floors = floors_of(state)
        take_in(state, search_shares(task, (order[1], order[2]), floors, told.append), crops)
        late = [search_shares(task, (share,), floors, told.append) for share in order[3:]]
        take_in(state, merge_parts(*late), crops)
        assert {key for (key,) in crops.execute("SELECT key FROM crops")} >= ranked_keys(state)

    assert [n for n, _ in groupby(told)] == [3, 6, 8, 3, 6, 8, 11, 14, 16, 3, 6, 8, 3, 6, 8]
    assert (state.n_images, state.n_rows) == (whole.n_images, whole.n_rows) == (N, N)
    for site, fold in whole.folds.items():
        other = state.folds[site]
        for a, b in ((fold.top, other.top), (fold.bottom, other.bottom)):
            assert torch.equal(a.keys, b.keys) and (b.keys != NO_KEY).all()
            torch.testing.assert_close(a.values, b.values, atol=1e-6, rtol=0)
        assert torch.equal(fold.counts, other.counts)
        np.testing.assert_allclose(fold.mean, other.mean, atol=1e-7)
        np.testing.assert_allclose(fold.squares, other.squares, rtol=1e-5)


def test_an_image_below_the_floors_is_neither_ranked_nor_kept(vit, pictures):
    task = Searching(vit, open_source(str(pictures)), SearchConfig(k=2, batch=8, layers=(1,)), 2, True)
    free = search_shares(task, (0,), None, lambda n: None)
    (site, fold), *_ = free.state.folds.items()
    high = (fold.top.values[:, 0] + 1, fold.bottom.values[:, 0] + 1)

    none = search_shares(task, (0,), {site: high}, lambda n: None)
    best = search_shares(task, (0,), {site: (fold.top.values[:, 0], high[1])}, lambda n: None)

    assert not none.crops and none.state.n_images == free.state.n_images == N // 2
    assert set(best.crops) == set(fold.top.keys[:, 0].tolist())
    assert torch.equal(best.state.folds[site].top.keys[:, 0], fold.top.keys[:, 0])
    np.testing.assert_allclose(none.state.folds[site].mean, fold.mean)


def test_floors_of_rankings_that_are_not_full_keep_nothing_out(vit):
    state = empty_state(vit, SearchConfig(k=3, layers=(1,)))
    (site, fold), *_ = state.folds.items()
    fold.top.values[0] = torch.tensor([5.0, 2.0, 1.0])

    top, bottom = floors_of(state)[site]

    assert top[0] == pytest.approx(0.9999) and (top[1:] == -math.inf).all() and (bottom == -math.inf).all()


@pytest.mark.parametrize(
    ("n_files", "n_rows", "limit", "n_workers", "expected"),
    [
        (None, 10**6, None, 2, 50),
        (None, 1000, None, 2, 16),
        (None, 5, None, 2, 5),
        (294, 1_281_167, None, 8, 98),
        (23, None, None, 2, 23),
        (4, 1000, None, 2, 4),
        (1, 10**6, None, 4, 8),
        (294, 10**6, 1000, 8, 16),
        (100_000, 10**9, None, 64, 50_000),
    ],
)
def test_shares_have_files_of_their_own_and_enough_rows(n_files, n_rows, limit, n_workers, expected, pictures):
    source = replace(open_source(str(pictures)), n_files=n_files, n_rows=n_rows)

    assert share_count(source, SearchConfig(limit=limit), n_workers) == expected


def test_jobs_grow_as_rankings_fill_and_shrink_towards_the_end():
    assert [_job_size(4, left, 1000 - left) for left in (1000, 980, 600, 100, 8, 1)] == [1, 5, 16, 12, 1, 1]


def test_a_local_dataset_that_a_machine_lacks_is_told(vit, pictures, tmp_path):
    source = replace(open_source(str(pictures)), dataset=str(tmp_path / "elsewhere"))

    with pytest.raises(DatasetError, match="is not on every machine; copy it to the same path on all, or read the Hub"):
        prepare(Searching(vit, source, SearchConfig(), 2, True))


@pytest.mark.slow
def test_an_atlas_of_two_nodes_is_that_of_one_process(machines, tiny_folder, vit, pictures, tmp_path, capsys):
    one = make_atlas(vit, open_source(str(pictures)), SearchConfig(k=4, batch=3), tmp_path / "one")
    command = ["search", str(tiny_folder("vit")), str(pictures), "-k", "4", "--batch", "3", "--on", "ray"]

    assert main([*command, "--out", str(tmp_path / "two")]) == 0
    assert main([*command, "--out", str(tmp_path / "none"), "--gpus", "1"]) == 2
    assert "the cluster has 0 GPUs; got --gpus 1" in capsys.readouterr().err

    assert_same(one, open_atlas(str(tmp_path / "two")))
    assert not search_folder(tmp_path / "two").exists()


@pytest.mark.slow
def test_an_atlas_made_by_a_cluster_that_is_reached_from_elsewhere_is_that_of_one_process(
    machines, tiny_folder, vit, pictures, tmp_path
):
    one = make_atlas(vit, open_source(str(pictures)), SearchConfig(k=4, batch=3), tmp_path / "one")
    command = ["search", str(tiny_folder("vit")), str(pictures), "-k", "4", "--batch", "3", "--on", machines.client]

    assert main([*command, "--out", str(tmp_path / "two")]) == 0

    assert_same(one, open_atlas(str(tmp_path / "two")))


@pytest.mark.slow
def test_a_killed_process_and_a_killed_node_change_nothing(machines, vit, pictures, tmp_path):
    source, config = open_source(str(pictures)), SearchConfig(k=4, batch=1)
    one = make_atlas(vit, source, config, tmp_path / "one")
    (lost,) = machines.worker_nodes
    notes, doomed = str(tmp_path), lost.node_id

    def read(rank, n_ranks, position):
        import ray

        on_doomed = ray.get_runtime_context().get_node_id() == doomed
        for i, row in enumerate(source.read(rank, n_ranks, position)):
            if i == 1 and on_doomed:
                Path(notes, "reading").touch()
                time.sleep(600)  # its node dies before
            while not on_doomed and not Path(notes, "reading").exists():
                time.sleep(0.05)
            if i == 1 and not Path(notes, "killed").exists():
                Path(notes, "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield row

    def lose():
        while not Path(notes, "killed").exists():
            time.sleep(0.05)
        machines.remove_node(lost, allow_graceful=False)

    killer = threading.Thread(target=lose, daemon=True)
    killer.start()
    try:
        with open_cluster("ray") as cluster:
            two = spread_atlas(cluster, vit, replace(source, read=read), config, tmp_path / "two")
    finally:
        killer.join(60)
        machines.add_node(**machines.node_args)

    assert Path(notes, "killed").exists() and not killer.is_alive()
    assert_same(one, two)


def breaking(source, mended, asked):
    """The source, of which one share cannot be read until it is mended."""

    def read(rank, n_ranks, position):
        asked.append(rank)
        if rank == 9 and not mended:
            raise DatasetError("the connection was lost.")
        yield from source.read(rank, n_ranks, position)

    return replace(source, read=read)


def test_a_spread_search_goes_on_where_it_was_stopped(vit, pictures, tmp_path):
    source, config = open_source(str(pictures)), SearchConfig(k=4, batch=3, layers=(1, 2))
    one = make_atlas(vit, source, config, tmp_path / "one")
    out, asked, told, cluster = tmp_path / "two", [], [], Cluster(InlineRay, 2, 1, False)

    with pytest.raises(DatasetError, match="the connection was lost"):
        spread_atlas(cluster, vit, breaking(source, False, asked), config, out)
    with pytest.raises(OutputExistsError, match="go on with --resume"):
        spread_atlas(cluster, vit, source, config, out)
    with pytest.raises(ConfigError, match=r"holds a search of a cluster .--on ray., not of one process"):
        make_atlas(vit, source, config, out, resume=True)
    again: list[int] = []
    four = Cluster(InlineRay, 4, 1, False)
    two = spread_atlas(four, vit, breaking(source, True, again), config, out, True, told.append, 0)

    given = set(range(14)) - set(again)
    assert {0, 1} <= given <= set(asked) and len(again) == len(set(again)) < 14
    assert told == sorted(told) and told[-1] == N
    assert_same(one, two)


def test_a_spread_search_in_bfloat16_goes_on_in_it(vit, pictures, tmp_path):
    source, config = open_source(str(pictures)), SearchConfig(k=4, batch=3, layers=(1,))
    out, cluster = tmp_path / "two", Cluster(InlineRay, 2, 1, False)
    with pytest.raises(DatasetError, match="the connection was lost"):
        spread_atlas(cluster, vit, breaking(source, False, []), replace(config, precision="bfloat16"), out)

    assert spread_atlas(cluster, vit, source, config, out, True).manifest["precision"] == "bfloat16"


FEATURES = [[Feature(Site(1, "mlp_act"), 5), Feature(Site(1, "mlp_act"), 7)], [Feature(Site(2, "mlp_act"), 3)]]


def test_pictures_of_workers_are_those_of_one_process(vit):
    config = VisualizeConfig.preset("fast", steps=3, seed=2)

    made = dict(spread_pictures(Cluster(InlineRay, 2, 1, False), vit, FEATURES, config))

    for group in FEATURES:
        for feature, one in zip(group, visualize(vit, group, config), strict=True):
            assert torch.equal(made[feature].pixels, one.pixels) and made[feature].recipe == one.recipe
    assert len({p.score for p in made.values()}) == 3


@pytest.mark.parametrize(("wanted", "precision"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_machines_compute_in_float32_unless_asked_whatever_this_one_has(
    wanted, precision, vit, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    cluster = Cluster(InlineRay, 2, 1, False)

    config = VisualizeConfig.preset("fast", steps=1, precision=wanted)
    made = dict(spread_pictures(cluster, vit, FEATURES, config))
    search = SearchConfig(k=2, limit=6, batch=3, layers=(1,), precision=wanted)
    atlas = spread_atlas(cluster, vit, open_source(str(pictures)), search, tmp_path / "atlas")

    assert {picture.recipe["config"]["precision"] for picture in made.values()} == {precision}
    assert atlas.manifest["precision"] == precision


def test_pictures_of_workers_are_guided_by_their_own_images(vit):
    config = VisualizeConfig.preset("accent", steps=2)
    photographs = [to_pixels(vit, draw_noise(i))[0] for i in (3, 4)]
    guides = [[guide_by_photograph(vit, f, p) for f, p in zip(g, photographs, strict=False)] for g in FEATURES]

    made = dict(spread_pictures(Cluster(InlineRay, 1, 1, False), vit, FEATURES, config, guides))

    for group, own in zip(FEATURES, guides, strict=True):
        for feature, one in zip(group, visualize(vit, group, config, own), strict=True):
            assert torch.equal(made[feature].pixels, one.pixels)


@pytest.mark.slow
def test_an_atlas_gets_its_pictures_from_two_nodes(machines, tiny_folder, pictures, tmp_path, capsys):
    folder, atlas = str(tiny_folder("vit")), str(tmp_path / "atlas")
    assert main(["search", folder, str(pictures), "--limit", "8", "-k", "2", "--out", atlas]) == 0
    capsys.readouterr()

    assert main(["atlas", "build", atlas, "1.mlp_act:0-9", "2.mlp_act:3", "--preset", "fast", "--on", "ray"]) == 0

    assert capsys.readouterr().out.count(" turned, zoomed and blurred") == 11
    opened = open_atlas(atlas)
    assert all(opened.visualization(Feature(Site(1, "mlp_act"), i)) for i in range(10))


@pytest.mark.slow
def test_texts_are_searched_and_have_their_pictures_made_by_two_nodes(
    machines, tiny_folder, pictures, tmp_path, capsys
):
    command = ["search", str(tiny_folder("clip")), str(pictures), "-k", "2", "--text", "striped fur", "--text", "a bus"]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    assert main([*command, "--out", str(tmp_path / "two"), "--on", "ray"]) == 0
    one, two = (open_atlas(str(tmp_path / name)) for name in ("one", "two"))

    assert two.manifest["names"] == {"2.text": ["striped fur", "a bus"]}
    assert_same(one, two)
    for atlas, spread in ((one, []), (two, ["--on", "ray"])):
        assert main(["atlas", "build", str(atlas.folder), 'text:"a bus"', "--preset", "fast", *spread]) == 0
    feature = Feature(Site(2, "text"), 1)
    made = [np.asarray(Image.open(atlas.visualization(feature)), int) for atlas in (one, two)]
    assert np.abs(made[0] - made[1]).max() <= 1
