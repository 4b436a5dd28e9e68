"""The tabs of views and of the papers in a real browser, and through gradio_client."""

from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from tests.ui.browsing import opened, text, wait_for_text

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def test_stored_results_are_shown_and_linked(page, url):
    opened(page, url, "?tab=experiments&result=late")
    wait_for_text(page, "#experiment-story", "narrow-sites of tiny/vit")

    assert "2 attn_q narrow 32" in " ".join(text(page, "#experiment-story").split())
    figure = page.locator("#experiment-story figure img").first
    figure.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#experiment-story figure img').naturalWidth > 300")
    assert figure.get_attribute("alt").startswith("Optimized pictures of each site") and "The papers say" in text(
        page, "#experiment-story"
    )
    assert "Cannot be told: a sample of 1 says nothing yet" in text(page, "#experiment-story .verdict")
    page.locator("#stored input").click()
    page.get_by_role("option", name="early").click()
    page.wait_for_function("document.querySelector('#experiment-story').innerText.includes('high-frequency')")
    page.wait_for_function("location.search.includes('result=early')")


def test_a_sample_of_an_experiment_runs_live(page, url):
    opened(page, url, "?tab=experiments")
    page.locator("#run-experiment").click()

    wait_for_text(page, "#experiment-status", "progression: done, a sample only.")
    assert "0.mlp_act:" in text(page, "#experiment-story") and "2.mlp_act:" in text(page, "#experiment-story")
    page.locator("#run-experiment").click()
    page.wait_for_function("!document.querySelector('#experiment-status').innerText.includes('a sample only')")
    page.locator("#cancel-experiment").click()
    wait_for_text(page, "#experiment-status", "Cancelled.")


def test_experiments_run_over_the_api_on_a_dataset_of_the_hub(hub, url, labelled):
    hub.publish("datasets/tiny/labelled", labelled)
    client = Client(url, verbose=False)

    def run(*arguments):
        return client.predict(*arguments, api_name="/run_experiment")

    status, table, figures = run("tiny/vit", "background", "tiny/resnet", "tiny/labelled", 8)
    assert "background" in status and "tiny/resnet" in table and len(figures) == 2
    for arguments, message in [
        (("tiny/vit", "position", "", "", 8), "position needs a dataset with labels"),
        (("tiny/vit", "position", "", "/etc", 8), "is not a Hub id"),
        (("tiny/resnet", "token-mixing", "", "tiny/labelled", 8), "it has no transformer layers"),
    ]:
        with pytest.raises(AppError, match=message):
            run(*arguments)


def test_a_clicked_patch_shows_its_views_and_a_painted_object_is_blacked_out_and_grouped(page, url):
    opened(page, url, "?tab=views")
    page.locator("#show-views").click()
    wait_for_text(page, "#view-facts", "through filter")
    page.locator("#view-crop .seen").click(position={"x": 10, "y": 10})
    wait_for_text(page, "#view-facts", "Patch 0,0 through filter")

    assert page.locator("#views .thumbnail-item").count() == 1 + 4 + 1  # the picture, levels 0 to 3, the scale
    page.wait_for_function("location.search.includes('view=0%2C0')")
    page.get_by_label("tiles on the object").click()
    page.locator("#compare").click()
    wait_for_text(page, "body", "mark the object first")
    page.get_by_text("Mark the object").first.click()
    page.wait_for_selector("#editor canvas")
    page.wait_for_timeout(2000)  # the editor draws its picture
    box = page.locator("#editor canvas").first.bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.4 * box["height"])
    page.mouse.down()
    for i in range(15):
        page.mouse.move(box["x"] + (0.4 + 0.015 * i) * box["width"], box["y"] + (0.4 + 0.01 * i) * box["height"])
    page.mouse.up()
    page.wait_for_timeout(500)
    page.locator("#compare").click()
    page.wait_for_function("document.querySelector('#views').innerText.includes('salient')")
    page.locator("#group").click()
    wait_for_text(page, "#groups", "Patches after layer 3 of 3")
    assert page.locator("#groups circle").count() == 16
    page.locator("#groups g").nth(5).hover(force=True)
    assert page.locator("#groups g").nth(5).locator("text").text_content() == "patch 1,1"


def test_a_model_without_one_sequence_of_tokens_has_no_views(url):
    client = Client(url, verbose=False)
    picture = handle_file(str(ROOT / "docs" / "map-chelsea.png"))

    with pytest.raises(AppError, match="has no filters to show"):
        client.predict("tiny/resnet", picture, "", -1, api_name="/show_view")
