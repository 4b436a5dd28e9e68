"""Models and datasets from strangers: refused in a sentence, or right; nobody else is asked, nothing is executed."""

import hashlib
import io
import json
import os
import random
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import load, save

from tests.stress.children import run
from tests.stress.sizes import AGAIN, SEED, count
from tests.stress.strangers import (
    IDS,
    MARKUP,
    MODEL_SPOILS,
    REFUSED,
    REVISIONS,
    TIMM_SPOILS,
    WEIGHTS,
    WORKS,
    Places,
    edit,
)
from vitviz_hf import load_model, open_atlas, open_source
from vitviz_hf.errors import VitvizError
from vitviz_hf.hub import find_path
from vitviz_hf.ui.app import App
from vitviz_hf.ui.maps_tab import MapsTab

MEMORY = 1500
"""Megabytes."""
PAINTED = ("HTML", "Markdown")
"""Components that read what they show as HTML."""


class Trap:
    """Another host: `asked` keeps what it was asked, with the token that came along."""

    def __init__(self) -> None:
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append((self.path, self.headers.get("Authorization")))
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_POST = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def trap():
    made = Trap()
    yield made
    made.server.shutdown()


def attempt(action, *args) -> tuple[str, str]:
    """What came of it, and what was said."""
    try:
        action(*args)
    except VitvizError as error:
        told = str(error)
        return ("wordy" if "\n" in told or len(told) > 700 else REFUSED), told
    except BaseException:
        return "raw", traceback.format_exc()
    return WORKS, ""


def load_all(listed: str, told: str) -> int:
    """Load every model of a file, a line of what came of it for each."""
    with open(told, "a") as out:
        for model_id in Path(listed).read_text().splitlines():
            out.write(json.dumps([model_id, *attempt(load_one, model_id)]) + "\n")
            out.flush()
    return 0


def load_one(model_id: str) -> None:
    view = load_model(model_id, device="cpu", token="hf_friend")
    assert all(isinstance(label, str) for label in view.labels or ())


def repository(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_strangers_model_is_refused_in_a_sentence_or_right(hub, tiny_folder, trap, tmp_path):
    places = Places(trap.url, tmp_path / "executed")
    (tmp_path / "weights.pth").write_bytes(places.pickled)
    spoils = random.Random(SEED).sample([*MODEL_SPOILS, *TIMM_SPOILS], len(MODEL_SPOILS) + len(TIMM_SPOILS))
    expected, served = {}, {f: repository(tiny_folder(f)) for f in ("vit", "timm-vit")}
    for i in range(count(200, len(spoils))):
        spoil, model_id = spoils[i % len(spoils)], f"odd{SEED}/case-{i}"
        files = dict(served["timm-vit" if spoil in TIMM_SPOILS else "vit"])
        expected[model_id] = spoil.__name__, spoil(files, np.random.default_rng([SEED, i]), places)
        hub.serve(model_id, files)
    (tmp_path / "listed").write_text("\n".join(expected))
    before = len(hub.log)

    ended = run(load_all, str(tmp_path / "listed"), str(tmp_path / "outcomes"), folder=tmp_path, seconds=900)

    told = [json.loads(line) for line in (tmp_path / "outcomes").read_text().splitlines()]
    wrong = []
    for model_id, outcome, text in told:
        name, wanted = expected[model_id]
        if outcome not in ((REFUSED, WORKS) if wanted == "either" else (wanted,)):
            wrong.append(f"{name} ({model_id}): {outcome}, not {wanted}\n{text}")
    assert not wrong, "\n".join(wrong) + AGAIN
    assert ended.code == 0 and len(told) == len(expected), f"ended at {told[-1:]}: {ended.output}\n{AGAIN}"
    assert ended.peak < MEMORY, f"{ended.peak:.0f} MB; {AGAIN}"
    assert not places.executed.exists() and not trap.asked
    asked = [path for _, path, _ in hub.log[before:]]
    assert not [path for path in asked if path and f"odd{SEED}/case-" not in path], AGAIN
    assert not [path for path in asked if path.endswith((".py", ".bin", ".pt", ".pth", ".ckpt"))], AGAIN


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_what_is_no_id_is_refused_in_a_sentence(kind, hub, trap):
    for name in IDS:
        if kind == "dataset" and find_path(name):
            continue
        outcome, text = attempt(load_model if kind == "model" else open_source, name.replace("TRAP", trap.url))

        assert outcome == REFUSED, f"{name!r}: {outcome} {text}"
    assert not trap.asked


def test_an_odd_revision_is_refused_in_a_sentence_or_stays_in_its_repository(hub, trap):
    before = len(hub.log)

    for revision in REVISIONS:
        outcome, text = attempt(load_model, "tiny/vit", revision)

        assert outcome in (REFUSED, WORKS), f"{revision!r}: {outcome} {text}"
    assert all("tiny/vit" in path or not path for _, path, _ in hub.log[before:])


def broken_off(request, name, data):
    """Half of what was announced."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(data)))
    request.send_header("ETag", '"half"')
    request.send_header("X-Repo-Commit", "0" * 40)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data[: len(data) // 2])
        request.close_connection = True


def other_length(request, name, data):
    """Fewer bytes than were announced."""
    request.send_file(request.hub.repos["odd/tricky"], data if request.command == "HEAD" else data[:-9])


def failing(request, name, data):
    request.send_response(500)
    request.send_header("Content-Length", "0")
    request.end_headers()


@pytest.mark.parametrize("trick", [broken_off, other_length, failing])
def test_a_download_that_breaks_off_is_told_and_not_taken_for_whole(trick, hub, tiny_folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.publish("odd/tricky", tiny_folder("vit"))
    repo = hub.repos["odd/tricky"]
    repo["sha"] = hashlib.sha1(trick.__name__.encode()).hexdigest()
    repo["files"][WEIGHTS] = fresh(tiny_folder("vit"), trick.__name__)
    hub.tricks["odd/tricky"] = lambda request, name, data: (
        trick(request, name, data) if name == WEIGHTS else request.send_file(repo, data)
    )

    outcome, text = attempt(load_model, "odd/tricky", None, "cpu")
    del hub.tricks["odd/tricky"]
    whole = load_model("odd/tricky", device="cpu")

    assert outcome == REFUSED, text
    assert (whole.snapshot.folder / WEIGHTS).read_bytes() == repo["files"][WEIGHTS]


def fresh(folder: Path, text: str) -> bytes:
    """The weights of a folder with another name in them, so that no cache has them."""
    return save(load((folder / WEIGHTS).read_bytes()), {"format": "pt", "name": text})


def test_a_slow_answer_is_waited_for(hub, tiny_folder):
    def slow(request, name, data):
        time.sleep(0.2)
        request.send_file(hub.repos["odd/slow"], data)

    hub.publish("odd/slow", tiny_folder("vit"))
    hub.tricks["odd/slow"] = slow

    assert load_model("odd/slow", device="cpu").layers


def test_a_redirect_to_another_host_takes_no_token_along(hub, trap, tiny_folder):
    """As the Hub itself sends those who ask for large files to its storage."""

    def elsewhere(request, name, data):
        request.send_response(302)
        headers = {"Location": f"{trap.url}/{name}", "ETag": '"e"', "X-Linked-ETag": '"e"', "Content-Length": "0"}
        headers |= {"X-Repo-Commit": hub.repos["odd/moved"]["sha"], "X-Linked-Size": str(len(data))}
        for key, value in headers.items():
            request.send_header(key, value)
        request.end_headers()

    hub.publish("odd/moved", tiny_folder("vit"))
    hub.tricks["odd/moved"] = elsewhere

    outcome, text = attempt(load_model, "odd/moved", None, "cpu", torch.float32, "hf_friend")

    assert outcome == REFUSED, text
    assert trap.asked and {token for _, token in trap.asked} == {None}


def read_all(dataset: str) -> None:
    for row, _ in open_source(dataset, token="hf_friend").read(0, 1, None):
        assert isinstance(row.data, bytes)


def parquet(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def strange_datasets(places: Places, rng) -> dict[str, dict[str, bytes]]:
    """Name -> files."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "PNG")
    whole = parquet([{"image": {"bytes": picture.getvalue(), "path": "../../a.png"}}])
    named = parquet([{"image": {"bytes": None, "path": f"{places.trap}/a.png"}}])
    absolute = parquet([{"image": {"bytes": None, "path": "/etc/passwd"}}])
    card = "---\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"
    at, code = int(rng.integers(8, len(whole))), f"open({str(places.executed)!r}, 'w')".encode()
    return {
        "named-elsewhere": {"a.parquet": named},
        "named-here": {"a.parquet": absolute},
        "card-elsewhere": {"README.md": card.format(f"{places.trap}/a.parquet").encode(), "a.parquet": whole},
        "card-outside": {"README.md": card.format("../../tiny/x/a.parquet").encode(), "a.parquet": whole},
        "card-absolute": {"README.md": card.format("/etc/passwd").encode(), "a.parquet": whole},
        "card-nested": {"README.md": b"---\na: " + b"[" * 3000 + b"\n---\n", "a.parquet": whole},
        "card-of-aliases": {"README.md": b"---\na: &a [x]\nb: &b [*a, *a]\nconfigs: *b\n---\n", "a.parquet": whole},
        "card-that-runs": {"README.md": b"---\na: !!python/object/apply:os.system [x]\n---\n", "a.parquet": whole},
        "code": {"code.py": code, "a.parquet": whole},
        "only-code": {"only-code.py": code},
        "half": {"a.parquet": whole[:at]},
        "no-magic": {"a.parquet": b"PAR1" + bytes(100) + b"PAR1"},
        "long-footer": {"a.parquet": whole[:-8] + b"\xff\xff\xff\x7fPAR1"},
        "empty": {"a.parquet": b""},
        "no-images": {"a.parquet": parquet([{"text": "x"}])},
        "outside": {"../../a.parquet": whole, "data/../../b.parquet": whole},
        "lines": {"a.jsonl": b'{"image": ' * 5000},
        "folder": {"metadata.jsonl": b'{"file_name": "../../../etc/passwd"}', "a.png": picture.getvalue()},
        "zip": {"a.zip": b"PK\3\4" + bytes(60)},
        "pickled": {"a.pkl": places.pickled, "a.pt": places.pickled},
        "infos": {"dataset_infos.json": b'{"a":' * 3000, "a.parquet": whole},
    }


def test_a_strangers_dataset_is_read_or_refused_in_a_sentence(hub, trap, tmp_path, monkeypatch):
    monkeypatch.setattr("vitviz_hf.stream._RETRIES", (0,))
    places = Places(trap.url, tmp_path / "executed")
    made = strange_datasets(places, np.random.default_rng(SEED))
    for name, files in made.items():
        hub.serve(f"datasets/odd/{name}", files)
    wrong = []
    for name in random.Random(SEED).sample(sorted(made), count(len(made), 6)):
        outcome, text = attempt(read_all, f"odd/{name}")
        wrong += [f"{name}: {outcome} {text}"] if outcome not in (REFUSED, WORKS) else []

    assert not wrong, "\n".join(wrong) + AGAIN
    assert not trap.asked and not places.executed.exists()


def test_an_atlas_whose_files_would_lie_elsewhere_is_refused(hub, atlas):
    files = {str(p.relative_to(atlas)): p.read_bytes() for p in atlas.rglob("*") if p.is_file()}
    hub.serve("datasets/odd/atlas", files | {"features/../../../../../evil.parquet": b"x", "words/../../../../x": b"x"})

    outcome, text = attempt(open_atlas, "odd/atlas")

    assert outcome in (REFUSED, WORKS), text
    assert not list(Path(os.environ["HF_HOME"]).parent.rglob("evil.parquet"))


def test_markup_in_names_and_labels_is_text_on_the_page(hub, tiny_folder, photo, tmp_path):
    files = repository(tiny_folder("vit"))
    edit(files, "config.json", id2label=dict(enumerate([MARKUP, f"dog{MARKUP}", "bus"])), label2id={})
    hub.serve("odd/marked", files)
    app = App("odd/marked", lambda _: lambda job: job, True)
    maps = app.page.tab(MapsTab)
    photo.save(tmp_path / "photo.png")
    settings = [getattr(component, "value", None) for component in maps.asked]

    shown = maps.answer("{}", str(tmp_path / "photo.png"), None, *settings)

    texts = [str(v.get("value") if isinstance(v, dict) else v) for c, v in shown.items() if type(c).__name__ in PAINTED]
    assert any("&lt;img" in text for text in texts) and not [text for text in texts if MARKUP in text]
