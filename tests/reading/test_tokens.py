"""Changes to tokens against attention masks and against heads written out."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from vitviz_hf import Site, activations
from vitviz_hf.errors import ConfigError
from vitviz_hf.models.view import logits, run
from vitviz_hf.reading.tokens import (
    check_isolation,
    check_sequence,
    final_norm,
    head_logits,
    isolated_logits,
    lone_prefix,
    without_positions,
)

# Prefix tokens 1, 2 or 5; a head on the class token, on two tokens, or beside the mean of the patches.
PLAIN = [
    "vit",
    "deit",
    "deit-distilled",
    "vit-msn",
    "dinov2",
    "dinov2-giant",
    "dinov2-registers",
    "clip",
    "metaclip2",
    "timm-vit",
    "timm-deit",
]


def noise(view, batch=2, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


def classifier(tiny_view, family):
    """The tiny model; one without a classifier answers with its class token."""
    view = tiny_view(family)
    return view if view.labels else replace(view, labels=("cat",), head=lambda output: output.pooler_output)


def masked_logits(view, pixels, start, stop, monkeypatch):
    """Logits with masks in the attention of layers start to stop - 1: the model runs as it is, on all tokens."""
    n, calls, attention = view.layers[0].n_prefix, [], functional.scaled_dot_product_attention

    def masked(q, k, v, attn_mask=None, **options):
        mask = torch.zeros(q.shape[-2], k.shape[-2])
        if start <= len(calls) < stop:
            mask[:n, n:] = mask[n:, :n] = -math.inf
        calls.append(q.shape)
        return attention(q, k, v, attn_mask=mask if attn_mask is None else attn_mask + mask, **options)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(functional, "scaled_dot_product_attention", masked)
        found = logits(view, pixels)
    assert len(calls) == len(view.layers)
    return found


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
def test_isolation_in_some_layers_equals_attention_masks(family, start, stop, tiny_view, monkeypatch):
    view = classifier(tiny_view, family)
    pixels = noise(view)

    isolated = isolated_logits(view, pixels, start, stop)

    torch.testing.assert_close(isolated, masked_logits(view, pixels, start, stop, monkeypatch), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(isolated, logits(view, pixels), atol=1e-2)


@pytest.mark.parametrize("family", PLAIN)
def test_the_class_token_is_isolated_in_all_layers_but_the_last_where_nothing_is_said(family, tiny_view):
    view = classifier(tiny_view, family)
    pixels = noise(view)

    assert torch.equal(isolated_logits(view, pixels), isolated_logits(view, pixels, 0, 2))
    assert torch.equal(isolated_logits(view, pixels, 2, 2), logits(view, pixels))


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2-registers", "timm-vit"])
def test_prefix_tokens_that_saw_no_patch_are_the_same_for_every_picture(family, tiny_view):
    view = classifier(tiny_view, family)
    pixels = noise(view)

    alone = lone_prefix(view, pixels, 0, 2)
    late = lone_prefix(view, pixels, 1, 2)

    torch.testing.assert_close(alone[0], alone[1])
    assert alone.shape[1] == view.layers[0].n_prefix
    assert not torch.allclose(late[0], late[1], atol=1e-3)


def test_isolated_in_every_layer_the_class_token_says_the_same_of_every_picture(vit):
    first, second = isolated_logits(vit, noise(vit), 0, 3)

    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("family", ["beit", "data2vec", "dinov3", "timm-beitv2", "timm-eva02"])
def test_a_model_whose_attention_needs_all_tokens_is_refused(family, tiny_view):
    view = tiny_view(family)
    view = view if view.labels else replace(view, labels=("cat",), head=lambda output: output.pooler_output)

    with pytest.raises(ConfigError, match="does not work on a part of the tokens"):
        check_isolation(view)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_one_layer_that_asks_for_places_is_enough_and_rounding_is_not(layer, vit):
    def placed(share):
        module = copy.deepcopy(vit.module)

        def shift(_, __, tokens):
            return tokens + share * torch.linspace(-1, 1, tokens.shape[1])[:, None] * tokens.std()

        module.vit.layers[layer].register_forward_hook(shift)
        return replace(vit, module=module)

    check_isolation(placed(0))
    check_isolation(placed(2e-5))
    with pytest.raises(ConfigError, match="its blocks ask for a token's place"):
        check_isolation(placed(1e-2))


def test_two_blocks_are_a_sequence_and_one_is_none(vit):
    check_sequence(replace(vit, layers=vit.layers[:2]))

    for layers, why in [
        ((), "it has no transformer layers"),
        (vit.layers[:1], "its layers are not separate blocks"),
        ((vit.layers[0],) * 2, "its layers are not separate blocks"),
    ]:
        with pytest.raises(ConfigError, match=why):
            check_sequence(replace(vit, layers=layers))


NORMS = {
    "vit": "vit.layernorm",
    "deit-distilled": "deit.layernorm",
    "dinov2-giant": "dinov2.layernorm",
    "clip": "post_layernorm",
    "timm-vit": "timm_model.norm",
    "timm-deit": "timm_model.norm",
    "beit": None,
    "timm-eva02": None,
}


@pytest.mark.parametrize("family", NORMS)
def test_the_final_norm_is_found_by_what_it_is_given(family, tiny_view):
    found = final_norm(classifier(tiny_view, family))

    assert found is None if NORMS[family] is None else found.endswith(NORMS[family])


@pytest.mark.parametrize("family", [f for f, name in NORMS.items() if name])
def test_the_head_on_normalized_tokens_is_the_head_on_tokens(family, tiny_view):
    view = classifier(tiny_view, family)
    site, name = Site(2, "resid"), final_norm(view)
    tokens = activations(view, noise(view), [site])[site].values[:, 3]
    norm = view.module.get_submodule(name)

    with torch.no_grad():
        normed = norm(tokens)

    torch.testing.assert_close(head_logits(view, normed, name), head_logits(view, tokens))
    assert not torch.allclose(head_logits(view, 2 * normed, name), head_logits(view, 2 * tokens), atol=1e-2)


def test_the_head_of_two_tokens_or_of_a_mean_takes_the_token_as_all_of_them(tiny_view):
    tokens = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    deit, dino = tiny_view("deit-distilled"), tiny_view("dinov2-giant")

    with torch.no_grad():
        normed = deit.module.deit.layernorm(tokens)
        two = (deit.module.cls_classifier(normed) + deit.module.distillation_classifier(normed)) / 2
        normed = dino.module.dinov2.layernorm(tokens)
        both = dino.module.classifier(torch.cat([normed, normed], 1))

    torch.testing.assert_close(head_logits(deit, tokens), two)
    torch.testing.assert_close(head_logits(dino, tokens), both)


@pytest.mark.parametrize(
    ("family", "table"),
    [
        ("vit", "vit.embeddings.position_embeddings"),
        ("deit", "deit.embeddings.position_embeddings"),
        ("clip", "embeddings.position_embedding.weight"),
        ("siglip2", "embeddings.position_embedding.weight"),
        ("dinov2-registers", "embeddings.position_embeddings"),
        ("hiera", "hiera.embeddings.position_embeddings"),
        ("timm-vit", "timm_model.pos_embed"),
        ("timm-pit", "timm_model.pos_embed"),
        ("timm-eva02", "timm_model.pos_embed"),
        ("timm-convit", "timm_model.pos_embed"),
    ],
)
def test_without_positions_zeroes_the_table_and_nothing_else(family, table, tiny_view):
    view = tiny_view(family)

    blind = without_positions(view)

    changed = {n for n, p in blind.module.named_parameters() if not torch.equal(p, view.module.get_parameter(n))}
    (name,) = changed
    assert name.endswith(table) and not blind.module.get_parameter(name).any()


def test_interpolated_positions_are_zero_too(tiny_view):
    from vitviz_hf import at_size
    from vitviz_hf.experiments.accuracy.position import shuffle_tiles

    view = at_size(tiny_view("vit"), (32, 48))
    blind = without_positions(view)
    pixels = noise(view, 1)
    shuffled = shuffle_tiles(pixels[0], 8, 1)[None]

    torch.testing.assert_close(run(blind, shuffled).logits, run(blind, pixels).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(run(view, shuffled).logits, run(view, pixels).logits, atol=1e-3)
