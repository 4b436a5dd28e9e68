"""Token mixing end to end, against a ViT written out with attention masks, on a model that has learned something."""

import io
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn import functional

from vitviz_hf import Site, activations, at_size, open_image, to_pixels
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.accuracy import token_mixing
from vitviz_hf.experiments.accuracy.paper import Setting
from vitviz_hf.experiments.config import TokenMixingConfig
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.reading.classification import ZeroShot, as_classifier, classify
from vitviz_hf.reading.tokens import head_logits
from vitviz_hf.stream import open_source

MEANS = (
    "mean of patches, before the norm",
    "mean of patches, after the norm",
    "mean of all tokens, before the norm",
    "mean of all tokens, after the norm",
)


def read(folder, module, side=64):
    """Pixel values [N, 3, H, W] and targets [N], read without the package."""
    (file,) = (folder / "data").glob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    names = sorted(module.config.id2label.values())
    places = {name: i for i, name in module.config.id2label.items()}
    pictures = [Image.open(io.BytesIO(r["image"]["bytes"])).convert("RGB") for r in rows]
    pixels = np.stack([np.asarray(p) for p in pictures]).astype(np.float32)
    assert pixels.shape[1:3] == (side, side)
    targets = torch.tensor([places[names[r["label"]]] for r in rows])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1, targets


def last_tokens(module, values, apart=()):
    """Output of the last block; in the layers `apart`, class token and patches do not see each other."""
    vit, config = module.vit, module.config
    x = vit.embeddings(values, interpolate_pos_encoding=True)
    n = x.shape[1]
    mask = torch.zeros(n, n)
    mask[0, 1:] = mask[1:, 0] = -math.inf
    for i, layer in enumerate(vit.layers):
        weights = dict(layer.named_parameters())

        def linear(x, name, weights=weights):
            (key,) = [k for k in weights if k.endswith(f"{name}.weight")]
            return functional.linear(x, weights[key], weights[key.replace("weight", "bias")])

        y = layer.layernorm_before(x)
        q, k, v = (
            linear(y, f"{c}_proj").unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2) for c in "qkv"
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1]) + (mask if i in apart else 0)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), "o_proj")
        x = x + linear(functional.gelu(linear(layer.layernorm_after(x), "fc1")), "fc2")
    return x


def right(logits, targets, k):
    """100 where the target is among the k highest of logits [N, ..., labels], else 0."""
    own = logits.gather(-1, targets.reshape(-1, *[1] * (logits.ndim - 1)).expand(*logits.shape[:-1], 1))
    return 100.0 * ((logits > own).sum(-1) < k)


def expected(module, values, targets, k):
    """Every column of the table, and the accuracy of each place."""
    norm, head = module.vit.layernorm, module.classifier
    x = last_tokens(module, values)
    normed = norm(x)
    isolated = last_tokens(module, values, apart=range(module.config.num_hidden_layers - 1))
    ways = {
        "natural": head(normed[:, 0]),
        "isolating CLS": head(norm(isolated)[:, 0]),
        MEANS[0]: head(norm(x[:, 1:].mean(1))),
        MEANS[1]: head(normed[:, 1:].mean(1)),
        MEANS[2]: head(norm(x.mean(1))),
        MEANS[3]: head(normed.mean(1)),
    }
    found = {way: right(logits, targets, k).mean().item() for way, logits in ways.items()}
    places = right(head(normed[:, 1:]), targets, k).mean(0)
    return found | {"patch average": places.mean().item(), "patch maximum": places.max().item()}, places


@pytest.fixture(scope="module")
def result(trained, shapes, tmp_path_factory):
    config = TokenMixingConfig(batch=32, sweep=True)
    return run_experiment("token-mixing", [trained], open_source(str(shapes)), config, tmp_path_factory.mktemp("w"))


@torch.no_grad()
def test_every_number_equals_a_vit_written_out(trained, shapes, result):
    values, targets = read(shapes, trained.module)

    for record, k in zip(result.tables["table"].records(), (1, 5), strict=True):
        wanted, _ = expected(trained.module, values, targets, k)
        assert {name: record[name] for name in wanted} == pytest.approx(wanted)
        assert record["accuracy, %"] == f"top-{k}" and record["patch 120"] is None
        assert k == 5 or len({round(x, 4) for x in wanted.values()}) == len(wanted), wanted
    one, five = result.tables["table"].records()
    assert all(one[name] + 5 < five[name] for name in wanted)


@torch.no_grad()
def test_the_map_holds_every_place_row_by_row(trained, shapes, result):
    values, targets = read(shapes, trained.module)
    rows = result.data["places"].records()

    for k in (1, 5):
        _, places = expected(trained.module, values, targets, k)
        assert [r[f"top-{k}, %"] for r in rows] == pytest.approx(places.tolist())
        assert places.std() > 1
    assert [(r["row"], r["column"]) for r in rows] == [divmod(i, 8) for i in range(64)]
    drawn = result.figures["figure"].axes[0].images[0].get_array()
    np.testing.assert_allclose(drawn.ravel(), [r["top-1, %"] for r in rows])


@torch.no_grad()
def test_the_sweep_isolates_up_to_each_layer_and_after_it(trained, shapes, result):
    values, targets = read(shapes, trained.module)
    norm, head = trained.module.vit.layernorm, trained.module.classifier
    found = result.tables["table-sweep"].records()

    assert [r["layers l"] for r in found] == [0, 1, 2, 3]
    for record in found:
        i = record["layers l"]
        for name, apart in (("isolated up to l", range(i)), ("alone after l", range(i, 3))):
            logits = head(norm(last_tokens(trained.module, values, apart))[:, 0])
            for k in (1, 5):
                assert record[f"{name}, top-{k}, %"] == pytest.approx(right(logits, targets, k).mean().item())
    table = result.tables["table"].records()[0]
    up_to, after = ([r[f"{name}, top-1, %"] for r in found] for name in ("isolated up to l", "alone after l"))
    assert up_to[0] == after[3] == table["natural"] and up_to[2] == table["isolating CLS"]
    assert len({*up_to, *after}) >= 5 and up_to[3] == after[0]  # then it is the same answer for every picture
    lines = result.figures["sweep"].axes[0].lines[0].get_ydata(), result.figures["sweep"].axes[1].lines[0].get_ydata()
    np.testing.assert_allclose(lines, [up_to, after])


@torch.no_grad()
def test_patch_120_is_counted_from_0_row_by_row(trained, shapes, tmp_path):
    view, source = at_size(trained, (96, 96)), open_source(str(shapes))
    _, targets = read(shapes, trained.module)
    pictures = torch.cat([to_pixels(view, open_image(row.data)) for row, _ in source.read(0, 1, None)])
    values = (pictures * 255).round() / 127.5 - 1

    table = run_experiment("token-mixing", [view], source, TokenMixingConfig(), tmp_path).tables["table"]

    for record, k in zip(table.records(), (1, 5), strict=True):
        wanted, places = expected(view.module, values, targets, k)
        assert record["patch 120"] == pytest.approx(places[120].item())
        assert record["patch average"] == pytest.approx(wanted["patch average"])
        assert len({places[i].item() for i in (119, 120, 121)}) > 1


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 2])
def test_the_interval_of_one_picture_is_a_point_and_of_two_goes_from_one_to_the_other(n, trained, shapes, tmp_path):
    values, targets = read(shapes, trained.module)
    normed = trained.module.vit.layernorm(last_tokens(trained.module, values[:n]))
    each = right(trained.module.classifier(normed[:, 1:]), targets[:n], 5).mean(1)

    config = TokenMixingConfig(limit=n)
    found = run_experiment("token-mixing", [trained], open_source(str(shapes)), config, tmp_path).tables["table"]

    ends = [found.records()[1][f"patch average {end}"] for end in ("low", "high")]
    assert ends == pytest.approx([each.min().item(), each.max().item()])
    assert n == 1 or ends[0] < ends[1]


def test_without_the_sweep_there_is_one_table(vit, labelled, tmp_path):
    result = run_experiment("token-mixing", [vit], open_source(str(labelled)), TokenMixingConfig(), tmp_path)

    assert set(result.tables) == {"table"} and set(result.figures) == {"figure"}


def test_where_patches_are_averaged_before_the_norm_and_places_matter_it_is_said(tiny_view, labelled, tmp_path):
    view, source = tiny_view("beit"), open_source(str(labelled))

    table = run_experiment("token-mixing", [view], source, TokenMixingConfig(sweep=True), tmp_path).tables["table"]

    record = table.records()[0]
    assert record["isolating CLS"] is None and record[MEANS[1]] is None and record[MEANS[3]] is None
    assert record[MEANS[0]] == record["natural"]
    notes = " ".join(table.notes)
    assert "its blocks ask for a token's place" in notes and "averages its patches before it normalizes" in notes


def test_clip_takes_part_with_words_and_siglip_has_no_class_token(tiny_view, labelled, tmp_path):
    source, generator = open_source(str(labelled)), torch.Generator().manual_seed(0)
    words = ZeroShot(
        labels=("bus", "cat", "dog"),
        templates=("{}",),
        project=None,
        scale=10.0,
        bias=0.0,
        embeddings=functional.normalize(torch.randn(3, 32, generator=generator), dim=-1),
    )
    view = as_classifier(tiny_view("clip"), words)

    record = run_experiment("token-mixing", [view], source, TokenMixingConfig(), tmp_path).tables["table"].records()[0]

    hits = []
    for row, _ in source.read(0, 1, None):
        if row.label != "zebra":
            seen = (to_pixels(view, open_image(row.data)) * 255).round() / 255
            hits.append(classify(view, seen).top(1)[0][0][0] == row.label)
    assert record["natural"] == pytest.approx(100 * np.mean(hits))
    assert all(record[name] is not None for name in ("isolating CLS", "patch average", *MEANS))
    with pytest.raises(ConfigError, match="it has no class token"):
        run_experiment(
            "token-mixing", [as_classifier(tiny_view("siglip"), words)], source, TokenMixingConfig(), tmp_path / "s"
        )


def test_the_papers_numbers_stand_in_their_own_columns(trained, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(Setting, "model", lambda *_: "ViT-B/16")
    source, config = open_source(str(shapes)), TokenMixingConfig(limit=20)

    one, five = run_experiment("token-mixing", [trained], source, config, tmp_path).tables["table"].records()

    paper = {name.removesuffix(", paper"): value for name, value in one.items() if name.endswith(", paper")}
    assert paper == {
        "natural": 84.20,
        "isolating CLS": 78.61,
        "patch average": 75.75,
        "patch maximum": 80.16,
        MEANS[1]: 83.40,
        MEANS[3]: 83.40,
        "patch 120": 72.6,
    }
    assert five["isolating CLS, paper"] == 94.18 and five["patch 120, paper"] is None
    assert token_mixing.PAPER["ViT-B/32"] == {1: {"natural": 81.73, MEANS[1]: 80.87}}


def final_tokens(view, pixels):
    """Output of the last block, before the final norm, [B, T, D]."""
    site = Site(len(view.layers) - 1, "resid")
    return activations(view, pixels, [site])[site].values


def test_token_mixing_counts_what_classify_says(vit, labelled, tmp_path):
    source = open_source(str(labelled))
    rows = [row for row, _ in source.read(0, 1, None) if row.label != "zebra"]

    result = run_experiment("token-mixing", [vit], source, TokenMixingConfig(batch=6), tmp_path / "work")

    right = []
    for row in rows:
        pixels = (to_pixels(vit, open_image(row.data)) * 255).round() / 255
        right.append(classify(vit, pixels).top(1)[0][0][0] == row.label)
    record = result.tables["table"].records()[0]
    assert record["natural"] == pytest.approx(100 * np.mean(right))
    assert "15 images" in result.tables["table"].notes[0]
    assert "5 because class 'zebra' is not among the model's labels" in " ".join(result.tables["table"].notes)
    place = np.zeros(16)
    for row in rows:
        pixels = (to_pixels(vit, open_image(row.data)) * 255).round() / 255
        logits = head_logits(vit, final_tokens(vit, pixels)[0, 1:])
        place += (logits.argmax(1) == vit.labels.index(row.label)).numpy()
    assert record["patch average"] == pytest.approx(100 * place.mean() / len(rows))
    assert record["patch maximum"] == pytest.approx(100 * place.max() / len(rows))
