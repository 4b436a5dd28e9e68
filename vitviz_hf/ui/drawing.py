"""What the tabs show of maps and cards: pictures and HTML."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitviz_hf.atlas.agreement import Agreement
from vitviz_hf.images import cover, heatmap, is_signed, open_image, overlay, palette_stops, two_sided
from vitviz_hf.models.seen import Box
from vitviz_hf.reading.exemplars import Exemplar
from vitviz_hf.templates import load_template
from vitviz_hf.ui.cards import Card, FeatureCard, Fired, RankResult

STYLES = ("overlay", "heatmap", "signed")
_LARGE = 560
_PHOTO, _MAP, _EXEMPLAR, _THUMBNAIL = 640, 128, 80, 64
"""Longer side in pixels: a first page has 79 of them."""


def draw_map(crop: Image.Image, fired: Fired, style: str) -> Image.Image:
    """A map in one of the styles; `overlay` and `heatmap` show what is above 0, `signed` both sides."""
    scale = map_scale(fired, style)
    if style == "heatmap":
        return heatmap(fired.values, crop.size, scale)
    return overlay(crop, fired.values, scale)


def draw_bar(fired: Fired, style: str) -> str:
    """The color scale of such a map."""
    scale = map_scale(fired, style)
    ticks = [scale[0], 0.0, scale[1]] if scale[0] < 0 else list(scale)
    return _render("bar.html", stops=palette_stops(scale), ticks=[f"{tick:.3g}" for tick in ticks])


def styles_for(fired: Fired) -> list[str]:
    """The styles that a map can be drawn in."""
    return list(STYLES) if fired.values.min() < 0 else list(STYLES[:2])


def describe(fired: Fired, unpainted: bool) -> str:
    """What a feature does on a picture, in one sentence or two.

    Args:
        unpainted: negative values are not to be seen.
    """
    values = fired.values
    rows, cols = values.shape
    spread = f"values {values.min():.3g} to {values.max():.3g} on {rows} x {cols} patches, mean {values.mean():.3g}"
    text = f"**{html.escape(fired.name)}** {html.escape(_where(fired))}; {spread}."
    return text + (" Values below 0 are not painted; *signed* paints them." if unpainted and is_signed(values) else "")


def peak_text(fired: Fired) -> str:
    """The map of a feature in words."""
    row, col = np.unravel_index(int(fired.values.argmax()), fired.values.shape)
    return f"Activation map of {fired.name}: highest {fired.values.max():.3g}, at patch {row},{col}"


def cards_html(result: RankResult, words: list[str], chosen: str = "") -> str:
    """Cards of ranked features; each picks its address."""
    small = _shrink(result.crop, _MAP)
    cards = [_card(card, small, word) for card, word in zip(result.cards, words, strict=True)]
    chosen = chosen or next((card["feature"] for card in cards), "")
    told = [{**card, "chosen": card["feature"] == chosen} for card in cards]
    return _render("cards.html", cards=told, label="Strongest features")


def crop_html(
    photo: Image.Image,
    grid: tuple[int, int] | None = None,
    patch: tuple[int, int] | None = None,
    box: Box = (0.0, 0.0, 1.0, 1.0),
    whole: bool = True,
) -> str:
    """A photograph, and on it what the model sees, which picks a patch.

    Args:
        grid: rows and columns of patches; None where the model is not known yet: the photograph picks itself then.
        box: what the model sees, in shares of the photograph.
        whole: no patch can be picked too.
    """
    return _render("crop.html", photo=_shrink(photo, _PHOTO), grid=grid, patch=patch, box=box, whole=whole)


def enlarge(crop: Image.Image) -> Image.Image:
    """The crop about 560 pixels wide, enlarged by a whole factor so that patches stay sharp."""
    factor = max(1, round(_LARGE / crop.width))
    return crop.resize((crop.width * factor, crop.height * factor), Image.Resampling.BICUBIC)


def photographs_html(paths: Mapping[str, Path]) -> str:
    """Small pictures; each picks its key."""
    return _render("photographs.html", photographs={key: _thumbnail(path) for key, path in paths.items()})


def feature_cards_html(cards: Sequence[FeatureCard], label: str) -> str:
    """Cards of features by themselves; each picks its address.

    Args:
        label: what they have in common.
    """
    told = [
        {
            "feature": str(card.feature),
            "word": card.word,
            "told": ", ".join(filter(None, (card.told, _judged(card.agreement)))),
            "title": _titled(f"{card.feature} {card.told}".strip(), card.agreement),
            "own": None,
            "made": card.made and _shrink(card.made.picture, _MAP),
            "made_from": card.made and card.made.from_images,
            "alt": "",
            "exemplars": _exemplars(card.exemplars),
            "chosen": False,
        }
        for card in cards
    ]
    return _render("cards.html", cards=told, label=label)


def _card(card: Card, crop: Image.Image, word: str) -> dict[str, Any]:
    fired = card.fired
    return {
        "feature": str(fired.feature),
        "word": word,
        "told": _judged(card.agreement),
        "title": _titled(f"{fired.feature} {_where(fired)}", card.agreement),
        "own": draw_map(crop, fired, "overlay"),
        "made": card.made and _shrink(card.made.picture, _MAP),
        "made_from": card.made and card.made.from_images,
        "alt": f"{peak_text(fired)}. It is also excited by",
        "exemplars": _exemplars(card.exemplars),
    }


def _judged(agreement: Agreement | None) -> str:
    """As short as beside an address; `_titled` tells it in full."""
    return f"by its picture {agreement.picture:.0f} %" if agreement else ""


def _titled(title: str, agreement: Agreement | None) -> str:
    return f"{title}: {agreement}" if agreement else title


def _exemplars(exemplars: Sequence[tuple[Exemplar, Image.Image]]) -> list[dict[str, Any]]:
    return [
        {
            "crop": _shrink(picture, _EXEMPLAR),
            "alt": "{}, patch {},{}: {:.3g}".format(e.photograph.replace("_", " "), *e.patch, e.value),
        }
        for e, picture in exemplars
    ]


def _where(fired: Fired) -> str:
    at = "at patch {},{}".format(*fired.patch) if fired.patch else "on the whole picture"
    above = "the strongest patches of " if fired.patch else ""
    return f"{at}: {fired.score:.3g}, {fired.unusual:+.1f} sd from {above}{fired.against}"


def map_scale(fired: Fired, style: str) -> tuple[float, float]:
    """Values at the ends of the colors."""
    return two_sided(fired.values) if style == "signed" else (0.0, max(0.0, float(fired.values.max())))


def _shrink(picture: Image.Image, side: int) -> Image.Image:
    small = picture.copy()
    small.thumbnail((side, side))
    return small


def _thumbnail(path: Path) -> Image.Image:
    return cover(open_image(path), (_THUMBNAIL, _THUMBNAIL))


def _render(name: str, **values: Any) -> str:
    return load_template(__package__, name).render(**values)
