"""Results told as a story, and the strip of the first page."""

import io
import json
import re
from types import SimpleNamespace

import pytest
from PIL import Image

from vitviz_hf import load_model
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.config import NarrowSitesConfig
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.experiments.tables import Interval, Table
from vitviz_hf.ui.app import App
from vitviz_hf.ui.experiments_tab import ExperimentsTab
from vitviz_hf.ui.stored import Shown, results_folder, split_table, stored_result, stored_results, story_html
from vitviz_hf.ui.strip import strip_html


def save_strip(folder):
    """A strip of one layer with two tiles."""
    folder.mkdir()
    Image.new("RGB", (16, 16), "red").save(folder / "layer-1.webp")
    tile = {"feature": "1.mlp_act:9", "seed": 0, "score": 1.5, "alive": True, "photograph": "coins"}
    rows = [
        {"layer": 1, "caption": "<i>", "sheet": "layer-1.webp", "tiles": [{**tile, "patch": [1, 2], "value": 2.5}] * 2}
    ]
    facts = {"model": {"model_id": "tiny/vit"}, "rule": "At random.", "layers": rows}
    (folder / "story.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def results(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    vit = load_model(str(tiny_folder("vit")), device="cpu")
    config = NarrowSitesConfig(layers=(2,), columns=1, steps=1, preset="fast")
    run_experiment("narrow-sites", [vit], None, config, out / "work").save(out / "late")
    save_strip(out / "story")
    return out


@pytest.fixture
def tab(results, tiny_folder, monkeypatch):
    monkeypatch.setenv("VITVIZ_RESULTS", str(results))
    return App(str(tiny_folder("vit")), lambda _: lambda job: job, False).page.tab(ExperimentsTab)


def test_a_stored_result_is_told_as_claim_verdict_figure_table(tab, results):
    html = tab.show_result("late")[tab.story]

    parts = (
        "The papers say",
        "Cannot be told</b>: a sample of 1",
        "<figure>",
        "<caption>Table: narrow-sites</caption>",
    )
    places = [html.index(part) for part in (*parts, 'class="note"')]
    assert places == sorted(places)
    assert "arXiv:2212.06727, Fig. 4, 5 and 12" in html
    assert f'src="gradio_api/file={results}/late/figure.png"' in html and 'loading="lazy"' in html
    assert re.search(r'alt="Optimized pictures of each site, a row for each, narrow-sites of ', html)
    assert '<div class="scroll" tabindex="0" role="region"' in html and '<th scope="row">2</th><td>attn_in</td>' in html
    assert "Cannot be told: a sample of 1" in stored_result("late").text


def test_each_table_has_its_name_notes_stand_once_and_wide_figures_scroll(tmp_path):
    wide, tall = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (700, 200)).save(wide, "png")
    Image.new("RGB", (200, 700)).save(tall, "png")
    tables = {name: Table(("a",), ((1,),), ("The note.",)).to_markdown() for name in ("table", "table-shuffle-2")}
    pictures = {"figure": wide.getvalue(), "other": tall.getvalue()}

    def keep(data, name):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    html = story_html(Shown("group of x", "group", "here", tables, pictures, None), keep)

    assert re.findall("<caption>(.*?)</caption>", html) == ["Variant clean", "Variant shuffle 2"]
    assert 'aria-label="Variant shuffle 2 of group of x"' in html and html.count("The note.") == 1
    assert html.count('<div class="scroll wide" tabindex="0" role="region" aria-label="') == 1
    assert html.index("scroll wide") < html.index("figure.png") < html.index("other.png")


def test_a_sample_that_is_too_small_says_nothing(tab):
    me = SimpleNamespace(session_hash="me")

    *_, last = tab.run_sample(tab.page.model.value, "spatial", "", "builtin", 4, me)

    assert "Cannot be told: a sample of" in last[tab.status] and "says nothing yet" in last[tab.story]
    assert re.search(r'src="gradio_api/file=([^"]+figure\.png)"', last[tab.story])[1] in tab.story.temp_files


def test_a_table_of_markdown_is_read_back():
    table = Table(("model", "a|b"), (("x|y", Interval(1, 0, 2)), ("z", None)), ("First note.", "Second."))

    assert split_table(table.to_markdown()) == {
        "header": ["model", "a|b"],
        "rows": [["x|y", "1.00 (0.00 to 2.00)"], ["z", "-"]],
        "notes": ["First note.", "Second."],
    }


def test_the_strip_shows_each_tile_once_escaped_and_links_to_its_map(results, monkeypatch):
    monkeypatch.setenv("VITVIZ_RESULTS", str(results))
    html = strip_html()

    assert html.count("<li>") == 2 and "Layer 1: &lt;i&gt;" in html and html.count('loading="lazy"') == 4
    assert html.count('target="_blank" rel="noopener"') == html.count("(opens in a new tab)") == 2
    assert "left: -100%; top: 0" in html and "width: 200%" in html
    assert (
        "?tab=maps&amp;model=tiny%2Fvit&amp;photo=coins&amp;kind=mlp_act&amp;layer=1&amp;feature=1.mlp_act%3A9" in html
    )
    monkeypatch.setenv("VITVIZ_RESULTS", str(results / "late"))
    assert strip_html() == ""


def test_the_results_of_the_source_are_complete_and_small():
    for name in stored_results():
        shown = stored_result(name)
        assert shown.verdict and shown.tables and shown.figures, name
    story = results_folder() / "story"
    facts = json.loads((story / "story.json").read_text())
    assert sum(path.stat().st_size for path in story.iterdir()) < 400_000
    assert len(facts["layers"]) == 6
    for row in facts["layers"]:
        assert row["caption"] and len(row["tiles"]) == 8
        assert Image.open(story / row["sheet"]).size == (8 * facts["size"], 2 * facts["size"])


def test_few_models_are_compared_and_none_is_asked_for_before(tab, monkeypatch):
    asked = []
    monkeypatch.setattr(tab.shelf, "snapshot", asked.append)

    with pytest.raises(ConfigError, match="at most 4 models are compared here; got 5"):
        next(tab.moments("tiny/vit", "occlusion", "a/b, a/c, a/d, a/e", "builtin", 4))
    assert not asked
