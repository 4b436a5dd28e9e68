"""Random changes and canvases against formulas written out, and where their random numbers come from."""

import math

import numpy as np
import pytest
import torch

from vitviz_hf.optimize import transforms
from vitviz_hf.optimize.canvas import fourier_canvas, pixel_canvas

META = torch.device("meta")
NOISE = [None, None]
"""A device without values: whatever waits for one fails on it."""


def seeded(n, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def images(n=2, copies=3, height=12, width=20):
    return torch.rand(n, copies, 3, height, width, generator=torch.Generator().manual_seed(7))


CHANGES = {
    "color_shift": lambda x, g: transforms.color_shift(x, 0.7, g),
    "noise per pixel": lambda x, g: transforms.noise(x, 0.5, "pixel", g),
    "noise per color": lambda x, g: transforms.noise(x, 0.5, "color", g),
    "jitter": lambda x, g: transforms.jitter(x, 5, g),
    "random_crop": lambda x, g: transforms.random_crop(x, (8, 11), g),
    "rotate_and_scale": lambda x, g: transforms.rotate_and_scale(x, 20, 0.2, g),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_device_sees_the_draws_of_the_cpu_and_is_never_waited_for(change):
    here, there = seeded(2), seeded(2)

    expected = change(images(), here)
    found = change(images().to(META), there)

    assert found.device == META and found.shape == expected.shape
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.get_state(), b.get_state())


@pytest.mark.parametrize("make", [pixel_canvas, fourier_canvas])
def test_a_canvas_starts_from_the_draws_of_the_cpu_on_every_device(make):
    here, there = seeded(2), seeded(2)

    expected, found = make((12, 16), here, torch.device("cpu"), NOISE), make((12, 16), there, META, NOISE)

    assert found.params.device == META and found.to_pixels(found.params).shape == (2, 3, 12, 16)
    assert torch.equal(here[1].get_state(), there[1].get_state())
    assert not torch.equal(expected.params[0], expected.params[1])


def test_recipes_of_old_go_on_with_the_draws_that_they_had_after_a_photograph():
    photograph = torch.full((3, 12, 16), 0.5)
    for make, drawn in ((pixel_canvas, ()), (fourier_canvas, (3, 12, 9, 2))):
        found, expected = seeded(1), seeded(1)
        make((12, 16), found, torch.device("cpu"), [photograph])
        if drawn:
            torch.randn(drawn, generator=expected[0])
        assert torch.equal(found[0].get_state(), expected[0].get_state())


def test_colors_are_shifted_and_scaled_for_each_copy_and_color():
    x = images()

    found = transforms.color_shift(x, 0.7, seeded(2))

    for n, generator in enumerate(seeded(2)):
        mean, log_std = (torch.rand(2, 3, 3, generator=generator) * 2 - 1) * 0.7
        for copy in range(3):
            for color in range(3):
                expected = (x[n, copy, color] - mean[copy, color]) / math.exp(log_std[copy, color])
                torch.testing.assert_close(found[n, copy, color], expected)


@pytest.mark.parametrize(("per", "shape"), [("pixel", (3, 3, 12, 20)), ("color", (3, 3, 1, 1))])
def test_noise_is_added_with_its_standard_deviation(per, shape):
    found = transforms.noise(images(), 0.25, per, seeded(2))

    for n, generator in enumerate(seeded(2)):
        expected = images()[n] + 0.25 * torch.randn(shape, generator=generator)
        torch.testing.assert_close(found[n], expected)


def test_jitter_rolls_each_picture_by_its_own_shift_of_both_axes():
    x, seen = images(), set()
    for seed in range(60):
        found = transforms.jitter(x, 2, seeded(2, seed))

        for n, generator in enumerate(seeded(2, seed)):
            dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
            assert np.array_equal(found[n], np.roll(x[n].numpy(), (dy, dx), (-2, -1)))
            seen |= {("y", dy), ("x", dx)}
    assert seen == {(axis, d) for axis in "yx" for d in range(-2, 3)}


def test_every_copy_is_a_window_of_its_own_and_all_windows_occur():
    x, seen = images(height=4, width=6), set()
    for seed in range(100):
        found = transforms.random_crop(x, (2, 5), seeded(2, seed))

        for n, generator in enumerate(seeded(2, seed)):
            tops, lefts = (torch.randint(0, spare + 1, (3,), generator=generator).tolist() for spare in (2, 1))
            for copy, (top, left) in enumerate(zip(tops, lefts, strict=True)):
                assert torch.equal(found[n, copy], x[n, copy, :, top : top + 2, left : left + 5])
                seen.add((top, left))
    assert seen == {(top, left) for top in range(3) for left in range(2)}


def test_gradients_go_back_to_where_the_pixels_came_from():
    x = images(1, 2, 6, 7).requires_grad_()
    weights = torch.rand(1, 2, 3, 4, 5, generator=torch.Generator().manual_seed(1))

    (transforms.random_crop(x, (4, 5), seeded(1)) * weights).sum().backward()

    generator = seeded(1)[0]
    tops, lefts = (torch.randint(0, 3, (2,), generator=generator).tolist() for _ in range(2))
    expected = torch.zeros_like(x)
    for copy, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        expected[0, copy, :, top : top + 4, left : left + 5] = weights[0, copy]
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize(("height", "width"), [(21, 21), (16, 32), (33, 20)])
def test_a_turned_and_zoomed_plane_is_that_plane_in_turned_coordinates(height, width):
    """On a linear ramp bilinear sampling is exact, so that every pixel tells where it was read."""
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    ramp = torch.stack([x, y, x + 2 * y]).expand(1, 4, -1, -1, -1)

    found = transforms.rotate_and_scale(ramp, 40, 0.3, seeded(1))

    angles, zooms = torch.rand(2, 4, generator=seeded(1)[0]) * 2 - 1
    cy, cx = (height - 1) / 2, (width - 1) / 2
    near = (y - cy).abs().maximum((x - cx).abs()) < min(height, width) / 5
    for copy in range(4):
        angle, zoom = math.radians(40) * float(angles[copy]), math.exp(0.3 * float(zooms[copy]))
        from_x = cx + zoom * (math.cos(angle) * (x - cx) - math.sin(angle) * (y - cy))
        from_y = cy + zoom * (math.sin(angle) * (x - cx) + math.cos(angle) * (y - cy))
        expected = torch.stack([from_x, from_y, from_x + 2 * from_y])
        torch.testing.assert_close(found[0, copy][:, near], expected[:, near], atol=1e-3, rtol=0)


def test_beyond_its_edge_a_picture_is_reflected(monkeypatch):
    ramp = torch.arange(9.0).expand(1, 1, 3, 9, 9)
    monkeypatch.setattr(transforms, "_uniform", lambda *_: torch.tensor([[[0.0], [1.0]]]))

    found = transforms.rotate_and_scale(ramp, 0, math.log(2), seeded(1))

    # The column at the left reads from 4 - 2 * 4 = -4, which is 3 on the other side of the edge at -0.5.
    assert found[0, 0, 0, 4].tolist() == pytest.approx([3, 1, 0, 2, 4, 6, 8, 7, 5], abs=1e-4)


def test_the_fourier_canvas_is_its_formula_in_numpy():
    size = (10, 15)
    canvas = fourier_canvas(size, seeded(2), torch.device("cpu"), NOISE)

    found = canvas.to_pixels(40 * canvas.params)

    correlation = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    correlation /= np.sqrt((correlation**2).sum(0)).max()
    for n, generator in enumerate(seeded(2)):
        start = 0.01 * torch.randn(3, 10, 8, 2, generator=generator)
        assert torch.equal(canvas.params[n], start)
        spectrum = 40 * (start[..., 0] + 1j * start[..., 1]).numpy()
        for i in range(10):
            for j in range(8):
                frequency = math.hypot((i if i <= 4 else i - 10) / 10, j / 15)
                spectrum[:, i, j] *= math.sqrt(150) / max(frequency, 1 / 15)
        planes = np.fft.irfft2(spectrum, s=size) / 4
        pixels = 1 / (1 + np.exp(-np.tensordot(correlation, planes, 1)))
        np.testing.assert_allclose(found[n], pixels, atol=1e-4)
    assert found.std() > 0.05


def test_the_pixel_canvas_is_uniform_noise_kept_in_range():
    canvas = pixel_canvas((4, 5), seeded(2), torch.device("cpu"), NOISE)
    assert torch.equal(canvas.to_pixels(canvas.params)[1], torch.rand(3, 4, 5, generator=seeded(2)[1]))

    canvas.params.add_(0.5)
    canvas.constrain(canvas.params)
    assert canvas.params.max() == 1 and canvas.params.min() >= 0.5
    canvas.constrain(canvas.params.sub_(2))
    assert canvas.params.max() == 0


def test_a_window_of_a_turned_picture_is_cut_before_it_is_turned():
    x, weights = images().requires_grad_(), torch.rand(2, 3, 3, 8, 11, generator=torch.Generator().manual_seed(1))

    fused = transforms.rotate_and_scale(x, 20, 0.2, there := seeded(2), (8, 11))
    (gradient,) = torch.autograd.grad((fused * weights).sum(), x)

    turned = transforms.rotate_and_scale(x, 20, 0.2, here := seeded(2))
    expected = transforms.random_crop(turned, (8, 11), here)
    assert torch.equal(fused, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad((expected * weights).sum(), x)[0])
    assert torch.equal(here[1].get_state(), there[1].get_state())
