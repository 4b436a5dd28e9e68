"""The model's own head on every token after every layer: what would be seen if the model ended there."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitviz_hf.errors import NoClassifierError
from vitviz_hf.models.view import ModelView
from vitviz_hf.reading.classification import ZeroShot, as_classifier, load_zero_shot, not_finite
from vitviz_hf.reading.recording import record_with_logits
from vitviz_hf.reading.tokens import check_sequence, head_logits
from vitviz_hf.sites import Site

TEMPLATE = "a photo of a {}."


@dataclass(frozen=True, slots=True, eq=False)
class Lens:
    """The likeliest label of every token after every layer."""

    labels: tuple[str, ...]
    top: tuple[Tensor, ...]
    """By layer, numbers of labels [B, T] on the CPU: prefix tokens, then patches."""
    p: tuple[Tensor, ...]
    """By layer, their probabilities [B, T]: softmax over all labels."""
    reads_class_token: bool
    """The classifier reads the first token of the last layer and no other, so that its label there is the model's."""


def logit_lens(view: ModelView, pixels: Tensor, zero_shot: ZeroShot | None = None) -> Lens:
    """What the final norm and the classifier make of each token after each layer, as if all tokens were this one.

    Only after the last layer, and for the tokens that the classifier reads there, was the model trained for it.

    Args:
        pixels: [B, 3, H, W] in [0, 1].
        zero_shot: words in place of a classifier; if None, those who have none but a text tower take the classes of
            ImageNet in one template.

    Raises:
        NoClassifierError: it has neither a trained classifier nor a text tower.
        ConfigError: no one sequence of tokens goes through all blocks.
        ModelError: logits are not finite.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; for vision transformers Vilas et al. 2023,
    arXiv:2310.18969.
    """
    check_sequence(view)
    if zero_shot is None and view.labels is None:
        if "text_config" not in view.snapshot.config:
            raise NoClassifierError(f"{view.model_id!r} has no trained classifier, and no text tower to name labels.")
        zero_shot = load_zero_shot(view, templates=(TEMPLATE,))
    if zero_shot is not None:
        view = as_classifier(view, zero_shot)
    sites = [Site(i, "resid") for i in range(len(view.layers))]
    with torch.no_grad():
        acts, logits = record_with_logits(view, pixels, sites)
    best = []
    for site in sites:
        read = _read(view, acts[site].values, site.layer)
        best.append([x.cpu() for x in read.softmax(-1).max(-1)])
    alike = torch.allclose(read[:, 0], logits.float(), rtol=1e-3, atol=1e-3)
    p, top = zip(*best, strict=True)
    return Lens(view.labels or (), top, p, view.layers[-1].n_prefix > 0 and alike)


def _read(view: ModelView, tokens: Tensor, layer: int) -> Tensor:
    """Logits of the head on each token, [B, T, number of labels]."""
    logits = head_logits(view, tokens.flatten(0, 1)).float()
    if not logits.isfinite().all():
        raise not_finite(view, f"tokens of layer {layer}")
    return logits.view(*tokens.shape[:2], -1)
