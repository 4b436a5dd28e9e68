"""The tab Look inside: what the server sends, and what the page does with it."""

import base64
import html
import io
import json
import re
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from tests.ui.browsing import barriers_in_every_look, wait_until_idle
from vitviz_hf import activations, attention_weights, load_model, open_image, to_pixels
from vitviz_hf.reading.attention import window_attention
from vitviz_hf.sites import Site
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.app import App
from vitviz_hf.ui.inside_tab import MODES, InsideTab

CHELSEA, LION = str(builtin_paths()["chelsea"]), str(builtin_paths()["lion"])


@pytest.fixture(scope="module")
def app(tiny_folder):
    return App(str(tiny_folder("vit")), lambda _: lambda job: job, True)


@pytest.fixture
def tab(app):
    return app.page.tab(InsideTab)


def looked(tab, model="", photo=CHELSEA, kind="resid", second="", **state):
    """What the page is given: facts, and its HTML."""
    model = model or tab.page.model.value
    defaults = {"mode": "pca", "method": "auto", "factor": "0"}
    values = tab.opened(model, photo, kind, second, None, *({**defaults, **state}.get(k, "") for k in tab.state))
    page = values[tab.html]
    return json.loads(html.unescape(re.search('data-facts="([^"]*)"', page)[1])), page


def asked(tab, key, *question):
    return json.loads(tab.values([key, *question]))


def unpacked(text, dtype, *shape):
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


def test_the_page_is_told_what_it_needs_to_ask(tab, vit):
    facts, page = looked(tab, second="lion", layer="1")

    assert facts["layers"] == [{"grid": [4, 4], "prefix": 1, "queries": [4, 4]}] * 3 and facts["prefix"] == ["cls"]
    assert facts["pictures"] == ["chelsea", "lion"]
    assert facts["state"]["layer"] == 1 and looked(tab, layer="9")[0]["state"]["layer"] == 2
    assert re.findall('data-choose="([a-z]+)"', page) == list(MODES)
    assert page.count("data:image/jpeg") == 2


def test_tokens_give_the_cosines_of_the_site_in_8_bits(tab, vit):
    facts, _ = looked(tab, second="lion")
    told = asked(tab, facts["key"], "tokens", 1)

    sent = unpacked(told["packed"], np.int8, told["n"], told["tokens"], told["features"]).astype(float) / 127
    pixels = torch.cat([to_pixels(vit, open_image(p)) for p in (CHELSEA, LION)])
    own = activations(vit, pixels, ["1.resid"])[Site(1, "resid")].values.double().numpy()
    own /= np.linalg.norm(own, axis=-1, keepdims=True)
    assert np.abs(sent @ sent[0, 7] - own @ own[0, 7]).max() < 0.02


def test_attention_of_each_head_comes_in_8_bits_and_joined_over_layers(tab, vit):
    facts, _ = looked(tab)
    told = asked(tab, facts["key"], "attention", 2)

    own = attention_weights(vit, to_pixels(vit, open_image(CHELSEA)), heads=True)[0]
    assert told["names"] == ["head 0", "head 1", "rollout"] and told["prefix"] == 1
    sent = [
        unpacked(h["packed"], np.uint8, 17, 17) / 255 * unpacked(h["top"], np.float32, 17, 1)
        for h in told["pictures"][0]["heads"]
    ]
    within = 0.5 / 255 * own[2].amax(-1, keepdim=True).numpy() + 1e-6
    assert (np.abs(np.stack(sent[:2]) - own[2].numpy()) <= within).all()
    joined = np.eye(17)
    for weights in own.mean(1).double().numpy():
        joined = (0.5 * weights + 0.5 * np.eye(17)) @ joined
    assert np.abs(sent[2] - joined).max() < 0.5 / 255 + 1e-5


def test_attention_that_is_too_much_for_a_page_comes_as_the_mean_or_not_at_all(tab, monkeypatch):
    facts, _ = looked(tab)

    monkeypatch.setattr("vitviz_hf.ui.inside_values.MOST_BYTES", 300)
    assert asked(tab, facts["key"], "attention", 2)["names"] == ["mean", "rollout"]
    monkeypatch.setattr("vitviz_hf.ui.inside_values.MOST_BYTES", 200)
    told = asked(tab, facts["key"], "attention", 2)
    assert "Choose a later layer or a smaller input." in told["error"]


def test_a_file_of_a_patch_of_the_second_picture_shows_that_picture_first(tab, vit):
    facts, _ = looked(tab, second="lion")
    told = asked(tab, facts["key"], "file", "npz", "similarity", {"layer": 1, "token": "1:2,3"})

    cosine = np.load(io.BytesIO(base64.b64decode(told["data"])))["cosine"]
    pixels = torch.cat([to_pixels(vit, open_image(p)) for p in (LION, CHELSEA)])
    values = torch.nn.functional.normalize(activations(vit, pixels, ["1.resid"])[Site(1, "resid")].values, dim=-1)
    assert np.allclose(cosine.reshape(2, 16), values[:, 1:] @ values[0, 1 + 4 * 2 + 3], atol=1e-5)


def test_components_norms_and_lens_come_for_every_layer(tab, vit):
    facts, _ = looked(tab, second="lion")
    components, norms, lens = (asked(tab, facts["key"], name) for name in ("components", "norms", "lens"))

    assert len(components["layers"]) == len(norms["layers"]) == len(lens["layers"]) == 3
    colors = unpacked(components["layers"][0]["colors"][1], np.uint8, 16, 3)
    assert colors.min() < 40 and colors.max() > 215
    assert set(unpacked(components["layers"][0]["foreground"][0], np.uint8, 16)) <= {0, 1}
    shares = components["layers"][2]["explained"]
    assert len(shares) == 3 and shares == sorted(shares, reverse=True) and sum(shares) <= 1
    pixels = torch.cat([to_pixels(vit, open_image(p)) for p in (CHELSEA, LION)])
    own = activations(vit, pixels, ["1.resid"])[Site(1, "resid")].values.norm(dim=-1)
    assert np.allclose(unpacked(norms["layers"][1]["norms"][1], np.float32, 17), own[1], rtol=1e-5)
    top = unpacked(lens["layers"][2]["top"][0], np.uint16, 17)
    assert {lens["labels"][str(i)] for i in top} <= set(vit.labels)


def test_relevance_comes_with_its_curves_and_their_areas(tab):
    facts, _ = looked(tab)
    told = asked(tab, facts["key"], "why", "logit:cat", "auto")

    assert told["grid"] == [4, 4] and told["target"] == "logit:cat"
    values = unpacked(told["map"], np.float32, 4, 4)
    assert told["scale"][1] == pytest.approx(float(np.abs(values).max()))
    row, col = divmod(int(values.argmax()), 4)
    assert f"at patch {row},{col}" in told["said"]
    assert [line["name"] for line in told["curves"]["deletion"]] == ["by this map", "in random order"]
    assert "in a random order" in told["curves"]["told"]


def test_a_change_tells_probabilities_features_and_colors_before_and_after(tab):
    facts, _ = looked(tab)
    told = asked(tab, facts["key"], "change", "0.head:0; 0.head:1", 0, 2)
    same = asked(tab, facts["key"], "change", "0.head:0", 1, 2)

    assert told["before"] != told["after"] and same["before"] == same["after"]
    assert told["grid"] == [4, 4] and len(told["features"]) > 3
    assert {name for name, _, _ in told["probabilities"]} <= {"cat", "dog", "bus"}
    assert re.search(r"0\.head:0 times 0, 0\.head:1 times 0: patches of 2\.resid move by", told["said"])


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (("why", "", "auto"), "say what is to be explained"),
        (("why", "logit:tiger", "auto"), "no class is named 'tiger'"),
        (("why", "9.mlp_act:1", "auto"), "has layers 0-2; got layer 9"),
        (("change", "", 0, 1), "say what is changed"),
        (("tokens", 7), "has layers 0-2; got layer 7"),
        (("secret", 7), "The page asks for something that this server does not know; reload it."),
    ],
)
def test_what_cannot_be_answered_is_told(tab, question, message):
    facts, _ = looked(tab)

    assert message in asked(tab, facts["key"], *question)["error"]


def test_pictures_that_have_gone_are_asked_for_anew(tab):
    assert tab.values(["0" * 24, "components"]) == ""
    assert tab.values("nonsense") == ""


def test_an_unforeseen_error_is_logged_and_told_in_one_sentence(tab, monkeypatch, caplog):
    facts, _ = looked(tab)
    monkeypatch.setattr(tab, "values_job", lambda *_: 1 / 0)

    assert asked(tab, facts["key"], "norms")["error"].startswith("Something went wrong on the server")
    assert "ZeroDivisionError" in caplog.text


def test_a_view_is_saved_as_a_picture_and_as_numbers(tab, vit):
    facts, _ = looked(tab)
    options = {"layer": 1, "head": "mean", "token": "1,2", "why": "", "method": "auto", "turn": "", "factor": "0"}
    picture, numbers = (asked(tab, facts["key"], "file", kind, "similarity", options) for kind in ("png", "npz"))

    assert picture["name"] == "similarity-chelsea.png" and numbers["name"] == "similarity-chelsea.npz"
    opened = Image.open(io.BytesIO(base64.b64decode(picture["data"])))
    assert opened.text["told"].startswith("Cosine to patch 1,2: of chelsea highest")
    saved = np.load(io.BytesIO(base64.b64decode(numbers["data"])))["cosine"]
    own = activations(vit, to_pixels(vit, open_image(CHELSEA)), ["1.resid"])[Site(1, "resid")].values[0]
    expected = torch.nn.functional.cosine_similarity(own[1:], own[1 + 1 * 4 + 2], dim=-1)
    assert np.allclose(saved.reshape(-1), expected, atol=1e-5)


def test_a_hierarchical_model_has_its_grids_and_says_what_it_cannot_show(tab, hub):
    facts, _ = looked(tab, "tiny/swin")

    assert facts["layers"][0]["grid"] == [16, 16] and facts["layers"][-1]["grid"] == [8, 8]
    assert len(asked(tab, facts["key"], "components")["layers"]) == len(facts["layers"])
    assert "cannot be used here" in asked(tab, facts["key"], "lens")["error"]
    told, own = asked(tab, facts["key"], "window", 0, 3, 5), load_model("tiny/swin", device="cpu")
    weights = window_attention(own, to_pixels(own, open_image(CHELSEA)), 0, (3, 5))[0].nan_to_num(0)
    assert facts["windows"] and told["grid"] == [16, 16]
    assert np.allclose(unpacked(told["heads"][1], np.float32, 16, 16), weights[1], atol=1e-6)
    assert np.isclose(unpacked(told["heads"][0], np.float32, 256).sum(), 1, atol=1e-5)


def test_the_tab_is_filled_when_it_is_opened_and_when_the_choice_is_another(tab):
    model, *state = tab.page.model.value, *(box.value for box in tab.state.values())
    first = tab.first_look("", model, CHELSEA, "resid", "", None, *state)

    assert tab.html in first
    assert tab.first_look(first[tab.looked], model, CHELSEA, "resid", "", None, *state) == gr.skip()
    assert tab.first_look("", model, None, "resid", "", None, *state) == gr.skip()
    assert tab.html in tab.first_look(first[tab.looked], model, LION, "resid", "", None, *state)
    assert tab.html in tab.first_look(first[tab.looked], model, CHELSEA, "attn_k", "", None, *state)


def test_a_kind_that_the_model_lacks_gives_another(tab, hub):
    values = tab.opened("tiny/timm-beitv2", CHELSEA, "attn_k", "", None, *("" for _ in tab.state))

    assert values[tab.kind]["value"] in values[tab.kind]["choices"] and "attn_k" not in values[tab.kind]["choices"]


def test_a_link_opens_the_view_that_it_was_made_of(app, tab):
    query = {"tab": "inside", "beside": "lion", "inside-mode": "heads", "inside-layer": "1", "inside-token": "2,3"}
    values = {k: v for part in app.open(SimpleNamespace(query_params=query)) for k, v in part.items()}
    facts = json.loads(html.unescape(re.search('data-facts="([^"]*)"', values[tab.html])[1]))

    assert facts["pictures"] == ["chelsea", "lion"]
    assert (facts["state"]["mode"], facts["state"]["layer"], facts["state"]["token"]) == ("heads", 1, "2,3")
    odd = next(app.open(SimpleNamespace(query_params={"inside-mode": "x", "inside-method": "<b>", "inside-kind": "y"})))
    assert (odd[tab.state["mode"]], odd[tab.state["method"]], odd[tab.kind]) == ("pca", "auto", "resid")
    assert tab.html not in odd  # another tab is open


def test_what_a_visitor_writes_is_escaped(tab):
    _, page = looked(tab, why='"><script>alert(1)</script>')

    assert "<script>alert" not in page


SAID = "document.querySelector('#inside .said')?.textContent"


def opened(page, url, query=""):
    page.goto(f"{url}?tab=inside{query}")
    page.wait_for_selector("#inside .inside[data-mode]")
    settled(page)


def settled(page):
    page.wait_for_function(f"{SAID} && !document.querySelector('#inside .busy')")


def choose(page, mode, expected):
    page.locator(f"#inside [data-choose={mode}]").click()
    page.wait_for_function(f"{SAID}.includes({expected!r})")
    settled(page)


def said(page):
    return page.evaluate(SAID)


def hover(page, row, col, rows=4, cols=4, which=0):
    box = page.locator("#inside .seen").nth(which).bounding_box()
    page.mouse.move(box["x"] + box["width"] * (col + 0.5) / cols, box["y"] + box["height"] * (row + 0.5) / rows)


@pytest.mark.slow
def test_nothing_of_the_tab_is_loaded_before_it_is_opened(page, url):
    asked = []
    page.on("request", lambda r: asked.append(r.url))
    page.goto(url)
    page.wait_for_selector("#map img")
    wait_until_idle(page)

    assert not [u for u in asked if "inside.js" in u] and page.locator("#inside .inside").count() == 0
    page.locator("[role=tab][data-tab-id=inside]").click()
    page.wait_for_selector("#inside .inside[data-mode=pca]")
    assert len([u for u in asked if "inside.js" in u]) == 1
    settled(page)


@pytest.mark.slow
def test_the_patch_under_the_pointer_is_compared_without_asking_the_server(page, url):
    opened(page, url, "&inside-mode=similarity&inside-layer=1&inside-token=3,3&beside=lion")
    assert "Cosine of every patch to patch 3,3 of chelsea." in said(page)
    asked = []
    page.on("request", lambda r: asked.append((r.url, r.post_data or "")))

    hover(page, 0, 2)
    page.wait_for_function(f"{SAID}.includes('patch 0,2 of chelsea')")
    before = page.evaluate("document.querySelector('#inside canvas').toDataURL()")
    hover(page, 2, 1)
    page.wait_for_function(f"{SAID}.includes('patch 2,1 of chelsea')")
    assert page.evaluate("document.querySelector('#inside canvas').toDataURL()") != before
    assert page.locator("#inside .lines line").count() == 2 and page.locator("#inside .picture1 .mark").count() == 1
    hover(page, 1, 1, which=1)
    page.wait_for_function(f"{SAID}.includes('patch 1,1 of lion')")
    page.mouse.move(1, 1)
    page.wait_for_function(f"{SAID}.includes('patch 3,3 of chelsea')")

    # what the other tabs ask for once may still be on its way
    assert not [(url, data) for url, data in asked if "component_server" in url or "similarity" in data]


@pytest.mark.slow
def test_arrow_keys_move_the_patch_and_the_link_restores_it(page, url):
    opened(page, url, "&inside-mode=heads&inside-layer=2&inside-token=0,0")
    page.locator("#inside .seen").focus()
    for key in ("ArrowUp", "ArrowRight", "ArrowDown", "Shift+ArrowRight"):
        page.keyboard.press(key)
    assert "Where patches 1,1 to 1,2 look: mean over heads." in said(page)
    page.locator("#inside .small button", has_text="head 1").click()
    page.wait_for_function("location.search.includes('inside-head=head+1')")
    assert "inside-token=1%2C1-1%2C2" in page.url
    label = page.locator("#inside canvas").first.get_attribute("aria-label")
    assert label.startswith("Attention (head 1) of patches 1,1 to 1,2, layer 2, on chelsea: highest ")
    link = page.url

    page.goto("about:blank")
    page.goto(link)
    page.wait_for_selector("#inside .inside[data-mode=heads]")
    settled(page)
    assert page.locator("#inside canvas").first.get_attribute("aria-label") == label


@pytest.mark.slow
def test_attention_that_comes_as_the_mean_is_drawn(page, url):
    def shorten(route):
        answer = route.fetch()
        told = json.loads(answer.json()) if isinstance(answer.json(), str) else {}
        if "prefix" in told and "pictures" in told:
            told |= {"names": ["mean", "rollout"], "note": "As their mean."}
            told["pictures"] = [{"heads": p["heads"][1:]} for p in told["pictures"]]
            return route.fulfill(response=answer, json=json.dumps(told))
        return route.fulfill(response=answer)

    page.route(re.compile("component_server"), shorten)
    opened(page, url, "&inside-mode=heads&inside-layer=2")
    assert said(page).endswith("As their mean.")
    assert page.locator("#inside .small button").all_inner_texts() == ["mean", "rollout"]


@pytest.mark.slow
def test_the_layer_slider_moves_the_picture_and_the_class_token_is_a_query_too(page, url):
    opened(page, url, "&inside-mode=similarity&inside-layer=0")
    slider = page.locator("#inside .layer input")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#inside canvas').ariaLabel.includes('layer 1')")
    page.locator("#inside [data-token=cls]").click()
    page.wait_for_function(f"{SAID}.includes('to the class token')")
    page.wait_for_function("location.search.includes('inside-token=cls') && location.search.includes('inside-layer=1')")


@pytest.mark.slow
def test_a_second_picture_is_chosen_and_put_away(page, url):
    opened(page, url)
    page.locator("#inside-more button").first.click()
    page.locator("#inside-examples button[data-pick=lion]").click()
    page.wait_for_selector("#inside .stage.two")
    page.wait_for_function("location.search.includes('beside=lion')")
    settled(page)
    assert page.locator("#inside .view canvas").count() == 2
    page.locator("#inside-alone").click()
    page.wait_for_selector("#inside .stage:not(.two)")
    settled(page)
    assert page.locator("#inside .view canvas").count() == 1


@pytest.mark.slow
def test_of_an_uploaded_second_picture_and_a_chosen_one_the_last_counts(page, url):
    opened(page, url)
    page.locator("#inside-more button").first.click()
    for again in range(2):
        page.locator("#inside-photo input[type=file]").set_input_files(builtin_paths()["coins"])
        page.wait_for_selector("#inside .stage.two figcaption:has-text('the second picture')")
        if again:
            page.locator("#inside-alone").click()
            page.wait_for_selector("#inside .stage:not(.two)")
        else:
            page.locator("#inside-examples button[data-pick=lion]").click()
            page.wait_for_selector("#inside .stage.two figcaption:has-text('lion')")
        page.wait_for_selector("#inside-photo input[type=file]", state="attached")  # the drop area is free again


@pytest.mark.slow
def test_reasons_are_asked_for_and_a_mistake_is_told(page, url):
    opened(page, url, "&inside-mode=relevance")
    field = page.locator("#inside input[name=why]")
    field.fill("logit:cat")
    page.keyboard.press("Enter")
    page.wait_for_function(f"{SAID}.includes('Relevance for logit:cat')")
    assert page.locator("#inside .chart").count() == 2
    page.wait_for_function("location.search.includes('inside-why=logit%3Acat')")
    field.fill("logit:tiger")
    page.keyboard.press("Enter")
    page.wait_for_selector("#inside .said.error")
    assert "no class is named 'tiger'" in said(page) and page.locator("#inside .chart").count() == 0


@pytest.mark.slow
def test_a_view_is_downloaded(page, url, tmp_path):
    opened(page, url, "&inside-mode=norms")
    with page.expect_download() as download:
        page.locator("#inside [data-file=npz]").click()
    download.value.save_as(tmp_path / "norms.npz")
    assert np.load(tmp_path / "norms.npz")["norms_2"].shape == (1, 17)
    with page.expect_download() as download:
        page.locator("#inside [data-file=png]").click()
    assert download.value.suggested_filename == "norms-chelsea.png"


@pytest.mark.slow
def test_nothing_on_the_tab_shuts_anyone_out(page, url):
    opened(page, url, "&beside=lion&inside-why=logit:cat&inside-turn=0.head:0")
    for mode, expected in {
        "pca": "first three components",
        "similarity": "Cosine",
        "heads": "looks",
        "norms": "outshine",
        "relevance": "Relevance",
        "lens": "head on each token",
        "change": "times 0",
    }.items():
        choose(page, mode, expected)
        assert barriers_in_every_look(page) == []
