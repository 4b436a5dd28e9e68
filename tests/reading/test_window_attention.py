"""Windowed attention put back on the picture: against transformers' own weights, with the windows computed here."""

import pytest
import torch

from vitviz_hf import load_model
from vitviz_hf.errors import ConfigError, ModelError, SiteError
from vitviz_hf.models.view import at_size, normalize
from vitviz_hf.reading.attention import attention_weights, window_attention


def noise(view, batch=2, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


def own_attention(folder, pixels, block):
    """[B * windows, heads, T, T] of a block of the first stage, by the library's open code in a model of its own."""
    view, found = load_model(str(folder), device="cpu"), []
    view.module.set_attn_implementation("eager")
    (attention,) = [m for n, m in view.module.named_modules() if n.endswith(f"layers.0.blocks.{block}.attention")]
    attention.register_forward_hook(lambda _, __, output: found.append(output[1]))
    with torch.no_grad():
        view.module(**view.inputs(normalize(view, pixels)), output_attentions=True)
    return found[0]


@pytest.mark.parametrize("patch", [(0, 0), (3, 9), (15, 1)])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_a_window_of_swin_is_where_it_was_cut(family, shift, patch, tiny_view, tiny_folder):
    """Windows of 4 x 4 patches on a grid of 16 x 16, in every second layer moved by half a window."""
    view, layer = tiny_view(family), int(shift > 0)
    pixels = noise(view)
    row, col = ((n - shift) % 16 for n in patch)
    window, place = row // 4 * 4 + col // 4, row % 4 * 4 + col % 4

    made = window_attention(view, pixels, layer, patch)

    weights = own_attention(tiny_folder(family), pixels, layer).reshape(2, 16, 4, 16, 16)[:, window, :, place]
    expected = torch.full((2, 4, 16, 16), torch.nan)
    for i in range(16):
        r, c = (row // 4 * 4 + i // 4 + shift) % 16, (col // 4 * 4 + i % 4 + shift) % 16
        expected[:, :, r, c] = weights[:, :, i]
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize(("family", "windows"), [("timm-swin", 16), ("timm-maxvit", 16), ("pvt-v2", None)])
def test_weights_of_a_window_sum_to_one_and_hold_the_patch_itself(family, windows, tiny_view):
    view = tiny_view(family)

    made = window_attention(view, noise(view), 0, (5, 6))

    torch.testing.assert_close(made.nansum((2, 3)), torch.ones(made.shape[:2]))
    if windows:
        assert (~made.isnan()).sum((2, 3)).unique().tolist() == [windows]
        assert made[..., 5, 6].isfinite().all()


@pytest.mark.parametrize("family", ["vit", "dinov3"])
def test_without_windows_it_is_the_row_of_the_attention(family, tiny_view):
    view = at_size(tiny_view(family), (32, 48))
    n = view.layers[1].n_prefix

    made = window_attention(view, noise(view), 1, (1, 5))

    rows = attention_weights(view, noise(view), heads=True, layers=[1])[:, 0, :, n + 6 + 5]
    torch.testing.assert_close(made, rows[..., n:].view(2, 2, 4, 6))


def test_what_cannot_be_put_back_is_told(tiny_view):
    swin, convit = tiny_view("swin"), tiny_view("timm-convit")
    as_many = tiny_view("timm-xcit")  # patches as channels of a head
    xcit = at_size(as_many, (32, 48))
    assert as_many.layers[0].patch_grid == (4, 4) and as_many.layers[0].taps["attn_q"].size == 2 * 16
    with pytest.raises(ConfigError, match="patch 16,0 is outside the grid of 16 rows"):
        window_attention(swin, noise(swin), 0, (16, 0))
    with pytest.raises(SiteError, match="has layers 0-3; got layer 4"):
        window_attention(swin, noise(swin), 4, (0, 0))
    for view in (
        xcit,
        as_many,
        convit,
    ):  # channels attend to each other; content and positions do, before they are mixed
        with pytest.raises(ModelError, match="cannot be read"):
            window_attention(view, noise(view), 0, (0, 0))
