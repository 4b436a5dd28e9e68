"""Every number and picture of group, against transformers' own hidden states and measures computed anew."""

import copy
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import draw_noise
from vitviz_hf import at_size, load_model
from vitviz_hf.cli.main import main
from vitviz_hf.errors import ConfigError, DatasetError, NonFiniteError
from vitviz_hf.experiments.config import GroupConfig, Variant, parse_variants
from vitviz_hf.experiments.neurons import group
from vitviz_hf.experiments.neurons.clusters import MEASURES, group_tokens, instances_to_patches, permuted_measures
from vitviz_hf.experiments.neurons.group import COLUMNS, PAPER, PAPER_MODEL, majority, run_group, shown_blocks
from vitviz_hf.experiments.neurons.scenes import Scene, open_scenes
from vitviz_hf.experiments.perturb import mask_to_model, occlude, shuffle
from vitviz_hf.models.view import normalize, to_pixels

CLEAN = (Variant("clean"),)


def bytes_of(view, image):
    return (to_pixels(view, image)[0] * 255).round().byte().permute(1, 2, 0).numpy()


@cache
def own_module(model_id):
    """The model anew, with transformers' open attention."""
    module = load_model(model_id, device="cpu").module
    module.set_attn_implementation("eager")
    return module.requires_grad_(False)


def own_states(view, pixels, attentions=False):
    """Block outputs [L, T, D], and joint attention [L, T, T], by transformers itself with its open attention."""
    other = own_module(view.model_id)
    stack = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    out = other(pixel_values=normalize(view, stack), output_hidden_states=True, output_attentions=True)
    joint, joined = torch.eye(out.attentions[0].shape[-1]), []
    for a in out.attentions:
        a = a[0].mean(0) + torch.eye(len(joint))
        joint = a / a.sum(-1, keepdim=True) @ joint
        joined.append(joint)
    states = torch.stack(out.hidden_states[1:])[:, 0].detach().numpy()
    return (states, torch.stack(joined).detach().numpy()) if attentions else states


def draw_scene(view, seed=0):
    """Three objects of different size; the third looks much like the second."""
    height, width = view.input_size
    image = draw_noise(seed).resize((width, height))
    mask = np.zeros((height, width), np.int64)
    places = [(0.0, 0.0, 0.5, 0.75), (0.5, 0.0, 0.5, 0.5), (0.5, 0.5, 0.95, 1.0)]
    colors = [(250, 200, 30), (20, 60, 220), (60, 60, 180)]
    for n, (place, color) in enumerate(zip(places, colors, strict=True), 1):
        top, left, bottom, right = (int(x * side) for x, side in zip(place, (height, width) * 2, strict=True))
        top, bottom = (top, bottom) if bottom > top else (top, height)
        noise = np.random.default_rng(seed + n).integers(-20, 20, (bottom - top, right - left, 3)) + color
        image.paste(Image.fromarray(noise.clip(0, 255).astype(np.uint8)), (left, top))
        mask[top:bottom, left:right] = n
    return Scene(f"scene {seed}", image, mask, ("cat", "dog", "bird"))


# Measures computed anew, with loops


def dbscan(tokens, eps):
    """Labels; core points have three in reach, themselves among them."""
    near = [np.flatnonzero(np.linalg.norm(tokens - t, axis=1) <= eps) for t in tokens]
    labels, n = np.full(len(tokens), -1), 0
    for start in range(len(tokens)):
        if labels[start] >= 0 or len(near[start]) < 3:
            continue
        waiting = [start]
        while waiting:
            point = waiting.pop()
            if labels[point] < 0:
                labels[point] = n
                waiting += near[point].tolist() if len(near[point]) >= 3 else []
        n += 1
    return labels


def silhouette(tokens, labels):
    tokens, labels = tokens[labels >= 0], labels[labels >= 0]
    if len(set(labels)) < 2:
        return 0.0 if len(set(labels)) else -1.0
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    apart, values = 1 - unit @ unit.T, []
    for i, mine in enumerate(labels):
        own = (labels == mine) & (np.arange(len(labels)) != i)
        if not own.any():
            values.append(0.0)
            continue
        inside = apart[i, own].mean()
        outside = min(apart[i, labels == c].mean() for c in set(labels) - {mine})
        values.append((outside - inside) / max(outside, inside))
    return float(np.mean(values))


def pair_mean(tokens, other=None):
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    if other is not None:
        return (unit @ (other / np.linalg.norm(other, axis=1, keepdims=True)).T).mean()
    return np.mean([unit[i] @ unit[j] for i in range(len(unit)) for j in range(i)])


def measured(tokens, objects, names):
    tokens = tokens.astype(np.float64)
    eps = np.mean([np.mean([np.linalg.norm(tokens[b] - tokens[a]) for a, b in pairwise(o)]) for o in objects])
    used = np.concatenate(objects)
    owner = {t: i for i, o in enumerate(objects) for t in o}
    labels = dbscan(tokens[used], eps)
    clusters = [used[labels == c] for c in range(labels.max() + 1)]
    counts = [[sum(owner[t] == i for t in c) for i in range(len(objects))] for c in clusters]
    best = [row.index(max(row)) for row in counts]
    pairs = [(a, b) for a in range(len(objects)) for b in range(a)]
    places = [*range(len(clusters)), *[None] * len(objects)]  # an object may have no cluster
    ways = {sum(counts[c][i] for i, c in enumerate(way) if c is not None) for way in permutations(places, len(objects))}
    return labels, {
        "silhouette": silhouette(tokens[used], labels),
        "purity": sum(max(row) for row in counts) / len(used),
        "in-cluster cosine": np.mean([pair_mean(tokens[c]) for c in clusters if len(c) > 1]) if clusters else -1,
        "in-object cosine": np.mean([pair_mean(tokens[o]) for o in objects]),
        "unique-label rate": len({names[i] for i in best}) / len(set(names)),
        "clusters per object": len(clusters) / len(objects),
        "token ratio": (labels >= 0).mean(),
        "one-to-one": max(ways) / len(used),
        "between-object cosine": np.mean([pair_mean(tokens[objects[a]], tokens[objects[b]]) for a, b in pairs]),
    }


def expected_columns(view, pixels, mask, names, seed):
    objects = list(instances_to_patches(mask, view.layers[0].patch_grid).values())
    table = []
    for tokens in own_states(view, pixels)[:, view.layers[0].n_prefix :]:
        labels, found = measured(tokens, objects, names)
        rng = np.random.default_rng(seed)
        mixed = rng.permutation(np.concatenate(objects))
        ends = np.cumsum([0, *map(len, objects)])
        _, chance = measured(tokens, [np.sort(mixed[a:b]) for a, b in pairwise(ends)], names)
        moved = labels.copy()
        moved[labels >= 0] = rng.permutation(labels[labels >= 0])
        found |= {f"{m}, permuted": chance[m] for m in ("purity", "unique-label rate")}
        found["silhouette, permuted"] = silhouette(tokens[np.concatenate(objects)].astype(float), moved)
        table.append(found)
    return table


@pytest.mark.parametrize("model", ["vit", "builtin"])
def test_every_number_of_every_variant(model, tiny_view, request):
    view = tiny_view("vit") if model == "vit" else at_size(request.getfixturevalue("builtin"), (140, 140))
    scenes = [draw_scene(view, seed) for seed in (0, 10)]
    config = GroupConfig(variants=parse_variants("shuffle 2,clean,random 0.2"), seed=5)

    found = run_group(view, "x", scenes, config)

    expected = {"clean": [], "shuffle 2": [], "random 0.2": []}
    for number, scene in enumerate(scenes):
        pixels, mask = bytes_of(view, scene.image), mask_to_model(view, scene.mask)
        moved, black = shuffle(pixels, mask, 2, 5 + number), occlude(pixels, mask, "random", 0.2, seed=5 + number)
        for name, seen in [
            ("clean", (pixels, mask)),
            ("shuffle 2", (moved.photo, moved.mask)),
            ("random 0.2", (black.photo, black.mask)),
        ]:
            expected[name].append(expected_columns(view, *seen, scene.names, 5 + number))
    assert list(found.tables) == ["table-shuffle-2", "table", "table-random-0.2"]
    long = {(r["variant"], r["layer"], r["measure"]): r for r in found.data["curves"].records()}
    for name, per_scene in expected.items():
        rows = found.tables["table" if name == "clean" else f"table-{name.replace(' ', '-')}"].records()
        assert list(rows[0]) == ["layer", *COLUMNS] and [r["layer"] for r in rows] == [*range(1, len(view.layers) + 1)]
        for layer, row in enumerate(rows):
            for column in COLUMNS:
                values = [scene[layer][column] for scene in per_scene]
                assert row[column] == pytest.approx(np.mean(values), abs=2e-5), (name, layer, column)
                cell = long[name, layer + 1, column]
                clustered = [v for v, s in zip(values, per_scene, strict=True) if s[layer]["clusters per object"]]
                assert (cell["scenes"], cell["scenes with a cluster"]) == (2, len(clustered))
                if clustered:
                    assert cell["mean where there is a cluster"] == pytest.approx(np.mean(clustered), abs=2e-5)
    assert "2 of 2 scenes" in found.tables["table"].notes[0] and "Seed 5" in found.tables["table"].notes[0]
    if model == "builtin":  # a model that has learned something: no column stands for another, and layers differ
        rows = found.tables["table"].records()
        last = rows[-1]
        every = [r for table in found.tables.values() for r in table.records()]
        columns = {c: tuple(round(r[c], 4) for r in every) for c in COLUMNS}
        assert not [(a, b) for a, b in combinations(COLUMNS, 2) if columns[a] == columns[b]]
        for m in ("silhouette", "purity", "in-object cosine", "between-object cosine"):
            assert len({round(r[m], 5) for r in found.tables["table"].records()}) > 6
        assert last["purity"] > last["purity, permuted"] + 0.1
        assert last["silhouette"] > last["silhouette, permuted"] + 0.1
    curve = {
        ax.get_title(): {line.get_label(): line.get_ydata() for line in ax.lines} for ax in found.figures["figure"].axes
    }
    assert list(curve) == ["silhouette", "purity", "in-cluster cosine", "in-object cosine", "unique-label rate"]
    for measure, lines in curve.items():
        for name, per_scene in expected.items():
            means = np.mean([[layer[measure] for layer in scene] for scene in per_scene], 0)
            np.testing.assert_allclose(lines[name], means, atol=2e-5)


@pytest.mark.parametrize(("model", "blocks"), [("vit", [0, 1, 2]), ("builtin", [0, 4, 8, 11])])
@pytest.mark.parametrize("markers", ["attention", "fixed"])
def test_tsne_is_of_the_outputs_of_the_named_blocks(model, blocks, markers, tiny_view, request, monkeypatch):
    view = tiny_view("vit") if model == "vit" else request.getfixturevalue("builtin")
    scene, n = replace(draw_scene(view), names=("first", "second", "third")), view.layers[0].n_prefix
    pixels, mask = bytes_of(view, scene.image), mask_to_model(view, scene.mask)
    embedded = []

    def flat(tokens, seed):
        embedded.append(tokens)
        return np.asarray(tokens[:, :2] + seed)

    monkeypatch.setattr(group, "embed_tokens", flat)

    figure = group.tsne_panels(view, scene, pixels, mask, GroupConfig(markers=markers, seed=3))

    states, joint = own_states(view, pixels, attentions=True)
    assert len(embedded) == len(blocks)
    for tokens, block in zip(embedded, blocks, strict=True):
        np.testing.assert_allclose(tokens, states[block], atol=1e-3, rtol=1e-3)
        assert all(abs(tokens - states[other]).max() > 0.05 for other in range(len(states)) if other != block)
    titles = [f"after block {b} (of 0 to {blocks[-1]})" for b in blocks]
    if markers == "fixed":
        titles.append(f"after block {blocks[-1]}, by joint attention")
    shown, *axes = figure.axes
    assert np.array_equal(shown.images[0].get_array(), pixels)
    assert [ax.get_title() for ax in axes] == titles
    owners = np.array([np.bincount(b.ravel()).argmax() for b in tiles(mask, view.layers[0].patch_grid)])
    assert {0, 1, 2, 3} == set(owners)
    for ax, title, block in zip(axes, titles, [*blocks, blocks[-1]], strict=False):
        by_attention = markers == "attention" or "by joint" in title
        weights = joint[block][0, n:]
        for owner, name in enumerate(("background", "first", "second", "third")):
            drawn = next(c for c in ax.collections if c.get_label() == name)
            np.testing.assert_allclose(drawn.get_offsets(), states[block][n:, :2][owners == owner] + 3, atol=1e-3)
            sizes = 22 * weights[owners == owner] / weights.mean() if by_attention else 22.0
            np.testing.assert_allclose(drawn.get_sizes() * np.ones((owners == owner).sum()), sizes, rtol=1e-3)
    assert len(axes) == len(titles)


def tiles(mask, grid):
    height, width = mask.shape[0] // grid[0], mask.shape[1] // grid[1]
    return [
        mask[r * height : (r + 1) * height, c * width : (c + 1) * width] for r in range(grid[0]) for c in range(grid[1])
    ]


def test_the_embedding_has_the_settings_of_the_notebook(monkeypatch):
    seen = {}

    class Spy:
        def __init__(self, **options):
            seen.update(options)

        def fit_transform(self, tokens):
            return tokens[:, :2]

    monkeypatch.setattr("vitviz_hf.experiments.neurons.clusters.TSNE", Spy)
    group.embed_tokens(np.zeros((197, 4)), 7)
    assert seen == {"perplexity": 30, "init": "random", "learning_rate": 200, "max_iter": 1000, "random_state": 7}
    group.embed_tokens(np.zeros((17, 4)), 7)
    assert seen["perplexity"] < 17


def test_blocks_stand_where_they_do_in_twelve_and_both_ends_are_among_them():
    assert shown_blocks(12) == [0, 4, 8, 11] and shown_blocks(24) == [0, 8, 17, 23]
    assert shown_blocks(3) == [0, 1, 2] and shown_blocks(2) == [0, 1] and shown_blocks(1) == [0]


def test_chance_has_as_many_tokens_for_each_object_and_takes_a_seed(generator):
    centers = torch.tensor([[9.0, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0]]).repeat_interleave(20, 0)
    tokens = (centers + 0.1 * torch.randn(60, 4, generator=generator)).numpy()
    objects = [np.arange(20), np.arange(20, 40), np.arange(40, 60)]
    labels = group_tokens(tokens, objects, "abc").labels

    found = [permuted_measures(tokens, objects, "abc", labels, seed) for seed in range(20)]

    # Clusters stay the three blobs, and the commonest owner in 20 of 60 tokens has a little more than a third.
    assert 0.34 < np.mean([f["purity"] for f in found]) < 0.5 and len({f["purity"] for f in found}) > 3
    assert 0.34 < np.mean([f["unique-label rate"] for f in found]) < 0.95
    chances = [f["silhouette"] for f in found]
    assert len(set(chances)) == 20 and abs(np.mean(chances)) < 0.1 and max(chances) < 0.2
    assert found[3] == permuted_measures(tokens, objects, "abc", labels, 3)
    assert group_tokens(tokens, objects, "abc").measures["silhouette"] > 0.95


def test_a_patch_of_two_objects_goes_to_the_larger_part_or_to_the_sum_of_their_numbers():
    mask = np.zeros((40, 80), np.int64)  # 4 x 8 patches of 10 x 10
    mask[0:40, 0:20], mask[0:40, 20:40], mask[0:40, 40:60] = 1, 2, 3
    mask[0:10, 10:16] = 2  # 60 % of patch 1 are 2's, 40 % remain 1's
    mask[10:20, 10:15] = 3  # half of patch 9 are 3's
    mask[20:30, 20:24] = 1  # two fifths of patch 18 are 1's

    larger = instances_to_patches(mask, (4, 8))
    summed = instances_to_patches(mask, (4, 8), overlap="sum")

    left, middle, right = {0, 8, 16, 24, 17, 25}, {10, 2, 26, 3, 11, 19, 27}, {4, 12, 20, 28, 5, 13, 21, 29}
    assert [set(larger[n]) for n in (1, 2, 3)] == [left | {9}, middle | {1, 18}, right]
    assert [set(summed[n]) for n in (1, 2, 3)] == [left, middle, right | {1, 18}]  # patch 9 has number 4: nobody's
    with pytest.raises(ConfigError, match="overlap must be"):
        instances_to_patches(mask, (4, 8), overlap="other")


def test_objects_have_the_names_of_their_numbers(vit, monkeypatch):
    asked = []

    def measured(tokens, owned, classes):
        asked.append((classes, [len(o) for o in owned]))
        return group_tokens(tokens, owned, classes)

    monkeypatch.setattr(group, "group_tokens", measured)
    pixels, mask = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.int64)
    mask[:, :8], mask[:, 8:16], mask[:, 16:] = 3, 1, 4
    for names, expected in [(("a", "b", "c", "d"), ["a", "c", "d"]), (("a", "b", "c"), ["a", "c", "object 4"])]:
        group.group_scene(vit, pixels, mask, names, GroupConfig(), 0)

        assert asked == [(expected, [4, 4, 8])] * 3
        asked.clear()


def test_the_rule_for_overlaps_reaches_the_measures(vit):
    mask = np.zeros((32, 32), np.int64)
    mask[:, :16], mask[:, 16:] = 1, 2
    mask[::2, 8:16] = 2  # the second column is half the one's and half the other's
    scene = Scene("s", draw_noise(1).resize((32, 32)), mask, ("cat", "dog"))
    both = [run_group(vit, "x", [scene], GroupConfig(variants=CLEAN, overlap=o)) for o in ("larger", "sum")]

    first, second = (r.tables["table"].records()[-1] for r in both)
    assert abs(first["in-object cosine"] - second["in-object cosine"]) > 1e-4


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC2009"
    for folder in ("JPEGImages", "SegmentationObject", "Annotations"):
        (root / folder).mkdir(parents=True)
    mask = np.zeros((40, 48), np.uint8)
    mask[:20], mask[20:36], mask[36:] = 1, 2, 255
    for i in range(8):
        draw_noise(i).resize((48, 40)).save(root / "JPEGImages" / f"{i}.jpg")
        image = Image.fromarray(mask)
        image.putpalette([i for rgb in range(256) for i in (rgb, 0, 255 - rgb)])
        image.save(root / "SegmentationObject" / f"{i}.png")
        (root / "Annotations" / f"{i}.xml").write_text(
            "<annotation><object><name>dog</name></object><object><name>cat</name></object></annotation>"
        )
    return root


def test_voc_is_read_in_a_random_order_that_the_seed_decides(voc):
    orders = [[s.name for s in open_scenes(str(voc), seed=seed)] for seed in (0, 0, 1)]

    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2]) == [*"01234567"]
    assert orders[0] != sorted(orders[0])


def test_all_scenes_are_used_unless_a_limit_says_otherwise(vit, voc):
    progress = []

    every = run_group(vit, str(voc), open_scenes(str(voc)), GroupConfig(variants=CLEAN), lambda *x: progress.append(x))
    some = run_group(vit, str(voc), open_scenes(str(voc)), GroupConfig(variants=CLEAN, limit=3))

    assert every.manifest["scenes"] == 8 and progress[-1] == (8, 0) and some.manifest["scenes"] == 3
    assert "8 of 8 scenes" in every.tables["table"].notes[0]


def test_the_papers_numbers_stand_only_beside_the_same_model_data_and_number_of_scenes(builtin, monkeypatch):
    view = replace(builtin, snapshot=replace(builtin.snapshot, model_id=PAPER_MODEL), weights=None)
    monkeypatch.setattr(group, "PAPER_SCENES", 2)
    monkeypatch.setattr(group, "embed_tokens", lambda tokens, seed: tokens[:, :2])
    scenes = [draw_scene(view, seed) for seed in range(3)]

    def columns(view, dataset, **options):
        return run_group(view, dataset, scenes, GroupConfig(**{"variants": CLEAN, "limit": 2} | options)).tables[
            "table"
        ]

    table = columns(view, "some/VOC2009")
    assert [r["purity, paper"] for r in table.records()] == list(PAPER[Variant("clean")]["purity"])
    assert "purity, ours" in table.columns and "token ratio" in table.columns and "purity, permuted" in table.columns
    for other in (
        columns(view, "some/VOC2012"),
        columns(view, "some/VOC2009", limit=1),
        columns(view, "some/VOC2009", cover=0.5),
        columns(builtin, "some/VOC2009"),
        columns(replace(view, weights="abc"), "some/VOC2009"),
        columns(replace(view, control="random-weights"), "some/VOC2009"),
    ):
        assert not [c for c in other.columns if "paper" in c]


def test_a_variant_that_leaves_nothing_is_told_and_the_clean_one_may_be_left_out(
    vit, tiny_folder, labelled, tmp_path, capsys
):
    with pytest.raises(DatasetError, match="enough was left of two objects in salient 1"):
        run_group(vit, "x", [draw_scene(vit)], GroupConfig(variants=(Variant("salient", 1),)))
    command = ["group", str(tiny_folder("vit")), str(labelled), "--compose", "tiles", "--variants", "shuffle 2"]
    assert main([*command, "--limit", "1", "--device", "cpu", "--out", str(tmp_path / "g")]) == 0
    assert "silhouette, permuted" in capsys.readouterr().out


def test_the_measures_that_have_a_control_stand_beside_it():
    places = [COLUMNS.index(f"{m}, permuted") - COLUMNS.index(m) for m in ("silhouette", "purity", "unique-label rate")]
    assert places == [1, 1, 1] and len(COLUMNS) == len(MEASURES) + 3


def test_a_model_that_is_finite_on_no_scene_is_refused(vit):
    module = copy.deepcopy(vit.module)
    module.vit.layers[1].mlp.fc1.bias.data[0] = float("nan")

    with pytest.raises(NonFiniteError, match=r"in float32 give NaN or infinite values\. So it is on all of 1 scenes"):
        run_group(replace(vit, module=module), "x", [draw_scene(vit)], GroupConfig(variants=CLEAN))


def test_scenes_with_values_that_are_not_finite_are_left_out_and_counted(vit, monkeypatch):
    scenes = [draw_scene(vit), draw_scene(vit), draw_scene(vit)]
    config = GroupConfig(variants=CLEAN)
    alone = run_group(vit, "x", scenes[:1], config).tables["table"].rows
    calls = []

    def second_is_nan(module, args, output):
        calls.append(1)
        return output * float("nan") if len(calls) == 2 else output

    hook = vit.module.vit.layers[1].register_forward_hook(second_is_nan)
    with pytest.warns(RuntimeWarning, match=r"in float32 give NaN or infinite values\. Left out: 1 of 3 scenes"):
        result = run_group(vit, "x", scenes, config)
    hook.remove()

    assert [row[1] for row in result.tables["table"].rows] == pytest.approx([row[1] for row in alone])
    assert "Left out: 1 scenes on which blocks of" in result.tables["table"].notes[0]
    assert "2 of 3 scenes" in result.tables["table"].notes[0]


def test_the_commonest_owner_of_a_patch():
    mask = np.zeros((4, 4), np.int64)
    mask[0, 0:2], mask[1, 0], mask[2:, 2:] = 3, 3, 1

    assert majority(mask, (2, 2)).tolist() == [3, 0, 0, 1]


def test_grouping_of_scenes(tiny_view, labelled):
    view = tiny_view("vit")
    config = GroupConfig(limit=3, variants=parse_variants("clean,shuffle 2,random 0.3"), compose="tiles")

    found = run_group(view, "x", open_scenes(str(labelled), compose="tiles"), config)

    rows = found.tables["table"].records()
    assert [r["layer"] for r in rows] == [1, 2, 3] and set(MEASURES) <= set(rows[0])
    assert {r["variant"] for r in found.data["curves"].records()} == {"clean", "shuffle 2", "random 0.3"}
    assert found.manifest["scenes"] == 3 and {"figure", "tsne"} == set(found.figures)
    fixed = run_group(view, "x", open_scenes(str(labelled), compose="tiles"), replace(config, limit=1, markers="fixed"))
    panels = [ax.get_title() for ax in fixed.figures["tsne"].axes]
    assert "after block 2, by joint attention" in panels and len(panels) == len(found.figures["tsne"].axes) + 1
    with pytest.raises(DatasetError, match="has two objects of at least"):
        run_group(view, "x", open_scenes(str(labelled), compose="tiles"), GroupConfig(min_area=0.9))
