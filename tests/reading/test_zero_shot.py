"""CLIP and SigLIP in the experiments, against transformers' own two towers on the same pictures."""

import hashlib
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.conftest import draw_noise
from vitviz_hf import imagenet_labels, load_zero_shot
from vitviz_hf.cli.main import main
from vitviz_hf.errors import ConfigError, NoClassifierError
from vitviz_hf.experiments.accuracy import classifiers, study
from vitviz_hf.experiments.config import BackgroundConfig, OcclusionConfig, PositionConfig
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.models.loading import imagenet_synsets
from vitviz_hf.reading.classification import ZeroShot, imagenet_templates
from vitviz_hf.stream import open_source

CLASSES = ["bus", "cat", "dog", "zebra"]


def two_towers(folder, pictures, names, template):
    """transformers' own logits of pictures, [n, classes]."""
    config = transformers.AutoConfig.from_pretrained(folder)
    siglip = config.model_type == "siglip"
    model = (transformers.SiglipModel if siglip else transformers.CLIPModel).from_pretrained(folder).eval()
    texts = transformers.AutoTokenizer.from_pretrained(folder)(
        [template.format(name) for name in names],
        return_tensors="pt",
        **({"padding": "max_length", "max_length": 40} if siglip else {"padding": True}),
    )
    if siglip:
        texts.pop("attention_mask")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="torchvision")
    values = processor([Image.fromarray(p) for p in pictures], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(**texts, pixel_values=values).logits_per_image.numpy()


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_flags_are_those_of_the_two_towers_run_together(
    family, tiny_view, tiny_folder, labelled, tmp_path, monkeypatch
):
    import pyarrow.parquet as pq

    seen = []
    score = study.right_pictures

    def kept(*arguments):
        seen.append(score(*arguments))
        return seen[-1]

    monkeypatch.setattr("vitviz_hf.experiments.accuracy.background.right_pictures", kept)
    source = open_source(str(labelled))
    config = BackgroundConfig(controls=False, batch=30)
    result = run_experiment("background", [tiny_view(family)], source, config, tmp_path)

    rows = pq.read_table(next(labelled.rglob("*.parquet"))).to_pylist()
    forms = {"full": [], "foreground": [], "background": []}
    for row in rows:
        (labelled / "p.png").write_bytes(row["image"]["bytes"])
        pixels = np.asarray(Image.open(labelled / "p.png").convert("RGB"))
        x0, y0, x1, y1 = map(int, row["bbox"])
        front = np.zeros_like(pixels)
        front[y0 : y1 + 1, x0 : x1 + 1] = pixels[y0 : y1 + 1, x0 : x1 + 1]
        for form, picture in (("full", pixels), ("foreground", front), ("background", pixels - front)):
            forms[form].append(picture)
    (labelled / "p.png").unlink()
    labels = np.array([row["label"] for row in rows])
    expected = {}
    for form, pictures in forms.items():
        logits = two_towers(tiny_folder(family), pictures, CLASSES, "a photo of a {}.")
        expected[form] = logits.argmax(1) == labels
    flags = np.concatenate(seen)  # [20, full 5, full 1, foreground 5, ...]
    for i, right in enumerate(expected.values()):
        assert flags[:, 2 * i + 1].tolist() == right.tolist()
        assert flags[:, 2 * i].all()  # four classes are all among five
    record = result.tables["table-plain"].records()[0]
    assert [record[f"top-1 {form}"] for form in forms] == [pytest.approx(100 * r.mean()) for r in expected.values()]
    notes = " ".join(result.tables["table"].notes)
    assert (
        "has no classifier and is used zero-shot: it chooses among the 4 class names of the dataset in "
        "'a photo of a {}.'." in notes
    )
    assert result.manifest["models"][0]["zero_shot"]["templates"] == ["a photo of a {}."]


def folder_of(tmp_path, names):
    for i, name in enumerate(names):
        (tmp_path / name).mkdir(parents=True)
        draw_noise(i).save(tmp_path / name / f"{i}.png")
    return open_source(str(tmp_path))


def test_classes_of_imagenet_get_the_texts_that_clip_was_tested_with(tiny_view, tmp_path):
    names = list(imagenet_synsets().values())
    source = folder_of(tmp_path, ["n01440764", "n02113186", "n02963159"])

    (view,) = classifiers.as_classifiers([tiny_view("clip")], source)

    assert view.labels == (names[0], names[264], names[474])
    assert view.head.labels == ("tench", imagenet_labels()[264], imagenet_labels()[474])
    assert view.head.templates == imagenet_templates() and len(view.head.templates) == 80
    words = load_zero_shot(tiny_view("clip"), view.head.labels)
    assert torch.equal(words.embeddings, view.head.embeddings)


def test_other_names_are_taken_as_they_are(tiny_view, tmp_path):
    (view,) = classifiers.as_classifiers([tiny_view("clip")], folder_of(tmp_path, ["tench", "polar_beer"]))
    assert view.labels == ("polar_beer", "tench") and view.head.labels == ("polar beer", "tench")
    assert view.head.templates == ("a photo of a {}.",)


def test_a_dataset_that_does_not_name_its_classes_is_taken_for_imagenet(tiny_view, monkeypatch):
    asked = []

    def made(view, texts, templates):
        asked.append((tuple(texts), tuple(templates)))
        return ZeroShot(
            labels=tuple(texts),
            templates=tuple(templates),
            embeddings=torch.zeros(1000, 16),
            project=None,
            scale=1.0,
            bias=0.0,
        )

    monkeypatch.setattr(classifiers, "load_zero_shot", made)
    (view,) = classifiers.as_classifiers([tiny_view("clip")], open_source("builtin"))
    assert asked == [(imagenet_labels(), imagenet_templates())]
    assert view.labels == tuple(imagenet_synsets().values())


def test_models_with_a_classifier_keep_it_and_those_without_words_are_refused(vit, tiny_view, labelled):
    source = open_source(str(labelled))
    assert classifiers.as_classifiers([vit], source) == [vit]
    with pytest.raises(NoClassifierError, match="has no trained classifier and no text tower"):
        classifiers.as_classifiers([vit, tiny_view("dinov2")], source)


def test_other_words_are_another_run(tiny_view, labelled, tmp_path, monkeypatch):
    source, config = open_source(str(labelled)), PositionConfig(limit=8)
    first = run_experiment("position", [tiny_view("clip")], source, config, tmp_path)
    told = first.manifest["models"][0]["zero_shot"]
    assert told["labels"] == 4
    assert told["texts"] == hashlib.sha256("\n".join([*CLASSES, "", "a photo of a {}."]).encode()).hexdigest()
    run_experiment("position", [tiny_view("clip")], source, config, tmp_path)
    monkeypatch.setattr(classifiers, "TEMPLATE", "a drawing of a {}.")
    with pytest.raises(ConfigError, match=r"holds a run with models\.0\.zero_shot\.templates\.0 'a photo of a \{\}\.'"):
        run_experiment("position", [tiny_view("clip")], source, config, tmp_path)


def test_they_stand_beside_classifiers_in_every_experiment(vit, tiny_view, labelled, tmp_path):
    views, source = [vit, tiny_view("clip"), tiny_view("siglip")], open_source(str(labelled))
    for name, config in (("position", PositionConfig()), ("occlusion", OcclusionConfig(grid=4, shuffles=(2,)))):
        table = run_experiment(name, views, source, config, tmp_path / name).tables["table"]
        assert {row[0] for row in table.rows} == {v.model_id for v in views}
    low = run_experiment("position", views[1:], source, PositionConfig(), tmp_path / "x", None, "random-weights")
    assert [row[0] for row in low.tables["table"].rows] == ["trained"] * 2 + ["random-weights"] * 2


def test_the_commands_take_them(tiny_folder, labelled, tmp_path, capsys):
    clip, out = str(tiny_folder("clip")), tmp_path / "out"
    assert main(["experiment", "background", clip, str(labelled), "--out", str(out), "--device", "cpu"]) == 0
    assert "zero-shot" in capsys.readouterr().out
    assert json.loads((out / "manifest.json").read_text())["models"][0]["zero_shot"]["labels"] == 4
