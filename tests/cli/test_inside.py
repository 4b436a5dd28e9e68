"""The command `vitviz inside`."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitviz_hf import activations, attention_weights, open_image, to_pixels
from vitviz_hf.cli.inside import SHOWS as NAMES
from vitviz_hf.cli.main import main
from vitviz_hf.inside.looks import SHOWS
from vitviz_hf.reading.attention import window_attention
from vitviz_hf.sites import Site
from vitviz_hf.stream import builtin_paths


@pytest.fixture
def inside(tiny_folder, tmp_path, capsys):
    """Runs the command on `tiny/vit` and a photograph; exit code, output, error output, folder."""

    def run(*options, model="vit"):
        out = tmp_path / "out"
        code = main(["inside", str(tiny_folder(model)), "--image", "chelsea", *options, "--out", str(out)])
        told = capsys.readouterr()
        return code, told.out, told.err, out

    return run


@pytest.fixture
def chelsea(vit):
    return to_pixels(vit, open_image(builtin_paths()["chelsea"]))


def test_the_commands_names_are_those_that_can_be_shown():
    assert tuple(SHOWS) == NAMES


def test_every_show_makes_a_picture_and_its_numbers_and_tells_what_is_seen(inside):
    code, told, _, out = inside("--show", ",".join(NAMES), "--why", "logit:cat", "--turn", "0.head:0=0")

    assert code == 0
    assert [line.split()[0] for line in told.splitlines()] == [str(out / f"{name}.png") for name in NAMES]
    for name in NAMES:
        picture = Image.open(out / f"{name}.png")
        assert picture.text["told"] in told and min(picture.size) > 150
        assert np.load(out / f"{name}.npz").files


def test_similarity_is_the_cosine_to_the_token_in_two_pictures(inside, vit, chelsea):
    _, told, _, out = inside("--image", "lion", "--show", "similarity", "--layer", "1", "--token", "2,3")

    pixels = torch.cat([chelsea, to_pixels(vit, open_image(builtin_paths()["lion"]))])
    own = activations(vit, pixels, ["1.resid"])[Site(1, "resid")].values
    own = own / own.norm(dim=-1, keepdim=True)
    expected = (own[:, 1:] @ own[0, 1 + 2 * 4 + 3]).reshape(2, 4, 4)
    assert np.allclose(np.load(out / "similarity.npz")["cosine"], expected, atol=1e-5)
    row, col = divmod(int(expected[1].argmax()), 4)
    assert f"of lion highest {float(expected[1].max()):.3g} at patch {row},{col}" in told


def test_of_a_box_that_is_the_whole_picture_the_patches_are_told_too(inside):
    _, told, _, out = inside("--show", "similarity", "--token", "0,0-3,3")

    assert f"highest {float(np.load(out / 'similarity.npz')['cosine'].max()):.3g} at patch" in told


def test_heads_are_those_of_the_class_token_where_none_is_named(inside, vit, chelsea):
    _, told, _, out = inside("--show", "heads", "--layer", "2")

    own = attention_weights(vit, chelsea, heads=True)[0, 2, :, 0]
    numbers = np.load(out / "heads.npz")
    assert np.allclose(numbers["rows"][0], own, atol=1e-6)
    assert np.allclose(numbers["head_1"][0].reshape(-1), own[1, 1:], atol=1e-6)
    assert np.allclose(numbers["mean"][0].reshape(-1), own.mean(0)[1:], atol=1e-6)
    assert f"{float(own[:, 0].mean()):.0%} goes to tokens without a patch" in told


def test_norms_are_the_lengths_of_the_tokens_after_each_layer(inside, vit, chelsea):
    _, _, _, out = inside("--show", "norms")

    own = activations(vit, chelsea, ["0.resid"])[Site(0, "resid")].values.norm(dim=-1)
    assert np.allclose(np.load(out / "norms.npz")["norms_0"], own, rtol=1e-5)


def test_a_model_without_a_class_token_shows_the_middle_patch(inside):
    code, told, _, _ = inside("--show", "heads", model="siglip")

    assert code == 0 and "Attention of patch 2,2 in layer 2" in told


def test_attention_in_windows_is_that_of_one_patch(inside, tiny_view):
    code, told, _, out = inside("--show", "heads", "--layer", "1", "--token", "3,5", model="swin")

    view = tiny_view("swin")
    own = window_attention(view, to_pixels(view, open_image(builtin_paths()["chelsea"])), 1, (3, 5))[0]
    numbers = np.load(out / "heads.npz")
    assert code == 0 and "Attention of patch 3,5 in layer 1 to its window" in told
    assert np.allclose(numbers["head_1"][0], own[1].nan_to_num(0), atol=1e-6)
    assert np.array_equal(numbers["inside"], ~own[0].isnan()) and 0 < numbers["inside"].sum() < 256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--show", "colors"), "--show takes pca, similarity, heads, norms, relevance, lens, change; got 'colors'."),
        (("--show", ","), "--show takes pca"),
        (("--layer", "7"), "has layers 0-2; got layer 7"),
        (("--layer", "7", "--show", "lens"), "has layers 0-2; got layer 7"),
        (("--layer", "-1"), "layers are numbered from 0; got -1."),
        (("--token", "9,9", "--show", "heads"), "'9,9' is outside the grid of 4 rows (0-3) and 4 columns (0-3)."),
        (("--kind", "keys"), "has no keys; it has attn_in, attn_q"),
        (("--method", "guess"), "method must be one of auto, legrad, chefer, gradient-input; got 'guess'."),
        (("--show", "relevance"), "say what is to be explained: a class such as logit:207"),
        (("--show", "change"), "say what is changed: ADDRESS=FACTOR"),
        (("--show", "change", "--turn", "0.head:0"), "'0.head:0' is no change; write ADDRESS=FACTOR"),
        (("--show", "change", "--turn", "0.resid=1e38"), "0.resid times 1e+38 makes values of 2.resid NaN or infinite"),
        (("--image", "lion", "--image", "coins"), "--image is given once or twice; got 3 pictures."),
        (("--image", "nothing.png"), "'nothing.png' cannot be read"),
    ],
)
def test_mistakes_are_told_in_one_line(inside, options, message):
    code, _, told, out = inside(*options)

    assert code == 2 and message in told.splitlines()[-1] and not list(out.glob("*"))


def test_attention_over_coarser_keys_is_that_of_a_patch_of_the_queries(inside):
    code, told, _, _ = inside("--show", "heads", "--layer", "0", "--kind", "attn_k", "--token", "3,3", model="pvt")

    assert code == 0 and "Attention of patch 3,3 in layer 0" in told


def test_nothing_is_overwritten(inside):
    inside("--show", "pca")
    code, _, told, _ = inside("--show", "similarity,pca")

    assert code == 2 and "already exists; choose another --out" in told
