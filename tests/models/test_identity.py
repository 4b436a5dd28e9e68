"""What decides a number: one identity of the model, the data and the options; and models that have learned nothing."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from vitviz_hf import SearchConfig, VisualizeConfig, activations, load_model, make_atlas, open_source
from vitviz_hf.atlas.page import check_model
from vitviz_hf.cli.main import main
from vitviz_hf.config import CONTROLS, parse_features
from vitviz_hf.errors import AtlasError, ConfigError, RecipeError
from vitviz_hf.experiments.config import ProgressionConfig, SpatialConfig, TokenMixingConfig, TripletsConfig
from vitviz_hf.experiments.pictures.agreement import pictured
from vitviz_hf.experiments.result import Result, claim, with_control
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.experiments.tables import Table
from vitviz_hf.models.view import as_control, at_size
from vitviz_hf.optimize.loop import visualize
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.optimize.replay import replay
from vitviz_hf.reading.reference import reference_scores


@pytest.fixture
def moved(tiny_folder, tmp_path):
    """The tiny ViT in a folder of its own."""
    return shutil.copytree(tiny_folder("vit"), tmp_path / "model")


def retrained(folder):
    """Other weights in the same files."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({k: v + 0.05 for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def test_an_identity_changes_with_everything_that_decides_a_number(vit, moved):
    same = load_model(str(moved), device="cpu")
    assert same.weights == vit.weights
    others = [
        at_size(vit, (48, 48)),
        load_model(str(moved), device="cpu", dtype=torch.bfloat16),
        as_control(vit, "random-weights"),
        as_control(vit, "shuffled-weights"),
        as_control(vit, "shuffled-weights", seed=1),
    ]
    retrained(moved)
    others.append(load_model(str(moved), device="cpu"))
    assert len({view.identity.key for view in (vit, *others)}) == 7
    assert not same.identity.difference(vit.identity.to_json())
    for other in others:
        assert other.identity.difference(vit.identity.to_json())


def test_what_an_older_manifest_does_not_say_is_not_compared(vit):
    old = {"model_id": vit.model_id, "revision": None, "input_size": list(vit.input_size), "n_images": 3}
    assert not vit.identity.difference(old)
    assert vit.identity.difference(old | {"input_size": [64, 32]}) == "input size 64x32, not 32x32"


def test_an_atlas_of_other_weights_in_the_same_folder_is_refused(moved, tmp_path):
    view = load_model(str(moved), device="cpu")
    atlas = make_atlas(view, open_source("builtin"), SearchConfig(k=2, limit=3), tmp_path / "atlas")
    check_model(view, atlas)
    retrained(moved)
    with pytest.raises(AtlasError, match=r"made with weights [0-9a-f]{64}, not [0-9a-f]{64}"):
        check_model(load_model(str(moved), device="cpu"), atlas)


def test_scores_of_photographs_are_measured_again_for_other_weights(moved):
    before = reference_scores(load_model(str(moved), device="cpu"))
    retrained(moved)
    after = reference_scores(load_model(str(moved), device="cpu"))
    assert all(not torch.equal(before[site], after[site]) for site in before)


def test_a_work_folder_is_of_one_run(vit, tiny_view, labelled, tmp_path):
    config = SpatialConfig(per_layer=2, limit=6)
    source = open_source(str(labelled))
    run_experiment("spatial", [vit], source, config, tmp_path / "work")
    changed = [
        ([tiny_view("deit")], source, config, r"models\.0\.model_id"),
        ([at_size(vit, (48, 48))], source, config, r"models\.0\.input_size\.0"),
        ([as_control(vit, "random-weights")], source, config, r"models\.0\.control"),
        ([vit], open_source("builtin"), config, r"data\.dataset"),
        ([vit], source, SpatialConfig(per_layer=2, limit=7), r"config\.limit"),
    ]
    for views, data, how, name in changed:
        with pytest.raises(ConfigError, match=rf"holds a run with {name} .*, not "):
            run_experiment("spatial", views, data, how, tmp_path / "work")
    run_experiment("spatial", [vit], source, config, tmp_path / "work")


def test_a_work_folder_of_unknown_content_is_refused(tmp_path):
    (tmp_path / "flags.npz").write_bytes(b"old")
    with pytest.raises(ConfigError, match="no run of this version"):
        claim(tmp_path, {"experiment": "x", "models": [], "data": None, "config": {}})


def test_a_run_that_was_killed_does_not_go_on_with_another_model(tiny_folder, tmp_path, capsys):
    command = ["experiment", "progression", str(tiny_folder("vit")), "--columns", "1", "--steps", "1", "--resume"]
    out = tmp_path / "out"
    assert main([*command, "--out", str(out)]) == 0
    shutil.rmtree(out)
    view = load_model(str(tiny_folder("vit")), device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Result, "save", lambda *_: (_ for _ in ()).throw(ConfigError("killed")))
        assert main([*command, "--out", str(out)]) == 2
    assert "killed" in capsys.readouterr().err
    assert list((tmp_path / "out.experiment" / "pictures").glob("*.png"))
    command[2] = str(tiny_folder("deit"))
    assert main([*command, "--out", str(out)]) == 2
    assert f"holds a run with models.0.model_id '{view.model_id}'" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("family", ["vit", "dinov2", "clip", "swin", "timm-vit", "timm-coat", "levit", "hiera"])
def test_a_control_has_the_same_layers_and_knows_nothing(control, family, tiny_view, generator):
    view = tiny_view(family)
    null = as_control(view, control)
    pixels = torch.rand(1, 3, *view.input_size, generator=generator)
    sites = [f"{len(view.layers) - 1}.mlp_act"]
    own, other = (next(iter(activations(v, pixels, sites).values())).values for v in (view, null))
    assert own.shape == other.shape
    assert not torch.allclose(own, other, atol=1e-3)
    again = as_control(view, control)
    for (name, a), b, c in zip(
        null.module.named_parameters(), again.module.parameters(), view.module.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert a.shape == c.shape and a.dtype == c.dtype and not a.requires_grad
        if control == "shuffled-weights":
            assert torch.equal(a.flatten().sort().values, c.flatten().sort().values), name
    assert as_control(view, control, seed=1).identity.key != null.identity.key


def test_an_unknown_control_is_told(vit):
    with pytest.raises(ConfigError, match="control must be one of random-weights, shuffled-weights; got 'none'"):
        as_control(vit, "none")


def test_a_control_stands_in_the_same_table(vit, labelled, tmp_path):
    config = TokenMixingConfig(limit=8)
    result = run_experiment("token-mixing", [vit], open_source(str(labelled)), config, tmp_path, None, "random-weights")
    alone = run_experiment("token-mixing", [vit], open_source(str(labelled)), config, tmp_path / "alone")
    null = as_control(vit, "random-weights")
    other = run_experiment("token-mixing", [null], open_source(str(labelled)), config, tmp_path / "null")
    table = result.tables["table"]
    assert table.columns[0] == "weights"
    expected = [("trained", *row) for row in alone.tables["table"].rows]
    expected += [("random-weights", *row) for row in other.tables["table"].rows]
    assert list(table.rows) == expected
    assert set(result.figures) == {"figure", "figure-random-weights"}
    assert result.manifest["control"]["models"][0]["control"] == "random-weights"
    assert "has learned nothing" in table.notes[-1]


def test_tables_with_other_columns_are_joined_by_name():
    trained = Result("x", {"table": Table(("model", "top-1, paper", "top-1, ours"), (("a", 1.0, 2.0),))}, {}, {})
    null = Result("x", {"table": Table(("model", "top-1, ours"), (("a", 3.0),))}, {}, {})
    joined = with_control(trained, null, "shuffled-weights").tables["table"]
    assert joined.columns == ("weights", "model", "top-1, paper", "top-1, ours")
    assert joined.rows == (("trained", "a", 1.0, 2.0), ("shuffled-weights", "a", None, 3.0))


def test_a_control_needs_a_dataset_not_an_atlas(vit, tmp_path):
    config = TripletsConfig(atlas="somewhere")
    with pytest.raises(ConfigError, match="give the dataset that is to be searched instead of --atlas"):
        run_experiment("triplets", [vit], None, config, tmp_path, None, "random-weights")


def test_a_control_has_pictures_of_its_own(vit, tmp_path):
    config = ProgressionConfig(features=parse_features("0.mlp_act:3"), steps=2)
    result = run_experiment("progression", [vit], None, config, tmp_path, None, "shuffled-weights")
    (own, other) = result.tables["table"].rows
    null = as_control(vit, "shuffled-weights")
    how = VisualizeConfig.preset("fast", steps=2)
    assert own[2] == visualize(vit, ["0.mlp_act:3"], how)[0].score
    assert other[2] == visualize(null, ["0.mlp_act:3"], how)[0].score != own[2]
    assert json.dumps(result.manifest)


def test_a_recipe_is_of_the_weights_that_made_its_picture(moved, tmp_path):
    how = VisualizeConfig.preset("fast", steps=2)
    made = visualize(load_model(str(moved), device="cpu"), ["0.mlp_act:3"], how)[0]
    made.save(tmp_path / "a.png")
    assert replay(tmp_path / "a.png").score == made.score
    retrained(moved)
    with pytest.raises(RecipeError, match="is not what it was: the picture was made with weights"):
        replay(tmp_path / "a.png")


@pytest.mark.parametrize("seed", [0, 4])
def test_a_picture_of_a_control_is_replayed_with_the_control(seed, vit, tmp_path):
    null = as_control(vit, "shuffled-weights", seed)
    made = visualize(null, ["0.mlp_act:3"], VisualizeConfig.preset("fast", steps=2))[0]
    made.save(tmp_path / "a.png")
    assert read_recipe(tmp_path / "a.png")["control"].startswith("shuffled-weights")
    assert replay(tmp_path / "a.png").score == replay(tmp_path / "a.png", vit).score == made.score


@pytest.mark.parametrize(
    ("control", "told"),
    [
        ("none", "control must be one of random-weights, shuffled-weights; got 'none'"),
        (
            f"shuffled-weights, seed {10**23}",
            "the seed of a control must be a whole number from 0 to 9,007,199,254,740,992",
        ),
        ("shuffled-weights, seed -1", "got -1"),
    ],
)
def test_a_recipe_of_no_control_cannot_be_followed(control, told, vit, tmp_path):
    made = visualize(vit, ["0.mlp_act:3"], VisualizeConfig.preset("fast", steps=1))[0]
    replace(made, recipe={**made.recipe, "control": control}).save(tmp_path / "a.png")

    with pytest.raises(RecipeError, match=f"^the recipe cannot be followed: .*{told}"):
        replay(tmp_path / "a.png")


@pytest.mark.parametrize("has_digest", [True, False])
def test_a_picture_in_an_atlas_of_other_weights_is_not_taken(has_digest, moved, labelled, tmp_path):
    """An atlas of an earlier version does not tell the weights of its model."""
    before = load_model(str(moved), device="cpu")
    how = VisualizeConfig.preset("fast", steps=1)
    stale = visualize(before, ["1.mlp_act:5"], how)[0]
    retrained(moved)
    view = load_model(str(moved), device="cpu")
    atlas = make_atlas(view, open_source(str(labelled)), SearchConfig(k=1), tmp_path / "atlas")
    stale.save(atlas.folder / "visualizations" / "1.mlp_act-5.png")
    if not has_digest:
        del atlas.manifest["weights"]
        (atlas.folder / "manifest.json").write_text(json.dumps(atlas.manifest))
    assert pictured(view, atlas) == []
    config = TripletsConfig(atlas=str(tmp_path / "atlas"), features=parse_features("1.mlp_act:5"), steps=1)
    (row,) = run_experiment("triplets", [view], None, config, tmp_path / "work").tables["table"].records()
    assert row["picture's score"] == visualize(view, ["1.mlp_act:5"], how)[0].score != stale.score
    assert read_recipe(atlas.folder / "visualizations" / "1.mlp_act-5.png")["weights"] == before.weights
