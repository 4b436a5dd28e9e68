"""Filtering frequencies, end to end against NumPy's FFT, on a model that has learned something."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import draw_noise
from tests.experiments.accuracy.test_token_mixing import read
from vitviz_hf import at_size, to_pixels
from vitviz_hf.experiments.accuracy import low_pass
from vitviz_hf.experiments.accuracy.low_pass import KEPT, SHAPES, masks, removed_energy
from vitviz_hf.experiments.config import LowPassConfig
from vitviz_hf.experiments.figures import encode_figure
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.stream import open_source


def passes(shape, r, keep, height, width):
    """What each frequency of a shifted spectrum is multiplied by, [H, W]."""
    y, x = np.meshgrid(np.arange(height) - height // 2, np.arange(width) - width // 2, indexing="ij")

    def low(r):
        u, v = abs(y) / (height / 2 * r), abs(x) / (width / 2 * r)
        if shape == "gaussian":
            return 0.5 ** (u**2 + v**2)
        return ((u <= 1 + 1e-9) & (v <= 1 + 1e-9) if shape == "square" else u**2 + v**2 <= 1 + 1e-9).astype(float)

    kept = {"low": lambda: low(r), "high": lambda: 1 - low(r), "band": lambda: low(r) - low(r / 2)}[keep]()
    kept[height // 2, width // 2] = 1
    return kept


def by_hand(pixels, shape, r, keep="low"):
    """[..., H, W] filtered."""
    spectrum = np.fft.fftshift(np.fft.fft2(pixels), axes=(-2, -1))
    kept = spectrum * passes(shape, r, keep, *pixels.shape[-2:])
    return np.fft.ifft2(np.fft.ifftshift(kept, axes=(-2, -1))).real


def accuracy(module, pixels, targets):
    with torch.no_grad():
        logits = module(torch.from_numpy(pixels).float() / 127.5 - 1, interpolate_pos_encoding=True).logits
    return 100 * (logits.argmax(1) == targets).float().mean().item()


@pytest.fixture(scope="module")
def pictures(trained, shapes):
    values, targets = read(shapes, trained.module)
    return ((values.numpy() + 1) * 127.5).round(), targets


@pytest.mark.parametrize("keep", ["low", "high", "band"])
def test_every_number_equals_numpys(keep, trained, shapes, pictures, tmp_path):
    n = 100 if keep == "low" else 30
    pixels, targets = (some[:n] for some in pictures)
    config = LowPassConfig(batch=100, keep=keep, limit=n)

    result = run_experiment("low-pass", [trained], open_source(str(shapes)), config, tmp_path)

    whole, *rows = result.data["intervals"].records()
    natural = accuracy(trained.module, pixels, targets)
    assert whole["top-1, %"] == pytest.approx(natural)
    around = pixels - pixels.mean((2, 3), keepdims=True)
    found = {}
    for row in rows:
        filtered = by_hand(pixels.astype(float), row["mask"], row["r"], keep)
        own = accuracy(trained.module, filtered, targets)
        lost = 1 - ((filtered - filtered.mean((2, 3), keepdims=True)) ** 2).sum((1, 2, 3)) / (around**2).sum((1, 2, 3))
        assert row["top-1, %"] == pytest.approx(own, abs=101 / n)  # one picture may lie on the border
        assert row["relative, %"] == pytest.approx(100 * row["top-1, %"] / natural)
        assert row["removed energy, %"] == pytest.approx(100 * lost.mean(), abs=0.01)
        assert row["cycles per image"] == row["r"] * 32
        found[row["mask"], row["r"]] = row["top-1, %"]
    assert list(found) == [(s, r) for s in SHAPES for r in KEPT]
    assert len(set(found.values())) >= (12 if keep == "low" else 5)
    table = result.tables["table"].records()
    assert [table[0][f"r = {r:g}"] for r in KEPT] == [found["square", r] for r in KEPT]
    assert [r["%"] for r in table[:3]] == ["top-1", "relative", "removed energy"]


def test_the_original_is_filtered_where_that_is_asked_for(trained, shapes, pictures, tmp_path):
    """On a model whose input is half of the file, the file's r is another frequency than the input's."""
    view, source = at_size(trained, (32, 32)), open_source(str(shapes))
    pixels, targets = (some[:100] for some in pictures)

    def found(where):
        config = LowPassConfig(filter_at=where, batch=100, limit=100)
        result = run_experiment("low-pass", [view], source, config, tmp_path / where)
        return {(r["mask"], r["r"]): r for r in result.data["intervals"].records()}

    original, at_input = found("original"), found("input")

    for shape, r in (("square", 0.5), ("square", 0.1), ("circle", 0.3), ("gaussian", 0.2)):
        files = by_hand(pixels.astype(float), shape, r).round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        seen = torch.cat([to_pixels(view, Image.fromarray(f)) for f in files])
        own = accuracy(view.module, (seen * 255).round().numpy(), targets)
        assert original[shape, r]["top-1, %"] == pytest.approx(own, abs=1.01)
        assert original[shape, r]["cycles per image"] is None and at_input[shape, r]["cycles per image"] == 16 * r
    differing = [k for k in original if original[k]["top-1, %"] != at_input[k]["top-1, %"]]
    assert len(differing) > 10


@pytest.mark.parametrize("size", [(32, 40), (31, 45), (224, 384)])
@pytest.mark.parametrize("keep", ["low", "high", "band"])
def test_masks_are_symmetric_and_keep_a_frequency_of_exactly_r(size, keep):
    height, width = size
    found = masks(*size, keep)

    for i, (shape, r) in enumerate((s, r) for s in SHAPES for r in KEPT):
        wanted = np.fft.ifftshift(passes(shape, r, keep, height, width))
        np.testing.assert_allclose(found[i], wanted, atol=1e-6)
    flipped = found.flip(1, 2).roll((1, 1), (1, 2))  # f and -f
    torch.testing.assert_close(found, flipped)
    if keep == "low":
        assert found[0].all() and found[SHAPES.index("circle") * len(KEPT)].sum() < height * width
        half = found[KEPT.index(0.5)]
        assert half[0].sum() == 2 * int(0.5 * width / 2) + 1 and half[:, 0].sum() == 2 * int(0.5 * height / 2) + 1


def test_several_models_share_the_panels_and_the_axis_above(trained, trained_other, shapes, tmp_path):
    config = LowPassConfig(limit=30, batch=30)

    result = run_experiment("low-pass", [trained, trained_other], open_source(str(shapes)), config, tmp_path)

    axes = result.figures["figure"].axes
    assert [len(a.lines) for a in axes] == [2, 2, 2]
    (above,) = axes[0].child_axes
    encode_figure(result.figures["figure"], "png")  # the axis above follows when it is drawn
    assert above.get_xlabel() == "cycles per image"
    assert above.get_xlim()[1] == pytest.approx(32 * axes[0].get_xlim()[1])


def test_cycles_are_counted_along_the_height(trained, shapes, tmp_path):
    view = at_size(trained, (64, 96))

    result = run_experiment("low-pass", [view], open_source(str(shapes)), LowPassConfig(limit=2), tmp_path)

    assert [r["cycles per image"] for r in result.data["intervals"].records()[1:]] == [r * 32 for r in KEPT] * 3
    assert f"in cycles per image height, 32 for {view.model_id}." in " ".join(result.tables["table"].notes)
    encode_figure(result.figures["figure"], "png")
    axes = result.figures["figure"].axes[0]
    assert axes.child_axes[0].get_xlim()[1] == pytest.approx(32 * axes.get_xlim()[1])


def test_energy_is_the_mean_over_the_files_that_can_be_read(vit, tmp_path):
    (tmp_path / "cat").mkdir()
    for i in range(3):
        draw_noise(i).save(tmp_path / "cat" / f"{i}.png")
    (tmp_path / "cat" / "1b.png").write_bytes(b"no picture")

    result = run_experiment("low-pass", [vit], open_source(str(tmp_path)), LowPassConfig(), tmp_path / "w")

    lost = []
    for i in range(3):
        pixels = (to_pixels(vit, draw_noise(i))[0] * 255).round().numpy()
        power = (abs(np.fft.fft2(pixels)) ** 2).sum(0)
        power[0, 0] = 0
        kept = np.fft.ifftshift(passes("square", 0.3, "low", 32, 32))
        lost.append(100 - 100 * (kept * power).sum() / power.sum())
    found = {(r["mask"], r["r"]): r["removed energy, %"] for r in result.data["intervals"].records()}
    assert found["square", 0.3] == pytest.approx(np.mean(lost), abs=0.01) and np.std(lost) > 0.1
    assert len(result.figures["examples"].axes) == 3 * 3 * 6


def test_what_filters_overshoot_is_clipped():
    values = torch.tensor([-7.0, -0.4, 0.6, 254.6, 255.4, 255.6, 256.3, 300.0])

    assert np.asarray(low_pass._to_image(values.expand(3, 1, 8)))[0, :, 1].tolist() == [
        0,
        0,
        1,
        255,
        255,
        255,
        255,
        255,
    ]


def test_a_uniform_picture_has_no_energy_to_lose():
    assert removed_energy(torch.full((3, 8, 8), 7.0), masks(8, 8)).tolist() == [0] * 33


def test_low_pass_keeps_what_is_below_and_takes_what_is_above():
    y, x = np.mgrid[:32, :40]
    slow = np.cos(2 * np.pi * 2 * x / 40)  # 0.1 of the highest frequency
    fast = np.cos(np.pi * (x + y))  # the highest, in both directions
    image = Image.fromarray((127.5 + 60 * slow + 60 * fast).round().astype(np.uint8)).convert("RGB")
    only_slow = (127.5 + 60 * slow).round()

    pictures = dict(
        zip([(s, r) for s in low_pass.SHAPES for r in low_pass.KEPT], low_pass.filtered_files(image), strict=True)
    )

    assert np.array_equal(np.asarray(pictures["square", 1.0]), np.asarray(image))
    for shape in ("square", "circle"):
        np.testing.assert_allclose(np.asarray(pictures[shape, 0.5])[..., 0], only_slow, atol=1)
        assert np.ptp(np.asarray(pictures[shape, 0.05])) <= 1
    half = np.asarray(pictures["gaussian", 0.1])[..., 0].astype(float)
    np.testing.assert_allclose(half, 127.5 + 30 * slow, atol=1)
