"""Loading, measuring and reading every family, against Hugging Face's own outputs and hand computations."""

import itertools
from functools import partial

import pytest
import torch
from PIL import Image
from torch.nn import functional

from tests.tiny_models import CNNS, FAMILIES, PLAIN, TINY, kinds_of
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
from vitviz_hf.models.measure import keeps_places
from vitviz_hf.models.view import check_feature, normalize, run
from vitviz_hf.reading.recording import record
from vitviz_hf.sites import KINDS, Site

HF_PLAIN = [f for f in PLAIN if not f.startswith("timm")]


def noise(view, batch=2, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


def values_at(view, pixels, sites):
    return {site: acts.values for site, acts in activations(view, pixels, sites).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_grids_and_prefix_tokens_are_measured(family, tiny_view):
    view = tiny_view(family)

    assert tuple((layer.patch_grid, layer.n_prefix) for layer in view.layers) == TINY[family].layers
    for layer in view.layers:
        assert [k for k in KINDS if k in layer.taps] == kinds_of(family)
    grids = [layer.patch_grid for layer in view.layers]
    assert [layer.stage for layer in view.layers] == [sorted(set(grids), reverse=True).index(g) for g in grids]


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("vit", "sequence"),
        ("swin", "sequence, windows"),
        ("timm-maxvit", "map, windows"),
        ("convnext", "map"),
        ("hiera", "sequence, reordered"),
        ("timm-twins-svt", "sequence, windows"),
        ("timm-pit", "sequence"),
    ],
)
def test_the_layout_that_the_model_works_on_is_told(family, layout, tiny_view):
    assert tiny_view(family).layers[0].layout == layout


@pytest.mark.parametrize("family", HF_PLAIN)
def test_resid_equals_hidden_states_bit_for_bit(family, tiny_view):
    view = tiny_view(family)
    pixels = noise(view)

    acts = values_at(view, pixels, [f"{i}.resid" for i in range(3)])
    # Last, because transformers leaves its own hooks behind after this.
    inputs = view.inputs(normalize(view, pixels))
    with torch.no_grad():
        hidden = view.module(**inputs, output_hidden_states=True).hidden_states

    for i in range(2):  # some families normalize the last hidden state
        assert torch.equal(acts[Site(i, "resid")], hidden[i + 1])


def test_hieras_maps_equal_its_own_rerolled_hidden_states(tiny_view):
    view = tiny_view("hiera")
    pixels = noise(view)
    last_of_stage = [0, 1, 3, 4]

    acts = values_at(view, pixels, [f"{i}.resid" for i in last_of_stage])
    with torch.no_grad():
        hidden = view.module(normalize(view, pixels), output_hidden_states=True).reshaped_hidden_states

    for layer, expected in zip(last_of_stage, hidden[1:], strict=True):
        assert torch.equal(acts[Site(layer, "resid")], expected.flatten(1, 2))


def test_convnexts_resid_is_its_stage_output_with_channels_last(tiny_view):
    view = tiny_view("convnext")
    pixels = noise(view)

    acts = values_at(view, pixels, ["1.resid", "3.resid"])
    with torch.no_grad():
        hidden = view.module(normalize(view, pixels), output_hidden_states=True).hidden_states

    for layer, expected in ((1, hidden[1]), (3, hidden[2])):
        assert torch.equal(acts[Site(layer, "resid")], expected.flatten(2).mT)


@pytest.mark.parametrize("family", ["timm-vit", "timm-deit", "timm-beitv2", "timm-eva02"])
def test_resid_equals_timms_intermediates(family, tiny_view):
    view = tiny_view(family)
    pixels = noise(view)

    with torch.no_grad():
        hidden = view.module.timm_model.forward_intermediates(
            normalize(view, pixels), return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )

    for i, (patches, prefix) in enumerate(hidden):
        ours = activations(view, pixels, [f"{i}.resid"])[Site(i, "resid")].values
        assert torch.equal(ours, torch.cat([prefix, patches], dim=1))


@pytest.mark.parametrize("family", ["timm-swin", "timm-pit", "timm-maxvit", "timm-xcit"])
def test_the_last_layer_of_a_stage_equals_timms_intermediates(family, tiny_view):
    view = tiny_view(family)
    pixels = noise(view)
    last = [i for i, layer in enumerate(view.layers) if layer.stage not in {x.stage for x in view.layers[i + 1 :]}]

    with torch.no_grad():
        hidden = view.module.timm_model.forward_intermediates(
            normalize(view, pixels), output_fmt="NCHW", intermediates_only=True
        )

    for layer in last:
        ours = activations(view, pixels, [f"{layer}.resid"])[Site(layer, "resid")].patches
        expected = [h.flatten(2).mT for h in hidden]
        assert any(e.shape == ours.shape and torch.equal(e, ours) for e in expected), layer


def test_the_feed_forward_sites_equal_a_computation_from_the_weights(view):
    """mlp_out from mlp_act in every layer of every family, whatever its layout."""
    pixels = noise(view)
    acts = values_at(view, pixels, [Site(i, k) for i in range(len(view.layers)) for k in ("mlp_act", "mlp_out")])

    for i, layer in enumerate(view.layers):
        down = view.module.get_submodule(layer.taps["mlp_out"].module)
        assert acts[Site(i, "mlp_act")].shape[1] == layer.n_prefix + layer.patch_grid[0] * layer.patch_grid[1]
        torch.testing.assert_close(acts[Site(i, "mlp_out")], down(acts[Site(i, "mlp_act")]))


@pytest.mark.parametrize("family", [f for f in FAMILIES if "attn_q" not in TINY[f].lacks])
def test_q_k_and_v_are_what_the_attention_makes_of_them(family, tiny_view):
    """The mixed values are affine in v, depend on q and k, and not on a factor that moves between them."""
    view = tiny_view(family)
    pixels = noise(view, 1)
    for layer in view.layers:

        def mixed(taps=layer.taps, **factors):
            return _mixed_values(view, pixels, taps, factors)

        plain, double, none = mixed(), mixed(attn_v=2.0), mixed(attn_v=0.0)
        torch.testing.assert_close(double - plain, plain - none, rtol=1e-3, atol=1e-4)
        assert (plain - none).abs().max() > 1e-3
        if "coat" not in family:  # its factorized attention has a softmax over keys alone
            torch.testing.assert_close(mixed(attn_q=2.0, attn_k=0.5), plain, rtol=1e-3, atol=1e-4)
        assert (mixed(attn_q=-1000.0) - plain).abs().max() > 1e-5


def _mixed_values(view, pixels, taps, factors):
    """Input of the attention's output projection after some kinds were multiplied."""
    seen, handles = [], []

    def scale(tap, factor):
        runs = itertools.count()

        def hook(_, __, output):
            if next(runs) != tap.call:
                return None
            output = output.clone()
            columns = slice(None) if tap.columns is None else tap.columns
            output[..., columns] *= factor
            return output

        return hook

    for kind, factor in factors.items():
        module = view.module.get_submodule(taps[kind].module)
        handles.append(module.register_forward_hook(scale(taps[kind], factor)))
    out = view.module.get_submodule(_mixer(view, taps["attn_out"].module))
    handles.append(out.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())))
    try:
        with torch.no_grad():
            run(view, pixels)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0]


def _mixer(view, out):
    """LeViT applies Hardswish before its output projection, MaxViT and the others nothing."""
    if view.module.config.model_type == "levit":
        return out.replace("projection.linear", "activation")
    return out


def _weight(module, *names):
    for name in names:
        if name in dict(module.named_modules()):
            return module.get_submodule(name)
    raise AssertionError(f"none of {names} in the block")


@pytest.mark.parametrize("family", PLAIN)
def test_every_kind_equals_a_hand_computation_from_the_weights(family, tiny_view):
    """Pre-norm blocks of plain ViTs, computed from the residual stream and the weights alone."""
    view = tiny_view(family)
    pixels = noise(view)
    acts = values_at(view, pixels, [Site(i, k) for i in range(3) for k in KINDS])
    block = view.module.get_submodule(view.layers[1].name)
    stream = acts[Site(0, "resid")]

    with torch.no_grad():
        first = _weight(block, "norm1", "layernorm_before", "layer_norm1")
        second = _weight(block, "norm2", "layernorm_after", "layer_norm2")
        normed = first(stream)
        torch.testing.assert_close(acts[Site(1, "attn_in")], normed)
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
            mixed = mixed.transpose(1, 2).flatten(-2)
            expected = mixed @ output.weight.T + output.bias
            torch.testing.assert_close(acts[Site(1, "attn_mix")], mixed, rtol=1e-4, atol=1e-5)
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


@pytest.mark.parametrize(
    ("family", "layer", "norm", "projection"),
    [
        ("swin", 1, "layernorm_before", "attention.q_proj"),
        ("timm-swin", 1, "norm1", "attn.qkv"),
        ("timm-maxvit", 1, "norm1", "attn.qkv"),
        ("timm-maxvit", 3, "norm1", "attn.qkv"),
        ("swinv2", 1, None, "attention.self.query"),
    ],
)
def test_input_and_queries_of_shifted_windows_equal_a_computation_in_image_order(
    family, layer, norm, projection, tiny_view
):
    view = tiny_view(family)
    site, given = Site(layer, "attn_q"), Site(layer, "attn_in")
    acts = values_at(view, noise(view), [Site(layer - 1, "resid"), site, given])
    block = view.module.get_submodule(view.layers[layer].name)
    stream = acts[Site(layer - 1, "resid")]

    with torch.no_grad():
        normed = block.get_submodule(norm)(stream) if norm else stream
        expected = block.get_submodule(projection)(normed)
    columns = view.layers[layer].taps["attn_q"].columns

    assert view.layers[layer].taps["attn_q"].order is not None
    torch.testing.assert_close(acts[given], normed)
    torch.testing.assert_close(acts[site], expected if columns is None else expected[..., columns])


def test_the_attentions_output_is_its_projection_of_the_mixed_values(view):
    """And its queries the projection of its input: in every family, in windows too."""
    pixels = noise(view)
    for i, layer in enumerate(view.layers):
        for given, made in (("attn_in", "attn_q"), ("attn_mix", "attn_out")):
            if made not in layer.taps:
                continue
            acts = values_at(view, pixels, [Site(i, given), Site(i, made)])
            tap = layer.taps[made]
            projection = view.module.get_submodule(tap.module)
            values = acts[Site(i, given)]
            if hasattr(projection, "batch_norm"):  # LeViT's
                projected = projection.batch_norm(projection.linear(values).flatten(0, 1)).unflatten(
                    0, values.shape[:2]
                )
            else:
                projected = projection(values)

            expected = projected if tap.columns is None else projected[..., tap.columns]
            torch.testing.assert_close(acts[Site(i, made)], expected, rtol=1e-4, atol=1e-5)


def test_a_square_moved_to_another_corner_moves_the_change_of_the_early_maps(view):
    """The locality check, on the first layer and, where there are windows, on queries of the second."""
    sites = [Site(0, "mlp_act")]
    if "attn_q" in view.layers[0].taps:
        sites += [Site(0, "attn_q"), Site(0, "attn_k"), Site(0, "attn_v")]
    if "windows" in view.layers[0].layout:
        sites += [Site(1, "attn_q"), Site(1, "attn_v")]
    height, width = view.input_size
    top, left = slice(0, height // 4), slice(0, width // 4)
    bottom, right = slice(height - height // 4, None), slice(width - width // 4, None)
    pixels = torch.full((5, 3, height, width), 0.5)
    for i, (rows, cols) in enumerate(itertools.product((top, bottom), (left, right)), 1):
        pixels[i, :, rows, cols] = 1

    acts = activations(view, pixels, sites)

    for site in sites:
        patches = acts[site].patches.unflatten(1, acts[site].tap.patch_grid)
        change = (patches[1:] - patches[:1]).abs().sum(-1)
        quadrants = functional.adaptive_avg_pool2d(change.unsqueeze(1), 2).flatten(1)
        assert quadrants.argmax(1).tolist() == [0, 1, 2, 3], site


def test_two_images_in_a_batch_equal_two_singles(view):
    pixels = noise(view)
    sites = [s for s, _ in list_sites(view)]
    both = values_at(view, pixels, sites)

    for i in range(2):
        alone = values_at(view, pixels[i : i + 1], sites)
        for site in sites:
            torch.testing.assert_close(both[site][i : i + 1], alone[site], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize(("row", "col"), [(0, 5), (3, 0), (2, 3)])
def test_a_changed_patch_changes_the_first_map_there_on_a_grid_that_is_not_square(family, row, col, tiny_view):
    view = at_size(tiny_view(family), (32, 48))
    assert view.layers[0].patch_grid == (4, 6)
    gray = torch.full((1, 3, 32, 48), 0.5)
    marked = gray.clone()
    marked[..., row * 8 : row * 8 + 8, col * 8 : col * 8 + 8] = noise(view, 1)[..., :8, :8]
    features = [parse_feature(f"0.attn_v:{i}") for i in range(8)]

    before, after = (activations(view, x, [features[0].site])[features[0].site] for x in (gray, marked))

    changes = [(activation_map(after, f) - activation_map(before, f)).abs()[0] for f in features]
    difference = torch.stack(changes).sum(0)
    assert difference.shape == (4, 6)
    assert difference[row, col] > 0.01
    difference[row, col] = 0
    assert difference.max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_another_input_size_keeps_the_order_of_the_patches_or_is_refused(family, tiny_view):
    own, size = tiny_view(family), TINY[family].other_size
    if size is None:
        with pytest.raises(ConfigError, match="does not take input of"):
            at_size(own, (own.input_size[0], own.input_size[1] * 3 // 2))
        return
    view = at_size(own, size)

    (rows, cols), n_prefix = TINY[family].layers[0]
    assert view.module is own.module
    assert view.layers[0].patch_grid == (rows * size[0] // own.input_size[0], cols * size[1] // own.input_size[1])
    assert view.layers[0].n_prefix == n_prefix
    assert keeps_places(view.module, partial(run, view), view.layers[0], view.input_size)


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
    activations(view, noise(view), ["1.mlp_act", "0.resid"])
    with pytest.raises((RuntimeError, ValueError, AssertionError, TypeError, IndexError)):
        record(view, torch.zeros(1, 5, 7), [Site(1, "mlp_act")])

    assert count() == before


def test_gradients_reach_the_pixels_and_no_parameter(view):
    pixels = noise(view).requires_grad_(True)

    record(view, pixels, [Site(1, "mlp_act")])[Site(1, "mlp_act")].values.sum().backward()

    assert pixels.grad.abs().sum() > 0
    assert all(p.grad is None for p in view.module.parameters())


def test_an_interpolated_view_at_its_own_size_is_the_same_view(view):
    assert at_size(view, view.input_size) is view


def test_an_input_size_off_the_patch_grid_is_refused(vit):
    with pytest.raises(ConfigError, match="multiple of 8"):
        at_size(vit, (30, 32))
    patch = tuple(side // n for side, n in zip(vit.input_size, vit.layers[0].patch_grid, strict=True))
    with pytest.raises(ConfigError, match=r"leaves .* no grid of patches; take a larger one"):
        at_size(vit, patch)


def test_pixels_equal_the_repositorys_own_preprocessing(tiny_folder, tiny_view, photo):
    from transformers import AutoImageProcessor

    for family in (*HF_PLAIN, "swin", "cvt", "levit", "hiera", "pvt", "resnet"):
        view = tiny_view(family)
        if family == "siglip2":  # its own processor cuts patches, see the next test
            continue
        processor = AutoImageProcessor.from_pretrained(tiny_folder(family), backend="torchvision")
        expected = processor(photo, return_tensors="pt")["pixel_values"]

        ours = normalize(view, to_pixels(view, photo))

        torch.testing.assert_close(ours, expected, rtol=0, atol=0.02)
        assert to_pixels(view, photo).min() >= 0 and to_pixels(view, photo).max() <= 1


def test_siglip2s_patches_equal_its_own_processors(tiny_folder, tiny_view):
    from transformers import AutoImageProcessor

    view = tiny_view("siglip2")
    processor = AutoImageProcessor.from_pretrained(tiny_folder("siglip2"), backend="torchvision")
    image = Image.fromarray((noise(view, 1)[0].permute(1, 2, 0) * 255).byte().numpy())
    expected = processor(image, return_tensors="pt")

    ours = view.inputs(normalize(view, to_pixels(view, image)))

    torch.testing.assert_close(ours["pixel_values"], expected["pixel_values"], rtol=0, atol=0.02)
    assert torch.equal(ours["pixel_attention_mask"], expected["pixel_attention_mask"].long())
    assert torch.equal(ours["spatial_shapes"], expected["spatial_shapes"])


def test_mae_sees_every_patch_in_order(tiny_view):
    view = tiny_view("vit-mae")

    with torch.no_grad():
        output = run(view, noise(view))

    assert output.mask.sum() == 0
    assert torch.equal(output.ids_restore, torch.arange(16).expand(2, -1))


@pytest.mark.parametrize("family", TINY)
def test_labels_come_with_a_trained_classifier_only(family, tiny_view):
    view = tiny_view(family)

    assert view.labels == (("cat", "dog", "bus") if TINY[family].labels else None)
    if view.labels:
        assert run(view, noise(view)).logits.shape == (2, 3)


@pytest.mark.parametrize("family", CNNS)
def test_a_cnn_has_no_features_and_says_so(family, tiny_view):
    view = tiny_view(family)

    assert view.layers == () and list_sites(view) == []
    with pytest.raises(SiteError, match=r"has no feed-forward blocks, so it has no features; .*classification"):
        activations(view, noise(view), ["0.mlp_act"])


def test_a_kind_that_a_model_lacks_is_named(tiny_view):
    view = tiny_view("convnext")
    with pytest.raises(SiteError, match=r"has no attn_q; it has mlp_in, mlp_act, mlp_out, resid\."):
        activations(view, noise(view), ["0.attn_q"])


def test_keys_on_a_coarser_grid_have_a_map_of_that_grid(tiny_view):
    view = tiny_view("timm-twins-pcpvt")
    acts = activations(view, noise(view), ["0.attn_q", "0.attn_k"])

    shapes = {k: activation_map(acts[Site(0, k)], parse_feature(f"0.{k}:3")).shape for k in ("attn_q", "attn_k")}

    assert shapes == {"attn_q": (2, 16, 16), "attn_k": (2, 2, 2)}


def test_a_module_that_is_shared_gives_a_layer_for_each_run(tiny_view):
    view = tiny_view("timm-coat")
    parallel = view.layers[4:7]

    assert len({layer.taps["mlp_act"].module for layer in parallel}) == 1
    assert [layer.taps["mlp_act"].call for layer in parallel] == [0, 1, 2]
    assert [layer.taps["attn_q"].module[-5:] for layer in parallel] == ["2.qkv", "3.qkv", "4.qkv"]
    assert [layer.taps["resid"].item for layer in parallel] == [1, 2, 3]


def test_errors_name_what_is_possible(vit):
    with pytest.raises(SiteError, match=r"has layers 0-2; got layer 12 in '12\.mlp_act'"):
        activations(vit, noise(vit), ["12.mlp_act"])
    with pytest.raises(FeatureError, match=r"'2\.mlp_act' has 64 features \(0-63\); got 4000"):
        check_feature(vit, parse_feature("2.mlp_act:4000"))


def test_top_features_rank_scores_and_patches(vit):
    pixels = noise(vit, 1)
    acts = activations(vit, pixels, ["1.mlp_act"])[Site(1, "mlp_act")].values[0, 1:]

    whole = top_features(vit, pixels, "1.mlp_act", k=5)
    patch = top_features(vit, pixels, "1.mlp_act", k=5, patch=(2, 3))

    assert [f.index for f, _ in whole] == acts.mean(0).argsort(descending=True)[:5].tolist()
    assert [f.index for f, _ in patch] == acts[2 * 4 + 3].argsort(descending=True)[:5].tolist()
    assert [v for _, v in patch] == pytest.approx(acts[11].sort(descending=True).values[:5].tolist())


def test_top_features_by_unusualness_are_deviations_from_the_reference(vit):
    pixels = noise(vit, 1)
    site = Site(1, "mlp_act")
    scores = activations(vit, pixels, [site])[site].values[0, 1:].mean(0)
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
    expected = [activations(vit, x, [site])[site].values for x in batches]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: activations(vit, x, [site])[site].values, batches))

    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


def test_the_builtin_model_is_the_trained_one(builtin):
    """Known features on known photographs: animal faces on the cat, heaps of round things on the coins."""
    from vitviz_hf.stream import builtin_photographs

    faces, heaps = parse_feature("11.mlp_act:441"), parse_feature("8.mlp_act:908")
    scores = {}
    for example in builtin_photographs():
        acts = activations(builtin, to_pixels(builtin, example.image), [faces.site, heaps.site])
        scores[example.key] = [activation_map(acts[f.site], f).mean().item() for f in (faces, heaps)]

    assert max(scores, key=lambda k: scores[k][0]) in ("chelsea", "lion", "cheetah", "groot")
    assert max(scores, key=lambda k: scores[k][1]) == "coins"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_activations(tiny_folder, vit):
    cuda = load_model(str(tiny_folder("vit")), device="cuda")
    pixels = noise(vit)

    on_gpu = activations(cuda, pixels.cuda(), ["2.mlp_act"])[Site(2, "mlp_act")].values.cpu()

    torch.testing.assert_close(
        on_gpu, activations(vit, pixels, ["2.mlp_act"])[Site(2, "mlp_act")].values, rtol=1e-3, atol=1e-4
    )
