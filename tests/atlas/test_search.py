"""Search, atlas and feature page, against sorting everything, and after interruptions."""

import contextlib
import html
import io
import itertools
import json
import math
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from tests.atlas.test_fold import nowhere
from vitviz_hf import (
    Feature,
    VisualizeConfig,
    activations,
    classify,
    load_model,
    load_zero_shot,
    open_image,
    parse_feature,
    to_pixels,
    top_features,
    visualize,
)
from vitviz_hf.atlas.card import find_atlases
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.fold import NO_KEY, SKETCH_ERROR, Ranking, SiteFold, sketch_bins, sketch_centers
from vitviz_hf.atlas.page import feature_page, map_hits, page_document
from vitviz_hf.atlas.parquet import QUANTILES
from vitviz_hf.atlas.search import check_result, empty_state, search, search_recipe, search_steps
from vitviz_hf.atlas.spreading import Searching, floors_of, search_shares, take_in
from vitviz_hf.atlas.state import open_crops
from vitviz_hf.atlas.store import Atlas, open_atlas, push_atlas, unusual_features
from vitviz_hf.atlas.words import TEMPLATES, Words, agreements, chance_agreement, name_features, vocabulary, write_words
from vitviz_hf.atlas.write import make_atlas, search_folder, write_atlas
from vitviz_hf.cli import atlas as cli_atlas
from vitviz_hf.cli.main import main
from vitviz_hf.errors import (
    AtlasError,
    ConfigError,
    DatasetAccessError,
    DatasetError,
    ModelError,
    NoClassifierError,
    OutputExistsError,
    SiteError,
)
from vitviz_hf.inside.words import with_words
from vitviz_hf.models.view import at_size
from vitviz_hf.reading.batches import decoders
from vitviz_hf.sites import Site
from vitviz_hf.stream import open_source

N = 24


def draw(i):
    """A picture unlike the others, of its own size."""
    noise = np.random.default_rng(i).integers(0, 255, (4 + i % 3, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((40 + i, 36), Image.Resampling.BICUBIC)


def called(view, model_id):
    """The same model under another name."""
    return replace(view, snapshot=replace(view.snapshot, model_id=model_id))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(N):
        (folder / f"class-{i % 3}").mkdir(exist_ok=True)
        draw(i).save(folder / f"class-{i % 3}" / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def parquet(pictures, tmp_path_factory):
    """The same pictures in the layout of a Hub dataset, in four shards."""
    folder = tmp_path_factory.mktemp("parquet")
    (folder / "data").mkdir()
    files = sorted(pictures.rglob("*.png"), key=lambda p: p.stem)
    for shard in range(4):
        rows = [{"image": {"bytes": p.read_bytes(), "path": p.name}, "label": p.parent.name} for p in files[shard::4]]
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"validation-{shard:05}-of-00004.parquet")
    return folder


@pytest.fixture(scope="module")
def whole(tiny_view, pictures):
    """Scores of every picture at two sites, {site: [N, F]}, and the keys, one forward pass each."""
    view = tiny_view("vit")
    rows = [row for row, _ in open_source(str(pictures)).read(0, 1, None)]
    sites = [Site(1, "mlp_act"), Site(2, "mlp_act")]
    scores = {s: [] for s in sites}
    for row in rows:
        pixels = (to_pixels(view, open_image(row.data)) * 255).round() / 255
        for site, acts in activations(view, pixels, sites).items():
            scores[site].append(acts.values[0, 1:].mean(0))
    return {s: torch.stack(v) for s, v in scores.items()}, rows


def atlas_of(view, source, out, **options):
    config = SearchConfig(**({"k": 5, "batch": 7, "layers": (1, 2)} | options))
    return make_atlas(view, open_source(str(source)), config, out)


def metadata_of(atlas):
    """What the Hub reads of the card."""
    return yaml.safe_load((atlas.folder / "README.md").read_text().split("---\n")[1])


def test_the_ranked_images_are_those_of_sorting_everything(whole, tiny_view, pictures, tmp_path):
    scores, rows = whole
    atlas = atlas_of(tiny_view("vit"), pictures, tmp_path / "atlas")

    for site, values in scores.items():
        table = atlas.table(site)
        for f in (0, 17, 63):
            order = values[:, f].argsort(descending=True)
            feature = parse_feature(f"{site}:{f}")
            assert [atlas.image(h.row).name for h in atlas.hits(feature)] == [rows[i].name for i in order[:5]]
            assert [atlas.image(h.row).name for h in atlas.hits(feature, bottom=True)] == [
                rows[i].name for i in order.flip(0)[:5]
            ]
            assert [h.score for h in atlas.hits(feature)] == pytest.approx(values[order[:5], f].tolist(), abs=1e-4)
        np.testing.assert_allclose(table.mean, values.mean(0), atol=1e-5)
        np.testing.assert_allclose(table.std, values.std(0, correction=0), atol=1e-5)


def test_labels_and_crops_are_what_the_model_saw(whole, tiny_view, pictures, tmp_path):
    view = tiny_view("vit")
    atlas = atlas_of(view, pictures, tmp_path / "atlas")
    hit = atlas.hits(parse_feature("1.mlp_act:3"))[0]
    stored = atlas.image(hit.row)

    crop = np.asarray(Image.open(pictures / stored.name).convert("RGB"))
    expected = (to_pixels(view, Image.fromarray(crop))[0].permute(1, 2, 0) * 255).round()

    found = np.asarray(Image.open(io.BytesIO(stored.jpeg)), dtype=float)
    assert stored.label == Path(stored.name).parent.name
    assert np.abs(found - expected.numpy()).mean() < 4


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 24}, {"workers": 1}])
def test_batch_size_and_workers_do_not_change_the_ranking(options, tiny_view, pictures, tmp_path):
    view = tiny_view("vit")
    one, other = atlas_of(view, pictures, tmp_path / "a"), atlas_of(view, pictures, tmp_path / "b", **options)

    for site in one.sites:
        a, b = one.table(site), other.table(site)
        assert np.array_equal(a.top_rows, b.top_rows) and np.array_equal(a.bottom_rows, b.bottom_rows)
        np.testing.assert_allclose(a.top_scores, b.top_scores, atol=1e-5)
    assert (tmp_path / "a/images/images.parquet").read_bytes() == (tmp_path / "b/images/images.parquet").read_bytes()


def test_shards_in_another_order_give_the_same_ranking(tiny_view, pictures, parquet, tmp_path):
    view = tiny_view("vit")
    files, stream = atlas_of(view, pictures, tmp_path / "a"), atlas_of(view, parquet, tmp_path / "b")

    for site in files.sites:
        assert np.array_equal(files.table(site).top_rows, stream.table(site).top_rows)
    assert stream.manifest["split"] == "validation" and stream.manifest["n_images"] == N


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 6), cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_ranking_over_any_chunks_is_the_sort_of_the_whole_with_ties_by_key(seed, k, cuts):
    generator = torch.Generator().manual_seed(seed)
    n = sum(cuts)
    values = torch.randint(0, 4, (3, n), generator=generator).float()  # many ties
    keys = torch.randperm(100, generator=generator)[:n]
    ranking = Ranking.empty(3, k, torch.device("cpu"))

    for chunk, owners in zip(values.split(cuts, 1), keys.split(cuts), strict=True):
        ranking.update(chunk, owners.expand(3, -1))

    for row in range(3):
        expected = sorted(zip((-values[row]).tolist(), keys.tolist(), strict=True))[:k]
        assert ranking.keys[row, : len(expected)].tolist() == [key for _, key in expected]


@settings(max_examples=50, deadline=None)
@given(st.floats(-900, 900, allow_nan=False, width=32))
def test_a_bin_of_the_sketch_stands_for_its_values_within_the_stated_error(value):
    center = sketch_centers()[int(sketch_bins(torch.tensor([value]))[0])]

    assert abs(center - value) <= max(1e-4, SKETCH_ERROR * abs(value) * 1.001)


def test_quantiles_and_sparsity_equal_those_of_all_scores(whole, tiny_view, pictures, tmp_path):
    scores, _ = whole
    table = atlas_of(tiny_view("vit"), pictures, tmp_path / "atlas").table(Site(1, "mlp_act"))

    exact = np.quantile(scores[Site(1, "mlp_act")].numpy(), QUANTILES, axis=0, method="inverted_cdf").T
    np.testing.assert_allclose(table.quantiles, exact, rtol=0.04, atol=2e-4)
    assert ((table.sparsity >= 0) & (table.sparsity <= 1)).all() and table.sparsity.std() > 0


def test_the_maximum_over_patches_can_be_the_score(tiny_view, pictures, tmp_path):
    view = tiny_view("vit")
    atlas = atlas_of(view, pictures, tmp_path / "atlas", reduce="max", k=1)
    feature = parse_feature("1.mlp_act:9")

    (best,) = map_hits(view, atlas, feature, 1)

    assert best.hit.score == pytest.approx(float(best.values.max()), abs=0.1)


def run_search(model, data, out, *more):
    options = ["--out", str(out), "--batch", "2", "-k", "4", "--workers", "0", "--device", "cpu", *more]
    return main(["search", str(model), str(data), *options])


SEARCHING = """
import sys
from pathlib import Path
from vitviz_hf import SearchConfig, load_model, open_source
from vitviz_hf.atlas.search import search, search_steps
view, source = load_model(sys.argv[1], device="cpu"), open_source(sys.argv[2])
tell = lambda state: print(state.n_rows, flush=True)
config = SearchConfig(batch=2, k=4, precision="float32")
search(view, source, config, Path(sys.argv[3]), True, progress=tell, checkpoint_seconds=0)
"""


def kill_between_batches(model, data, out, n_batches, seconds):
    """Start or go on with a search that saves after every batch, and kill it some time after it told n of them."""
    work = out.with_name(f"{out.name}.search") / "rank-0"
    process = subprocess.Popen(
        [sys.executable, "-c", SEARCHING, str(model), str(data), str(work)], stdout=subprocess.PIPE
    )
    for _ in range(n_batches):
        process.stdout.readline()
    time.sleep(seconds)
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_search_killed_at_any_moment_goes_on_to_the_same_atlas_bit_for_bit(
    tiny_folder, tiny_view, parquet, tmp_path, monkeypatch
):
    model = tiny_folder("vit")
    assert run_search(model, parquet, tmp_path / "straight") == 0
    view, source = load_model(str(model), device="cpu"), open_source(str(parquet))
    config = SearchConfig(batch=2, k=4)

    class Killed(BaseException):
        pass

    for stop in (1, 5, 11):  # after so many batches, the last of which no checkpoint knows
        work = tmp_path / f"stopped-{stop}.search" / "rank-0"

        def stopping(state, stop=stop):
            if state.n_rows >= 2 * stop:
                raise Killed

        with pytest.raises(Killed):
            search(view, source, config, work, progress=stopping, checkpoint_seconds=0)
        assert run_search(model, parquet, tmp_path / f"stopped-{stop}", "--resume") == 0
    moments = random.Random()
    for _ in range(2):
        kill_between_batches(model, parquet, tmp_path / "killed", moments.randint(1, 4), moments.uniform(0, 0.05))
    assert run_search(model, parquet, tmp_path / "killed", "--resume") == 0

    for name in ("stopped-1", "stopped-5", "stopped-11", "killed"):
        for file in ("features/features.parquet", "images/images.parquet", "manifest.json", "README.md"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "straight" / file).read_bytes(), (name, file)
        assert not (tmp_path / f"{name}.search").exists()


def test_a_connection_that_is_lost_for_good_keeps_what_was_read(tiny_view, pictures, tmp_path):
    view, whole = tiny_view("vit"), open_source(str(pictures))
    config = SearchConfig(k=3, batch=4, layers=(1,))

    def breaking(rank, n_ranks, position):
        for i, row in enumerate(whole.read(rank, n_ranks, position)):
            if i == 13:
                raise DatasetError("the connection was lost.")
            yield row

    with pytest.raises(DatasetError, match="connection was lost"):
        search(view, replace(whole, read=breaking), config, tmp_path / "w")
    resumed = search(view, whole, config, tmp_path / "w", resume=True)
    straight = search(view, whole, config, tmp_path / "s")

    assert resumed.n_images == N
    for site, fold in straight.folds.items():
        for name, tensor in fold.tensors().items():
            assert torch.equal(tensor, resumed.folds[site].tensors()[name]), name


class _Flaky:
    """A stream of datasets that fails twice where it stands."""

    def __init__(self, stream):
        self.stream, self.failures = stream, [5, 9]

    def decode(self, _):
        return self

    def load_state_dict(self, state):
        self.stream.load_state_dict(state)

    def state_dict(self):
        return self.stream.state_dict()

    def __iter__(self):
        for i, item in enumerate(self.stream):
            if self.failures and i + 1 == self.failures[0]:
                self.failures.pop(0)
                raise OSError("connection reset")
            yield item


def test_a_connection_that_comes_back_loses_and_repeats_no_row(parquet, monkeypatch):
    import datasets

    from vitviz_hf import stream

    monkeypatch.setattr(stream, "_RETRIES", (0, 0, 0))
    source = open_source(str(parquet))
    expected = [row.name for row, _ in source.read(0, 1, None)]
    real = datasets.IterableDataset.decode
    flaky = []

    def decode(self, enable):
        flaky.append(_Flaky(real(self, enable)))
        return flaky[-1]

    monkeypatch.setattr(datasets.IterableDataset, "decode", decode)

    assert [row.name for row, _ in source.read(0, 1, None)] == expected
    assert flaky[0].failures == []


def test_a_search_that_is_closed_has_stored_what_it_read_and_goes_on(tiny_view, pictures, tmp_path):
    view, source, config = tiny_view("vit"), open_source(str(pictures)), SearchConfig(k=3, batch=4, layers=(1,))
    whole = search(view, source, config, tmp_path / "whole")

    for n in (2, 3):
        steps = search_steps(view, source, config, tmp_path / "w", resume=True)
        state = next(itertools.islice(steps, n - 1, None))
        steps.close()
    *_, last = [(s.n_images, s.done) for s in search_steps(view, source, config, tmp_path / "w", resume=True)]
    resumed = search(view, source, config, tmp_path / "w", resume=True)

    assert state.n_images == 20 and last == (N, True)
    for site, fold in whole.folds.items():
        assert all(torch.equal(t, resumed.folds[site].tensors()[name]) for name, t in fold.tensors().items())


def test_an_interrupted_search_is_neither_overwritten_nor_mixed(tiny_view, pictures, tmp_path):
    view, source = tiny_view("vit"), open_source(str(pictures))
    search(view, source, SearchConfig(k=3, layers=(1,)), tmp_path / "w")

    with pytest.raises(OutputExistsError, match="go on with --resume, or delete it"):
        search(view, source, SearchConfig(k=3, layers=(1,)), tmp_path / "w")
    with pytest.raises(ConfigError, match="holds a search with k 3, not 4; give the same options"):
        search(view, source, SearchConfig(k=4, layers=(1,)), tmp_path / "w", resume=True)


def test_odd_and_damaged_images_are_skipped_counted_and_listed(tiny_view, pictures, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(pictures, folder)
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((pictures / "class-0" / "00.png").read_bytes()[:60])
    Image.new("CMYK", (30, 30), (9, 90, 0, 0)).save(folder / "cmyk.jpg")
    Image.new("I;16", (30, 30), 30000).save(folder / "deep.png")
    Image.new("RGBA", (3, 900), (255, 0, 0, 90)).save(folder / "long.png")

    atlas = atlas_of(tiny_view("vit"), folder, tmp_path / "atlas")

    assert atlas.manifest["n_images"] == N + 2
    skipped = {name: reason for name, reason in atlas.manifest["skipped"]}
    assert set(skipped) == {"empty.png", "cut.png", "long.png"}
    assert "empty" in skipped["empty.png"] and "20 times" in skipped["long.png"]


def test_datasets_that_cannot_be_used_are_named(tmp_path, parquet, hub):
    with pytest.raises(DatasetError, match="holds no images"):
        open_source(str(tmp_path))
    with pytest.raises(DatasetAccessError, match=r"there is no folder or file '\./nowhere'"):
        open_source("./nowhere")
    with pytest.raises(DatasetError, match="has no split 'tests'; it has validation"):
        open_source(str(parquet), "tests")
    with pytest.raises(DatasetAccessError, match="'nobody/nothing' is not on the Hub, or it is private"):
        open_source("nobody/nothing")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(DatasetError, match="has no column of images; it has text"):
        open_source(str(tmp_path / "text.parquet"))


def test_a_model_without_features_and_a_missing_kind_are_refused(tiny_view, pictures, tmp_path):
    with pytest.raises(SiteError, match="has no features"):
        atlas_of(tiny_view("resnet"), pictures, tmp_path / "a")
    with pytest.raises(ConfigError, match="has none of the kinds attn_q"):
        atlas_of(tiny_view("convnext"), pictures, tmp_path / "a", kinds=("attn_q",))
    with pytest.raises(SiteError, match="has layers 0-2; got layer 9"):
        atlas_of(tiny_view("vit"), pictures, tmp_path / "a", layers=(9,))
    with pytest.raises(ConfigError, match="k must be a whole number from 1 to 1000; got 0"):
        SearchConfig(k=0)


def test_a_pyramid_is_searched_at_its_own_grids(tiny_view, pictures, tmp_path):
    view = tiny_view("timm-twins-svt")
    atlas = atlas_of(view, pictures, tmp_path / "atlas", layers=(0, 6), kinds=("mlp_act", "attn_k"))

    best = map_hits(view, atlas, parse_feature("6.mlp_act:1"), 1)[0]

    assert set(map(str, atlas.sites)) == {"0.attn_k", "0.mlp_act", "6.attn_k", "6.mlp_act"}
    assert best.values.shape == (2, 2)
    assert float(best.values.mean()) == pytest.approx(best.hit.score, abs=0.05)


def test_an_atlas_is_a_dataset_that_datasets_reads_with_its_pictures(tiny_view, pictures, tmp_path):
    import datasets

    atlas = atlas_of(tiny_view("vit"), pictures, tmp_path / "atlas")

    features = datasets.load_dataset(str(atlas.folder), "features", split="train", cache_dir=str(tmp_path / "c"))
    images = datasets.load_dataset(str(atlas.folder), "images", split="train", cache_dir=str(tmp_path / "c"))

    assert features.num_rows == 128 and features[70]["feature"] == "2.mlp_act:6"
    best = images[features[70]["top_rows"][0]]
    assert best["image"].size == (32, 32)
    assert best["name"] == atlas.image(atlas.hits(parse_feature("2.mlp_act:6"))[0].row).name
    assert not {"base_model", "source_datasets"} & set(metadata_of(atlas))  # folders are no Hub ids


def test_the_card_is_valid_whatever_a_model_is_called(tiny_view, pictures, tmp_path):
    for name in ("owner/a-model", "C: 'a' \"b\" #c"):
        out = tmp_path / name.replace("/", "-")
        metadata = metadata_of(atlas_of(called(tiny_view("vit"), name), pictures, out))

        assert metadata.get("base_model") == (name if "/" in name else None)
        assert (f"base_model:{name}" in metadata["tags"]) == ("/" in name)
        assert metadata["pretty_name"] == f"Atlas of {name}" and "vision-transformer" in metadata["tags"]
        assert metadata["configs"] == [
            {"config_name": "features", "default": True, "data_files": "features/*.parquet"},
            {"config_name": "images", "data_files": "images/*.parquet"},
        ]


def test_an_image_finds_its_features(tiny_view, pictures, tmp_path):
    view = tiny_view("vit")
    atlas = atlas_of(view, pictures, tmp_path / "atlas", k=4)
    pixels = to_pixels(view, draw(5))
    site = Site(1, "mlp_act")
    scores = activations(view, pixels, [site])[site].values[0, 1:].mean(0).numpy()
    found = unusual_features(atlas, {site: scores}, 3)
    table = atlas.table(site)
    assert found[0][0].index == int(((scores - table.mean) / table.std.clip(0.1 * np.median(table.std))).argmax())


def test_what_a_build_left_that_was_killed_at_its_end_is_deleted(tiny_view, pictures, tmp_path):
    """A picture has its name before its writer gives up the other one."""
    atlas = atlas_of(tiny_view("vit"), pictures, tmp_path / "atlas", k=1)
    made = atlas.folder / "visualizations"
    picture = visualize(tiny_view("vit"), ["1.mlp_act:4"], VisualizeConfig.preset("fast", steps=1))[0].png()
    for name, data in (("1.mlp_act-4.png", picture), (".1.mlp_act-4-kiyf2qoj.png", picture), (".notes", b"")):
        (made / name).write_bytes(data)

    assert main(["atlas", "build", str(atlas.folder), "1.mlp_act:4"]) == 0

    assert sorted(p.name for p in made.iterdir()) == [".notes", "1.mlp_act-4.png"]


def test_commands_build_and_show_a_page(tiny_folder, pictures, tmp_path, capsys):
    model, atlas = str(tiny_folder("vit")), str(tmp_path / "atlas")
    assert main(["search", model, str(pictures), "--out", atlas, "--workers", "0", "--layers", "0-1", "-k", "3"]) == 0
    assert main(["atlas", "build", atlas, "1.mlp_act:4-5", "--preset", "fast"]) == 0
    assert main(["atlas", "build", atlas, "1.mlp_act:4-5"]) == 0
    assert "2 of 2 pictures are there already" in capsys.readouterr().err
    page, figure = tmp_path / "page.html", tmp_path / "triplet.png"
    assert main(["page", model, "1.mlp_act:4", "--atlas", atlas, "--out", str(page)]) == 0
    assert main(["page", model, "1.mlp_act:4", "--atlas", atlas, "--out", str(figure)]) == 0

    text = page.read_text()
    assert "http" not in text.replace("http-equiv", "") and text.count("data:image/jpeg") == 1 + 2 * 2 * 3
    assert text.count("<img alt=") == 13 and "Histogram of the scores" in text
    assert Image.open(figure).width > 3 * 32
    capsys.readouterr()
    assert main(["page", model, "1.mlp_act:7", "--atlas", atlas, "--out", str(tmp_path / "x.png")]) == 2
    assert "has no optimized picture; make it with 'vitviz atlas build" in capsys.readouterr().err


def test_processes_decode_beside_a_gpu_and_threads_on_a_cpu(tiny_folder, pictures, tmp_path, monkeypatch):
    used = []

    def watched(view, n):
        used.append(n)
        return decoders(view, 0)

    monkeypatch.setattr("os.cpu_count", lambda: 12)
    monkeypatch.setattr("vitviz_hf.atlas.search.decoders", watched)
    options = [str(tiny_folder("vit")), str(pictures), "--device", "cpu", "--layers", "0", "-k", "1", "--out"]
    assert main(["search", *options, str(tmp_path / "a")]) == 0
    assert main(["search", *options, str(tmp_path / "b"), "--workers", "3"]) == 0
    on = cli_atlas._decoding_processes
    monkeypatch.setattr(cli_atlas, "_decoding_processes", lambda _, n: on(True, n))
    for i, n in enumerate((12, 1, 384)):
        monkeypatch.setattr("os.cpu_count", lambda n=n: n)
        assert main(["search", *options, str(tmp_path / f"c{i}")]) == 0

    assert used == [0, 3, 11, 1, 256]


def test_a_site_that_an_atlas_lacks_brings_those_that_it_has():
    atlas = Atlas(
        "some", Path(), {"sites": dict.fromkeys(["3.mlp_act", "5.mlp_act", "0.resid", "1.resid", "2.resid"], 8)}
    )

    with pytest.raises(SiteError, match=r"it covers mlp_act of layers 3, 5, resid of layers 0-2\.$"):
        atlas.hits(parse_feature("4.mlp_act:1"))


def test_a_page_of_another_model_or_site_is_refused(tiny_view, pictures, tmp_path):
    atlas = atlas_of(tiny_view("vit"), pictures, tmp_path / "atlas")

    with pytest.raises(AtlasError, match=r"made with model id .*tiny/vit, not .*tiny/clip"):
        feature_page(tiny_view("clip"), atlas, parse_feature("1.mlp_act:0"))
    with pytest.raises(SiteError, match=r"has no '0\.mlp_act'; it covers mlp_act of layers 1-2"):
        atlas.hits(parse_feature("0.mlp_act:1"))


def test_what_is_no_atlas_is_refused(tmp_path):
    with pytest.raises(AtlasError, match=r"there is no atlas '\./nowhere'"):
        open_atlas("./nowhere")
    with pytest.raises(AtlasError, match="is no atlas"):
        open_atlas(str(tmp_path))
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(AtlasError, match="of another version of vitviz_hf"):
        open_atlas(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"reduce": "<script>alert(1)</script>"},
        {"revision": "<b>"},
        {"k": "<b>"},
        {"input_size": [10**9, 32]},
        {"names": ["a cat"]},
        {"names": {"2.text": ["a cat"]}},
        {"names": {"1.mlp_act": ["a cat"]}},
        {"names": {"1.mlp_act": "x" * 64}},
        {"names": {"1.mlp_act": [3] * 64}},
        {"names": {"1.mlp_act": [" "] * 64}},
        {"sites": {"<b>": 1}},
        {"sites": {"1.mlp_act": "<b>"}},
        {"n_images": None},
        {"split": ["a"]},
    ],
)
def test_a_strangers_manifest_is_checked_before_it_is_shown(change, tiny_view, pictures, tmp_path):
    atlas = atlas_of(tiny_view("vit"), pictures, tmp_path / "atlas", k=1)
    (atlas.folder / "manifest.json").write_text(json.dumps(atlas.manifest | change))

    with pytest.raises((AtlasError, SiteError)):
        open_atlas(str(atlas.folder))


@pytest.mark.parametrize(
    ("texts", "told"),
    [(["a cat"] * 1001, "got 1,001, the longest of 5"), (["a" * 1001], "got 1, the longest of 1,001")],
)
def test_a_strangers_atlas_has_no_texts_without_end(texts, told, tiny_view, pictures, tmp_path):
    """Each costs a pass of the text tower."""
    atlas = atlas_of(with_words(tiny_view("clip"), ["a cat"]), pictures, tmp_path / "atlas", k=1, kinds=("text",))
    changed = atlas.manifest | {"names": {"2.text": texts}, "sites": {"2.text": len(texts)}}
    (atlas.folder / "manifest.json").write_text(json.dumps(changed))

    with pytest.raises(AtlasError, match=f"at most 1,000 texts of 1,000 characters can be features; {told}"):
        open_atlas(str(atlas.folder))
    with pytest.raises(ConfigError, match=told):
        with_words(tiny_view("clip"), texts)


def test_a_manifest_without_end_is_not_read(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(3 * 10**9)

    with pytest.raises(AtlasError, match=r"^manifest\.json of '.*' takes 3000 MB, over 20 MB\.$"):
        open_atlas(str(tmp_path))


def test_the_card_names_the_texts(tiny_view, pictures, tmp_path):
    texts = [f"text {i}" for i in range(19)] + ["two\nlines"]
    few, many = (
        atlas_of(with_words(tiny_view("clip"), some), pictures, tmp_path / str(len(some)), k=1, kinds=("text",))
        for some in (texts, [*texts, "x", "y"])
    )

    told = 'The features of 2.text, from 0: "text 0", "text 1", '
    assert told in (few.folder / "README.md").read_text()
    assert '"text 18", "two lines".\n' in (few.folder / "README.md").read_text()
    assert '"two lines" and 2 more, see `names` in manifest.json.\n' in (many.folder / "README.md").read_text()


def test_too_large_an_atlas_is_refused_before_the_download(hub, tiny_view, pictures, tmp_path):
    atlas = atlas_of(tiny_view("vit"), pictures, tmp_path / "atlas", k=1)
    hub.publish("datasets/odd/huge", atlas.folder, sizes={"images/images.parquet": 9_000_000_000})

    with pytest.raises(AtlasError, match=r"takes 9\.0 GB, more than the limit of 6\.0 GB\. .*VITVIZ_MAX_GB"):
        open_atlas("odd/huge")


def test_html_in_the_names_of_models_datasets_labels_and_words_is_shown_as_text(tiny_view, tmp_path):
    evil = "<b onclick=alert(1)>&'\""
    (tmp_path / evil / evil).mkdir(parents=True)
    for i in range(4):
        draw(i).save(tmp_path / evil / evil / f"{i}.png")
    view = called(tiny_view("vit"), f"model{evil}")
    atlas = atlas_of(view, tmp_path / evil, tmp_path / "atlas", k=2)
    best = {site: (np.zeros((n, 1), int), np.ones((n, 1), np.float32)) for site, n in atlas.sites.items()}
    write_words(atlas, Words(f"namer{evil}", None, 1, TEMPLATES, 0.5), [f"word{evil}"], best)
    feature = parse_feature("1.mlp_act:3")

    page = page_document(feature_page(view, atlas, feature), f"{feature} of {view.model_id}")

    shown = html.escape(evil).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    assert "<b onclick" not in page
    for text in (
        f"of model{shown}</h2>",
        "<p>4 images (",
        f"{shown}); score:",
        f'alt="{shown}"',
        f"<b>word{shown}</b>",
        f"namer{shown} sees",
    ):
        assert text in page
    assert "Features whose scores go with this one's" in page
    assert f"<title>{feature} of model{shown}</title>" in page and "<svg viewBox" in page


def test_names_from_a_dataset_cannot_inject_html(tiny_view, tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    for i in range(3):
        draw(i).save(folder / f"{i}.png")
    atlas = atlas_of(tiny_view("vit"), tmp_path, tmp_path.with_name("atlas-html"))

    page = feature_page(tiny_view("vit"), atlas, parse_feature("1.mlp_act:0"))

    assert "<img src=x" not in page and "&lt;img src=x" in page


def test_a_dataset_is_streamed_from_the_hub_pinned_to_its_commit(hub, parquet, pictures, tiny_view, tmp_path):
    sha = hub.publish("datasets/odd/pictures", parquet)

    source = open_source("odd/pictures")
    rows = [row for row, _ in source.read(0, 1, None)]

    assert source.revision == sha and source.split == "validation"
    assert {r.name for r in rows} == {p.name for p in pictures.rglob("*.png")}
    atlas = atlas_of(tiny_view("vit"), "odd/pictures", tmp_path / "atlas", limit=5)
    assert atlas.manifest["n_images"] == 5
    assert metadata_of(atlas)["source_datasets"] == ["odd/pictures"] and "base_model" not in metadata_of(atlas)


def test_a_folder_of_pictures_on_the_hub_is_read(hub, tmp_path):
    expected = []
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(3):
            draw(i).save(tmp_path / label / f"{label}{i}.png")
            expected.append((f"{label}{i}.png", label, (tmp_path / label / f"{label}{i}.png").read_bytes()))
    hub.publish("datasets/odd/folder", tmp_path)

    rows = [row for row, _ in open_source("odd/folder").read(0, 1, None)]

    assert [(row.name, row.label, row.data) for row in rows] == expected


@pytest.mark.parametrize("protocol", ["", "file://"])
def test_a_dataset_of_the_hub_names_no_file_of_this_machine(protocol, hub, tmp_path):
    import datasets

    draw(1).save(tmp_path / "secret.png")
    schema = datasets.Features({"image": datasets.Image()}).arrow_schema
    rows = {"image": [{"bytes": None, "path": f"{protocol}{tmp_path / 'secret.png'}"}]}
    (tmp_path / "repository" / "data").mkdir(parents=True)
    file = tmp_path / "repository" / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pa.table(rows, schema=schema), file)
    repository = f"odd/names{len(protocol)}"
    hub.publish(f"datasets/{repository}", tmp_path / "repository")

    ((row, _),) = open_source(repository).read(0, 1, None)
    assert row.data == b""
    if not protocol:  # a dataset of one's own may
        ((own, _),) = open_source(str(tmp_path / "repository")).read(0, 1, None)
        assert own.data == (tmp_path / "secret.png").read_bytes()


def test_a_gated_dataset_says_what_to_do(hub, parquet):
    hub.publish("datasets/odd/gated", parquet, gated=True)

    with pytest.raises(
        DatasetAccessError, match=r"'odd/gated' is gated\. Accept its terms on the Hub, then run 'hf auth"
    ):
        open_source("odd/gated")


def test_an_atlas_is_pushed_pulled_and_opened_by_id(hub, tiny_view, pictures, tmp_path, monkeypatch):
    atlas = atlas_of(tiny_view("vit"), pictures, tmp_path / "atlas")
    with pytest.raises(AtlasError, match=r"may not write 'friend/mine'\. Run 'hf auth login'"):
        push_atlas(atlas.folder, "friend/mine")
    with pytest.raises(AtlasError, match="may not write 'stranger/mine'"):
        push_atlas(atlas.folder, "stranger/mine", token="hf_friend")

    push_atlas(atlas.folder, "friend/mine", private=True, token="hf_friend")

    with pytest.raises(AtlasError, match="'friend/mine' is not on the Hub, or it is private"):
        open_atlas("friend/mine", token=False)
    shared = open_atlas("friend/mine", token="hf_friend")
    feature = parse_feature("1.mlp_act:8")
    assert shared.hits(feature) == atlas.hits(feature)
    assert shared.image(shared.hits(feature)[0].row) == atlas.image(atlas.hits(feature)[0].row)
    with pytest.raises(AtlasError, match="is no atlas: it has no manifest"):
        hub.publish("datasets/odd/other", tmp_path / "atlas" / "images")
        open_atlas("odd/other")


def test_atlases_on_the_hub_are_found_by_their_model_without_a_token(hub, tiny_view, pictures, tmp_path, monkeypatch):
    view = called(tiny_view("vit"), "found/model")
    atlas = atlas_of(view, pictures, tmp_path / "atlas")
    for name, private in (("friend/found", False), ("friend/hidden", True)):
        push_atlas(atlas.folder, name, private=private, token="hf_friend")
    other = atlas_of(called(view, "found/other"), pictures, tmp_path / "other")
    push_atlas(other.folder, "friend/other", token="hf_friend")
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: "hf_friend")

    found = find_atlases("found/model", token=False)

    assert found == ["friend/found"] and hub.log[-1][1:] == ("api/datasets", None)
    assert find_atlases("builtin", token=False) == [] == find_atlases("nobody/knows", token=False)


def test_without_a_hub_no_atlas_is_found_and_that_is_told(monkeypatch):
    monkeypatch.setattr("vitviz_hf.hub.hub_reachable", lambda: False)

    with pytest.raises(AtlasError, match="the Hub failed at 'vitviz-atlas base_model:any/model'"):
        find_atlases("any/model", token=False)


@pytest.fixture(scope="module")
def named(tiny_folder, pictures, tmp_path_factory):
    """An atlas of a tiny CLIP, and what its own text tower calls its features."""
    view = load_model(str(tiny_folder("clip")), device="cpu")
    out = tmp_path_factory.mktemp("named") / "atlas"
    atlas = atlas_of(view, pictures, out, k=4)
    words = ["cat", "dog", "bus", "a red bus", "from above", "many"]
    return view, atlas, words, name_features(atlas, view, words)


def test_words_are_those_that_stand_out_most_in_a_features_top_images(named):
    view, atlas, words, found = named
    zero_shot = load_zero_shot(view, words, TEMPLATES)
    n = atlas.manifest["n_stored_images"]
    one_by_one = [
        classify(view, to_pixels(view, open_image(atlas.image(row).jpeg)), zero_shot).logits[0] for row in range(n)
    ]
    similarity = torch.stack(one_by_one).double().numpy()
    deviations = (similarity - similarity.mean(0)) / similarity.std(0)

    named_ones = [f for s in atlas.sites for f in (Feature(s, i) for i in range(64)) if atlas.feature_words(f)]
    assert len(named_ones) > 2
    for feature in (parse_feature("1.mlp_act:3"), *named_ones[:3], named_ones[-1]):
        expected = deviations[[hit.row for hit in atlas.hits(feature)]].mean(0)
        order = np.argsort(-expected)
        above = [i for i in order if expected[i] > found.chance]
        got = atlas.feature_words(feature)
        assert [w for w, _ in got] == [words[i] for i in above]
        np.testing.assert_allclose([x for _, x in got], expected[above], atol=1e-3)


def test_local_parquet_tells_its_number_of_rows(parquet):
    assert open_source(str(parquet)).n_rows == N
    assert open_source(str(next(parquet.rglob("*.parquet")))).n_rows == N // 4


def test_missing_images_do_not_count_in_the_agreement():
    deviations = torch.tensor([[1.0, 0.0], [3.0, -2.0], [10.0, 10.0]])

    found = agreements(deviations, torch.tensor([[0, 1], [2, -1]]))

    assert found.tolist() == [[2.0, -1.0], [10.0, 10.0]]


def test_meaningless_features_rarely_pass_chance_and_planted_ones_do():
    generator = torch.Generator().manual_seed(1)
    deviations = torch.randn(400, 50, generator=generator)
    deviations[:20, 7] += 3
    chance = chance_agreement(deviations, 20)
    random = torch.stack([torch.randperm(400, generator=generator)[:20] for _ in range(500)])

    passed = (agreements(deviations, random).amax(1) > chance).float().mean()

    assert 0.01 < passed < 0.1
    planted = agreements(deviations, torch.arange(20)[None])[0]
    assert planted.argmax() == 7 and planted[7] > 2 * chance


def test_naming_twice_is_refused_and_leaves_the_words(named):
    view, atlas, words, _ = named
    before = (atlas.folder / "words" / "words.parquet").read_bytes()

    with pytest.raises(OutputExistsError, match="words' already exists"):
        name_features(atlas, view, words[:2])

    assert (atlas.folder / "words" / "words.parquet").read_bytes() == before


def test_words_are_on_the_page_in_the_card_and_found_again(named):
    view, atlas, _, found = named
    feature = next(
        f for s, n in atlas.sites.items() for f in (Feature(s, i) for i in range(n)) if atlas.feature_words(f)
    )
    word, strength = atlas.feature_words(feature)[0]

    assert f"<b>{word}</b> {strength:.1f}" in feature_page(view, atlas, feature)
    assert (feature, strength) in atlas.find_word(word.upper(), 10_000)
    assert found.chance < strength
    card = (atlas.folder / "README.md").read_text()
    assert [c["config_name"] for c in metadata_of(atlas)["configs"]] == ["features", "images", "words"]
    assert f"stays below {found.chance:.2f}" in card
    with pytest.raises(AtlasError, match="is named 'zebra'"):
        atlas.find_word("zebra", 5)


def test_an_atlas_is_named_by_its_own_model_or_by_another_from_the_command_line(
    hub, tiny_view, tiny_folder, pictures, tmp_path, capsys
):
    (tmp_path / "words.txt").write_text("cat\ndog\n\nbus\n")
    atlas_of(tiny_view("clip"), pictures, tmp_path / "own")
    atlas_of(tiny_view("vit"), pictures, tmp_path / "other")

    assert main(["atlas", "name", str(tmp_path / "own"), "--words", str(tmp_path / "words.txt")]) == 0
    command = ["atlas", "name", str(tmp_path / "other"), "--words", str(tmp_path / "words.txt")]
    assert main([*command, "--namer", "tiny/siglip"]) == 0

    assert "features have a word whose agreement is above" in capsys.readouterr().out
    assert open_atlas(str(tmp_path / "own")).words.namer == str(tiny_folder("clip"))
    named = open_atlas(str(tmp_path / "other")).words
    assert named.namer == "tiny/siglip" and re.fullmatch("[0-9a-f]{40}", named.namer_revision) and named.n_words == 3
    assert main(["atlas", "name", str(tmp_path / "own"), "--namer", "tiny/vit"]) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_namer_without_a_text_tower_is_refused(tiny_view, pictures, tmp_path):
    atlas = atlas_of(tiny_view("vit"), pictures, tmp_path / "atlas")

    with pytest.raises(NoClassifierError, match="no text tower"):
        name_features(atlas, tiny_view("vit"), ["cat"])

    assert not (tmp_path / "atlas" / "words").exists()


def test_a_strangers_words_are_escaped_and_damaged_ones_refused(tiny_view, pictures, tmp_path):
    view = tiny_view("clip")
    atlas = atlas_of(view, pictures, tmp_path / "atlas", k=2)
    name_features(atlas, view, ["<script>alert(1)</script>", "cat"])
    feature = atlas.find_word("script", 1)[0][0]

    assert "<script>" not in feature_page(view, atlas, feature)
    (tmp_path / "atlas" / "words" / "manifest.json").write_text('{"namer": 3}')
    with pytest.raises(AtlasError, match="is no atlas"):
        open_atlas(str(tmp_path / "atlas"))


def test_the_vocabulary_has_no_word_twice():
    words = vocabulary()

    assert len(words) == len(set(words)) == 1665 and {"fur", "from above", "many", "tench"} <= set(words)


class NoFloat64(TorchDispatchMode):
    """A device that has no float64, as MPS: every operation that makes one is refused; arrays may be wrapped."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            wrapped = func is torch.ops.aten.lift_fresh.default
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64 and not wrapped:
                raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype ({func})")
        return out


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_a_device_without_float64_is_enough(reduce, tiny_view, pictures, tmp_path):
    view, source = tiny_view("vit"), open_source(str(pictures))
    config = SearchConfig(k=3, batch=5, reduce=reduce)

    with NoFloat64():
        found = search(view, source, config, tmp_path / "a")
        top_features(view, torch.rand(1, 3, 32, 32), "1.mlp_act", 3)
    expected = search(view, source, config, tmp_path / "b")

    for site, fold in expected.folds.items():
        assert fold.mean.dtype == np.float64
        for name, tensor in fold.tensors().items():
            assert torch.equal(tensor, found.folds[site].tensors()[name])


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (100.0, 0.02), (-3000.0, 1.0)])
def test_moments_are_those_of_float64_even_far_from_zero(mean, std):
    generator = torch.Generator().manual_seed(0)
    scores = (mean + std * torch.randn(4000, 3, generator=generator, dtype=torch.float64)).float()
    shares = torch.rand(4000, 3, generator=generator)
    finite = torch.rand(4000, generator=generator) < 0.9
    fold, apart = (SiteFold.empty(3, 2, torch.device("cpu")) for _ in range(2))

    for start in range(0, 4000, 10):
        rows = slice(start, start + 10)
        part = apart if start >= 1500 else fold
        peaks = 2 * scores[rows] + 1
        part.update(scores[rows], shares[rows], peaks, nowhere, torch.arange(start, start + 10), finite[rows])
    fold.merge(apart)

    kept = scores[finite].double().numpy()
    assert fold.n == len(kept) == int(fold.counts[0].sum())
    np.testing.assert_allclose(fold.mean, kept.mean(0), rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(np.sqrt(fold.squares / fold.n), kept.std(0), rtol=1e-5)
    peaks = (2 * scores + 1)[finite].double().numpy()
    np.testing.assert_allclose(fold.peak_mean, peaks.mean(0), rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(np.sqrt(fold.peak_squares / fold.n), peaks.std(0), rtol=1e-5)
    np.testing.assert_allclose(fold.active, shares[finite].double().sum(0), rtol=1e-6)


def facts_of(known):
    return lambda features, images: known[features, images]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 6),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    n_ranks=st.integers(1, 3),
)
def test_a_key_is_ranked_once_by_its_highest_value_over_any_chunks_orders_and_ranks(seed, k, cuts, n_ranks):
    generator = torch.Generator().manual_seed(seed)
    n = sum(cuts)
    values = torch.randint(0, 5, (3, n), generator=generator).float()
    keys = torch.randint(0, max(2, n // 2), (n,), generator=generator)  # nearly every key comes again
    rankings = [Ranking.empty(3, k, torch.device("cpu"), 2) for _ in range(n_ranks)]

    for i, (chunk, owners) in enumerate(zip(values.split(cuts, 1), keys.split(cuts), strict=True)):
        owners = owners.expand(3, -1)
        rankings[i % n_ranks].update(chunk, owners, facts_of(torch.stack([chunk, owners.float()], 2)))
    for other in rankings[1:]:
        rankings[0].update(other.values, other.keys, facts_of(other.facts))

    for row in range(3):
        highest = {}
        for value, key in zip(values[row].tolist(), keys.tolist(), strict=True):
            highest[key] = max(value, highest.get(key, value))
        expected = sorted((-value, key) for key, value in highest.items())[:k]
        got = list(zip((-rankings[0].values[row]).tolist(), rankings[0].keys[row].tolist(), strict=True))
        assert got[: len(expected)] == expected
        assert rankings[0].facts[row, : len(expected)].tolist() == [[-value, key] for value, key in expected]
        assert all(value == math.inf and key == NO_KEY for value, key in got[len(expected) :])


def run_ranks(view, source, config, out, n_ranks):
    """As the workers of a cluster would, one after another."""
    task, state, folder = Searching(view, source, config, n_ranks, False), empty_state(view, config), search_folder(out)
    folder.mkdir()
    with open_crops(folder) as crops:
        for rank in range(n_ranks):
            take_in(state, search_shares(task, (rank,), floors_of(state), lambda n: None), crops)
        crops.commit()
    check_result(view, source, state)
    write_atlas(out, search_recipe(view, source, config), state, folder)
    return open_atlas(str(out))


def assert_same(one, two):
    assert two.manifest["n_images"] == one.manifest["n_images"]
    assert (one.folder / "images/images.parquet").read_bytes() == (two.folder / "images/images.parquet").read_bytes()
    for site in one.sites:
        a, b = one.table(site), two.table(site)
        assert np.array_equal(a.top_rows, b.top_rows) and np.array_equal(a.bottom_rows, b.bottom_rows)
        np.testing.assert_allclose(a.top_scores, b.top_scores, atol=1e-5)
        for name in ("mean", "std", "sparsity"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=2e-6)
        np.testing.assert_allclose(a.quantiles, b.quantiles, rtol=0.07, atol=1e-4)


@pytest.fixture(scope="module")
def copies(pictures, tmp_path_factory):
    """Ten pictures, of which one has five copies under other names and labels, and another two."""
    folder = tmp_path_factory.mktemp("copies")
    files = sorted(pictures.rglob("*.png"))[:10]
    for file in files:
        (folder / "m").mkdir(exist_ok=True)
        shutil.copy(file, folder / "m" / file.name)
    for place, file in (("a", files[3]), ("c", files[3]), ("y", files[3]), ("z", files[3]), ("b", files[7])):
        (folder / place).mkdir(exist_ok=True)
        shutil.copy(file, folder / place / f"copy-{file.name}")
    return folder, files


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_identical_images_are_ranked_once_and_counted_as_rows(batch, copies, tiny_view, tmp_path):
    folder, files = copies
    view = tiny_view("vit")

    atlas = atlas_of(view, folder, tmp_path / "a", k=8, batch=batch)

    site = Site(2, "mlp_act")
    scores = []
    for file in files:
        pixels = (to_pixels(view, open_image(file)) * 255).round() / 255
        scores.append(activations(view, pixels, [site])[site].values[0, 1:].mean(0).numpy())
    weights = np.array([5 if i == 3 else 2 if i == 7 else 1 for i in range(10)])
    names = [f"m/{f.name}" for f in files]
    names[3], names[7] = f"a/copy-{files[3].name}", f"b/copy-{files[7].name}"
    assert atlas.manifest["n_images"] == 15
    assert atlas.manifest["n_stored_images"] == 10
    for index in range(64):
        order = np.argsort(-np.array(scores)[:, index])
        for bottom, best in ((False, order), (True, order[::-1])):
            hits = atlas.hits(Feature(site, index), bottom)
            assert [atlas.image(h.row).name for h in hits] == [names[i] for i in best[:8]]
            assert [atlas.image(h.row).label for h in hits] == [names[i].split("/")[0] for i in best[:8]]
    np.testing.assert_allclose(atlas.table(site).mean, np.average(scores, 0, weights), atol=1e-5)
    np.testing.assert_allclose(atlas.table(site).std, np.repeat(scores, weights, 0).std(0), atol=1e-5)


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_copies_in_the_shares_of_several_processes_merge_to_one(n_ranks, copies, tiny_view, tmp_path):
    view, source = tiny_view("vit"), open_source(str(copies[0]))
    config = SearchConfig(k=8, batch=4, layers=(1, 2))

    assert_same(
        make_atlas(view, source, config, tmp_path / "a"), run_ranks(view, source, config, tmp_path / "b", n_ranks)
    )


def test_copies_are_named_the_same_in_any_order(copies, tiny_view, tmp_path):
    view, source = tiny_view("vit"), open_source(str(copies[0]))
    config = SearchConfig(k=8, batch=4, layers=(1, 2))

    def backwards(rank, n_ranks, position):
        yield from reversed(list(source.read(rank, n_ranks, position)))

    one = make_atlas(view, source, config, tmp_path / "a")
    assert_same(one, make_atlas(view, replace(source, read=backwards), config, tmp_path / "b"))


@pytest.mark.parametrize("limit", [1, 6, 13, 100])
@pytest.mark.parametrize("n_ranks", [2, 3])
def test_a_limit_means_the_same_rows_for_any_number_of_processes(limit, n_ranks, parquet, tiny_view, tmp_path):
    view, source = tiny_view("vit"), open_source(str(parquet))
    config = SearchConfig(k=4, batch=2, layers=(1, 2), limit=limit)
    first = {row.name for row, _ in itertools.islice(source.read(0, 1, None), limit)}

    one = make_atlas(view, source, config, tmp_path / "a")
    several = run_ranks(view, source, config, tmp_path / "b", n_ranks)

    assert_same(one, several)
    assert several.manifest["n_images"] == min(limit, N)
    assert {several.image(r).name for r in range(several.manifest["n_stored_images"])} <= first


@pytest.mark.parametrize("limit", [None, 11])
@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_every_process_goes_on_where_it_was_stopped(limit, n_ranks, parquet, tiny_view, tmp_path):
    view, source = tiny_view("vit"), open_source(str(parquet))
    config = SearchConfig(k=4, batch=2, layers=(1,), limit=limit)

    class Killed(BaseException):
        pass

    def stopping():
        calls = itertools.count()

        def progress(state):
            if next(calls):  # after two batches, which are stored
                raise Killed

        return progress

    for rank in range(n_ranks):
        straight = search(view, source, config, tmp_path / f"straight-{rank}", False, rank, n_ranks)
        for attempt in range(20):
            with contextlib.suppress(Killed):
                stopped = search(
                    view, source, config, tmp_path / f"killed-{rank}", attempt > 0, rank, n_ranks, stopping(), 0
                )
                break
        assert attempt == (straight.n_rows + 1) // 2 // 2 > 0
        assert stopped.n_rows == straight.n_rows
        for site, fold in straight.folds.items():
            for name, tensor in fold.tensors().items():
                assert torch.equal(tensor, stopped.folds[site].tensors()[name]), (rank, name)


def test_a_process_without_rows_is_no_failure_and_ranks_are_checked(pictures, tiny_view, tmp_path):
    view, source = tiny_view("vit"), open_source(str(pictures))
    config = SearchConfig(k=4, layers=(1,), limit=1)

    assert search(view, source, config, tmp_path / "1", False, 1, 2).n_rows == 0
    with pytest.raises(ConfigError, match="there is no process 2 of 2; ranks are 0-1"):
        search(view, source, config, tmp_path / "2", False, 2, 2)


def test_options_of_a_cluster_that_do_not_fit_and_torchrun_are_refused(pictures, tmp_path, monkeypatch, capsys):
    def told(*options):
        assert main(["search", "builtin", str(pictures), "--out", str(tmp_path / "a"), *options]) == 2
        return capsys.readouterr().err

    assert "--gpus needs --on; write for example --on ray." in told("--gpus", "2")
    assert "--device is this process's" in told("--on", "ray", "--device", "cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "several GPUs are used by --on ray, started once; not by torchrun or accelerate." in told()


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_skipped_images_are_listed_the_same_for_any_number_of_processes(
    n_ranks, pictures, tiny_view, tmp_path, monkeypatch
):
    monkeypatch.setattr("vitviz_hf.atlas.search.LISTED", 3)
    monkeypatch.setattr("vitviz_hf.atlas.state.LISTED", 3)
    folder = tmp_path / "odd"
    shutil.copytree(pictures, folder)
    for i, name in enumerate("zfabgh"):
        (folder / f"{name}.png").write_bytes(b"no picture" * i)
    source, config = open_source(str(folder)), SearchConfig(k=2, batch=3, layers=(1,))

    def backwards(rank, n_ranks, position):
        yield from reversed(list(source.read(rank, n_ranks, position)))

    atlas = run_ranks(tiny_view("vit"), replace(source, read=backwards), config, tmp_path / "a", n_ranks)

    assert [name for name, _ in atlas.manifest["skipped"]] == ["a.png", "b.png", "f.png"]
    assert atlas.manifest["n_skipped"] == 6 and atlas.manifest["n_images"] == N


def poisoned(tiny_folder, layer, values):
    """A tiny ViT of its own: at images with a positive number at one place, one patch at a layer gets these values."""
    view = load_model(str(tiny_folder("vit")), device="cpu")
    mlp = view.module.get_submodule(view.layers[layer].taps["mlp_act"].module)

    def poison(_, args):
        hidden = args[0].clone()
        for i, value in enumerate(values):
            hidden[hidden[:, 3, 8] > 0, 2, 5 + i] = value
        return (hidden,)

    mlp.register_forward_pre_hook(poison)
    return view


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("values", [(math.nan,), (math.inf,), (-math.inf,), (math.inf, math.nan)])
def test_images_with_values_that_are_not_finite_are_left_out_counted_and_named(
    reduce, values, tiny_folder, tiny_view, pictures, tmp_path
):
    clean, bad = tiny_view("vit"), poisoned(tiny_folder, 1, values)
    source, config = open_source(str(pictures)), SearchConfig(k=30, batch=7, reduce=reduce)
    sites = [Site(0, "mlp_act"), Site(1, "mlp_act"), Site(2, "mlp_act")]
    scores, taken, names = {s: [] for s in sites}, [], []
    for row, _ in source.read(0, 1, None):
        acts = activations(clean, (to_pixels(clean, open_image(row.data)) * 255).round() / 255, sites)
        taken.append(not acts[sites[1]].values[0, 3, 8] > 0)
        names.append(row.name)
        for site in sites:
            tokens = acts[site].values[0, 1:].double()
            scores[site].append(getattr(tokens, "amax" if reduce == "max" else reduce)(0).numpy())
    n_bad = N - sum(taken)
    assert 3 < n_bad < N - 3

    text = (
        rf"tiny/vit' in float32 gives non-finite activations at 1\.mlp_act and 1 other sites on {n_bad} of {N} images"
    )
    with pytest.warns(RuntimeWarning, match=text):
        atlas = make_atlas(bad, source, config, tmp_path / "atlas")

    lost = {name for name, ok in zip(names, taken, strict=True) if not ok}
    assert atlas.manifest["n_non_finite"] == n_bad and atlas.manifest["n_images"] == N
    assert atlas.manifest["non_finite"] == {"1.mlp_act": n_bad, "2.mlp_act": n_bad}
    assert {name for name, _ in atlas.manifest["skipped"]} == lost
    assert {why for _, why in atlas.manifest["skipped"]} == {"non-finite activations at 1.mlp_act and 1 other sites"}
    assert f"{n_bad} gave non-finite" in (atlas.folder / "README.md").read_text()
    for site in sites:
        rows = [i for i in range(N) if site.layer == 0 or taken[i]]
        kept = np.array(scores[site])[rows]
        table = atlas.table(site)
        np.testing.assert_allclose(table.mean, kept.mean(0), atol=1e-5)
        np.testing.assert_allclose(table.std, kept.std(0), atol=1e-5)
        exact = np.quantile(kept, QUANTILES, axis=0, method="inverted_cdf").T
        np.testing.assert_allclose(table.quantiles, exact, rtol=0.033, atol=1.1e-4)
        assert np.isfinite(table.sparsity).all() and table.sparsity.min() >= 0
        for index in (0, 5, 6, 40):
            for bottom in (False, True):
                hits = atlas.hits(Feature(site, index), bottom)
                order = np.argsort(kept[:, index] if bottom else -kept[:, index])
                assert [atlas.image(h.row).name for h in hits] == [names[rows[i]] for i in order]
            assert atlas.histogram(Feature(site, index))[1].sum() == len(rows)


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_a_model_whose_values_are_never_finite_is_refused(n_ranks, tiny_folder, pictures, tmp_path):
    view, source = load_model(str(tiny_folder("vit")), device="cpu"), open_source(str(pictures))
    next(p for n, p in view.module.named_parameters() if "layer" in n and n.endswith("weight")).data[3, 3] = math.nan

    with pytest.raises(
        ModelError, match=rf"float32 gives non-finite activations at .* and \d other sites on every one of {N}"
    ):
        run_ranks(view, source, SearchConfig(k=2), tmp_path / "a", n_ranks)
    assert not (tmp_path / "a").exists()
    if n_ranks == 1:
        with pytest.raises(ModelError, match="Check its weights, load it in float32"):
            make_atlas(view, source, SearchConfig(k=2), tmp_path / "a", resume=True)


def test_two_searches_at_once_each_see_their_own_pictures(tiny_view, pictures, tmp_path):
    views = {
        "small": tiny_view("vit"),
        "wide": at_size(tiny_view("vit"), (32, 48)),
        "large": tiny_view("timm-twins-svt"),
    }
    source, config = open_source(str(pictures)), SearchConfig(k=4, batch=5, layers=(1,))
    everybody = threading.Barrier(len(views), timeout=60)

    def together(rank, n_ranks, position):
        everybody.wait()  # all have begun when the first row is decoded
        yield from source.read(rank, n_ranks, position)

    def run(name):
        return make_atlas(views[name], replace(source, read=together), config, tmp_path / name)

    with ThreadPoolExecutor(len(views)) as pool:
        made = dict(zip(views, pool.map(run, views), strict=True))

    for name, view in views.items():
        alone = make_atlas(view, source, config, tmp_path / f"{name}-alone")
        for file in ("features/features.parquet", "images/images.parquet", "manifest.json"):
            assert (made[name].folder / file).read_bytes() == (alone.folder / file).read_bytes(), (name, file)
        assert Image.open(io.BytesIO(alone.image(0).jpeg)).size == view.input_size[::-1]


def test_bins_at_their_edges_and_beyond_the_last():
    growth = 1e7 ** (1 / 256)
    edges = torch.tensor([1e-4 * growth**i for i in range(257)], dtype=torch.float32)
    inside = torch.tensor([1e-4 * growth ** (i + 0.5) for i in range(256)])

    assert sketch_bins(inside).tolist() == list(range(257, 513))
    assert sketch_bins(-inside).tolist() == list(range(255, -1, -1))
    assert (
        (sketch_bins(edges) - torch.arange(257, 514)).clamp(-1, 0) == (sketch_bins(edges) - torch.arange(257, 514))
    ).all()
    assert sketch_bins(torch.tensor([0.0, -0.0, 9.9e-5, -9.9e-5, 1e6, -1e30])).tolist() == [256] * 4 + [512, 0]
    centers = sketch_centers()
    assert len(centers) == 513 and (np.diff(centers) > 0).all() and np.allclose(centers, -centers[::-1])
    np.testing.assert_allclose(
        centers[257:],
        [2 / (1 / a + 1 / b) for a, b in itertools.pairwise(1e-4 * growth**i for i in range(257))],
        rtol=1e-9,
    )


def test_the_number_of_a_class_that_is_unknown_is_no_label(tmp_path):
    import datasets

    schema = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    buffer = io.BytesIO()
    draw(1).save(buffer, "PNG")
    rows = {"image": [{"bytes": buffer.getvalue(), "path": "x.png"}] * 3, "label": [1, -1, None]}
    pq.write_table(pa.table(rows, schema=schema.arrow_schema), tmp_path / "a.parquet")

    found = [(row.label, row.class_id) for row, _ in open_source(str(tmp_path / "a.parquet")).read(0, 1, None)]

    assert found == [("dog", 1), ("", None), ("", None)]
