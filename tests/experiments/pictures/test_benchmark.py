"""benchmarks/pictures.py: what it says of our own recipe. The other packages are not installed here."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitviz_hf import builtin_images, guide_by_images, to_pixels
from vitviz_hf.experiments.pictures.agreement import judge_pictures
from vitviz_hf.experiments.pictures.judge import open_judge
from vitviz_hf.experiments.pictures.realism import kernel_distance
from vitviz_hf.experiments.pictures.trials import choose_depths, look_of, read_photographs
from vitviz_hf.reading.recording import activations
from vitviz_hf.sites import Site, parse_feature
from vitviz_hf.stream import builtin_photographs, open_source


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[3] / "benchmarks" / "pictures.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_pictures", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def ran(benchmark, trained, trained_other, shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    models = ["--model", trained.model_id, "--judge", trained_other.model_id]
    numbers = ["--passes", "8", "--per-layer", "2", "--skip", "1", "--out", str(out)]
    arguments = [str(shapes), *models, *numbers, "--recipes", "fast,paper"]
    return benchmark.main(arguments), out, arguments


def pictures_in(folder):
    found = {}
    for path in folder.glob("*.png"):
        site, _, index = path.stem.partition("-")
        pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None] / 255
        found[parse_feature(f"{site}:{index}")] = pixels
    return dict(sorted(found.items(), key=lambda pair: pair[0].site.layer))


def test_the_table_says_what_the_experiments_functions_give(ran, benchmark, trained, trained_other, shapes):
    table, out, _ = ran
    rows = {row["recipe"]: row for row in json.loads((out / "table.json").read_text())["rows"]}
    judge, pictures = open_judge(trained_other.model_id, trained), pictures_in(out / "fast-8")
    sites = [Site(layer, "mlp_act") for layer in range(len(trained.layers))]
    candidates = benchmark.draw_candidates(trained, sites, 20, 0)
    photographs = read_photographs(trained, judge, open_source(str(shapes)), candidates, None, 64)
    depths = next(iter(choose_depths(photographs)))
    judged = judge_pictures(trained, judge, photographs, depths, pictures)
    own = rows["fast"]

    assert len(judged) == own["features"] == 2 * len(trained.layers) and (own["passes"], rows["paper"]["passes"]) == (
        8,
        8,
    )
    shares = np.array([100 * one.right["picture"].plain for one in judged])
    assert own["agreement, %"] == pytest.approx(shares.mean())
    assert shares.min() <= own["agreement, % low"] < own["agreement, %"] < own["agreement, % high"] <= shares.max()
    assert own["alike, %"] == pytest.approx(100 * np.mean([one.right["picture"].alike for one in judged]))
    deep = [s for s, one in zip(shares, judged, strict=True) if one.feature.site.layer >= len(sites) // 2]
    assert len(deep) < len(shares) and own["deeper half, %"] == pytest.approx(np.mean(deep))
    assert own["transfer"] == pytest.approx(np.median([one.transfer for one in judged]), rel=1e-4)
    assert own["own rank"] == np.median([one.rank for one in judged])
    assert own["percentile"] == pytest.approx(np.median([one.percentile for one in judged]))
    pixels = torch.cat(list(pictures.values()))
    natural = photographs.seen(depths)
    seen = photographs.compare(depths, judge.embed(pixels))
    assert own["KID x 1000"] == pytest.approx(1000 * kernel_distance(seen, natural), rel=1e-3)
    looks = look_of(pixels).mean(0)
    assert [own["saturation"], own["contrast"]] == pytest.approx(looks[6:].tolist())
    for way in ("1 exemplar", "9 exemplars", "noise"):
        values = np.array([100 * one.right[way].plain for one in judged])
        assert rows[way]["agreement, %"] == pytest.approx(values.mean())
        assert rows[way]["minus fast"] == pytest.approx((values - shares).mean())
    other = np.mean([100 * one.right["another's picture"].plain for one in judged])
    assert rows["another's picture of fast"]["agreement, %"] == pytest.approx(other)
    assert own["minus another's"] == pytest.approx(shares.mean() - other)
    paper = judge_pictures(trained, judge, photographs, depths, pictures_in(out / "paper-8"))
    apart = np.mean([100 * one.right["picture"].plain for one in paper]) - shares.mean()
    assert rows["paper"]["minus fast"] == pytest.approx(apart) and own["minus fast"] is None
    assert table.to_markdown() == (out / "table.md").read_text()
    for name, found in (("fast", judged), ("paper", paper)):
        each = {row["feature"]: row for row in json.loads((out / f"features-{name}-8.json").read_text())["rows"]}
        assert set(each) == {str(one.feature) for one in found}
        for one in found:
            expected = 100 * one.right["picture"].plain, 100 * one.right["1 exemplar"].alike
            row = each[str(one.feature)]
            assert (row["picture"], row["1 exemplar, alike"]) == pytest.approx(expected)
            assert row["transfer"] == pytest.approx(one.transfer, rel=1e-4)


def test_what_reads_real_images_is_paid_in_passes(benchmark, trained):
    photographs = [to_pixels(trained, p.image) for p in builtin_photographs()]
    site = Site(2, "mlp_act")
    scores = activations(trained, torch.cat(photographs), [site])[site].scores().mean(0)
    address, seen = f"{site}:{int(scores.argmax())}", []
    hook = trained.module.vit.embeddings.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        images = builtin_images(trained, address)
        chosen = sum(seen)
        guide_by_images(trained, address, images)
    finally:
        hook.remove()

    # An image that goes forward only is a third of a pass.
    reading = {"fast": 0, "aligned": round((sum(seen) - chosen) / 3), "aligned-builtin": round(sum(seen) / 3)}
    copies = {"fast": 2, "aligned": 1, "aligned-builtin": 1}
    assert 0 < reading["aligned"] < reading["aligned-builtin"] == chosen // 3 + reading["aligned"] < 160
    for name, n in reading.items():
        assert benchmark.steps_of(name, 160) * copies[name] + n == benchmark.passes_of(name, 160) == 160


def test_what_is_there_is_neither_read_nor_made_again(ran, benchmark, monkeypatch):
    table, out, arguments = ran
    monkeypatch.setattr(benchmark, "read_photographs", None)
    monkeypatch.setattr(benchmark, "visualize", None)

    assert benchmark.main(arguments) == table
    next((out / "fast-8").glob("*.png")).unlink()
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        benchmark.main(arguments)


def test_the_first_features_are_left_out_and_are_the_same_however_many_are_wanted(ran, benchmark):
    _, out, _ = ran
    photographs = benchmark.pickle.loads(next(out.glob("photographs-*")).read_bytes())

    all_of_them = benchmark.chosen_features(photographs, 3, 0)

    assert set(benchmark.chosen_features(photographs, 2, 1)) == set(pictures_in(out / "paper-8"))
    kept = [f for i, f in enumerate(all_of_them) if i % 3]
    assert benchmark.chosen_features(photographs, 2, 1) == kept


def test_several_numbers_of_passes_stand_in_one_table_each_beside_its_own_reference(ran, benchmark):
    _, out, arguments = ran
    benchmark.main([*arguments, "--passes", "8,16"])
    together = json.loads((out / "table.json").read_text())["rows"]
    alone = {}
    for passes in ("16", "8"):
        benchmark.main([*arguments, "--passes", passes])
        alone[passes] = json.loads((out / "table.json").read_text())["rows"]

    assert [(row["recipe"], row["passes"]) for row in together[:4]] == [
        ("fast", 8),
        ("fast", 16),
        ("paper", 8),
        ("paper", 16),
    ]
    assert together[::2][:2] == alone["8"][:2] and together[1::2][:2] == alone["16"][:2]
    assert together[4:] == alone["8"][2:] and together[0] != together[1]


def test_all_recipes_compute_in_the_precision_that_is_asked_for(ran, benchmark, trained, monkeypatch, tmp_path):
    _, _, arguments = ran
    used, plain = [], benchmark.visualize

    def ours(view, features, config, *rest):
        used.append(config.precision)
        return plain(view, features, config, *rest)

    def theirs(view, feature, *rest):
        used.append(benchmark.Tokens(view, feature.site).view.precision)
        return torch.rand(3, *view.input_size)

    monkeypatch.setattr(benchmark, "visualize", ours)
    monkeypatch.setitem(benchmark.RECIPES, "lucent", benchmark.Recipe(theirs, 1))
    short = [*arguments, "--passes", "1", "--per-layer", "1", "--recipes", "fast,lucent"]

    for precision in ("bfloat16", "float32"):
        used.clear()
        table = benchmark.main([*short, "--precision", precision, "--out", str(tmp_path / precision)])
        assert set(used) == {precision} and len(used) == 2 * len(trained.layers)
        assert f"Made in {precision}, judged in float32." in table.notes[1]


def test_sheets_show_every_picture(ran):
    _, out, _ = ran
    recipe, layer = Image.open(out / "sheet-fast-8.jpg"), Image.open(out / "compare-1.mlp_act.jpg")

    assert recipe.width == 2 * 158 + 8 and recipe.height == 8 + 178 * len(list(out.glob("compare-*")))
    assert layer.width == 6 * 184 + 8
    assert all(path.stat().st_size <= 1_000_000 for path in out.glob("*.jpg"))


def test_another_model_a_missing_package_and_an_unknown_recipe_are_told(ran, benchmark, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "horama", None)
    _, _, arguments = ran
    with pytest.raises(SystemExit, match="another model, precision, dataset or seed"):
        benchmark.main([*arguments, "--seed", "1"])
    with pytest.raises(SystemExit, match=r"horama-maco needs .*pip install horama==0.3.0"):
        benchmark.main([*arguments, "--recipes", "horama-maco"])
    for wrong, text in (
        (["--recipes", "deep"], "unknown recipe 'deep'"),
        (["--skip", "-1"], "--skip at least 0"),
        (["--passes", "8,0"], "numbers from 1 such as 160,640; got '8,0'"),
        (["--limit", "199"], "at least 200"),
        (["--precision", "half"], "invalid choice: 'half'"),
    ):
        with pytest.raises(SystemExit):
            benchmark.main([*arguments, *wrong])
        assert text in capsys.readouterr().err


def test_more_are_drawn_where_more_than_twenty_are_wanted_and_read_apart(
    benchmark, trained, trained_other, shapes, tmp_path, monkeypatch
):
    drawn, judge = [], open_judge(trained_other.model_id, trained)
    monkeypatch.setattr(
        benchmark, "read_photographs", lambda view, judge, source, candidates, *_: drawn.append(candidates)
    )
    of_layer_1 = Site(1, "mlp_act")
    for skip, per_layer in ((0, 5), (10, 10), (18, 5), (0, 20)):
        arguments = [str(shapes), "--skip", str(skip), "--per-layer", str(per_layer), "--out", str(tmp_path)]
        benchmark.read_once(benchmark.parse(arguments), trained, judge)

    few, many = ([f for f in some if f.site == of_layer_1] for some in drawn)
    assert (len(few), len(many)) == (40, 46) and many[:40] == few


def test_boxes_are_cropped_as_by_one_sample_at_the_center_of_each_bin(benchmark):
    """On a slope the value is the place."""
    y, x = torch.meshgrid(torch.arange(50.0), torch.arange(60.0), indexing="ij")
    box = torch.tensor([[0, 4.0, 10, 24, 40], [0, -6, 30, 14, 60]])

    found = benchmark.crop_boxes(torch.stack([x, y])[None], box, (40, 40))

    for crop, (_, x0, y0, x1, y1) in zip(found, box, strict=True):
        xs = x0 + (torch.arange(40) + 0.5) / 40 * (x1 - x0)
        ys = y0 + (torch.arange(40) + 0.5) / 40 * (y1 - y0)
        inside = (ys >= -1)[:, None] & (ys <= 50)[:, None] & (xs >= -1)
        torch.testing.assert_close(crop[0], xs.clamp(0, 59).expand(40, 40) * inside, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(crop[1], ys.clamp(0, 49)[:, None].expand(40, 40) * inside, atol=1e-3, rtol=1e-4)
    assert int((found[1] == 0).sum()) > 0


def test_boxes_of_more_pixels_than_the_output_are_means_of_several_samples(benchmark):
    squares = torch.arange(60.0).square()
    box = torch.tensor([[0, 4.5, 10, 29.5, 28]])

    found = benchmark.crop_boxes(squares.expand(1, 3, 50, 60), box, (9, 10))

    samples = np.interp(
        4.5 + (np.arange(30) + 0.5) / 30 * 25, np.arange(60), squares.numpy()
    )  # 3 for each of 2.5 pixels
    means = torch.from_numpy(samples.reshape(10, 3).mean(1)).float()
    torch.testing.assert_close(found, means.expand(1, 3, 9, 10), atol=1e-2, rtol=1e-5)


def test_other_packages_are_given_the_features_own_values(benchmark, trained):
    pixels = torch.rand(2, 3, *trained.input_size, generator=torch.Generator().manual_seed(0))
    site = Site(1, "mlp_act")
    tokens = benchmark.Tokens(trained, site)

    found = tokens(pixels)

    acts = activations(trained, pixels, [site])[site]
    torch.testing.assert_close(found.mean((2, 3)), acts.scores(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[:, 5], acts.map(5), atol=1e-5, rtol=1e-4)
    assert not any(module._forward_pre_hooks for module in trained.module.modules())
