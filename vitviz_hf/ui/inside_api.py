"""The public endpoint of the tab Look inside."""

from typing import Any

from vitviz_hf.inside.looks import SHOWS, LookConfig
from vitviz_hf.ui.api import Api
from vitviz_hf.ui.events import one_word, open_photo, whole_number
from vitviz_hf.ui.files import keep_file
from vitviz_hf.ui.inside_tab import InsideTab
from vitviz_hf.ui.inside_values import InsideJobs, split_turns
from vitviz_hf.ui.page import Page


class InsideApi:
    """The endpoint; a method with its name."""

    def __init__(self, page: Page) -> None:
        self.page, self.shelf = page, page.shelf
        self.draw_job = page.on_device(60, InsideJobs(page.shelf).drawn)

    def connect(self, api: Api) -> None:
        """Publish it."""
        api.publish(self.look_inside, picture="picture", sentence="text", file="file", values="data")

    def look_inside(
        self,
        model_id: str,
        image: str,
        show: str = "pca",
        second_image: str | None = None,
        layer: int = -1,
        kind: str = "resid",
        token: str = "",
        why: str = "",
        method: str = "auto",
        turn: str = "",
    ) -> tuple[Any, ...]:
        """Look inside a picture: components, similarity, attention, norms, relevance, labels by layer, changes.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            image: the picture.
            show: pca (three components of the patches as colors), similarity (cosine of every patch to a token), heads
                (attention of a token, by head), norms (length of the tokens), relevance (patches that speak for
                'why'), lens (the label of each token after each layer) or change (what 'turn' changes).
            second_image: another picture to compare with, for pca, similarity, heads and norms.
            layer: layer number from 0; -1 for the last.
            kind: resid, mlp_act, attn_k or another kind of site.
            token: row and column of a patch such as 3,4; a box such as 3,4-5,6; cls; register 1; empty for the class
                token in heads and for the middle in similarity.
            why: what is to be explained: logit:207, logit:tabby, a feature such as 5.mlp_act:10, or a text for a model
                with a text tower.
            method: auto, legrad, chefer or gradient-input.
            turn: what is changed, as ADDRESS=FACTOR with spaces between, such as 5.mlp_act:10=0 3.head:2=0.

        Returns:
            A picture, what it shows in a sentence, its numbers as an NPZ file, and their names and shapes as data.
        """
        one_word("show", show, SHOWS)
        number = whole_number("layer", layer, -1)
        config = LookConfig(
            layer=None if number < 0 else number,
            kind=kind,
            token=token,
            why=why,
            method=method,
            turns=tuple(split_turns(turn)),
        )
        images = [open_photo(path) for path in (image, second_image) if path or path == image]
        names = ("first", "second")[: len(images)]
        drawn = self.draw_job(self.shelf.snapshot(model_id), images, names, show, config)
        path = keep_file(self.page.tab(InsideTab).html, drawn.to_npz(), f"{show}.npz")
        return drawn.picture, drawn.told, path, {name: list(shape) for name, shape in drawn.shapes.items()}
