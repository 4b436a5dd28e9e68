"""The experiments: their parts against hand computations, and whole runs on tiny models."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from vitviz_hf import Site, activations, classify, open_image, to_pixels
from vitviz_hf.cli.main import main
from vitviz_hf.config import parse_features
from vitviz_hf.errors import ConfigError, NoClassifierError, OutputExistsError, SiteError
from vitviz_hf.experiments.accuracy import low_pass, study
from vitviz_hf.experiments.accuracy.labels import LabelMatcher, match_names
from vitviz_hf.experiments.accuracy.position import shuffle_tiles, tile_size
from vitviz_hf.experiments.config import (
    BackgroundConfig,
    LowPassConfig,
    NarrowSitesConfig,
    OcclusionConfig,
    PositionConfig,
    ProgressionConfig,
    SpatialConfig,
    TokenMixingConfig,
    TripletsConfig,
)
from vitviz_hf.experiments.perturb import occlude
from vitviz_hf.experiments.pictures import narrow_sites
from vitviz_hf.experiments.pictures.narrow_sites import high_frequency_share
from vitviz_hf.experiments.pictures.spatial import SHARES
from vitviz_hf.experiments.registry import EXPERIMENTS
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.experiments.tables import Interval, Table, paper_and_ours
from vitviz_hf.models.loading import imagenet_synsets
from vitviz_hf.models.view import run
from vitviz_hf.reading.tokens import check_isolation, check_plain, head_logits, isolated_logits, without_positions
from vitviz_hf.stream import Row, open_source

N = 20


def noise(view, batch=2, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


def last_tokens(view, pixels):
    """Output of the last block, before the final norm, [B, T, D]."""
    site = Site(len(view.layers) - 1, "resid")
    return activations(view, pixels, [site])[site].values


# Tokens


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
    pixels = noise(vit)
    before = run(vit, pixels).logits

    isolated_logits(vit, pixels)

    hooks = [h for m in vit.module.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert not hooks and torch.equal(run(vit, pixels).logits, before)


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


# Counting


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


def test_labels_match_in_any_order_by_synonym_and_never_by_a_shared_late_one():
    labels = ["crane", "giant panda, panda, bear", "tabby, tabby cat", "crane", "red panda, panda", "T-shirt"]

    assert match_names(["Tabby", "crane", "t shirt", "panda", "crane", "zebra"], labels) == [2, 0, 5, None, 3, None]
    assert match_names(["red panda, bear cat"], labels) == [4]
    assert match_names(["crane"], labels) == [None]  # which of the two?


def test_wordnet_ids_find_imagenets_names():
    synsets = imagenet_synsets()
    names = list(synsets.values())
    matcher = LabelMatcher(names[700:] + names[:700])

    found = [matcher.find(Row("", "", b"", wnid=w)) for w in synsets]
    assert all((place + 700) % 1000 == i for i, place in enumerate(found) if names.count(names[i]) == 1)
    assert LabelMatcher(["n01440764", "cat"]).find(Row("", "", b"", wnid="n01440764")) == 0
    assert LabelMatcher(["dog", "cat"]).find(Row("", "tench", b"", wnid="n01440764")) is None


# Pictures


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


def test_tiles_are_shuffled_and_none_is_lost():
    picture = torch.arange(3 * 8 * 12).reshape(3, 8, 12)

    shuffled = shuffle_tiles(picture, 4, 5)

    def tiles(p):
        return {tuple(p[:, r : r + 4, c : c + 4].flatten().tolist()) for r in (0, 4) for c in (0, 4, 8)}

    assert tiles(shuffled) == tiles(picture) and not torch.equal(shuffled, picture)
    assert torch.equal(shuffle_tiles(picture, 4, 5), shuffled)
    assert any(not torch.equal(shuffle_tiles(picture, 4, s), shuffled) for s in range(6, 10))


def test_tiles_divide_the_input_in_whole_patches(vit, tiny_view):
    assert vit.input_size == (32, 32) and tile_size(vit) == 16
    assert tile_size(vit, 8) == 8
    with pytest.raises(ConfigError, match="possible are 2, 4, 8, 16"):
        tile_size(vit, 9)


def test_the_high_frequency_share_of_known_pictures():
    x = np.mgrid[:64, :64][1]
    white = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)

    def wave(k):
        return Image.fromarray((127 + 100 * np.cos(2 * np.pi * k * x / 64)).astype(np.uint8)).convert("RGB")

    assert high_frequency_share(Image.fromarray(white)) == pytest.approx(1 - math.pi / 16, abs=0.01)
    assert high_frequency_share(wave(4)) < 0.01 and high_frequency_share(wave(25)) > 0.99
    assert high_frequency_share(Image.new("RGB", (64, 64), "teal")) == 0


# Tables


def test_a_table_is_markdown_csv_and_json():
    table = Table(("a|b", "x", "n"), (("p|q", Interval(50.123, 40, 60), None), ("r", 1.5, 3)), ("A note.",))

    assert table.to_markdown().splitlines() == [
        "| a\\|b | x | n |",
        "| --- | --- | --- |",
        "| p\\|q | 50.12 (40.00 to 60.00) | - |",
        "| r | 1.50 | 3 |",
        "",
        "A note.",
    ]
    rows = list(csv.DictReader(table.to_csv().splitlines()))
    assert rows[0] == {"a|b": "p|q", "x": "50.123", "x low": "40", "x high": "60", "n": ""}
    assert json.loads(table.to_json())["rows"][1] == {"a|b": "r", "x": 1.5, "n": 3}


def test_papers_columns_appear_only_where_the_paper_has_numbers():
    header, cells = paper_and_ours(["x", "y"], [((1.0, None), (2.0, 3.0)), ((None, None), (4.0, 5.0))])

    assert header == ["x, paper", "x, ours", "y"] and cells == [[1.0, 2.0, 3.0], [None, 4.0, 5.0]]


# Whole runs


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
        logits = head_logits(vit, last_tokens(vit, pixels)[0, 1:])
        place += (logits.argmax(1) == vit.labels.index(row.label)).numpy()
    assert record["patch average"] == pytest.approx(100 * place.mean() / len(rows))
    assert record["patch maximum"] == pytest.approx(100 * place.max() / len(rows))


@pytest.mark.parametrize(
    ("name", "families", "config"),
    [
        ("background", ("vit", "resnet"), BackgroundConfig(batch=4)),
        ("low-pass", ("vit", "timm-resnet"), LowPassConfig(batch=40, filter_at="original")),
        ("position", ("vit", "resnet"), PositionConfig(batch=4)),
        ("occlusion", ("vit", "resnet"), OcclusionConfig(batch=16, grid=4, shuffles=(2,))),
    ],
)
def test_comparisons_do_not_depend_on_the_batch_and_go_on_after_a_stop(
    name, families, config, tiny_view, labelled, tmp_path
):
    views, source = [tiny_view(f) for f in families], open_source(str(labelled))
    straight = run_experiment(name, views, source, config, tmp_path / "straight")

    class Stopped(BaseException):
        pass

    def stop(done, n):
        assert n == N
        if done >= 8:
            raise Stopped

    with pytest.raises(Stopped):
        run_experiment(name, views, source, config, tmp_path / "work", stop)
    with pytest.raises(ConfigError, match=r"holds a run with config\.seed 0, not 9"):
        run_experiment(name, views, source, replace(config, seed=9), tmp_path / "work")
    resumed = run_experiment(name, views, source, config, tmp_path / "work")

    assert resumed.tables["table"].to_csv() == straight.tables["table"].to_csv()
    resumed.save(tmp_path / "out")
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"table.md", "table.csv", "table.json", "figure.png", "figure.svg", "manifest.json"} <= files
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [m["model_id"] for m in manifest["models"]] == [v.model_id for v in views]
    assert manifest["data"]["dataset"] == str(labelled) and manifest["config"]["batch"] == config.batch


def test_the_accuracy_of_masked_pictures_is_that_of_pictures_masked_by_hand(vit, labelled, tmp_path):
    source = open_source(str(labelled))
    right = {"top-1 foreground": [], "top-1 background": []}
    for row, _ in source.read(0, 1, None):
        if row.label != "zebra":
            x0, y0, x1, y1 = map(int, row.boxes[0])
            pixels = np.array(open_image(row.data))
            front = np.zeros_like(pixels)
            front[y0 : y1 + 1, x0 : x1 + 1] = pixels[y0 : y1 + 1, x0 : x1 + 1]
            for way, masked in (("foreground", front), ("background", pixels - front)):
                seen = (to_pixels(vit, Image.fromarray(masked)) * 255).round() / 255
                right[f"top-1 {way}"].append(classify(vit, seen).top(1)[0][0][0] == row.label)

    result = run_experiment("background", [vit], source, BackgroundConfig(), tmp_path / "w")

    record = result.tables["table-plain"].records()[0]
    for column, hits in right.items():
        assert record[column] == pytest.approx(100 * np.mean(hits))


def test_occlusion_counts_what_occluding_by_hand_gives(vit, labelled, tmp_path):
    source = open_source(str(labelled))
    config = OcclusionConfig(grid=4, shuffles=(4,))

    result = run_experiment("occlusion", [vit], source, config, tmp_path / "w")

    right = []
    for row, _ in source.read(0, 1, None):
        if row.label != "zebra":
            pixels = (to_pixels(vit, open_image(row.data))[0] * 255).round().byte().permute(1, 2, 0).numpy()
            changed = occlude(pixels, None, "random", 0.5, 4, row.key % 2**63).photo
            seen = torch.from_numpy(changed).permute(2, 0, 1)[None].float() / 255
            right.append(classify(vit, seen).top(1)[0][0][0] == row.label)
    rows = {(r["change"], r["ratio, or tiles in a row"]): r["top-1, %"] for r in result.tables["table"].records()}
    assert rows["random", "0.5"] == pytest.approx(100 * np.mean(right))
    assert rows["salient", "0.9"] is not None and rows["shuffle", "4"] is not None and len(rows) == 17


def test_progression_has_a_row_of_pictures_for_each_layer(vit, tmp_path):
    config = ProgressionConfig(columns=2, steps=3)

    result = run_experiment("progression", [vit], None, config, tmp_path / "w")
    made = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "w" / "pictures").iterdir()}
    again = run_experiment("progression", [vit], None, config, tmp_path / "w")

    layers = [row["feature"].split(".")[0] for row in result.tables["table"].records()]
    assert layers == ["0", "0", "1", "1", "2", "2"]
    assert again.tables["table"].to_csv() == result.tables["table"].to_csv()
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "w" / "pictures").iterdir()} == made
    chosen = run_experiment(
        "progression",
        [vit],
        None,
        ProgressionConfig(features=parse_features("2.mlp_act:3, 0.attn_k:1"), steps=3),
        tmp_path / "x",
    )
    assert [r["feature"] for r in chosen.tables["table"].records()] == ["0.attn_k:1", "2.mlp_act:3"]


def test_narrow_sites_compare_the_same_features_at_every_kind(vit, tmp_path):
    result = run_experiment(
        "narrow-sites", [vit], None, NarrowSitesConfig(layers=(0, 2), columns=2, steps=2, preset="fast"), tmp_path / "w"
    )

    rows = result.tables["table"].records()
    kinds = [k for k in narrow_sites.KINDS if k in vit.layers[0].taps] + ["mlp_act, random", "mlp_act, rotated"]
    assert [(r["layer"], r["kind"]) for r in rows] == [(layer, kind) for layer in (0, 2) for kind in kinds]
    with pytest.raises(SiteError, match="layers 0-2; got 7"):
        run_experiment("narrow-sites", [vit], None, NarrowSitesConfig(layers=(7,)), tmp_path / "x")


def test_spatial_triplets_and_concepts_search_first_where_there_is_no_atlas(vit, labelled, tmp_path):
    source = open_source(str(labelled))

    spatial = run_experiment(
        "spatial", [vit], source, SpatialConfig(per_layer=4, threshold=0.05, min_active=1), tmp_path / "s"
    )
    triplets = run_experiment("triplets", [vit], source, TripletsConfig(rows=3, steps=2), tmp_path / "t")
    concepts = run_experiment("concepts", [vit], source, TripletsConfig(rows=2, steps=2), tmp_path / "c")

    assert [r["layer"] for r in spatial.tables["table"].records()] == [0, 1, 2]
    counted = ("features", "none active", "too few active")
    assert all(sum(r[c] for c in counted) == 4 for r in spatial.tables["table"].records())
    assert {r["dropped"] for r in spatial.data["curves"].records()} == set(SHARES)
    assert [r["feature"].split(".")[0] for r in triplets.tables["table"].records()] == ["0", "1", "2"]
    assert len(concepts.tables["table"].records()[0]["most activating images"].split("; ")) == 7
    assert "no text tower" in " ".join(concepts.tables["table"].notes)


def test_every_experiment_has_a_command_with_its_options(capsys):
    for name in (*EXPERIMENTS, "all"):
        with pytest.raises(SystemExit) as exit_:
            main(["experiment", name, "--help"])
        assert exit_.value.code == 0 and "--resume" in capsys.readouterr().out


def test_the_command_writes_a_folder_and_overwrites_none(tiny_folder, labelled, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["experiment", "position", str(tiny_folder("vit")), str(tiny_folder("resnet")), str(labelled)]
    command += ["--limit", "10", "--tile", "8", "--out", str(out), "--device", "cpu"]

    assert main(command) == 0
    assert "| model | tile |" in capsys.readouterr().out
    assert json.loads((out / "manifest.json").read_text())["config"]["limit"] == 10
    assert not (tmp_path / "out.experiment").exists()
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["token-mixing", "{vit}"], "give a model and then a dataset"),
        (["token-mixing", "{resnet}", "{data}"], "it has no transformer layers"),
        (["background", "{dinov2}", "{data}"], "has no trained classifier and no text tower"),
        (["background", "{vit}", "builtin"], "has no boxes"),
        (["low-pass", "{vit}", "builtin"], "no picture of 'builtin' could be scored"),
        (["position", "{vit}", "{data}", "--tile", "7"], "do not divide the input"),
        (["position", "{vit}", "{data}", "--limit", "-3"], "limit must be a whole number from 1"),
        (["progression", "{resnet}"], "has no features"),
        (["progression", "{vit}", "--features", "9.mlp_act:1"], "has layers 0-2"),
        (["spatial", "{vit}", "--atlas", "/nowhere"], "there is no atlas"),
        (["triplets", "{vit}", "{vit}", "{data}"], "triplets takes one model"),
    ],
)
def test_what_does_not_fit_is_told_and_leaves_nothing(arguments, message, tiny_folder, labelled, tmp_path, capsys):
    names = {f: str(tiny_folder(f)) for f in ("vit", "resnet", "dinov2")} | {"data": str(labelled)}

    code = main(["experiment", *(a.format(**names) for a in arguments), "--out", str(tmp_path / "out")])

    assert code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_writes_a_report_with_every_table_and_says_what_could_not_be_run(
    tiny_folder, labelled, tmp_path, capsys, monkeypatch
):
    command = ["experiment", "all", str(tiny_folder("vit")), str(tiny_folder("resnet")), str(labelled)]
    for name in ("progression", "narrow-sites", "triplets", "concepts"):
        short = EXPERIMENTS[name].config
        monkeypatch.setitem(short.__init__.__kwdefaults__, "steps", 2)

    assert main([*command, "--limit", "8", "--out", str(tmp_path / "all"), "--device", "cpu"]) == 0

    text = (tmp_path / "all" / "report.md").read_text()
    for name in EXPERIMENTS:
        assert f"## {name}" in text and f"({name}/figure.png)" in text
        assert (tmp_path / "all" / name / "table.csv").is_file()
    capsys.readouterr()
    assert main([*command, "--limit", "4", "--out", str(tmp_path / "all"), "--device", "cpu", "--resume"]) == 2
    assert "holds a run with config.limit 8, not 4" in capsys.readouterr().err


def test_an_interrupted_run_is_not_begun_again_by_accident(tiny_folder, labelled, tmp_path, capsys):
    (tmp_path / "out.experiment").mkdir()
    command = ["experiment", "position", str(tiny_folder("vit")), str(labelled), "--out", str(tmp_path / "out")]

    assert main([*command, "--device", "cpu"]) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert main([*command, "--device", "cpu", "--resume"]) == 0


def test_results_are_not_saved_over_others(vit, tmp_path):
    result = run_experiment("progression", [vit], None, ProgressionConfig(columns=1, steps=1), tmp_path / "w")
    result.save(tmp_path / "out")

    with pytest.raises(OutputExistsError):
        result.save(tmp_path / "out")
