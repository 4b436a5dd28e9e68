"""The head on every token, against the model's own logits and a computation by hand."""

import pytest
import torch

from tests.inside.test_components import noise
from vitviz_hf import classify, load_zero_shot
from vitviz_hf.errors import ConfigError, ModelError, NoClassifierError
from vitviz_hf.inside import lens
from vitviz_hf.inside.lens import logit_lens
from vitviz_hf.inside.looks import LookConfig, look
from vitviz_hf.models.view import normalize


def test_each_token_gets_the_label_of_the_norm_and_the_classifier(vit):
    pixels = noise(vit, 2)

    found = logit_lens(vit, pixels)

    hidden = vit.module(normalize(vit, pixels), output_hidden_states=True).hidden_states[1:]
    assert found.labels == ("cat", "dog", "bus") and len(found.top) == 3
    for layer, tokens in enumerate(hidden):
        p, top = vit.module.classifier(vit.module.vit.layernorm(tokens)).softmax(-1).max(-1)
        assert torch.equal(found.top[layer], top)
        torch.testing.assert_close(found.p[layer], p.detach())


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_words_take_the_place_of_a_classifier(family, tiny_view):
    view = tiny_view(family)
    words = load_zero_shot(view, ["cat", "bus", "dog"], ["a {}"])
    pixels = noise(view)

    found = logit_lens(view, pixels, words)

    assert found.labels == ("cat", "bus", "dog") and len(found.top[2][0]) == view.layers[2].n_prefix + 16
    if family == "clip":
        expected = classify(view, pixels, words).logits.softmax(-1).max(-1)
        assert int(found.top[2][0, 0]) == int(expected.indices)
        torch.testing.assert_close(found.p[2][0, 0], expected.values[0], atol=1e-5, rtol=1e-4)


def test_two_towers_without_words_take_the_classes_of_imagenet(tiny_view, monkeypatch):
    view = tiny_view("clip")
    asked = []
    monkeypatch.setattr(
        lens,
        "load_zero_shot",
        lambda view, **given: asked.append(given) or load_zero_shot(view, ["cat", "bus"], ["{}"]),
    )

    assert logit_lens(view, noise(view)).labels == ("cat", "bus")
    assert asked == [{"templates": ("a photo of a {}.",)}]


@pytest.mark.parametrize(("family", "read"), [("vit", True), ("clip", True), ("beit", False), ("siglip", False)])
def test_the_class_tokens_last_label_is_the_models_where_the_classifier_reads_it(family, read, tiny_view):
    view = tiny_view(family)
    words = load_zero_shot(view, ["cat", "bus", "dog"], ["a {}"]) if view.labels is None else None

    found = logit_lens(view, noise(view, 2), words)

    assert found.reads_class_token is read
    drawn = "of the class token at the end"
    assert words or (drawn in look(view, noise(view), ["a"], "lens", LookConfig()).told) is read


def test_models_that_name_nothing_are_told(tiny_view):
    with pytest.raises(NoClassifierError, match="has no trained classifier, and no text tower to name labels"):
        logit_lens(tiny_view("dinov2"), noise(tiny_view("dinov2")))
    with pytest.raises(ConfigError, match="several patch grids, or on windows"):
        logit_lens(tiny_view("swin"), noise(tiny_view("swin")))


def test_logits_that_are_not_finite_are_told(vit):
    with pytest.raises(ModelError, match="NaN or infinite logits for tokens of layer 0"):
        logit_lens(vit, noise(vit) * torch.nan)
