"""Loading by id through a Hub on this machine, and every way it can fail."""

import json
import pickle
import re
import shutil
import subprocess
import sys

import pytest
import torch

from tests.tiny_models import TINY, Tiny, _save_timm
from vitviz_hf import SearchConfig, activations, list_sites, load_model, load_zero_shot, open_source
from vitviz_hf.atlas.search import search
from vitviz_hf.errors import (
    DatasetError,
    GatedModelError,
    HubUnreachableError,
    ModelError,
    ModelNotFoundError,
    ModelTooLargeError,
    RevisionError,
    UnsafeModelError,
)
from vitviz_hf.models.gate import default_model, fetch_model
from vitviz_hf.models.view import load_snapshot, run


def variant(hub, tiny_folder, tmp_path, name, change=None, **options):
    """Publish a changed copy of the tiny ViT as `odd/NAME`."""
    folder = tmp_path / name
    shutil.copytree(tiny_folder("vit"), folder)
    if change:
        change(folder)
    hub.publish(f"odd/{name}", folder, **options)
    return f"odd/{name}"


def make_folder(path):
    path.mkdir()
    return path


def edit_config(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


@pytest.mark.parametrize("family", TINY)
def test_every_family_loads_by_id_pinned_to_its_commit(family, hub, tiny_view):
    view = load_model(f"tiny/{family}", device="cpu")

    assert view.revision == hub.repos[f"tiny/{family}"]["sha"]
    pixels = torch.rand(1, 3, *view.input_size)
    sites = [s for s, _ in list_sites(view)]
    ours, folder = (activations(v, pixels, sites) for v in (view, tiny_view(family)))
    for site in sites:
        assert torch.equal(ours[site].values, folder[site].values)
    if view.labels:
        with torch.no_grad():
            assert torch.equal(run(view, pixels).logits, run(tiny_view(family), pixels).logits)


def test_sharded_weights_load(hub, tmp_path, tiny_view):
    module = tiny_view("vit").module
    module.save_pretrained(tmp_path / "sharded", max_shard_size="30kB")
    shutil.copy(f"{tiny_view('vit').model_id}/preprocessor_config.json", tmp_path / "sharded")
    hub.publish("odd/sharded", tmp_path / "sharded")

    view = load_model("odd/sharded", device="cpu")

    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    pixels = torch.rand(1, 3, 32, 32)
    for a, b in zip(
        activations(view, pixels, ["2.resid"]).values(),
        activations(tiny_view("vit"), pixels, ["2.resid"]).values(),
        strict=True,
    ):
        assert torch.equal(a.values, b.values)


def test_a_branch_is_pinned_to_its_commit(hub):
    assert load_model("tiny/vit", revision="v1", device="cpu").revision == hub.repos["tiny/vit"]["sha"]


@pytest.mark.parametrize("model_id", ["tiny/nothing", "nothing-at-all"])
def test_a_missing_or_private_model(hub, model_id):
    with pytest.raises(ModelNotFoundError, match="is not on the Hub, or it is private"):
        load_model(model_id)


@pytest.mark.parametrize("model_id", ["a/b/c", "has space/x", "", "https://example.org/x", "-x/y"])
def test_what_is_no_id_is_refused_without_a_request(hub, model_id):
    before = len(hub.log)

    with pytest.raises(ModelNotFoundError, match="is not a Hub id; write OWNER/NAME"):
        load_model(model_id)

    assert len(hub.log) == before


def test_a_loaded_model_is_not_asked_for_again(hub, tiny_folder, labelled, tmp_path):
    """Its tokenizer is downloaded once, and nothing else: neither for other labels nor for decoding processes."""
    hub.publish("odd/loaded", tiny_folder("clip"))
    view = load_model("odd/loaded", device="cpu")
    before = len(hub.log)

    words = load_zero_shot(view, ["a bus", "a cat"], ["{}"])

    asked = [path for _, path, _ in hub.log[before:]]
    files = [path.rpartition("/")[2] for path in asked if "/resolve/" in path]
    assert "tokenizer.json" in files and not {"config.json", "model.safetensors"} & set(files)
    before = len(hub.log)
    other = load_zero_shot(view, ["a dog", "a cat"], ["{}"])
    search(view, open_source(str(labelled)), SearchConfig(workers=1, limit=4, k=2), tmp_path / "search")
    assert hub.log[before:] == []
    assert torch.equal(words.embeddings[1], other.embeddings[1])


def test_a_tokenizer_too_large_is_not_downloaded(hub, tiny_folder):
    hub.publish("odd/wordy", tiny_folder("clip"), sizes={"tokenizer.json": 200_000_000})
    view = load_model("odd/wordy", device="cpu")
    before = len(hub.log)

    with pytest.raises(ModelTooLargeError, match="the tokenizer of 'odd/wordy' takes 200 MB, over 100 MB"):
        load_zero_shot(view, ["a bus"], ["{}"])

    assert hub.log[before:] == []


def test_a_missing_folder():
    with pytest.raises(ModelNotFoundError, match=r"there is no folder '\./nowhere'"):
        load_model("./nowhere")


def test_a_wrong_revision(hub):
    with pytest.raises(RevisionError, match="'tiny/vit' has no revision 'v9'"):
        load_model("tiny/vit", revision="v9")


def test_a_gated_model_needs_a_token_with_access(hub, tiny_folder):
    hub.publish("odd/gated", tiny_folder("vit"), gated=True)

    with pytest.raises(GatedModelError, match=r"is gated\. Accept its terms .* 'hf auth login'"):
        load_model("odd/gated")
    assert load_model("odd/gated", token="hf_friend", device="cpu").revision


def test_what_a_token_opened_lies_apart_and_what_is_open_does_not(hub, tiny_folder, monkeypatch):
    hub.publish("odd/apart", tiny_folder("vit"), gated=True)
    hub.publish("odd/open", tiny_folder("vit"))
    fetched = {name: fetch_model(name, token="hf_friend") for name in ("odd/apart", "odd/open")}
    monkeypatch.setattr("vitviz_hf.models.gate.hub_reachable", lambda: False)

    for token in (None, False, "hf_friend", "hf_stranger"):
        assert fetch_model("odd/open", token=token).folder == fetched["odd/open"].folder
    assert fetch_model("odd/apart", token="hf_friend").folder == fetched["odd/apart"].folder
    for token in (None, False):
        with pytest.raises(HubUnreachableError, match="'odd/apart' is not in the cache"):
            fetch_model("odd/apart", token=token)


def test_what_a_token_opens_is_not_stored_where_it_would_lie_with_what_is_open(hub, tiny_folder, monkeypatch, tmp_path):
    hub.publish("odd/unmarked", tiny_folder("vit"), gated=True)
    (tmp_path / "hub-closed").touch()  # no folder can be made there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    with pytest.raises(HubUnreachableError, match="the Hub failed at 'odd/unmarked'"):
        fetch_model("odd/unmarked", token="hf_friend")

    assert not (tmp_path / "hub").exists()


def test_a_visitor_is_not_told_what_only_the_owner_can_do(hub, tiny_folder):
    hub.publish("odd/gated-too", tiny_folder("vit"), gated=True)
    hub.publish("odd/large", tiny_folder("vit"), sizes={"model.safetensors": 9_000_000_000})
    told = []
    for name in ("odd/gated-too", "odd/large", "odd/absent"):
        with pytest.raises(ModelError) as caught:
            fetch_model(name, token=False)
        told.append((str(caught.value), caught.value.for_visitor))

    for owner, visitor in told:
        assert re.search("hf auth login|VITVIZ_MAX_GB|token", owner)
        assert not re.search("hf auth login|VITVIZ_MAX_GB|token", visitor)
    assert (
        told[0][1] == "'odd/gated-too' is gated. Only what is open to everybody can be read here; choose another one."
    )
    copied = pickle.loads(pickle.dumps(caught.value))  # as ZeroGPU hands it over
    assert copied.for_visitor == caught.value.for_visitor


def test_the_machines_token_is_not_sent_for_visitors(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_server")
    before = len(hub.log)

    fetch_model("tiny/beit", token=False)

    sent = {authorization for _, _, authorization in hub.log[before:]}
    assert sent == {None}


def test_pickled_weights_are_refused(hub, tiny_folder, tmp_path):
    def pickled(folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(UnsafeModelError, match="only pickled weights"):
        load_model(variant(hub, tiny_folder, tmp_path, "pickled", pickled))


def test_custom_code_is_refused_and_not_downloaded(hub, tiny_folder, tmp_path):
    def custom(folder):
        edit_config(model_type="mine", auto_map={"AutoModel": "evil.Model"})(folder)
        (folder / "evil.py").write_text("raise SystemExit('executed')")

    model_id = variant(hub, tiny_folder, tmp_path, "custom", custom)
    with pytest.raises(UnsafeModelError, match="needs the repository's own code, which is never run"):
        load_model(model_id)
    assert not [p for _, p, _ in hub.log if p.endswith("evil.py")]


def test_a_known_architecture_with_extra_code_runs_only_the_known_one(hub, tiny_folder, tmp_path):
    def custom(folder):
        edit_config(auto_map={"AutoModel": "evil.Model"})(folder)
        (folder / "evil.py").write_text("raise SystemExit('executed')")

    assert len(load_model(variant(hub, tiny_folder, tmp_path, "half-custom", custom), device="cpu").layers) == 3


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_is_nested_without_end_is_refused(name, hub, tiny_folder, tmp_path):
    def nest(folder):
        (folder / name).write_text('{"a":' * 100_000)
        if "index" in name:
            (folder / "model.safetensors").unlink()

    with pytest.raises(ModelError, match=r"config\.json of .* is not valid JSON|index\.json of .* is damaged"):
        load_model(variant(hub, tiny_folder, tmp_path, f"nested-{name}", nest))


def test_a_text_too_large_is_not_downloaded(hub, tiny_folder, tmp_path):
    model_id = variant(hub, tiny_folder, tmp_path, "wordy-config", sizes={"config.json": 9_000_000_000})

    with pytest.raises(ModelTooLargeError, match=r"config\.json of 'odd/wordy-config' takes 9000 MB, over 20 MB"):
        load_model(model_id)


@pytest.mark.parametrize("argument", ["checkpoint_path", "pretrained_cfg", "cache_dir"])
def test_timm_opens_no_other_file_for_a_stranger(argument, hub, tiny_folder, tmp_path):
    """It unpickles a checkpoint_path, which may be a file that the same visitor uploaded."""
    pickled = tmp_path / "weights.pth"
    pickled.write_bytes(pickle.dumps(Executed(str(tmp_path / "executed"))))
    shutil.copytree(tiny_folder("timm-vit"), tmp_path / "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    edit_config(model_args=config["model_args"] | {argument: str(pickled)})(tmp_path / "timm")
    hub.publish(f"odd/timm-{argument}", tmp_path / "timm")

    with pytest.raises(UnsafeModelError, match=f"asks timm for '{argument}', which loads other weights"):
        load_model(f"odd/timm-{argument}", device="cpu")
    assert not (tmp_path / "executed").exists()


class Executed:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("odd", {"hidden_size": []}, "could not be loaded: .*'hidden_size'"),
        ("deep", {"num_hidden_layers": 10**6}, "has 1000000 layers; at most 1000 are possible"),
        ("wide", {"intermediate_size": 2**22}, "tells of .* million weights; it has fewer"),
    ],
)
def test_a_config_of_odd_values_or_of_too_much_is_refused_at_once(name, changes, told, hub, tiny_folder, tmp_path):
    with pytest.raises(ModelError, match=told):
        load_model(variant(hub, tiny_folder, tmp_path, name, edit_config(**changes)))


def test_a_label_may_be_called_like_a_number_of_layers(hub, tiny_folder, tmp_path):
    labels = {"id2label": {"0": "cat", "1": "layers", "2": "bus"}, "label2id": {"cat": 0, "layers": 15_000, "bus": 2}}
    model_id = variant(hub, tiny_folder, tmp_path, "layered-label", edit_config(**labels))

    assert load_model(model_id, device="cpu").labels == ("cat", "layers", "bus")


def test_an_input_that_nobody_has_the_memory_for_is_refused(hub, tiny_folder, tmp_path):
    def change(folder):
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"size": {"height": 10**5, "width": 10**5}}))

    with pytest.raises(ModelError, match="its pictures have sides of 100000; possible are up to 4096 pixels"):
        load_model(variant(hub, tiny_folder, tmp_path, "large-input", change))


def test_shards_that_are_not_there_are_named(hub, tiny_folder, tmp_path):
    def index(folder):
        (folder / "model.safetensors").unlink()
        weights = {"weight_map": {"a": "one.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(weights))

    with pytest.raises(ModelError, match=r"'odd/shardless' lacks weight files: one\.safetensors"):
        load_model(variant(hub, tiny_folder, tmp_path, "shardless", index))


@pytest.mark.parametrize("text", ["~nobody-at-all/x", "a/" + "b" * 5000, "a\0b"])
def test_what_is_no_path_is_no_folder(text, hub):
    with pytest.raises(ModelNotFoundError):
        load_model(text)
    with pytest.raises(DatasetError):
        open_source(text)


def test_a_dataset_whose_card_names_another_host_is_refused(hub):
    card = b"---\nconfigs:\n- config_name: default\n  data_files: http://localhost:9/a.parquet\n---\n"
    hub.serve("datasets/odd/elsewhere", {"README.md": card})

    with pytest.raises(DatasetError, match=r"has its files elsewhere \('http://localhost:9/a\.parquet'\)"):
        open_source("odd/elsewhere")


def test_another_kind_of_model_is_named(hub, tiny_folder, tmp_path):
    with pytest.raises(
        ModelError, match=r"model_type 'bert', which is not a vision model known here\. 'vitviz models' lists"
    ):
        load_model(variant(hub, tiny_folder, tmp_path, "text", edit_config(model_type="bert")))


def test_too_large_a_model_is_refused_before_its_weights_are_downloaded(hub, tiny_folder, tmp_path):
    model_id = variant(hub, tiny_folder, tmp_path, "large", sizes={"model.safetensors": 9_000_000_000})

    with pytest.raises(ModelTooLargeError, match=r"take 9\.0 GB, more than the limit of 6\.0 GB\. .*VITVIZ_MAX_GB"):
        load_model(model_id)
    assert not [p for _, p, _ in hub.log if p.startswith("odd/large/") and p.endswith(".safetensors")]


def test_weights_that_do_not_fit_the_config(hub, tiny_folder, tmp_path):
    with pytest.raises(ModelError, match=r"do not fit its config\.json"):
        load_model(variant(hub, tiny_folder, tmp_path, "misfit", edit_config(num_hidden_layers=4)))


def test_damaged_weights(hub, tiny_folder, tmp_path):
    def cut(folder):
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])

    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(variant(hub, tiny_folder, tmp_path, "damaged", cut))


def test_a_damaged_config(hub, tiny_folder, tmp_path):
    with pytest.raises(ModelError, match="not valid JSON"):
        load_model(variant(hub, tiny_folder, tmp_path, "no-json", lambda f: (f / "config.json").write_text("{")))


def test_an_index_that_points_elsewhere_is_refused(hub, tiny_folder, tmp_path):
    def index(folder):
        (folder / "model.safetensors").unlink()
        weights = {"weight_map": {"a": "../../etc/passwd"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(weights))

    with pytest.raises(ModelError, match="names files that are not safetensors"):
        load_model(variant(hub, tiny_folder, tmp_path, "index", index))


def test_a_model_without_preprocessing(hub, tiny_folder, tmp_path):
    change = lambda f: (f / "preprocessor_config.json").unlink()  # noqa: E731
    with pytest.raises(ModelError, match=r"no usable preprocessor_config\.json"):
        load_model(variant(hub, tiny_folder, tmp_path, "no-processor", change))


def test_an_architecture_that_timm_does_not_know_is_named(hub, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder("timm-vit"), tmp_path / "new")
    edit_config(architecture="vit_from_next_year")(tmp_path / "new")
    hub.publish("odd/new", tmp_path / "new")

    with pytest.raises(ModelError, match="is of architecture 'vit_from_next_year', unknown to timm"):
        load_model("odd/new")


@pytest.mark.parametrize(("architecture", "works"), [("cait_xxs24_224", True), ("hiera_tiny_224", False)])
def test_a_timm_model_outside_the_tested_families_is_tried_on_load(architecture, works, hub, tmp_path):
    """What was measured holds for CaiT; timm's Hiera keeps its patches in an order of its own."""
    sizes = {"img_size": 64}
    small = {"depth": 2, "embed_dim": 32, "num_heads": 2} if works else {"embed_dim": 16, "num_heads": 1}
    _save_timm(architecture, sizes | small, Tiny(None, input_size=(64, 64)), make_folder(tmp_path / "other"))
    hub.publish(f"odd/{architecture}", tmp_path / "other")

    if works:
        assert len(load_model(f"odd/{architecture}", device="cpu").layers) == 2
    else:
        with pytest.raises(ModelError, match="which token is which patch could not be established"):
            load_model(f"odd/{architecture}", device="cpu")


UNREACHABLE = """
import time
from vitviz_hf.models.gate import default_model, fetch_model
from vitviz_hf.errors import HubUnreachableError
start = time.monotonic()
print(default_model())
print(fetch_model("tiny/vit").revision)
try:
    fetch_model("tiny/never-seen")
except HubUnreachableError as error:
    print(error)
print(time.monotonic() - start < 10)
"""


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "hanging", "offline"])
def test_without_a_hub_the_cache_is_used_at_once(endpoint, hub, monkeypatch):
    """A refused connection, a server that accepts and never answers, and HF_HUB_OFFLINE."""
    import os
    import socket

    fetch_model("tiny/vit")
    silent = socket.create_server(("127.0.0.1", 0))
    environment = dict(os.environ)
    if endpoint == "offline":
        environment["HF_HUB_OFFLINE"] = "1"
    else:
        hanging = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment["HF_ENDPOINT"] = hanging if endpoint == "hanging" else endpoint

    run = subprocess.run([sys.executable, "-c", UNREACHABLE], env=environment, capture_output=True, text=True)
    silent.close()

    name, revision, error, fast = run.stdout.splitlines() or [run.stderr] * 4
    assert name == "builtin"
    assert revision == hub.repos["tiny/vit"]["sha"]
    assert "'tiny/never-seen' is not in the cache" in error and "'builtin'" in error
    assert fast == "True"


def test_with_a_hub_the_default_is_the_papers_model(hub, monkeypatch):
    assert default_model() == "google/vit-base-patch16-224"
    monkeypatch.setenv("VITVIZ_MODEL", "tiny/vit")
    assert default_model() == "tiny/vit"


def test_the_builtin_model_is_converted_once(builtin):
    made = (builtin.snapshot.folder / "model.safetensors").stat()

    snapshot = fetch_model("builtin")

    again = (snapshot.folder / "model.safetensors").stat()
    assert (again.st_ino, again.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert sorted(p.name for p in snapshot.folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


def test_a_hub_that_fails_midway_is_reported(hub, tiny_folder, tmp_path, monkeypatch):
    model_id = variant(hub, tiny_folder, tmp_path, "vanishing")
    del hub.repos[model_id]["files"]["model.safetensors"]
    hub.repos[model_id]["sizes"]["model.safetensors"] = 5
    hub.repos[model_id]["files"]["model.safetensors.index.json"] = b"[]"

    with pytest.raises((HubUnreachableError, ModelError)):
        load_model(model_id)


def test_what_is_fetched_later_of_a_model_is_asked_for_as_the_model_was(hub, tiny_folder, monkeypatch):
    """A server's own login must not reach what a visitor names."""
    hub.publish("stranger/clip", tiny_folder("clip"))
    monkeypatch.setenv("HF_TOKEN", "hf_friend")
    view = load_snapshot(fetch_model("stranger/clip", token=False), "cpu")
    before = len(hub.log)

    load_zero_shot(view, ["a bus", "a cat"], ["{}"])

    asked = hub.log[before:]
    assert asked and {token for _, _, token in asked} == {None}
    assert "hf_" not in repr(fetch_model("stranger/clip", token="hf_friend"))
