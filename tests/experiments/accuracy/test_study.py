"""What is counted as right: ties, logits that are no numbers, and differences between models."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vitviz_hf import classify
from vitviz_hf.errors import ModelError
from vitviz_hf.experiments.accuracy import study
from vitviz_hf.experiments.config import (
    BackgroundConfig,
    OcclusionConfig,
    PositionConfig,
    TokenMixingConfig,
)
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.stream import open_source


def broken(view, rows):
    """The model with NaN in some rows of its head."""
    module = copy.deepcopy(view.module)
    module.classifier.weight.data[rows] = torch.nan
    return replace(view, module=module, snapshot=replace(view.snapshot, model_id="broken"))


def with_bad_pictures(view, bad):
    """The model with an infinite logit for inputs that `bad` finds, [B, 3, H, W] in the model's own units -> [B]."""
    module = copy.deepcopy(view.module)

    def spoil(_, args, kwargs, output):
        output.logits[bad(kwargs["pixel_values"]), 1] = torch.inf
        return output

    module.register_forward_hook(spoil, with_kwargs=True)
    return replace(view, module=module, snapshot=replace(view.snapshot, model_id="odd"))


def has_black(values):
    """Inputs with an area that is exactly black."""
    return (values.flatten(1) <= -1 + 1e-6).float().mean(1) > 0.05


def test_of_equal_logits_the_first_is_the_highest_as_argmax_says():
    torch.manual_seed(0)
    logits = torch.randn(200, 50).bfloat16().float()
    targets = torch.randint(0, 50, (200,)).tolist()
    logits[:50] = 1.0
    assert (logits.sort(1, descending=True).values[:, :3].diff(dim=1) == 0).any()
    for k in (1, 5):
        order = np.argsort(-logits.numpy(), 1, kind="stable")[:, :k]
        expected = [t in row for t, row in zip(targets, order.tolist(), strict=True)]
        assert study.is_right(logits, targets, k).tolist() == expected
    assert study.is_right(logits, logits.argmax(1).tolist(), 1).all()
    assert study.is_right(torch.ones(3, 4), [0, 1, 3], 1).tolist() == [1, 0, 0]


def test_logits_that_are_not_finite_are_neither_right_nor_wrong():
    nan, inf = torch.nan, torch.inf
    logits = torch.tensor([[nan, 1, 2], [1, nan, 2], [1, 2, inf], [-inf, 1, 2], [nan] * 3, [0, 1, 2]])
    assert study.is_right(logits, [0, 0, 2, 1, 1, 2], 1).tolist() == [254] * 5 + [1]
    assert study.is_right(logits, [None] * 6, 1).tolist() == [255] * 6


def test_accuracies_are_of_what_both_sides_know():
    part = np.array([1, 0, 254, 1, 255, 1, 1], np.uint8)
    full = np.array([1, 1, 1, 254, 1, 1, 0], np.uint8)
    assert study.accuracy(part, 0).value == 80
    # images 0, 1, 5, 6: three right of the part, three of the full ones
    assert study.accuracy(part, 0, full).value == 100
    assert study.accuracy(np.full(3, 254, np.uint8), 0) is None


def test_differences_draw_the_same_images_for_both_models():
    rng = np.random.default_rng(0)
    a = (rng.random(400) < 0.6).astype(np.uint8)
    b = np.where(rng.random(400) < 0.1, 1 - a, a).astype(np.uint8)  # nearly the same images
    a[:7], b[9] = 254, 255
    base_a, base_b = a | (rng.random(400) < 0.5).astype(np.uint8), b | (rng.random(400) < 0.3).astype(np.uint8)
    use = (a <= 1) & (b <= 1) & (base_a <= 1) & (base_b <= 1)
    for bases in ((None, None), (base_a, base_b)):
        found, n = study.paired_difference((a, bases[0]), (b, bases[1]), 3)
        values = [x[use].astype(float) for x in (a, b)]
        below = [np.ones(use.sum()) if x is None else x[use].astype(float) for x in bases]

        def gap(some, values=values, below=below):
            ratios = [100 * v[some].mean() / w[some].mean() for v, w in zip(values, below, strict=True)]
            return ratios[1] - ratios[0]

        draws = [gap(rng.integers(0, use.sum(), use.sum())) for _ in range(2000)]
        assert n == use.sum() == 392 and found.value == pytest.approx(gap(np.arange(n)))
        assert [found.low, found.high] == pytest.approx(np.quantile(draws, (0.025, 0.975)), abs=0.8)
    separate = study.accuracy(b, 0).high - study.accuracy(b, 0).low
    found, _ = study.paired_difference((a, None), (b, None), 3)
    assert found.high - found.low < 0.8 * separate
    assert study.paired_difference((a[:7], None), (b[:7], None), 0) == (None, 0)
    one, both = np.array([1, 0], np.uint8), np.ones(2, np.uint8)
    for first, second, wanted in [((both, None), (one, one), 0), ((one, one), (one, None), -50)]:
        assert study.paired_difference(first, second, 0)[0].value == wanted


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("position", PositionConfig()),
        ("background", BackgroundConfig(controls=False)),
        ("occlusion", OcclusionConfig(grid=4, shuffles=(2,))),
        ("token-mixing", TokenMixingConfig()),
    ],
)
@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)])
def test_a_model_that_gives_nan_for_everything_is_an_error(name, config, rows, vit, labelled, tmp_path):
    views = [broken(vit, rows)] if name == "token-mixing" else [vit, broken(vit, rows)]
    with (
        pytest.warns(UserWarning, match="broken in float32 gives NaN or infinite logits"),
        pytest.raises(ModelError, match=r"'broken' in float32 gives NaN or infinite logits for every picture.*float32"),
    ):
        run_experiment(name, views, open_source(str(labelled)), config, tmp_path)


def test_pictures_without_finite_logits_are_left_out_counted_and_told(vit, labelled, tmp_path):
    source, config = open_source(str(labelled)), BackgroundConfig(controls=False)
    odd = with_bad_pictures(vit, has_black)
    with pytest.warns(UserWarning, match="odd in float32 gives NaN or infinite logits for some pictures") as told:
        result = run_experiment("background", [vit, odd], source, config, tmp_path / "a")
    assert sum(issubclass(w.category, UserWarning) for w in told) == 1  # others may be of what was there before
    own, other = result.tables["table-plain"].records()
    assert own["top-1 full"] == other["top-1 full"] and own["top-1 background"] is not None
    assert other["top-1 background"] is other["top-5 foreground"] is None
    notes = " ".join(result.tables["table"].notes)
    assert (
        "odd in float32 gave NaN or infinite logits for 15 of 15 images (foreground: black boxes, "
        "background: black boxes); "
        "they are left out there." in notes
    )


def test_one_bad_picture_is_one_picture_less(vit, labelled, tmp_path):
    source = open_source(str(labelled))
    plain = run_experiment("position", [vit], source, PositionConfig(), tmp_path / "a")
    first = []

    def only_the_first(values):
        if not first:
            first.append(values[0].clone())
        return torch.tensor([torch.equal(v, first[0]) for v in values])

    odd = with_bad_pictures(vit, only_the_first)
    with pytest.warns(UserWarning, match="odd in float32"):
        result = run_experiment("position", [odd], source, PositionConfig(), tmp_path / "b")
    assert "for 1 of 15 images (natural, positions zeroed); they are left out there." in " ".join(
        result.tables["table"].notes
    )
    row, before = result.tables["table"].rows[0], plain.tables["table"].rows[0]
    assert row[4] == before[4]
    n_right = round(before[2].value * 15 / 100)
    assert row[2].value in (pytest.approx(100 * n_right / 14), pytest.approx(100 * (n_right - 1) / 14))


def test_counts_of_what_was_left_out_survive_a_stop(vit, labelled, tmp_path):
    source, config = open_source(str(labelled)), BackgroundConfig(controls=False, batch=12)
    straight = run_experiment("background", [vit], source, config, tmp_path / "a")

    class Stopped(BaseException):
        pass

    def stop(done, n):
        if done >= 8:
            raise Stopped

    with pytest.raises(Stopped):
        run_experiment("background", [vit], source, config, tmp_path / "b", stop)
    resumed = run_experiment("background", [vit], source, config, tmp_path / "b")
    assert resumed.tables["table"].notes == straight.tables["table"].notes
    assert "Boxes used: 15." in straight.tables["table"].notes


@pytest.mark.parametrize("n", [20, None])
def test_progress_counts_rows_of_which_the_number_may_not_be_known(n, vit, labelled, tmp_path):
    source, seen = replace(open_source(str(labelled)), n_rows=n), []

    run_experiment("position", [vit], source, PositionConfig(batch=8), tmp_path, lambda *x: seen.append(x))

    assert seen == [(8, n or 0), (16, n or 0), (20, n or 0)]


def test_labels_that_the_dataset_lacks_are_counted(vit, labelled, tmp_path):
    view = replace(vit, labels=("bus", "no class", "dog"))

    def notes(source, name):
        return " ".join(
            run_experiment("position", [view], source, PositionConfig(), tmp_path / name).tables["table"].notes
        )

    source = open_source(str(labelled))
    assert f"{vit.model_id} chooses among 3 labels, 1 of which are no class of this dataset." in notes(source, "a")

    def read(*where):
        return ((replace(row, class_id=None), mark) for row, mark in source.read(*where))

    assert "chooses among" not in notes(replace(source, class_names=(), read=read), "b")


def test_classify_ranks_no_logits_that_are_not_finite(vit):
    pixels = torch.rand(3, 3, *vit.input_size)
    with pytest.raises(ModelError, match="'broken' in float32 gives NaN or infinite logits for 3 of 3 pictures"):
        classify(broken(vit, slice(2, 3)), pixels)
    black = pixels.clone()
    black[1] = 0
    with pytest.raises(ModelError, match=r"for 1 of 3 pictures: they cannot be ranked\. Load it in float32"):
        classify(with_bad_pictures(vit, has_black), black)


def test_right_is_among_the_k_highest():
    logits = torch.tensor([[3.0, 2.0, 1.0], [0.0, 5.0, 1.0], [1.0, 1.0, 0.0], [9.0, 1.0, 2.0]])

    assert study.is_right(logits, [0, 2, 1, None], 1).tolist() == [1, 0, 0, 255]
    assert study.is_right(logits, [2, 2, 0, None], 2).tolist() == [0, 1, 1, 255]


def test_intervals_are_those_of_a_proportion():
    flags = np.array([1] * 600 + [0] * 400 + [255] * 50, dtype=np.uint8)

    found = study.accuracy(flags, 0)

    half = 100 * 1.96 * math.sqrt(0.6 * 0.4 / 1000)
    assert found.value == 60 and found.low == pytest.approx(60 - half, abs=0.4)
    assert found.high == pytest.approx(60 + half, abs=0.4)


def test_a_relative_accuracy_draws_the_same_images_for_both():
    full = np.array([1] * 500 + [0] * 500, dtype=np.uint8)
    part = np.array([1] * 400 + [0] * 600, dtype=np.uint8)

    same, found = study.accuracy(full, 0, full), study.accuracy(part, 0, full)

    assert (same.value, same.low, same.high) == (100, 100, 100)
    # 400 of the 500 that are right on the full image: a proportion of 500, as the others never count
    half = 100 * 1.96 * math.sqrt(0.8 * 0.2 / 500)
    assert found.value == 80 and found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert study.accuracy(part, 0, np.zeros_like(part)) is None


def test_a_note_names_the_forms_that_are_not_finite(vit):
    columns = (
        study.Column("natural"),
        study.Column("square", 0.5),
        study.Column("foreground", "black boxes", 5),
        study.Column("isolated", (0, 3)),
        study.Column("natural", model=1),
        study.Column("area", model=None),
    )
    tally = study.Tally(columns, [np.array([[1, 254, 254, 254, 1, 40], [1, 1, 1, 1, 0, 254]], np.uint8)])

    (note,) = study._unscored_notes(tally, 0, vit)

    assert "for 1 of 2 images (square 0.5, foreground: black boxes, isolated 0,3); they" in note
    assert study._unscored_notes(tally, 1, vit) == [] and tally.of_model(1) == [4]
    assert tally.flags("foreground", "black boxes", 5).tolist() == [254, 1]
    assert tally.flags("natural", model=1).tolist() == [1, 0]
