"""Words and classes as features: texts of a two-tower model, and class weights, read at every token."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitviz_hf.config import check_texts
from vitviz_hf.errors import ConfigError, NoClassifierError
from vitviz_hf.models.hooks import read_inputs_and_outputs
from vitviz_hf.models.taps import ExtraTap
from vitviz_hf.models.view import ModelView, at_size, run, with_taps
from vitviz_hf.optimize.objectives import number_classes
from vitviz_hf.reading.classification import ZeroShot, as_classifier, load_zero_shot
from vitviz_hf.reading.tokens import check_sequence, final_norm
from vitviz_hf.sites import Feature, has_words, parse_feature, parse_site

_WORDS = re.compile(r'(?<![\w.])text:(?:"([^"]+)"|([^\W\d]\w*))')
_LABEL = re.compile(r'(?<![\w.])label:("[^"]+"|\w+)')
_ADDRESS = re.compile(r'[^\W\d][\w.]*:["\w]')


class TextHead(nn.Module):
    """Tokens [B, T, D] -> cosine [B, T, N] of what the head makes of each alone with the embeddings of texts."""

    project: Tensor | None
    embeddings: Tensor

    def __init__(self, norm: nn.Module, pool: nn.Module | None, texts: ZeroShot) -> None:
        super().__init__()
        self.norm, self.pool = norm, pool
        self.register_buffer("project", texts.project)
        self.register_buffer("embeddings", texts.embeddings)

    def forward(self, tokens: Tensor) -> Tensor:
        """Differentiable."""
        values = self.norm(tokens)
        if self.pool is not None:
            values = self.pool(values.flatten(0, 1)[:, None]).unflatten(0, tokens.shape[:2])
        if self.project is not None:
            values = functional.linear(values, self.project)
        return functional.linear(functional.normalize(values, dim=-1), self.embeddings)


def with_words(view: ModelView, texts: Sequence[str]) -> ModelView:
    """The same model with texts as features of its last layer: kind `text`, in the order that they are given.

    A feature's value at a token is the cosine of the text's embedding with what the head makes of this token, in
    [-1, 1]. At the class token of CLIP it is the model's own cosine of picture and text. SigLIP and AIMv2 pool their
    patches by attention: there it is the cosine if all patches were this one, and the mean over patches only nearly
    that of the picture.

    Raises:
        NoClassifierError: the repository has no text tower.
        ConfigError: no text or too many, or no one sequence of tokens goes through all blocks.
    """
    check_texts(texts)
    check_sequence(view)
    made = load_zero_shot(view, texts, ("{}",))
    head = TextHead(_norm(view), getattr(view.module, "head", None), made)
    return with_taps(view, {f"{len(view.layers) - 1}.text": ExtraTap("resid", head, tuple(texts), of_model=True)})


def with_labels(view: ModelView) -> ModelView:
    """The same model with its classes as features of its last layer, kind `label`: the classifier on each token.

    At the class token of a classifier that reads it, the values are the logits; where it reads the mean over normed
    patches, their mean over patches is.

    Raises:
        NoClassifierError: it has no trained classifier.
        ConfigError: its classifier is not one linear map of normed tokens, or layers work on several grids.
    """
    if view.labels is None:
        raise NoClassifierError(f"{view.model_id!r} has no trained classifier, so it has no labels as features.")
    check_sequence(view)
    head = nn.Sequential(_norm(view), _classifier(view))
    return with_taps(view, {f"{len(view.layers) - 1}.label": ExtraTap("resid", head, view.labels, of_model=True)})


def resolve_words(view: ModelView, text: str) -> tuple[ModelView, str]:
    """A target in words as an address, and the model that has it; see `resolve_all`."""
    view, found = resolve_all(view, [text])
    return view, found[0]


def resolve_feature(view: ModelView, text: str) -> tuple[ModelView, Feature]:
    """A feature by its address, as `text:"striped fur"` or as `label:tabby`, and the model that has it.

    Raises:
        SiteError: no address of a feature.
        NoClassifierError, FeatureError, ConfigError: as `resolve_all`.
    """
    if has_words(text):
        view, text = resolve_words(view, text)
    return view, parse_feature(text, view.kinds)


def with_stored_words(view: ModelView, manifest: Mapping[str, Any]) -> ModelView:
    """The model with the texts and labels that an atlas was searched for.

    Raises:
        NoClassifierError: it has no text tower, or no classifier.
    """
    names = {parse_site(site, None).kind: found for site, found in manifest.get("names", {}).items()}
    if "text" in names:
        view = with_words(view, names["text"])
    return with_labels(view) if "label" in names else view


def as_searched(view: ModelView, manifest: Mapping[str, Any]) -> ModelView:
    """The model as an atlas was searched with: at its input size, with its texts and labels.

    Raises:
        ConfigError: the model does not take this size.
        NoClassifierError: it has no text tower, or no classifier.
    """
    return with_stored_words(at_size(view, tuple(manifest["input_size"])), manifest)


def stored_address(manifest: Mapping[str, Any], text: str) -> str:
    """An address as it is, or that of a text or label in an atlas.

    Raises:
        ConfigError: the atlas was not searched for it.
        FeatureError: no label, or several, of this name.
    """
    for site, names in manifest.get("names", {}).items():
        kind = parse_site(site, None).kind
        if kind == "text" and (match := _WORDS.fullmatch(text)):
            wanted = _written(match)
            if wanted not in names:
                raise ConfigError(
                    f"the atlas has no text {wanted!r:.60}; it has {', '.join(f'{n!r:.60}' for n in names[:20])}."
                )
            return f"{site}:{names.index(wanted)}"
        if kind == "label" and (match := _LABEL.fullmatch(text)):
            return number_classes(f"logit:{match[1]}", names).replace("logit", site)
    if _WORDS.fullmatch(text) or _LABEL.fullmatch(text):
        raise ConfigError(f"the atlas was not searched for {text}; 'vitviz search --text' and '--kinds label' do it.")
    return text


def written_address(manifest: Mapping[str, Any], feature: Feature) -> str:
    """The address of a feature of an atlas that its model alone understands: texts and labels in words."""
    names = manifest.get("names", {}).get(str(feature.site))
    if not names:
        return str(feature)
    return f"label:{feature.index}" if feature.site.kind == "label" else f'text:"{names[feature.index]}"'


def _written(match: re.Match[str]) -> str:
    return match[1] or match[2].replace("_", " ")


def resolve_all(view: ModelView, texts: Sequence[str]) -> tuple[ModelView, list[str]]:
    """Targets with their words and labels as addresses of features, and the model that has these.

    - `text:"striped fur"`, or `text:fur`, becomes `11.text:0`; what stands around it stays, as in `text:fur@cls`.
    - `label:"tiger cat"`, `label:281` become `11.label:281`.
    - Plain words, such as `a photo of a cat`, become the model's own score of picture and text, where it has a text
      tower: the text at the class token, or the logit where there is none. All the texts must be plain then.
    - Anything else comes back as it is.

    Raises:
        NoClassifierError: the model has no text tower, or no classifier.
        FeatureError: no class, or several, of this name.
        ConfigError: its head does not read single tokens.
    """
    if "text_config" in view.snapshot.config and not any(_ADDRESS.search(t) or not t.strip() for t in texts):
        if not view.layers or not view.layers[-1].n_prefix:
            made = load_zero_shot(view, texts, ("{}",))
            return as_classifier(view, made), [f"logit:{i}" for i in range(len(texts))]
        return with_words(view, texts), [f"{len(view.layers) - 1}.text:{i}@cls" for i in range(len(texts))]
    layer = len(view.layers) - 1
    words = list(dict.fromkeys(_written(m) for t in texts for m in _WORDS.finditer(t)))
    labels = view.labels
    if words:
        view = with_words(view, words)
    if any(_LABEL.search(t) for t in texts):
        view = with_labels(view)

    def word(match: re.Match[str]) -> str:
        return f"{layer}.text:{words.index(_written(match))}"

    def label(match: re.Match[str]) -> str:
        return number_classes(f"logit:{match[1]}", labels).replace("logit", f"{layer}.label")

    return view, [_LABEL.sub(label, _WORDS.sub(word, t)) for t in texts]


def _norm(view: ModelView) -> nn.Module:
    name = final_norm(view)
    if name is None:
        raise ConfigError(f"{view.model_id!r} takes the mean over its tokens before it norms them.")
    return view.module.get_submodule(name)


def _classifier(view: ModelView) -> nn.Module:
    """The linear map that gave the logits, found by running the model."""
    found: list[tuple[str, Tensor]] = []
    wide = view.layers[-1].taps["resid"].size, len(view.labels or ())
    linears = {
        name: [lambda output, name=name: found.append((name, output))]
        for name, module in view.module.named_modules()
        if isinstance(module, nn.Linear) and (module.in_features, module.out_features) == wide
    }
    noise = torch.rand(1, 3, *view.input_size, generator=torch.Generator().manual_seed(0)).to(view.device)
    with torch.no_grad(), read_inputs_and_outputs(view.module, {}, linears):
        logits = view.head(run(view, noise))
    for name, output in found:
        if output.shape == logits.shape and torch.equal(output, logits):
            return view.module.get_submodule(name)
    raise ConfigError(
        f"the classifier of {view.model_id!r} is not one linear map of a token, so its labels are no features; "
        "take 'logit:NUMBER'."
    )
