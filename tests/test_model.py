"""Loading, measuring and reading every family, against Hugging Face's own outputs and hand computations."""

import pytest
import torch
from torch.nn import functional

from tests.tiny_models import FAMILIES, N_PREFIX
from vitviz_hf import (
    activation_map,
    activations,
    at_size,
    list_sites,
    load_model,
    parse_feature,
    to_pixels,
    top_features,
)
from vitviz_hf.errors import ConfigError, FeatureError, SiteError
from vitviz_hf.model import check_feature, normalize, run
from vitviz_hf.recording import record
from vitviz_hf.sites import KINDS, Site

HF_FAMILIES = [f for f in FAMILIES if not f.startswith("timm")]


def noise(view, batch=2, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_grid_and_prefix_tokens_are_measured(family, tiny_view):
    view = tiny_view(family)

    assert len(view.layers) == 3
    assert all(layer.patch_grid == (4, 4) for layer in view.layers)
    assert all(layer.n_prefix == N_PREFIX[family] for layer in view.layers)
    assert {s.kind for s, _ in list_sites(view)} == set(KINDS)


@pytest.mark.parametrize("family", HF_FAMILIES)
def test_resid_equals_hidden_states_bit_for_bit(family, tiny_view):
    view = tiny_view(family)
    pixels = noise(view)

    acts = activations(view, pixels, [f"{i}.resid" for i in range(3)])
    # Last, because transformers leaves its own hooks behind after this.
    options = {**view.forward_options, "output_hidden_states": True}
    with torch.no_grad():
        hidden = view.module(normalize(view, pixels), **options).hidden_states

    for i in range(2):  # some families normalize the last hidden state
        assert torch.equal(acts[Site(i, "resid")], hidden[i + 1])


@pytest.mark.parametrize("family", ["timm-vit", "timm-deit"])
def test_resid_equals_timms_intermediates(family, tiny_view):
    view = tiny_view(family)
    pixels = noise(view)

    with torch.no_grad():
        hidden = view.module.timm_model.forward_intermediates(
            normalize(view, pixels), return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )

    for i, (patches, prefix) in enumerate(hidden):
        ours = activations(view, pixels, [f"{i}.resid"])[Site(i, "resid")]
        assert torch.equal(ours, torch.cat([prefix, patches], dim=1))


def _weight(module, *names):
    for name in names:
        if name in dict(module.named_modules()):
            return module.get_submodule(name)
    raise AssertionError(f"none of {names} in the block")


def test_every_kind_equals_a_hand_computation_from_the_weights(view):
    """Pre-norm blocks of plain ViTs, computed from the residual stream and the weights alone."""
    pixels = noise(view)
    acts = activations(view, pixels, [Site(i, k) for i in range(3) for k in KINDS])
    block = view.module.get_submodule(view.layers[1].name)
    stream = acts[Site(0, "resid")]

    with torch.no_grad():
        first = _weight(block, "norm1", "layernorm_before", "layer_norm1")
        second = _weight(block, "norm2", "layernorm_after", "layer_norm2")
        normed = first(stream)
        if hasattr(block, "attn"):
            q, k, v = functional.linear(normed, block.attn.qkv.weight, block.attn.qkv.bias).chunk(3, -1)
            output = block.attn.proj
        else:
            attention = block.attention if hasattr(block, "attention") else block.self_attn
            q, k, v = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
            output = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
        for kind, value in (("attn_q", q), ("attn_k", k), ("attn_v", v)):
            torch.testing.assert_close(acts[Site(1, kind)], value)

        scale1 = _scale(block, 1)
        middle = stream + scale1 * acts[Site(1, "attn_out")]
        mlp_in = second(middle)
        torch.testing.assert_close(acts[Site(1, "mlp_in")], mlp_in)

        mlp_act = _hand_mlp_act(block.mlp, mlp_in)
        torch.testing.assert_close(acts[Site(1, "mlp_act")], mlp_act)

        down = block.mlp.down_proj if hasattr(block.mlp, "down_proj") else block.mlp.fc2
        mlp_out = mlp_act @ down.weight.T + down.bias
        torch.testing.assert_close(acts[Site(1, "mlp_out")], mlp_out)
        torch.testing.assert_close(acts[Site(1, "resid")], middle + _scale(block, 2) * mlp_out)

        if not _has_position_bias(block):
            heads = [x.unflatten(-1, (2, -1)).transpose(1, 2) for x in _rotated(view, q, k, v)]
            mixed = (heads[0] @ heads[1].mT / 16**0.5).softmax(-1) @ heads[2]
            expected = mixed.transpose(1, 2).flatten(-2) @ output.weight.T + output.bias
            torch.testing.assert_close(acts[Site(1, "attn_out")], expected, rtol=1e-4, atol=1e-5)


def _scale(block, i):
    for name in (f"ls{i}.gamma", f"layer_scale{i}.lambda1", f"lambda_{i}"):
        owner, _, leaf = name.rpartition(".")
        module = block if not owner else getattr(block, owner, None)
        value = getattr(module, leaf, None)
        if value is not None:
            return value
    return 1.0


def _hand_mlp_act(mlp, x):
    if hasattr(mlp, "gate_proj"):
        return functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)
    hidden = mlp.up_proj(x) if hasattr(mlp, "up_proj") else mlp.fc1(x)
    name = type(getattr(mlp, "activation_fn", None) or getattr(mlp, "act", None) or mlp.act_fn).__name__
    if name == "QuickGELUActivation":
        return hidden * torch.sigmoid(1.702 * hidden)
    return functional.gelu(hidden, approximate="tanh" if "Tanh" in name else "none")


def _has_position_bias(block):
    return any("relative_position" in name for name, _ in block.named_parameters())


def _rotated(view, q, k, v):
    """DINOv3 rotates patch queries and keys; the others do not."""
    if view.module.config.model_type != "dinov3_vit":
        return q, k, v
    from transformers.models.dinov3_vit.modeling_dinov3_vit import apply_rotary_pos_emb

    cos, sin = view.module.rope_embeddings(torch.zeros(1, 3, *view.input_size))
    heads = [x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (q, k)]
    turned = apply_rotary_pos_emb(*heads, cos, sin)
    return *(x.transpose(1, 2).flatten(-2) for x in turned), v


def test_two_images_in_a_batch_equal_two_singles(view):
    pixels = noise(view)
    both = activations(view, pixels, ["2.mlp_act"])[Site(2, "mlp_act")]

    for i in range(2):
        alone = activations(view, pixels[i : i + 1], ["2.mlp_act"])[Site(2, "mlp_act")]
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("row", "col"), [(0, 5), (3, 0), (2, 3)])
def test_a_changed_patch_changes_the_first_map_there_on_a_grid_that_is_not_square(view, row, col):
    view = at_size(view, (32, 48))
    assert view.layers[0].patch_grid == (4, 6)
    gray = torch.full((1, 3, 32, 48), 0.5)
    marked = gray.clone()
    marked[..., row * 8 : row * 8 + 8, col * 8 : col * 8 + 8] = noise(view, 1)[..., :8, :8]
    features = [parse_feature(f"0.attn_v:{i}") for i in range(8)]

    before, after = (activations(view, x, [features[0].site])[features[0].site] for x in (gray, marked))

    changes = [(activation_map(view, after, f) - activation_map(view, before, f)).abs()[0] for f in features]
    difference = torch.stack(changes).sum(0)
    assert difference.shape == (4, 6)
    assert difference[row, col] > 0.01
    difference[row, col] = 0
    assert difference.max() < 1e-5


def test_work_stops_at_the_requested_layer(view):
    calls = []
    handle = view.module.get_submodule(view.layers[1].name).register_forward_hook(lambda *_: calls.append(1))

    activations(view, noise(view), ["0.mlp_act"])
    handle.remove()

    assert not calls


def test_reading_leaves_no_hooks_even_after_an_error(view):
    def count():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in view.module.modules())

    before = count()
    activations(view, noise(view), ["1.mlp_act", "2.attn_q"])
    with pytest.raises((RuntimeError, ValueError, AssertionError, TypeError)):
        record(view, torch.zeros(1, 5, 7), [Site(1, "mlp_act")])

    assert count() == before


def test_gradients_reach_the_pixels_and_no_parameter(view):
    pixels = noise(view).requires_grad_(True)

    record(view, pixels, [Site(1, "mlp_act")])[Site(1, "mlp_act")].sum().backward()

    assert pixels.grad.abs().sum() > 0
    assert all(p.grad is None for p in view.module.parameters())


def test_an_interpolated_view_at_its_own_size_is_the_same_view(view):
    assert at_size(view, view.input_size) is view


def test_larger_input_keeps_the_model_and_changes_the_grid(view):
    larger = at_size(view, (48, 64))

    assert larger.module is view.module
    assert larger.layers[2].patch_grid == (6, 8)
    assert larger.layers[2].n_prefix == view.layers[2].n_prefix


def test_an_input_size_off_the_patch_grid_is_refused(vit):
    with pytest.raises(ConfigError, match="multiple of 8"):
        at_size(vit, (30, 32))


def test_pixels_equal_the_repositorys_own_preprocessing(tiny_folder, tiny_view, photo):
    from transformers import AutoImageProcessor

    for family in HF_FAMILIES:
        view = tiny_view(family)
        processor = AutoImageProcessor.from_pretrained(tiny_folder(family), backend="torchvision")
        expected = processor(photo, return_tensors="pt")["pixel_values"]

        ours = normalize(view, to_pixels(view, photo))

        torch.testing.assert_close(ours, expected, rtol=0, atol=0.02)
        assert to_pixels(view, photo).min() >= 0 and to_pixels(view, photo).max() <= 1


def test_labels_come_with_a_trained_classifier_only(tiny_view):
    for family in ("vit", "deit", "beit", "timm-vit", "timm-deit"):
        assert tiny_view(family).labels == ("cat", "dog", "bus")
        assert run(tiny_view(family), noise(tiny_view(family))).logits.shape == (2, 3)
    for family in ("vit-base-only", "clip", "siglip", "dinov2", "dinov3"):
        assert tiny_view(family).labels is None


def test_errors_name_what_is_possible(vit):
    with pytest.raises(SiteError, match=r"has layers 0-2; got layer 12 in '12\.mlp_act'"):
        activations(vit, noise(vit), ["12.mlp_act"])
    with pytest.raises(FeatureError, match=r"'2\.mlp_act' has 64 features \(0-63\); got 4000"):
        check_feature(vit, parse_feature("2.mlp_act:4000"))


def test_top_features_rank_scores_and_patches(vit):
    pixels = noise(vit, 1)
    acts = activations(vit, pixels, ["1.mlp_act"])[Site(1, "mlp_act")][0, 1:]

    whole = top_features(vit, pixels, "1.mlp_act", k=5)
    patch = top_features(vit, pixels, "1.mlp_act", k=5, patch=(2, 3))

    assert [f.index for f, _ in whole] == acts.mean(0).argsort(descending=True)[:5].tolist()
    assert [f.index for f, _ in patch] == acts[2 * 4 + 3].argsort(descending=True)[:5].tolist()
    assert [v for _, v in patch] == pytest.approx(acts[11].sort(descending=True).values[:5].tolist())


def test_top_features_by_unusualness_are_deviations_from_the_reference(vit):
    pixels = noise(vit, 1)
    site = Site(1, "mlp_act")
    scores = activations(vit, pixels, [site])[site][0, 1:].mean(0)
    reference = scores + torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    reference[:, 7] -= 50  # only this feature is far from its reference scores

    (best, deviations), *_ = top_features(vit, pixels, site, k=1, reference={site: reference})

    assert best.index == 7
    assert deviations == pytest.approx(50, rel=0.2)


def test_a_patch_outside_the_grid_is_refused(vit):
    with pytest.raises(ConfigError, match=r"patch 4,0 is outside the grid of 4 rows \(0-3\)"):
        top_features(vit, noise(vit, 1), "1.mlp_act", patch=(4, 0))


def test_two_threads_on_one_model_do_not_read_each_other(vit):
    from concurrent.futures import ThreadPoolExecutor

    batches = [noise(vit, 1, seed) for seed in range(16)]
    site = Site(2, "mlp_act")
    expected = [activations(vit, x, [site])[site] for x in batches]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: activations(vit, x, [site])[site], batches))

    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


def test_the_builtin_model_is_the_trained_one(builtin):
    """Known features on known photographs: animal faces on the cat, heaps of round things on the coins."""
    from vitviz_hf.stream import builtin_photographs

    faces, heaps = parse_feature("11.mlp_act:441"), parse_feature("8.mlp_act:908")
    scores = {}
    for example in builtin_photographs():
        acts = activations(builtin, to_pixels(builtin, example.image), [faces.site, heaps.site])
        scores[example.key] = [activation_map(builtin, acts[f.site], f).mean().item() for f in (faces, heaps)]

    assert max(scores, key=lambda k: scores[k][0]) in ("chelsea", "lion", "cheetah", "groot")
    assert max(scores, key=lambda k: scores[k][1]) == "coins"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_activations(tiny_folder, vit):
    cuda = load_model(str(tiny_folder("vit")), device="cuda")
    pixels = noise(vit)

    on_gpu = activations(cuda, pixels.cuda(), ["2.mlp_act"])[Site(2, "mlp_act")].cpu()

    torch.testing.assert_close(
        on_gpu, activations(vit, pixels, ["2.mlp_act"])[Site(2, "mlp_act")], rtol=1e-3, atol=1e-4
    )
