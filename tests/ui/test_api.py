"""Every public endpoint of the app, called with gradio_client and by an MCP client."""

import ast
import asyncio
import base64
import json
import os
import re
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image

from vitviz_hf import activation_map, activations, attention_weights, load_model, open_image, parse_feature, to_pixels
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.words import name_features
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.experiments.config import NarrowSitesConfig
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.reading.reference import load_reference
from vitviz_hf.stream import builtin_paths, open_source
from vitviz_hf.ui.app import build

pytestmark = pytest.mark.slow
CHELSEA = str(builtin_paths()["chelsea"])
# Gradio fetches no picture from an address of the own network.
INLINE = "data:image/png;base64," + base64.b64encode(Path(CHELSEA).read_bytes()).decode()


@pytest.fixture(scope="module")
def server(hub, tmp_path_factory):
    """The app on `tiny/vit`, with the atlas `api/atlas` on the Hub and a stored result `late`."""
    vit = load_model("tiny/vit", device="cpu")
    out, results = tmp_path_factory.mktemp("atlas") / "atlas", tmp_path_factory.mktemp("results")
    made = make_atlas(vit, open_source("builtin"), SearchConfig(k=3), out)
    name_features(made, load_model("tiny/clip", device="cpu"), ["cat", "dog", "bus"])
    hub.publish("datasets/api/atlas", out)
    config = NarrowSitesConfig(layers=(2,), columns=1, steps=1, preset="fast")
    run_experiment("narrow-sites", [vit], None, config, results / "work").save(results / "late")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITVIZ_RESULTS", str(results))
        demo = build("tiny/vit")
        photographs = sorted({str(path.parent) for path in builtin_paths().values()})
        _, address, _ = demo.launch(
            mcp_server=True, prevent_thread_lock=True, quiet=True, ssr_mode=False, allowed_paths=photographs
        )
        yield address
        demo.close()


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    return Client(server, verbose=False, download_files=str(tmp_path_factory.mktemp("client")))


def by_mcp(server, name, **arguments):
    """The contents that a tool answers with."""

    async def ask():
        async with (
            streamable_http_client(f"{server}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await (session.list_tools() if name is None else session.call_tool(name, arguments))

    return asyncio.run(ask())


CALLS = {
    "rank_features": {"model_id": "tiny/vit", "image": CHELSEA, "kind": "mlp_act", "layer": 1, "patch": "2, 3", "n": 5},
    "map_feature": {"model_id": "tiny/deit", "image": CHELSEA, "feature": "1.mlp_act:3"},
    "activations": {"model_id": "tiny/vit", "image": CHELSEA, "feature": "1.mlp_act:9"},
    "visualize": {"model_id": "tiny/vit", "feature": "1.mlp_act:5", "preset": "fast", "steps": 3},
    "browse": {"model_id": "tiny/vit", "site": "1.mlp_act", "offset": 2, "n": 3},
    "sort_features": {"atlas": "api/atlas", "site": "1.mlp_act", "sort": "unusual"},
    "find_word": {"atlas": "api/atlas", "word": "cat"},
    "feature_page": {"atlas": "api/atlas", "feature": "1.mlp_act:3"},
    "show_view": {"model_id": "tiny/vit", "image": CHELSEA, "patch": "1,2"},
    "look_inside": {"model_id": "tiny/vit", "image": CHELSEA, "show": "heads", "layer": 1, "token": "1,2"},
    "show_result": {"result": "late"},
    "run_experiment": {"model_id": "tiny/vit", "experiment": "progression"},
    "model_facts": {"model_id": "tiny/dinov2-registers"},
}


def called(client, name, **changes):
    arguments = {**CALLS[name], **changes}
    return client.predict(
        **{k: handle_file(v) if k.endswith("image") else v for k, v in arguments.items()}, api_name=f"/{name}"
    )


def test_every_endpoint_has_a_call_here_and_says_what_it_takes_and_gives(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]

    assert {name.strip("/") for name in endpoints} == set(CALLS)
    for name, endpoint in endpoints.items():
        assert endpoint["description"], name
        for part in endpoint["parameters"]:
            assert "enum" not in part["type"], (name, part)
        labels = [value["label"] for value in endpoint["returns"]]
        assert labels and all(label.isidentifier() for label in labels), (name, labels)


@pytest.mark.parametrize("name", CALLS)
def test_a_program_calls_it(client, name):
    assert called(client, name)


@pytest.mark.parametrize("name", CALLS)
def test_an_mcp_client_calls_it(server, name):
    arguments = {k: INLINE if k == "image" else v for k, v in CALLS[name].items()}
    answer = by_mcp(server, name, **arguments)

    assert not answer.isError, answer.content
    assert answer.content


def test_tools_are_described_with_their_parameters(server):
    tools = {tool.name: tool for tool in by_mcp(server, None).tools}

    assert set(tools) == set(CALLS)
    for name, tool in tools.items():
        assert set(CALLS[name]) <= set(tool.inputSchema["properties"])
        assert all("description" in part for part in tool.inputSchema["properties"].values()), name
    assert tools["activations"].inputSchema["required"] == ["model_id", "image", "feature"]


def test_activations_are_the_numbers_of_the_map(client, server, vit):
    told = called(client, "activations")

    feature = parse_feature("1.mlp_act:9")
    own = activation_map(activations(vit, to_pixels(vit, open_image(CHELSEA)), [feature.site])[feature.site], feature)[
        0
    ]
    assert np.allclose(told["values"], own.numpy(), atol=1e-5)
    assert (told["rows"], told["columns"]) == (4, 4)
    assert told["place"] == [int(own.argmax()) // 4, int(own.argmax()) % 4]
    assert told["max"] == pytest.approx(float(own.max()), abs=1e-5)
    assert told["mean"] == pytest.approx(float(own.mean()), abs=1e-5)
    answer = by_mcp(server, "activations", **{**CALLS["activations"], "image": INLINE})
    assert ast.literal_eval(answer.content[0].text) == told


def test_what_is_inside_a_picture_comes_drawn_told_and_as_numbers(client, vit):
    picture, sentence, file, shapes = called(client, "look_inside", second_image=CHELSEA)

    own = attention_weights(vit, to_pixels(vit, open_image(CHELSEA)), heads=True)[0, 1, :, 1 + 1 * 4 + 2]
    numbers = np.load(file)
    assert np.allclose(numbers["rows"][1], own, atol=1e-5)
    assert shapes["rows"] == [2, 2, 17] and list(numbers["rows"].shape) == [2, 2, 17]
    row, col = divmod(int(own.mean(0)[1:].argmax()), 4)
    assert f"at patch {row},{col}" in sentence and "Attention of patch 1,2 in layer 1" in sentence
    assert min(Image.open(picture).size) > 200


def test_a_ranking_gives_maps_a_sentence_and_the_same_as_data(client):
    _, maps, sentence, features = called(client, "rank_features", rank_by="score")

    assert len(maps) == len(features) == 5
    assert sentence.startswith("Layer 1, mlp_act, patch 2,3.")
    assert "above the 19 built-in photographs" in called(client, "rank_features")[2]
    values = [row["score"] for row in features]
    assert values == sorted(values, reverse=True)


def test_a_model_is_browsed_by_its_scores_on_the_builtin_photographs(client, vit):
    scores = load_reference(vit).scores[parse_feature("1.mlp_act:0").site]

    told = called(client, "browse")
    sorted_ = called(client, "browse", sort="maximum", offset=0)

    assert (told["total"], told["offset"], told["images"]) == (scores.shape[1], 2, len(scores))
    assert [row["feature"] for row in told["features"]] == ["1.mlp_act:2", "1.mlp_act:3", "1.mlp_act:4"]
    assert told["features"][0]["mean"] == pytest.approx(float(scores[:, 2].mean()), abs=1e-6)
    first = sorted_["features"][0]
    assert first["feature"] == f"1.mlp_act:{int(scores.max(0).values.argmax())}"
    assert first["maximum"] == pytest.approx(float(scores.max()), abs=1e-6)
    assert first["image"] in builtin_paths() and first["peak"]["value"] >= first["maximum"]
    assert first["fires"] and 0 <= first["sparse"] < 1


def test_an_atlas_is_browsed_by_its_own_statistics(client):
    told = called(client, "browse", atlas="api/atlas", sort="sparse", offset=0, n=200)

    shares = [row["sparse"] for row in told["features"]]
    assert told["images"] == 19 and told["total"] == len(shares)
    assert shares == sorted(shares, reverse=True)
    assert all(row["word"] in ("cat", "dog", "bus", "") for row in told["features"])


def test_pictures_come_as_files(client):
    drawn, _, sentence, told = called(client, "map_feature", style="heatmap")
    picture, text, file, scores, _ = called(client, "visualize")
    views = called(client, "show_view")[1]

    assert Image.open(drawn).width >= 500 and "1.mlp_act:3" in sentence and told["rows"] == 4
    assert read_recipe(file)["config"]["steps"] == 3 and "after 3 steps" in text and scores["steps"] == 3
    assert os.path.getsize(picture) == os.path.getsize(file)
    assert len(views) == 1 + 4 + 1  # the picture, levels 0 to 3, and the bar of logarithmic brightness


def test_several_pictures_come_with_a_file_and_a_score_each(client):
    picture, text, file, scores, files = called(client, "visualize", seed=4, pictures=2)

    assert [read_recipe(path)["config"]["seed"] for path in files] == [4, 5] and len(scores["pictures"]) == 2
    assert [told["seed"] for told in scores["pictures"]] == [4, 5] and "seed 5 score" in text
    assert Path(file).read_bytes() == Path(files[0]).read_bytes() and Image.open(picture).size == (2 * 224, 224)


def test_real_images_guide_a_picture_by_its_preset(client):
    dream, aligned = (called(client, "visualize", preset=preset, **more) for preset, more in GUIDED.items())

    assert "Started from your photograph." in dream[1] and read_recipe(dream[2])["guide"]["start"]
    assert "ade from the 9 most activating of the 19 built-in photographs and their parts." in aligned[1]
    assert read_recipe(aligned[2])["guide"]["images"] == 9


GUIDED = {"accent": {"image": CHELSEA}, "aligned": {"feature": "1.resid:5"}}
MISTAKES = [
    ("rank_features", {"layer": 9}, "'tiny/vit' has layers 0-2; got layer 9"),
    ("rank_features", {"layer": None}, "layer must be a whole number from 0; got nothing"),
    ("rank_features", {"rank_by": "size"}, "rank_by must be one of unusual, score; got 'size'"),
    ("rank_features", {"model_id": "<b>'x'</b>"}, "is not a Hub id"),
    ("activations", {"feature": "1.mlp_act"}, "'1.mlp_act' is not a feature"),
    ("browse", {"offset": 64}, "there are 64 features, so offset goes from 0 to 63; got 64"),
    ("visualize", {"seed": 1.5}, "seed must be a whole number from 0 to 9007199254740988; got 1.5"),
    ("visualize", {"steps": 2.5}, "steps must be a whole number from 0 to 1000; got 2.5"),
    ("browse", {"n": 1000}, "n must be a whole number from 1 to 200; got 1000"),
    ("browse", {"sort": "size"}, "sort must be one of index, maximum, unusual, sparse; got 'size'"),
    ("sort_features", {"sort": "index"}, "sort must be one of maximum, unusual, sparse; got 'index'"),
    ("sort_features", {"atlas": "/etc"}, "'/etc' is not a Hub id"),
    ("visualize", {"preset": "slow"}, "preset must be one of auto, paper"),
    (
        "visualize",
        {"preset": "accent"},
        "starts from a photograph: choose or upload one in Your picture; a program gives",
    ),
    ("look_inside", {"show": "colors"}, "show must be one of pca, similarity, heads"),
    ("look_inside", {"show": "relevance"}, "say what is to be explained"),
    ("show_result", {"result": "none"}, "there is no stored result 'none'; there are late"),
    ("run_experiment", {"experiment": "x"}, "experiment must be one of "),
]


@pytest.mark.parametrize(("name", "changes", "message"), MISTAKES)
def test_mistakes_are_told_in_plain_text(client, name, changes, message):
    with pytest.raises(AppError, match=re.escape(message)) as caught:
        called(client, name, **changes)

    assert not re.search(r"&\w+;|&#", str(caught.value))


def test_an_mcp_client_is_told_its_mistake_in_plain_text(server):
    answer = by_mcp(server, "activations", model_id="tiny/vit", image=INLINE, feature="'x'")

    assert answer.isError and "\"'x'\" is not a feature" in answer.content[0].text


def test_a_path_of_the_server_is_no_picture(server, tmp_path):
    Image.open(CHELSEA).save(tmp_path / "secret.png")
    path = {"path": str(tmp_path / "secret.png"), "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": ["tiny/vit", path, "1.mlp_act:3"]}).encode()
    asked = Request(f"{server}gradio_api/call/activations", body, {"Content-Type": "application/json"})
    event = json.load(urlopen(asked))["event_id"]

    answer = urlopen(f"{server}gradio_api/call/activations/{event}", timeout=30).read().decode()

    assert "event: error" in answer and "rows" not in answer
