"""Heads on single tokens, tokens that do not see each other, and models without positions."""

import math

import pytest
import torch
from torch.nn import functional

from vitviz_hf import Site, activations
from vitviz_hf.errors import ConfigError, NoClassifierError
from vitviz_hf.experiments.accuracy.position import shuffle_tiles
from vitviz_hf.models.view import run
from vitviz_hf.reading.tokens import check_isolation, check_plain, head_logits, isolated_logits, without_positions


def noise(view, batch=2, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


def masked_logits(module, pixel_values, separate):
    """A tiny ViT written out, in which patches and class token do not see each other in all layers but the last."""
    vit, config = module.vit, module.config
    x = vit.embeddings(pixel_values)
    n = x.shape[1]
    apart = torch.zeros(n, n, dtype=torch.bool)
    apart[0, 1:] = apart[1:, 0] = True
    heads, dim = config.num_attention_heads, config.hidden_size
    for i, layer in enumerate(vit.layers):
        tensors = dict(layer.named_parameters())

        def linear(x, *words, tensors=tensors):
            names = [k for k in tensors if all(w in k for w in words)]
            weight, bias = (next(tensors[k] for k in names if k.endswith(end)) for end in (".weight", ".bias"))
            return functional.linear(x, weight, bias)

        y = layer.layernorm_before(x)
        q, k, v = (
            linear(y, f".{name}").reshape(len(x), n, heads, -1).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        scores = q @ k.mT / math.sqrt(dim // heads)
        if separate and i < len(vit.layers) - 1:
            scores = scores.masked_fill(apart, -math.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(len(x), n, dim)
        x = x + linear(y, "o_proj")
        y = layer.layernorm_after(x)
        x = x + linear(functional.gelu(linear(y, "fc1")), "fc2")
    return module.classifier(vit.layernorm(x)[:, 0])


def test_isolating_the_class_token_equals_an_attention_mask(vit):
    pixels = noise(vit)
    values = vit.inputs((pixels - torch.tensor(vit.mean)[:, None, None]) / torch.tensor(vit.std)[:, None, None])
    with torch.no_grad():
        masked = masked_logits(vit.module, values["pixel_values"], separate=True)
        open_ = masked_logits(vit.module, values["pixel_values"], separate=False)

    isolated = isolated_logits(vit, pixels)

    torch.testing.assert_close(open_, run(vit, pixels).logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(isolated, masked, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(isolated, open_, atol=1e-2)


def last_tokens(view, pixels):
    """Output of the last block, before the final norm, [B, T, D]."""
    site = Site(len(view.layers) - 1, "resid")
    return activations(view, pixels, [site])[site].values


@pytest.mark.parametrize("family", ["vit", "deit", "vit-msn", "timm-vit"])
def test_the_head_on_the_class_token_gives_the_models_logits(family, tiny_view):
    view = tiny_view(family)
    pixels = noise(view)

    assert torch.equal(head_logits(view, last_tokens(view, pixels)[:, 0]), run(view, pixels).logits)


def test_the_head_on_a_patch_is_its_norm_and_classifier(vit):
    token = last_tokens(vit, noise(vit))[:, 5]

    expected = vit.module.classifier(vit.module.vit.layernorm(token))

    torch.testing.assert_close(head_logits(vit, token), expected)


def test_models_without_one_sequence_of_tokens_are_refused_with_the_reason(tiny_view):
    for family, why in [
        ("swin", "on several patch grids"),
        ("timm-coat", "not separate blocks"),
        ("timm-xcit", "no class token"),
        ("timm-convit", "class token enters late"),
        ("resnet", "no transformer layers"),
    ]:
        with pytest.raises(ConfigError, match=why):
            check_plain(tiny_view(family))
    with pytest.raises(NoClassifierError):
        check_plain(tiny_view("clip"))
    with pytest.raises(ConfigError, match="does not work on a part of the tokens"):
        check_isolation(tiny_view("timm-beitv2"))


def test_changes_to_tokens_leave_no_hooks_and_the_models_output(vit):
    def hooks():  # transformers leaves its own where hidden states were asked for
        return [h for m in vit.module.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]

    pixels = noise(vit)
    before, left = run(vit, pixels).logits, hooks()

    isolated_logits(vit, pixels)

    assert hooks() == left and torch.equal(run(vit, pixels).logits, before)


@pytest.mark.parametrize("family", ["vit", "timm-vit"])
def test_without_positions_the_order_of_patches_does_not_matter(family, tiny_view):
    view = tiny_view(family)
    patch = view.input_size[0] // view.layers[0].patch_grid[0]
    pixels = noise(view, 1)
    shuffled = shuffle_tiles(pixels[0], patch, 1)[None]
    natural = run(view, pixels).logits

    blind = without_positions(view)

    torch.testing.assert_close(run(blind, shuffled).logits, run(blind, pixels).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(run(view, shuffled).logits, natural, atol=1e-3)
    assert torch.equal(run(view, pixels).logits, natural)


@pytest.mark.parametrize("family", ["swinv2", "resnet", "dinov3"])
def test_a_model_without_learned_positions_says_so(family, tiny_view):
    with pytest.raises(ConfigError, match="no learned position embeddings"):
        without_positions(tiny_view(family))
