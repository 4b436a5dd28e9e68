"""Naming what is in a picture: by the repository's own classifier, or zero-shot by its text tower."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.resources import files
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional

from vitviz_hf.errors import ConfigError, ModelError, NoClassifierError, OutputExistsError
from vitviz_hf.manifest import cache_folder, write_file
from vitviz_hf.models.gate import fetch_tokenizer
from vitviz_hf.models.text import load_text_tower
from vitviz_hf.models.view import ModelView, logits

_TEXTS_AT_ONCE = 400


@dataclass(frozen=True, slots=True)
class Classification:
    """Logits of some pictures and what they are called."""

    logits: Tensor
    """[B, N]"""
    labels: tuple[str, ...]

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k likeliest labels of each picture with their probability (softmax over all labels), best first."""
        best = self.logits.float().softmax(-1).topk(min(k, len(self.labels)))
        return [
            [(self.labels[i], p) for i, p in zip(indices, values, strict=True)]
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShot:
    """A classifier made of words, as from `load_zero_shot`: what the vision tower returned -> logits [B, N]."""

    labels: tuple[str, ...]
    templates: tuple[str, ...]
    embeddings: Tensor
    """[N, E], length 1."""
    project: Tensor | None
    """[E, D] from the vision tower's pooled output, or None."""
    scale: float
    bias: float

    def __call__(self, output: Any) -> Tensor:
        """Logits: scale * cosine + bias."""
        pooled = output.pooler_output
        if self.project is not None:
            pooled = functional.linear(pooled, self.project)
        return self.scale * functional.normalize(pooled.float(), dim=-1) @ self.embeddings.mT + self.bias

    def to_json(self) -> dict[str, Any]:
        """What it was made of, for manifests."""
        texts = sha256("\n".join((*self.labels, "", *self.templates)).encode()).hexdigest()
        return {"labels": len(self.labels), "templates": list(self.templates), "texts": texts}


def as_classifier(view: ModelView, zero_shot: ZeroShot) -> ModelView:
    """The vision tower with words as its labels: it takes part wherever a classifier does."""
    return replace(view, labels=zero_shot.labels, head=zero_shot)


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 classes of ImageNet in its order, with the names that CLIP was tested with."""
    return tuple((files("vitviz_hf.reading") / "imagenet_classes.txt").read_text("utf-8").splitlines())


def imagenet_templates() -> tuple[str, ...]:
    """The 80 templates of CLIP, `a bad photo of a {}.` and so on."""
    return tuple((files("vitviz_hf.reading") / "imagenet_templates.txt").read_text("utf-8").splitlines())


def classify(view: ModelView, pixels: Tensor, zero_shot: ZeroShot | None = None) -> Classification:
    """Logits of pictures with their labels.

    Args:
        pixels: [B, 3, H, W] in [0, 1], as given by `to_pixels`.
        zero_shot: for a model without a classifier but with a text tower.

    Raises:
        NoClassifierError: the repository has no trained classifier; a random one is never used.
        ModelError: logits that are not finite cannot be ranked.
    """
    if zero_shot is not None:
        view = as_classifier(view, zero_shot)
    if view.labels is None:
        raise NoClassifierError(
            f"{view.model_id!r} has no trained classifier.",
            "Choose a checkpoint with one, or for CLIP, SigLIP and AIMv2 classify zero-shot with labels of your own "
            "(load_zero_shot, or --labels).",
            "Choose a checkpoint with one.",
        )
    with torch.no_grad():
        found = logits(view, pixels)
    if broken := int((~found.isfinite()).any(1).sum()):
        raise not_finite(view, f"{broken} of {len(found)} pictures")
    return Classification(found, view.labels)


def not_finite(view: ModelView, where: str) -> ModelError:
    """The error of a model whose logits are NaN or infinite."""
    return ModelError(
        f"{view.model_id!r} in {view.identity.dtype} gives NaN or infinite logits for {where}: they cannot be ranked. "
        "Load it in float32; if it was, its weights are damaged."
    )


def load_zero_shot(
    view: ModelView,
    labels: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    token: str | bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ZeroShot:
    """A classifier from the text tower of a CLIP, MetaCLIP, SigLIP or AIMv2 repository.

    The embedding of a label is the mean of the normalized embeddings of its texts, normalized (Radford et al. 2021,
    arXiv:2103.00020, section 3.1.4). Kept in the cache folder.

    Args:
        labels: words or sentences; the classes of ImageNet if None.
        templates: texts with one `{}` for the label; CLIP's 80 if None.
        token: Hub token, as in `load_model`.
        progress: called with the texts done and their number.

    Raises:
        ConfigError: no label, or a template without a place for it.
        NoClassifierError: the repository has no text tower.
        ModelError: no usable tokenizer.
    """
    labels = tuple(imagenet_labels() if labels is None else labels)
    templates = tuple(imagenet_templates() if templates is None else templates)
    if not labels or not all(label.strip() for label in labels):
        raise ConfigError(f"zero-shot classification needs labels that are not empty; got {list(labels)[:5]}.")
    if not templates or any(t.count("{}") != 1 for t in templates):
        raise ConfigError(
            f"a template needs one {{}} for the label, as in 'a photo of a {{}}.'; got {list(templates)[:5]}."
        )
    # Size, control and taps change the vision tower only.
    texts_of = replace(view.identity, control=None, input_size=(0, 0), taps=None).key
    recipe = sha256("\n".join((texts_of, *labels, "", *templates)).encode())
    path = cache_folder() / "zero-shot" / f"{recipe.hexdigest()[:32]}.safetensors"
    if path.is_file():
        stored = load(path.read_bytes())
    else:
        stored = _embed(view, labels, templates, token, progress)
        with suppress(OutputExistsError):  # another process was faster
            write_file(path, save({k: v.cpu().contiguous() for k, v in stored.items()}))
    tensors = {k: v.to(view.device) for k, v in stored.items()}
    return ZeroShot(
        labels=labels,
        templates=templates,
        embeddings=tensors["embeddings"],
        project=tensors.get("project"),
        scale=float(tensors["scale"]),
        bias=float(tensors["bias"]),
    )


def _embed(
    view: ModelView,
    labels: tuple[str, ...],
    templates: tuple[str, ...],
    token: str | bool | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Tensor]:
    tower = load_text_tower(view.snapshot, fetch_tokenizer(view.snapshot, token), view.dtype, view.device)
    texts = [t.replace("{}", label) for label in labels for t in templates]
    parts = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        parts.append(tower.encode(texts[start : start + _TEXTS_AT_ONCE]))
        if progress:
            progress(min(start + _TEXTS_AT_ONCE, len(texts)), len(texts))
    embeddings = functional.normalize(torch.cat(parts).unflatten(0, (len(labels), -1)).mean(1), dim=-1)
    stored = {"embeddings": embeddings, "scale": torch.tensor(tower.scale), "bias": torch.tensor(tower.bias)}
    return stored if tower.project is None else stored | {"project": tower.project}
