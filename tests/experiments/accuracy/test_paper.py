"""The paper's numbers stand beside ours only where they were measured alike."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from vitviz_hf.experiments.accuracy.paper import MODELS, VALIDATION, WITH_BOXES, Setting, fits_shorter_side
from vitviz_hf.models.gate import Snapshot
from vitviz_hf.models.view import ModelView
from vitviz_hf.stream import Source

CROP = v2.Compose([v2.Resize(384), v2.CenterCrop(384), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
SQUASH = v2.Compose([v2.Resize((384, 384)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
CLOSER = v2.Compose([v2.Resize(438), v2.CenterCrop(384), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
CNN = v2.Compose([v2.Resize(224), v2.CenterCrop(224), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])


def made(model_id="timm/vit_base_patch16_384.orig_in21k_ft_in1k", size=384, preprocess=CROP, **facts):
    return ModelView(
        snapshot=Snapshot(model_id, "0" * 40, Path(), {}, {}),
        weights=None,
        module=nn.Linear(1, 1),
        layers=(),
        input_size=(size, size),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        labels=("a",),
        preprocess=preprocess,
        inputs=dict,
        **facts,
    )


def source(dataset="ILSVRC/imagenet-1k", split="validation"):
    return Source(dataset=dataset, revision="1" * 40, split=split, n_rows=None, read=lambda *_: iter(()))


def test_the_setting_of_the_paper_holds_for_its_models_on_all_images():
    assert not VALIDATION.difference(made(), source(), 50_000)
    assert VALIDATION.model(made(), source(), 50_000) == "ViT-B/16"
    assert VALIDATION.model(made("google/vit-large-patch16-384"), source(), 50_000) == "ViT-L/16"
    assert VALIDATION.model(made("timm/resnet50.tv_in1k", 224, CNN), source(), 50_000) == "ResNet-50"
    assert not WITH_BOXES.difference(made(), source(split="train"), 544_546)
    assert VALIDATION.notes([made()], source(), 50_000) == ()


@pytest.mark.parametrize(
    ("view", "data", "n", "why"),
    [
        (made(), source("imagenet-sample"), 50_000, "the dataset is imagenet-sample, not ILSVRC/imagenet-1k"),
        (made(), source(split="train"), 50_000, "the split is train, not validation"),
        (made(), source(split=None), 50_000, "the split is -, not validation"),
        (made(), source(), 49_999, "49,999 images were scored, not 50,000"),
        (made("google/vit-base-patch16-224"), source(), 50_000, "google/vit-base-patch16-224 is none of its models"),
        (made("microsoft/resnet-50", 224, CNN), source(), 50_000, "microsoft/resnet-50 is none of its models"),
        (made(control="random-weights"), source(), 50_000, r"are a control \(random-weights\)"),
        (replace(made(), module=nn.Linear(1, 1, dtype=torch.float16)), source(), 50_000, "computes in float16"),
        (made(size=224), source(), 50_000, "is 224x224 pixels, not 384x384"),
        (made(size=512), source(), 50_000, "is 512x512 pixels, not 384x384"),
        (made(preprocess=SQUASH), source(), 50_000, "does not scale the shorter side to 384 px and crop the center"),
        (made(preprocess=CLOSER), source(), 50_000, "does not scale the shorter side to 384 px and crop the center"),
    ],
)
def test_anything_else_takes_the_papers_numbers_away_and_says_why(view, data, n, why):
    assert VALIDATION.difference(view, data, n) and VALIDATION.model(view, data, n) == ""
    (note,) = VALIDATION.notes([view], data, n)
    assert note.startswith("The paper's numbers are shown only for what was measured as in the paper: ")
    assert re.search(why, note)


def test_one_reason_for_several_models_is_said_once():
    views = [made(), made("google/vit-base-patch16-384")]
    (note,) = VALIDATION.notes(views, source("x"), 50_000)
    assert note.count("the dataset is x") == 1
    (note,) = VALIDATION.notes([made(), made("a"), made("b")], source(), 50_000)
    assert "a is none of its models; b is none of its models." in note


def test_the_number_of_images_in_the_released_log():
    """Accuracies of experiments/it13/FBAcc.txt in %, as float32: whole counts of this number only."""
    log = np.array(
        [
            89.24894714355469,
            98.43669891357422,
            13.428242683410645,
            27.663724899291992,
            81.6910171508789,
            92.44476318359375,
            94.6391830444336,
            99.31832122802734,
            16.73013687133789,
            30.805870056152344,
            85.77217864990234,
            93.25220489501953,
            87.67424774169922,
            97.99806213378906,
            8.109905242919922,
            18.315196990966797,
            75.0391616821289,
            87.89408874511719,
            82.92466735839844,
            96.08562469482422,
        ]
    )
    numbers = np.arange(1_000, 964_000)
    off = np.zeros(len(numbers))
    for share in log / 100:
        off = np.maximum(off, np.abs(share * numbers - np.round(share * numbers)))
    assert numbers[off < 0.1].tolist() == [WITH_BOXES.n_images] == [482_632]


@pytest.mark.parametrize(("preprocess", "expected"), [(CROP, True), (SQUASH, False), (CLOSER, False)])
def test_geometry_is_measured_on_the_preprocessing_itself(preprocess, expected):
    assert fits_shorter_side(made(preprocess=preprocess)) is expected


def test_checkpoints_of_timm_and_transformers_are_told_apart():
    import timm
    import transformers

    from vitviz_hf.models.loading import load_preprocessing

    def geometry(name):
        cfg = timm.get_pretrained_cfg(name.removeprefix("timm/")).to_dict()
        snapshot = SimpleNamespace(config={"model_type": "timm_wrapper", "pretrained_cfg": cfg})
        preprocess, _, _ = load_preprocessing(snapshot, None)
        return fits_shorter_side(made(size=cfg["input_size"][1], preprocess=preprocess))

    whole = {name: geometry(name) for ids in MODELS.values() for name in ids if name.startswith("timm/")}
    assert whole == {
        "timm/vit_large_patch32_384.orig_in21k_ft_in1k": True,
        "timm/vit_base_patch16_384.orig_in21k_ft_in1k": True,
        "timm/resnet50.tv_in1k": False,
        "timm/resnet152.tv_in1k": False,
        "timm/densenet121.tv_in1k": False,
    }
    processor = transformers.ViTImageProcessor(size={"height": 384, "width": 384})

    def google(image):
        return processor(image, do_normalize=False, return_tensors="pt")["pixel_values"][0]

    assert not fits_shorter_side(made(preprocess=google))
    assert google(Image.new("RGB", (640, 480))).shape == (3, 384, 384)
    assert Setting("validation", 50_000) == VALIDATION
