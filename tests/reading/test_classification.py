"""Logits by the repository's classifier and by words, against transformers' own two-tower outputs."""

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from tests.tiny_models import CLASSIFIERS, TINY
from vitviz_hf import at_size, classify, imagenet_labels, load_model, load_zero_shot
from vitviz_hf.errors import ConfigError, ModelError, NoClassifierError
from vitviz_hf.models.families import BY_MODEL_TYPE
from vitviz_hf.models.view import normalize
from vitviz_hf.reading.classification import imagenet_templates

WITH_TEXT = [name for name, tiny in TINY.items() if tiny.text]


def noise(view, batch=2):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_logits_are_the_models_own_with_the_repositorys_labels(family, tiny_view):
    view = tiny_view(family)
    pixels = noise(view)

    found = classify(view, pixels)
    with torch.no_grad():
        expected = view.module(**view.inputs(normalize(view, pixels))).logits

    assert found.labels == ("cat", "dog", "bus")
    assert torch.equal(found.logits, expected)
    best = found.top(2)[1]
    assert [name for name, _ in best] == [found.labels[i] for i in expected[1].argsort(descending=True)[:2]]
    assert best[0][1] == pytest.approx(expected[1].softmax(-1).max().item())


@pytest.mark.parametrize("family", [f for f in TINY if f not in CLASSIFIERS])
def test_without_a_trained_classifier_it_is_refused(family, tiny_view):
    view = tiny_view(family)

    with pytest.raises(NoClassifierError, match="has no trained classifier"):
        classify(view, noise(view))


@pytest.mark.parametrize("family", WITH_TEXT)
def test_zero_shot_logits_equal_the_two_towers_run_together(family, tiny_view, tiny_folder):
    view = tiny_view(family)
    pixels, labels = noise(view), ["cat", "a big dog", "bus, red"]

    found = classify(view, pixels, load_zero_shot(view, labels, ["a photo of a {}."]))

    folder = tiny_folder(family)
    both = getattr(transformers, BY_MODEL_TYPE[transformers.AutoConfig.from_pretrained(folder).model_type].text_class)
    model = both.from_pretrained(folder).eval()
    padding = {"padding": "max_length", "max_length": 40} if "siglip" in family else {"padding": True}
    texts = AutoTokenizer.from_pretrained(folder)(
        [f"a photo of a {x}." for x in labels], return_tensors="pt", **padding
    )
    if "siglip" in family:
        del texts["attention_mask"]
    with torch.no_grad():
        expected = model(**texts, **view.inputs(normalize(view, pixels))).logits_per_image
    assert found.labels == tuple(labels)
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-4)
    assert (expected[:, 0] - expected[:, 1]).abs().max() > 1e-3


def test_several_templates_are_averaged_as_unit_vectors(tiny_view):
    view = tiny_view("clip")
    one, two = (load_zero_shot(view, ["cat"], [t]).embeddings[0] for t in ("a {}.", "the {}."))

    both = load_zero_shot(view, ["cat"], ["a {}.", "the {}."]).embeddings[0]

    torch.testing.assert_close(both, torch.nn.functional.normalize(one + two, dim=0))


def test_embeddings_of_a_pinned_model_are_computed_once(hub):
    view = load_model("tiny/siglip", device="cpu")
    done = []

    first = load_zero_shot(view, ["cat", "dog"], progress=lambda n, total: done.append((n, total)))
    again = load_zero_shot(view, ["cat", "dog"], progress=lambda n, total: done.append("again"))

    assert done == [(160, 160)]
    assert torch.equal(first.embeddings, again.embeddings)
    assert torch.equal(classify(view, noise(view), first).logits, classify(view, noise(view), again).logits)


def test_zero_shot_works_through_the_hub_and_at_another_size(hub):
    view = load_model("tiny/clip", device="cpu")

    found = classify(at_size(view, (32, 48)), torch.rand(1, 3, 32, 48), load_zero_shot(view, ["cat", "dog"]))

    assert found.logits.shape == (1, 2)


def test_a_tower_without_text_and_other_models_are_refused(tiny_view, tiny_folder, tmp_path):
    clip = tiny_view("clip")
    clip.module.save_pretrained(tmp_path / "tower")
    preprocessing = (tiny_folder("clip") / "preprocessor_config.json").read_text()
    (tmp_path / "tower" / "preprocessor_config.json").write_text(preprocessing)
    tower = load_model(str(tmp_path / "tower"), device="cpu")

    for view in (tower, tiny_view("dinov2"), tiny_view("timm-vit")):
        with pytest.raises(NoClassifierError, match="has no text tower; give a whole CLIP, SigLIP or AIMv2"):
            load_zero_shot(view, ["cat"])


def test_a_repository_without_a_tokenizer_is_refused(tiny_folder, tmp_path):
    for file in tiny_folder("clip").iterdir():
        if "token" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())

    with pytest.raises(ModelError, match="has no tokenizer files"):
        load_zero_shot(load_model(str(tmp_path), device="cpu"), ["cat"])


def test_empty_labels_and_templates_without_a_place_are_refused(tiny_view):
    with pytest.raises(ConfigError, match="needs labels that are not empty"):
        load_zero_shot(tiny_view("clip"), ["cat", " "])
    with pytest.raises(ConfigError, match=r"needs one \{\} for the label"):
        load_zero_shot(tiny_view("clip"), ["cat"], ["a photo"])


def test_imagenets_names_and_clips_templates_are_complete():
    names = imagenet_labels()

    assert (
        len(names) == 1000 and names[0] == "tench" and names[207] == "Golden Retriever" and names[999] == "toilet paper"
    )
    assert len(set(imagenet_templates())) == 80
    assert all(t.count("{}") == 1 for t in imagenet_templates())
