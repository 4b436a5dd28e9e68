"""Damaged and hostile pictures: the right result or a clear error, in bounded memory, and nothing left behind."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.stress.children import run
from tests.stress.hostile_images import MAKERS, Case, cases
from tests.stress.sizes import AGAIN, SEED, SHARE, count
from vitviz_hf import SearchConfig, load_model, open_image, open_source
from vitviz_hf.atlas.search import search
from vitviz_hf.errors import ImageError
from vitviz_hf.ui.app import App
from vitviz_hf.ui.maps_tab import MapsTab

MEMORY = 1500
"""Megabytes."""
FAILED = 3


def wrong(case: Case) -> str:
    """What is wrong with how a picture is read; empty if nothing is."""
    try:
        image = open_image(case.data)
    except ImageError as error:
        told = str(error)
        if case.pixels is not None:
            return f"{case.name}: refused, but it is whole: {told}"
        return "" if len(told) < 500 and "\n" not in told and told.endswith(".") else f"{case.name}: said {told!r}"
    if image.mode != "RGB" or case.refused:
        return f"{case.name}: read as {image.mode} {image.size}, but it is no picture"
    if case.pixels is None:
        return ""
    found = np.asarray(image, int)
    if found.shape != case.pixels.shape:
        return f"{case.name}: has shape {found.shape}, not {case.pixels.shape}"
    off = int(np.abs(found - case.pixels).max())
    return f"{case.name}: is off by {off}" if off > case.off else ""


def decode_all(seed: int, n: int, temporary: str) -> int:
    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    found = [text for case in cases(seed, n) if (text := wrong(case))]
    print("\n".join(found))
    return FAILED if found else 0


def test_every_picture_is_read_rightly_or_refused_in_a_sentence(tmp_path):
    (tmp_path / "tmp").mkdir()

    ended = run(decode_all, SEED, count(1000, len(MAKERS)), str(tmp_path / "tmp"), folder=tmp_path)

    assert ended.code == 0, f"{ended.output}\n{AGAIN}"
    assert "Traceback" not in ended.output and "Warning" not in ended.output, ended.output
    assert ended.peak < MEMORY, f"{ended.peak:.0f} MB; {AGAIN}"
    assert not list((tmp_path / "tmp").iterdir())


def search_all(model: str, data: str, work: str, found: str, temporary: str) -> int:
    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    view = load_model(model, device="cpu")
    state = search(view, open_source(data), SearchConfig(k=2, batch=8, layers=(1,)), Path(work))
    facts = {"n_images": state.n_images, "n_rows": state.n_rows, "skipped": dict(state.skipped)}
    Path(found).write_text(json.dumps(facts))
    return 0


def stored(kind: str, folder: Path, made: list[tuple[str, Case]]) -> Path:
    """The files as a folder, or as one of parquet."""
    if kind == "parquet":
        rows = [{"bytes": case.data, "path": name} for name, case in made]
        pq.write_table(pa.table({"image": rows}), folder / "data.parquet", row_group_size=50)
        return folder / "data.parquet"
    (folder / "data").mkdir()
    for name, case in made:
        (folder / "data" / name).write_bytes(case.data)
    return folder / "data"


@pytest.mark.parametrize("kind", ["folder", "parquet"] if SHARE == 1 else ["folder"])
def test_a_search_takes_what_is_whole_and_names_what_it_skips(kind, tiny_folder, tmp_path):
    made = [(f"{i:04}.png", case) for i, case in enumerate(cases(SEED + 1, count(250, 33), SHARE == 1))]
    data = stored(kind, tmp_path, made)
    (tmp_path / "tmp").mkdir()
    paths = [str(tmp_path / name) for name in ("work", "found", "tmp")]

    ended = run(search_all, str(tiny_folder("vit")), str(data), *paths, folder=tmp_path)

    assert ended.code == 0, f"{ended.output}\n{AGAIN}"
    found = json.loads((tmp_path / "found").read_text())
    assert found["n_rows"] == len(made) and found["n_images"] + len(found["skipped"]) == len(made)
    skipped = found["skipped"]
    assert not {name for name, case in made if case.pixels is not None} & set(skipped), AGAIN
    assert {name for name, case in made if case.refused} <= set(skipped), AGAIN
    assert ended.peak < MEMORY, f"{ended.peak:.0f} MB; {AGAIN}"
    assert not list((tmp_path / "tmp").iterdir())
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == ["crops.sqlite", "state.safetensors"]


def search_odd(model: str, data: str, work: str) -> int:
    state = search(load_model(model, device="cpu"), open_source(data), SearchConfig(k=2, layers=(1,)), Path(work))
    print(state.n_images, state.skipped)
    return 0


def test_a_folder_with_what_is_no_file_is_searched(tiny_folder, photo, tmp_path):
    data = tmp_path / "data"
    (data / "folder.png").mkdir(parents=True)
    photo.save(data / "whole.png")
    photo.save(data / "folder.png" / "inside.png")
    (data / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (data / "circle.png").symlink_to(data / "circle.png")
    os.mkfifo(data / "pipe.png")
    with (data / "sparse.png").open("wb") as file:
        file.truncate(40_000_000_000)

    ended = run(search_odd, str(tiny_folder("vit")), str(data), str(tmp_path / "work"), folder=tmp_path, seconds=60)

    assert ended.code == 0 and ended.output.startswith("2 [('sparse.png', 'the image file"), ended.output
    assert ended.peak < MEMORY


@pytest.fixture(scope="module")
def app(tiny_folder):
    return App(str(tiny_folder("vit")), lambda _: lambda job: job, True)


@pytest.mark.filterwarnings("ignore::UserWarning:gradio")  # what a page would be told
def test_an_uploaded_picture_is_shown_or_refused_in_a_sentence(app, tmp_path):
    maps = app.page.tab(MapsTab)
    settings = [getattr(component, "value", None) for component in maps.asked]
    for case in cases(SEED + 2, count(200, 33), with_large=False):
        path = tmp_path / "upload.png"
        path.write_bytes(case.data)

        shown = maps.answer("{}", str(path), None, *settings)

        told = str(shown.get(maps.status, ""))
        assert told and "went wrong" not in told, f"{case.name}: {told}; {AGAIN}"
        drawn = shown.get(maps.large)
        assert drawn is not None or case.pixels is None, f"{case.name}: {told}; {AGAIN}"
        assert drawn is None or not case.refused, f"{case.name}: {AGAIN}"


@pytest.mark.skipif(SHARE < 1, reason="part of make stress")
def test_an_upload_over_the_network_gives_a_map_or_a_sentence(app, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    _, url, _ = app.demo.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    client = Client(url, verbose=False, download_files=str(tmp_path / "client"))
    try:
        for case in cases(SEED + 3, count(100)):
            path = tmp_path / "upload.png"
            path.write_bytes(case.data)
            asked = {"model_id": app.model.value, "image": handle_file(path), "feature": "1.mlp_act:3"}
            try:
                client.predict(**asked, api_name="/map_feature")
            except AppError as error:
                assert "went wrong" not in str(error) and case.pixels is None, f"{case.name}: {error}; {AGAIN}"
            else:
                assert not case.refused, f"{case.name}: {AGAIN}"
    finally:
        app.demo.close()
