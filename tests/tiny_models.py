"""A tiny model of every family, built from its real config class with random weights, and what must be measured."""

import json
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vitviz_hf import _torchvision  # noqa: F401

# isort: split


import sentencepiece
import timm
import torch
import transformers as tf
from safetensors.torch import save_file

from vitviz_hf.sites import KINDS

_LABELS = {"id2label": {0: "cat", 1: "dog", 2: "bus"}, "label2id": {"cat": 0, "dog": 1, "bus": 2}}
_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_DINO = {k: v for k, v in _SMALL.items() if k != "intermediate_size"} | {"mlp_ratio": 2}
_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 64,
    "max_position_embeddings": 40,
    "projection_size": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_PLAIN = (((4, 4), 1),) * 3


@dataclass(frozen=True)
class Tiny:
    """How to build a tiny model, and what holds for it."""

    build: Callable[[], tuple]
    """-> model, image processor; or the timm architecture and its arguments."""
    layers: tuple = _PLAIN
    """(patch grid, prefix tokens) of each layer."""
    lacks: frozenset = frozenset()
    """Kinds that no layer has."""
    input_size: tuple = (32, 32)
    other_size: tuple | None = (32, 48)
    """A size that is not square, None where the architecture takes only its own."""
    labels: bool = True
    text: bool = False
    timm: tuple = field(default=())


def _processor(size, kind="ViTImageProcessor"):
    return getattr(tf, kind)(size={"height": size, "width": size})


def _hf(model, config, settings, size=32, processor=None, labels=True, **facts):
    def build():
        made = getattr(tf, config)(**settings, **(_LABELS if labels else {}))
        return getattr(tf, model)(made), processor() if processor else _processor(size)

    facts.setdefault("input_size", (size, size))
    return Tiny(build, labels=labels, **facts)


def _bit():
    return tf.BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})


def _two_towers(model, config, processor, **vision):
    def build():
        text = {k: v for k, v in _TEXT.items() if k != "projection_size" or "Siglip" in model}
        options = {} if "Siglip" in model else {"projection_dim": 16}
        made = getattr(tf, config)(text_config=text, vision_config=_SMALL | vision, **options)
        return getattr(tf, model)(made), processor()

    return build


def _clip_processor():
    return tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)


def _timm(architecture, size, labels=True, **facts):
    arguments = facts.pop("arguments")
    facts.setdefault("input_size", (size, size))
    return Tiny(lambda: None, timm=(architecture, {"img_size": size, **arguments}), labels=labels, **facts)


def _pyramid(*levels):
    return tuple(((side, side), prefix) for side, prefix, depth in levels for _ in range(depth))


_SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [4, 4],
    "window_size": 4,
    "mlp_ratio": 2.0,
}
_TIMM_VIT = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
_ATTENTION = frozenset({"attn_in", "attn_q", "attn_k", "attn_v", "attn_mix", "attn_out"})
_COAT = {"patch_size": 4, "embed_dims": [16] * 4, "serial_depths": [1] * 4, "num_heads": 8, "mlp_ratios": [2] * 4}
_LEVIT = {
    "image_size": 128,
    "hidden_sizes": [32, 48, 64],
    "num_attention_heads": [2, 3, 4],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
    "patch_size": 16,
}

TINY = {
    "vit": _hf("ViTForImageClassification", "ViTConfig", _SMALL),
    "vit-base-only": _hf("ViTModel", "ViTConfig", _SMALL, labels=False),
    "deit": _hf("DeiTForImageClassification", "DeiTConfig", _SMALL, layers=(((4, 4), 2),) * 3),
    "deit-distilled": _hf("DeiTForImageClassificationWithTeacher", "DeiTConfig", _SMALL, layers=(((4, 4), 2),) * 3),
    "beit": _hf("BeitForImageClassification", "BeitConfig", _SMALL | {"use_relative_position_bias": True}),
    "data2vec": _hf(
        "Data2VecVisionForImageClassification", "Data2VecVisionConfig", _SMALL | {"use_relative_position_bias": True}
    ),
    "vit-msn": _hf("ViTMSNForImageClassification", "ViTMSNConfig", _SMALL),
    "vit-mae": _hf(
        "ViTMAEForPreTraining",
        "ViTMAEConfig",
        _SMALL
        | {
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 16,
        },
        labels=False,
    ),
    "ijepa": _hf("IJepaModel", "IJepaConfig", _SMALL, labels=False, layers=(((4, 4), 0),) * 3),
    "clip": Tiny(_two_towers("CLIPModel", "CLIPConfig", _clip_processor), labels=False, text=True),
    "metaclip2": Tiny(_two_towers("MetaClip2Model", "MetaClip2Config", _clip_processor), labels=False, text=True),
    "siglip": Tiny(
        _two_towers("SiglipModel", "SiglipConfig", lambda: _processor(32, "SiglipImageProcessor")),
        layers=(((4, 4), 0),) * 3,
        labels=False,
        text=True,
    ),
    "siglip2": Tiny(
        _two_towers(
            "Siglip2Model",
            "Siglip2Config",
            lambda: tf.Siglip2ImageProcessor(patch_size=8, max_num_patches=16),
            num_patches=16,
        ),
        layers=(((4, 4), 0),) * 3,
        labels=False,
        text=True,
    ),
    "aimv2": Tiny(
        _two_towers("Aimv2Model", "Aimv2Config", _clip_processor),
        layers=(((4, 4), 0),) * 3,
        labels=False,
        text=True,
        other_size=None,
    ),
    "dinov2": _hf("Dinov2Model", "Dinov2Config", _DINO, processor=_bit, labels=False),
    "dinov2-giant": _hf(
        "Dinov2ForImageClassification", "Dinov2Config", _DINO | {"use_swiglu_ffn": True}, processor=_bit
    ),
    "dinov2-registers": _hf(
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        _DINO | {"num_register_tokens": 4},
        processor=_bit,
        labels=False,
        layers=(((4, 4), 5),) * 3,
    ),
    "dinov3": _hf(
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        _SMALL | {"num_register_tokens": 4},
        labels=False,
        processor=lambda: _processor(32, "DINOv3ViTImageProcessor"),
        layers=(((4, 4), 5),) * 3,
    ),
    "swin": _hf(
        "SwinForImageClassification", "SwinConfig", _SWIN, other_size=(32, 48), layers=_pyramid((16, 0, 2), (8, 0, 2))
    ),
    "swinv2": _hf(
        "Swinv2ForImageClassification",
        "Swinv2Config",
        _SWIN,
        other_size=(32, 48),
        layers=_pyramid((16, 0, 2), (8, 0, 2)),
    ),
    "pvt": _hf(
        "PvtForImageClassification",
        "PvtConfig",
        {
            "image_size": 64,
            "depths": [1] * 4,
            "hidden_sizes": [16, 16, 32, 32],
            "mlp_ratios": [2] * 4,
            "num_attention_heads": [1, 2, 2, 2],
            "num_labels": 3,
        },
        64,
        other_size=None,
        layers=_pyramid((16, 0, 1), (8, 0, 1), (4, 0, 1), (2, 1, 1)),
    ),
    "pvt-v2": _hf(
        "PvtV2ForImageClassification",
        "PvtV2Config",
        {
            "image_size": 64,
            "depths": [1] * 4,
            "hidden_sizes": [16, 16, 32, 32],
            "mlp_ratios": [2] * 4,
            "num_attention_heads": [1, 2, 2, 2],
            "num_labels": 3,
        },
        64,
        other_size=(64, 96),
        layers=_pyramid((16, 0, 1), (8, 0, 1), (4, 0, 1), (2, 0, 1)),
    ),
    "cvt": _hf(
        "CvtForImageClassification",
        "CvtConfig",
        {"embed_dim": [16, 32, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3], "mlp_ratio": [2.0] * 3},
        64,
        other_size=(64, 96),
        layers=_pyramid((16, 0, 1), (8, 0, 2), (4, 1, 3)),
    ),
    "levit": _hf(
        "LevitForImageClassificationWithTeacher",
        "LevitConfig",
        _LEVIT,
        128,
        other_size=None,
        layers=_pyramid((8, 0, 1), (4, 0, 2), (2, 0, 2)),
    ),
    "hiera": _hf(
        "HieraForImageClassification",
        "HieraConfig",
        {
            "image_size": [64, 64],
            "embed_dim": 16,
            "depths": [1, 1, 2, 1],
            "num_heads": [1, 2, 2, 4],
            "mlp_ratio": 2.0,
            "masked_unit_size": [8, 8],
        },
        64,
        other_size=None,
        layers=_pyramid((16, 0, 1), (8, 0, 1), (4, 0, 2), (2, 0, 1)),
    ),
    "convnext": _hf(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2},
        other_size=(32, 48),
        lacks=_ATTENTION,
        layers=_pyramid((8, 0, 2), (4, 0, 2)),
    ),
    "resnet": _hf(
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        layers=(),
    ),
    "mobilenet-v2": _hf(
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        {"depth_multiplier": 0.25, "image_size": 32},
        layers=(),
    ),
    "timm-vit": _timm("vit_tiny_patch16_224", 32, arguments=_TIMM_VIT),
    "timm-vit-base-only": _timm("vit_tiny_patch16_224", 32, labels=False, arguments=_TIMM_VIT),
    "timm-deit": _timm("deit_tiny_distilled_patch16_224", 32, arguments=_TIMM_VIT, layers=(((4, 4), 2),) * 3),
    "timm-beitv2": _timm(
        "beitv2_base_patch16_224",
        32,
        arguments=_TIMM_VIT,
        other_size=None,
        lacks=frozenset({"attn_in", "attn_q", "attn_k", "attn_v"}),
    ),
    "timm-eva02": _timm(
        "eva02_tiny_patch14_224", 32, arguments=_TIMM_VIT | {"ref_feat_shape": (4, 4), "qkv_fused": False}
    ),
    "timm-coat-lite": _timm(
        "coat_lite_tiny",
        64,
        arguments=_COAT,
        other_size=None,
        layers=_pyramid((16, 1, 1), (8, 1, 1), (4, 1, 1), (2, 1, 1)),
    ),
    "timm-coat": _timm(
        "coat_tiny",
        64,
        arguments=_COAT | {"parallel_depth": 2},
        other_size=None,
        layers=_pyramid((16, 1, 1), *((8, 1, 1), (4, 1, 1), (2, 1, 1)) * 3),
    ),
    "timm-convit": _timm(
        "convit_tiny",
        32,
        other_size=None,
        layers=(((4, 4), 0), ((4, 4), 0), ((4, 4), 1)),
        arguments=_TIMM_VIT | {"local_up_to_layer": 2},
    ),
    "timm-pit": _timm(
        "pit_ti_224",
        64,
        other_size=None,
        layers=_pyramid((7, 1, 1), (4, 1, 1), (2, 1, 1)),
        arguments={"base_dims": [16] * 3, "depth": [1] * 3, "heads": [1, 2, 2], "mlp_ratio": 2},
    ),
    "timm-pit-distilled": _timm(
        "pit_ti_distilled_224",
        64,
        other_size=None,
        layers=_pyramid((7, 2, 1), (4, 2, 1), (2, 2, 1)),
        arguments={"base_dims": [16] * 3, "depth": [1] * 3, "heads": [1, 2, 2], "mlp_ratio": 2},
    ),
    "timm-swin": _timm(
        "swin_tiny_patch4_window7_224",
        64,
        other_size=(64, 96),
        arguments={"window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "mlp_ratio": 2},
        layers=_pyramid((16, 0, 2), (8, 0, 2)),
    ),
    "timm-twins-pcpvt": _timm(
        "twins_pcpvt_small",
        64,
        other_size=(64, 96),
        layers=_pyramid((16, 0, 1), (8, 0, 1), (4, 0, 1), (2, 0, 1)),
        arguments={"embed_dims": [16] * 4, "depths": [1] * 4, "num_heads": [2] * 4, "mlp_ratios": [2] * 4},
    ),
    "timm-twins-svt": _timm(
        "twins_svt_small",
        64,
        other_size=(64, 96),
        layers=_pyramid((16, 0, 2), (8, 0, 2), (4, 0, 2), (2, 0, 2)),
        arguments={
            "embed_dims": [16] * 4,
            "depths": [2] * 4,
            "num_heads": [2] * 4,
            "mlp_ratios": [2] * 4,
            "wss": [4, 4, 4, 2],
        },
    ),
    "timm-maxvit": _timm(
        "maxvit_tiny_tf_224",
        64,
        other_size=(64, 96),
        layers=_pyramid((16, 0, 2), (8, 0, 2)),
        arguments={
            "embed_dim": (32, 32),
            "depths": (1, 1),
            "block_type": ("M", "M"),
            "stem_width": 8,
            "transformer_window_size": (4, 4),
            "head_hidden_size": 16,
        },
    ),
    "timm-xcit": _timm(
        "xcit_tiny_12_p16_224",
        64,
        layers=_pyramid((4, 0, 2)),
        other_size=(64, 96),
        arguments={"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2},
    ),
    "timm-resnet": _timm("resnet50", 32, layers=(), arguments={"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}),
    "timm-densenet": _timm("densenet121", 32, layers=(), arguments={"block_config": (1, 1), "growth_rate": 4}),
    "timm-mobilenet-v2": _timm("mobilenetv2_100", 32, layers=(), arguments={}),
}
# Plain pre-norm ViTs, whose blocks can be computed by hand from their weights.
PLAIN = (
    "vit",
    "vit-base-only",
    "deit",
    "deit-distilled",
    "beit",
    "vit-msn",
    "vit-mae",
    "ijepa",
    "clip",
    "metaclip2",
    "siglip",
    "siglip2",
    "dinov2",
    "dinov2-giant",
    "dinov2-registers",
    "dinov3",
    "timm-vit",
    "timm-deit",
)
FAMILIES = tuple(name for name, tiny in TINY.items() if tiny.layers)
CNNS = tuple(name for name, tiny in TINY.items() if not tiny.layers)
CLASSIFIERS = tuple(name for name, tiny in TINY.items() if tiny.labels)


def kinds_of(family: str) -> list[str]:
    """Kinds that every layer of the family has."""
    return [k for k in KINDS if k not in TINY[family].lacks]


def save_tiny(family: str, folder: Path) -> Path:
    """Write the model as a repository of its kind would be."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    tiny = TINY[family]
    if tiny.timm:
        return _save_timm(*tiny.timm, tiny, folder)
    model, processor = tiny.build()
    _shake(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if tiny.text:
        _tokenizer(family, folder).save_pretrained(folder)
    return folder


def _tokenizer(family, folder):
    if family != "siglip":
        letters = string.ascii_lowercase + ".,"
        words = ["<|startoftext|>", "<|endoftext|>", *letters, *(c + "</w>" for c in letters)]
        return tf.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[])
    sentences = ["a photo of a cat", "the dog in a video game", "art of the bus"] * 20
    with (folder / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=file,
            vocab_size=24,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    return tf.SiglipTokenizer(str(folder / "spiece.model"))


def _shake(model):
    """LayerScale starts near 0, biases at 0, batch norms at rest: nothing would be tested."""
    for name, parameter in model.named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
        if name.endswith("out_proj.weight"):  # SigLIP's starts so large that attention drowns everything else
            parameter.data *= 0.2
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.data += 0.1 * torch.randn_like(buffer)
        elif name.endswith("running_var"):
            buffer.data = 0.3 + 0.2 * torch.rand_like(buffer)


def _save_timm(architecture, arguments, tiny, folder):
    is_cnn = not tiny.layers
    made = {k: v for k, v in arguments.items() if not (is_cnn and k == "img_size")}
    n_classes = 3 if tiny.labels else 0
    model = timm.create_model(architecture, num_classes=n_classes, **made)
    _shake(model)
    config = {
        "architecture": architecture,
        "num_classes": n_classes,
        "num_features": 32,
        "label_names": ["cat", "dog", "bus"],
        # timm 1.0.31 repeats num_classes here
        "model_args": {**made, "num_classes": n_classes},
        "pretrained_cfg": {
            "tag": "test",
            "input_size": [3, *tiny.input_size],
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": n_classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.clone() for k, v in model.state_dict().items()}, folder / "model.safetensors", {"format": "pt"})
    return folder
