"""The families of models that are known here: which config.json is loaded by which class of transformers or timm.

Only class names stand here, and what a family does unlike all others (`Exceptions`). Layers, grids, prefix tokens and
sites are measured, see measure.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Exceptions:
    """What one pass over an image does not show, or what must be told to a model before it can be run."""

    keys: Mapping[str, str] = field(default_factory=dict)
    """AIMv2, names of weights: transformers finds the vision tower in the others' repositories by itself. Regular
    expression -> text, read by `loading.load_module`."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """MAE, values of config.json: it drops 75 % of the patches otherwise. Read by `loading.from_pretrained`."""
    inputs: Literal["image", "image and noise", "patches"] = "image"
    """MAE shuffles patches by noise that it draws unless it is given some; SigLIP 2 takes patches of an image of any
    shape. Read by `loading.module_inputs`, `load_preprocessing` and `told`."""
    regrouped: bool = False
    """Hiera keeps its patches grouped by mask unit between layers. Read by `loading.told`."""
    heads: Callable[[Any], Mapping[str, int] | None] | None = None
    """LeViT and MaxViT keep q, k and v of each head together in a fused projection; in all others they are equal parts
    side by side. Attention -> width of each part in a head; None where it is as the others'. Read by `loading.told`."""
    padded_texts: bool = False
    """SigLIP's text towers were trained on padded texts and without a mask. Read by `text.load_text_tower`."""


def _levit_heads(attention: Any) -> dict[str, int]:
    return {"q": attention.key_dim, "k": attention.key_dim, "v": attention.attention_ratio * attention.key_dim}


def _maxvit_heads(attention: Any) -> dict[str, int] | None:
    return dict.fromkeys("qkv", attention.dim_head) if attention.head_first else None


@dataclass(frozen=True, slots=True)
class Family:
    """Models of transformers that share their code, or of one module of timm."""

    name: str
    example: str
    """A Hub id."""
    model_types: tuple[str, ...] = ()
    """`model_type` in config.json."""
    vision_class: str = ""
    """For repositories without a classifier, and the vision tower of those with text."""
    classifiers: tuple[str, ...] = ()
    """Classes that `architectures` in config.json may name instead."""
    text_class: str = ""
    """For repositories that hold a text tower too: the class of both."""
    timm_module: str = ""
    """For a family of timm: the module of timm.models that builds it."""
    features: bool = True
    """False for networks without feed-forward blocks."""
    exceptions: Exceptions = Exceptions()

    @property
    def classifies(self) -> tuple[str, ...]:
        """`labels` if there are checkpoints with a classifier, `words` if there is a text tower."""
        labels = ("labels",) if self.classifiers or self.timm_module else ()
        return labels + (("words",) if self.text_class else ())


def _transformers(
    name: str, example: str, prefix: str, *model_types: str, headless: bool = False, **exceptions: Any
) -> Family:
    classifiers = () if headless else (f"{prefix}ForImageClassification",)
    return Family(name, example, model_types, f"{prefix}Model", classifiers, exceptions=Exceptions(**exceptions))


def _with_text(name: str, example: str, prefix: str, model_type: str, **exceptions: Any) -> Family:
    # The vision tower alone says clip_vision_model.
    return Family(
        name,
        example,
        (model_type, f"{model_type}_vision_model"),
        f"{prefix}VisionModel",
        (f"{prefix}ForImageClassification",) if prefix != "Aimv2" else (),
        f"{prefix}Model",
        exceptions=Exceptions(**exceptions),
    )


def _with_teacher(name: str, example: str, prefix: str, model_type: str, **exceptions: Any) -> Family:
    heads = (f"{prefix}ForImageClassification", f"{prefix}ForImageClassificationWithTeacher")
    return Family(name, example, (model_type,), f"{prefix}Model", heads, exceptions=Exceptions(**exceptions))


FAMILIES = (
    _transformers("ViT", "google/vit-base-patch16-224", "ViT", "vit"),
    _with_teacher("DeiT", "facebook/deit-base-distilled-patch16-224", "DeiT", "deit"),
    _transformers("BEiT", "microsoft/beit-base-patch16-224", "Beit", "beit"),
    _transformers("Data2VecVision", "facebook/data2vec-vision-base-ft1k", "Data2VecVision", "data2vec-vision"),
    _transformers("ViTMSN", "facebook/vit-msn-base", "ViTMSN", "vit_msn"),
    _transformers(
        "ViTMAE",
        "facebook/vit-mae-base",
        "ViTMAE",
        "vit_mae",
        headless=True,
        config={"mask_ratio": 0.0},
        inputs="image and noise",
    ),
    _transformers("I-JEPA", "facebook/ijepa_vith14_1k", "IJepa", "ijepa"),
    _transformers("DINOv2", "facebook/dinov2-base", "Dinov2", "dinov2"),
    _transformers(
        "DINOv2 with registers", "facebook/dinov2-with-registers-base", "Dinov2WithRegisters", "dinov2_with_registers"
    ),
    _transformers("DINOv3", "facebook/dinov3-vitb16-pretrain-lvd1689m", "DINOv3ViT", "dinov3_vit", headless=True),
    _with_text("CLIP", "openai/clip-vit-base-patch32", "CLIP", "clip"),
    _with_text("MetaCLIP 2", "facebook/metaclip-2-worldwide-b32", "MetaClip2", "metaclip_2"),
    _with_text("SigLIP", "google/siglip-base-patch16-224", "Siglip", "siglip", padded_texts=True),
    _with_text(
        "SigLIP 2", "google/siglip2-base-patch16-naflex", "Siglip2", "siglip2", inputs="patches", padded_texts=True
    ),
    _with_text("AIMv2", "apple/aimv2-large-patch14-224-lit", "Aimv2", "aimv2", keys={r"^vision_model\.": ""}),
    _transformers("Swin", "microsoft/swin-tiny-patch4-window7-224", "Swin", "swin"),
    _transformers("Swin v2", "microsoft/swinv2-tiny-patch4-window8-256", "Swinv2", "swinv2"),
    _transformers("PVT", "Zetatech/pvt-tiny-224", "Pvt", "pvt"),
    _transformers("PVT v2", "OpenGVLab/pvt_v2_b0", "PvtV2", "pvt_v2"),
    _transformers("CvT", "microsoft/cvt-13", "Cvt", "cvt"),
    _with_teacher("LeViT", "facebook/levit-128S", "Levit", "levit", heads=_levit_heads),
    _transformers("Hiera", "facebook/hiera-tiny-224-hf", "Hiera", "hiera", regrouped=True),
    _transformers("ConvNeXt", "facebook/convnext-tiny-224", "ConvNext", "convnext"),
    Family(
        "ResNet", "microsoft/resnet-50", ("resnet",), "ResNetModel", ("ResNetForImageClassification",), features=False
    ),
    Family(
        "MobileNet v2",
        "google/mobilenet_v2_1.0_224",
        ("mobilenet_v2",),
        "MobileNetV2Model",
        ("MobileNetV2ForImageClassification",),
        features=False,
    ),
    Family("ViT, timm", "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", timm_module="vision_transformer"),
    Family("DeiT, timm", "timm/deit_base_distilled_patch16_224.fb_in1k", timm_module="deit"),
    Family("BEiT v2, timm", "timm/beitv2_base_patch16_224.in1k_ft_in22k_in1k", timm_module="beit"),
    Family("EVA-02, timm", "timm/eva02_base_patch14_224.mim_in22k", timm_module="eva"),
    Family("CoaT, timm", "timm/coat_lite_mini.in1k", timm_module="coat"),
    Family("ConViT, timm", "timm/convit_base.fb_in1k", timm_module="convit"),
    Family("PiT, timm", "timm/pit_b_distilled_224.in1k", timm_module="pit"),
    Family("Swin, timm", "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k", timm_module="swin_transformer"),
    Family("Twins, timm", "timm/twins_svt_base.in1k", timm_module="twins"),
    Family(
        "MaxViT, timm",
        "timm/maxvit_tiny_tf_224.in1k",
        timm_module="maxxvit",
        exceptions=Exceptions(heads=_maxvit_heads),
    ),
    Family("XCiT, timm", "timm/xcit_small_12_p16_224.fb_in1k", timm_module="xcit"),
    Family("ResNet, timm", "timm/resnet50.a1_in1k", timm_module="resnet", features=False),
    Family("DenseNet, timm", "timm/densenet121.ra_in1k", timm_module="densenet", features=False),
    Family("MobileNet v2, timm", "timm/mobilenetv2_100.ra_in1k", timm_module="efficientnet", features=False),
)
TIMM = "timm_wrapper"
BY_MODEL_TYPE = {t: family for family in FAMILIES for t in family.model_types}
BY_TIMM_MODULE = {family.timm_module: family for family in FAMILIES if family.timm_module}
MODEL_TYPES = (*sorted(BY_MODEL_TYPE), TIMM)
