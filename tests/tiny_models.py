"""A tiny model of every family, built from its real config class with random weights."""

import json
from pathlib import Path

from vitviz_hf import _torchvision  # noqa: F401

# isort: split


import timm
import torch
import transformers as tf
from safetensors.torch import save_file

_SMALL = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
_DINO = {k: v for k, v in _SMALL.items() if k != "intermediate_size"} | {"mlp_ratio": 2}
_LABELS = {"id2label": {0: "cat", 1: "dog", 2: "bus"}, "label2id": {"cat": 0, "dog": 1, "bus": 2}}


def _vit(cls, config, processor=tf.ViTImageProcessor, **extra):
    return lambda: (cls(config(**_SMALL, **extra)), processor(size={"height": 32, "width": 32}))


def _clip():
    text = tf.CLIPTextConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                             vocab_size=50, bos_token_id=0, eos_token_id=1, pad_token_id=2)  # fmt: skip
    config = tf.CLIPConfig(text_config=text.to_dict(), vision_config=_SMALL, projection_dim=16)
    return tf.CLIPModel(config), tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)


def _siglip():
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
            "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}  # fmt: skip
    config = tf.SiglipConfig(text_config=text, vision_config=_SMALL)
    return tf.SiglipModel(config), tf.SiglipImageProcessor(size={"height": 32, "width": 32})


def _dinov2(cls, config, **extra):
    processor = tf.BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    return lambda: (cls(config(**_DINO, **extra)), processor)


def _dinov3():
    config = tf.DINOv3ViTConfig(**_SMALL, num_register_tokens=4)
    return tf.DINOv3ViTModel(config), tf.DINOv3ViTImageProcessor(size={"height": 32, "width": 32})


_BUILDERS = {
    "vit": _vit(tf.ViTForImageClassification, tf.ViTConfig, **_LABELS),
    "vit-base-only": _vit(tf.ViTModel, tf.ViTConfig),
    "deit": _vit(tf.DeiTForImageClassificationWithTeacher, tf.DeiTConfig, **_LABELS),
    "beit": _vit(tf.BeitForImageClassification, tf.BeitConfig, use_relative_position_bias=True, **_LABELS),
    "clip": _clip,
    "siglip": _siglip,
    "dinov2": _dinov2(tf.Dinov2Model, tf.Dinov2Config),
    "dinov2-giant": _dinov2(tf.Dinov2Model, tf.Dinov2Config, use_swiglu_ffn=True),
    "dinov2-registers": _dinov2(
        tf.Dinov2WithRegistersModel, tf.Dinov2WithRegistersConfig, num_register_tokens=4
    ),
    "dinov3": _dinov3,
}  # fmt: skip
_TIMM = {"timm-vit": "vit_tiny_patch16_224", "timm-deit": "deit_tiny_distilled_patch16_224"}
FAMILIES = (*_BUILDERS, *_TIMM)
N_PREFIX = {
    "vit": 1, "vit-base-only": 1, "deit": 2, "beit": 1, "clip": 1, "siglip": 0, "dinov2": 1, "dinov2-giant": 1,
    "dinov2-registers": 5, "dinov3": 5, "timm-vit": 1, "timm-deit": 2,
}  # fmt: skip


def save_tiny(family: str, folder: Path) -> Path:
    """Write the model as a repository of its kind would be."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    if family in _TIMM:
        return _save_timm(_TIMM[family], folder)
    model, processor = _BUILDERS[family]()
    for parameter in model.parameters():  # LayerScale starts near 0, biases at 0: nothing would be tested
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _save_timm(architecture: str, folder: Path) -> Path:
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
    model = timm.create_model(architecture, num_classes=3, **arguments)
    config = {
        "architecture": architecture, "num_classes": 3, "num_features": 32, "label_names": ["cat", "dog", "bus"],
        # timm 1.0.31 repeats num_classes here
        "model_args": {**arguments, "num_classes": 3},
        "pretrained_cfg": {
            "tag": "test", "input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 0.9,
            "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 3, "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.clone() for k, v in model.state_dict().items()}, folder / "model.safetensors", {"format": "pt"})
    return folder
