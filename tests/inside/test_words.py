"""Texts and classes as features, against the two towers run together and against classifiers."""

import pytest
import torch
import transformers

from tests.inside.test_components import noise
from vitviz_hf import Site, VisualizeConfig, activations, visualize
from vitviz_hf.errors import ConfigError, FeatureError, NoClassifierError
from vitviz_hf.inside.words import resolve_all, resolve_words, with_labels, with_words
from vitviz_hf.models.hooks import replace_inputs_and_outputs
from vitviz_hf.models.view import logits, normalize
from vitviz_hf.optimize.objectives import parse_objective
from vitviz_hf.optimize.scores import Readout

TEXTS = ["striped fur", "a bus"]
SITE = Site(2, "text")


def towers(folder, view, texts):
    """transformers' whole model, and cosines [B, N] of pictures and texts as its logits have them."""
    config = transformers.AutoConfig.from_pretrained(folder)
    siglip = config.model_type == "siglip"
    model = (transformers.SiglipModel if siglip else transformers.CLIPModel).from_pretrained(folder).eval()
    padding = {"padding": "max_length", "max_length": 40} if siglip else {"padding": True}
    words = transformers.AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", **padding)
    if siglip:
        words.pop("attention_mask")

    def cosines(pixels):
        with torch.no_grad():
            found = model(**words, pixel_values=normalize(view, pixels)).logits_per_image
        return (found - (model.logit_bias if siglip else 0)) / model.logit_scale.exp()

    return model, cosines


def embeddings(model, folder):
    words = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model.get_text_features(**words).pooler_output
    return found / found.norm(dim=-1, keepdim=True)


def test_a_text_at_the_class_token_of_clip_is_its_cosine_with_the_picture(tiny_view, tiny_folder):
    view = tiny_view("clip")
    model, cosines = towers(tiny_folder("clip"), view, TEXTS)
    pixels = noise(view, 3)

    acts = activations(with_words(view, TEXTS), pixels, [SITE])[SITE]

    torch.testing.assert_close(acts.at("cls"), cosines(pixels).detach(), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        tokens = model.vision_model(normalize(view, pixels)).last_hidden_state[:, 7]
        patch = model.visual_projection(model.vision_model.post_layernorm(tokens))
    expected = patch / patch.norm(dim=-1, keepdim=True) @ embeddings(model, tiny_folder("clip")).T
    torch.testing.assert_close(acts.values[:, 7], expected, atol=1e-5, rtol=1e-4)


def test_a_text_at_a_patch_of_siglip_is_its_cosine_if_all_patches_were_this_one(tiny_view, tiny_folder):
    view = tiny_view("siglip")
    model, cosines = towers(tiny_folder("siglip"), view, TEXTS)
    pixels = noise(view)

    acts = activations(with_words(view, TEXTS), pixels, [SITE])[SITE]

    for i in (0, 9):
        last = {"vision_model.encoder.layers.2": lambda x, i=i: x[:, i : i + 1].expand_as(x)}
        with replace_inputs_and_outputs(model, {}, last):
            expected = cosines(pixels)
        torch.testing.assert_close(acts.values[:, i], expected.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["clip", "metaclip2", "siglip", "siglip2", "aimv2"])
def test_texts_are_features_of_every_two_tower_model(family, tiny_view):
    view = with_words(tiny_view(family), TEXTS)

    acts = activations(view, noise(view), [SITE])[SITE]

    assert acts.values.shape[2] == 2 and float(acts.values.abs().max()) <= 1.0001
    assert float(acts.values[..., 0].std()) > 0


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_plain_words_are_the_models_own_score_of_picture_and_text(family, tiny_view, tiny_folder):
    view = tiny_view(family)
    model, cosines = towers(tiny_folder(family), view, TEXTS)
    pixels = noise(view)
    found, addresses = resolve_all(view, TEXTS)

    scores = Readout(found, [parse_objective(a, found.kinds) for a in addresses])(pixels.expand(2, -1, -1, -1)[:, None])

    assert addresses == (["2.text:0@cls", "2.text:1@cls"] if family == "clip" else ["logit:0", "logit:1"])
    expected = cosines(pixels)[0].detach()
    if family == "siglip":
        expected = model.logit_scale.exp().detach() * expected + model.logit_bias.detach()
    torch.testing.assert_close(scores.values.detach().flatten(), expected, atol=1e-4, rtol=1e-4)


def test_labels_at_the_class_token_are_the_logits(tiny_view):
    for family in ("vit", "timm-vit"):
        view = tiny_view(family)
        site, pixels = Site(2, "label"), noise(view, 2)

        acts = activations(with_labels(view), pixels, [site])[site]

        torch.testing.assert_close(acts.at("cls"), logits(view, pixels))


def test_words_and_labels_become_addresses_and_the_rest_stays(tiny_view):
    view, found = resolve_all(
        tiny_view("clip"), ['text:"striped fur"@cls - 0.5*text:bus', "1.mlp_act:3 + text:striped_fur", "2.text:1"]
    )

    assert found == ["2.text:0@cls - 0.5*2.text:1", "1.mlp_act:3 + 2.text:0", "2.text:1"]
    assert view.layers[2].taps["text"].size == 2
    vit = tiny_view("vit")
    labelled, address = resolve_words(vit, "label:bus@cls")
    assert address == "2.label:2@cls" and labelled.layers[2].taps["label"].size == 3
    assert resolve_words(vit, "label:1")[1] == resolve_words(vit, 'label:"dog"')[1] == "2.label:1"
    assert resolve_words(tiny_view("clip"), "note: 12:30")[1] == "2.text:0@cls"
    for same in ("logit:cat", "5.mlp_act:3", "a photo of a cat"):
        assert resolve_words(vit, same) == (vit, same)


def test_a_text_is_optimized_as_any_feature(tiny_view):
    view = with_words(tiny_view("clip"), TEXTS)

    found = visualize(view, ["2.text:1@cls"], VisualizeConfig(steps=4, seed=0))

    assert found[0].score > float(activations(view, noise(view), [SITE])[SITE].at("cls")[0, 1])


def test_what_has_no_words_or_labels_is_told(tiny_view):
    with pytest.raises(NoClassifierError, match="has no text tower; give a whole CLIP"):
        resolve_words(tiny_view("vit"), 'text:"striped fur"')
    with pytest.raises(NoClassifierError, match="has no trained classifier, so it has no labels as features"):
        resolve_words(tiny_view("dinov2"), "label:3")
    with pytest.raises(FeatureError, match="no class is named 'cow'"):
        resolve_words(tiny_view("vit"), "label:cow")
    with pytest.raises(ConfigError, match="is not one linear map of a token"):
        with_labels(tiny_view("deit-distilled"))
    with pytest.raises(ConfigError, match="takes the mean over its tokens before it norms them"):
        with_labels(tiny_view("beit"))
    with pytest.raises(ConfigError, match="several patch grids, or on windows"):
        with_labels(tiny_view("swin"))


def test_a_model_with_texts_is_identified_by_them_and_not_by_digits_that_differ_between_devices(tiny_view):
    view = tiny_view("clip")
    one, moved, other, longer = (with_words(view, texts) for texts in (["fur"], ["fur"], ["bus"], ["fur", "bus"]))
    moved.extra_taps[SITE].function.embeddings.add_(1e-6)

    assert one.identity == moved.identity
    assert len({made.identity for made in (view, one, other, longer)}) == 4
    assert "taps" in one.identity.difference(other.identity.to_json())
