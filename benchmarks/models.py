"""Write docs/models.md: what is measured on the real architectures, with random weights, one at a time.

Each model is built from its published configuration, saved as a repository, loaded by `load_model`, and then
1. its layers, patch grids, prefix tokens, layout and sites are written down,
2. other noise in one corner of an image of noise must change the first layer's maps most in that corner,
3. three steps of optimization of a feature in the middle must raise its score.

Run: python benchmarks/models.py [--out docs/models.md] [NAME ...]; about a quarter of an hour on two cores.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from vitviz_hf import _torchvision  # noqa: F401

# isort: split
import timm
import torch
import transformers as tf
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf

from vitviz_hf import ModelView, VisualizeConfig, load_model, visualize_steps
from vitviz_hf.models.measure import keeps_places
from vitviz_hf.models.view import run
from vitviz_hf.optimize.objectives import to_objective
from vitviz_hf.optimize.scores import score_pixels
from vitviz_hf.sites import KINDS

Build = Callable[[Path], None]


def hf(model: str, config: str, size: int = 224, **settings: Any) -> Build:
    """A model of transformers, saved as a repository."""

    def build(folder: Path) -> None:
        made = getattr(tf, config)(**settings)
        getattr(tf, model)(made).save_pretrained(folder)
        processor = tf.Siglip2ImageProcessor() if model == "Siglip2Model" else None
        (processor or tf.ViTImageProcessor(size={"height": size, "width": size})).save_pretrained(folder)

    return build


def of_timm(name: str) -> Build:
    """A model of timm, saved as timm saves it."""

    def build(folder: Path) -> None:
        model = timm.create_model(name)
        save_config_for_hf(model, str(folder / "config.json"))
        state = {k: v.clone() for k, v in model.state_dict().items()}  # CoaT shares some
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return build


BASE, LARGE = {}, {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def vit(size: int, patch: int, width: dict[str, int]) -> Build:
    return hf("ViTForImageClassification", "ViTConfig", size, image_size=size, patch_size=patch, **width)


def deit(size: int, heads: int, distilled: bool) -> Build:
    model = "DeiTForImageClassificationWithTeacher" if distilled else "ViTForImageClassification"
    config = "DeiTConfig" if distilled else "ViTConfig"
    width = {"hidden_size": 64 * heads, "intermediate_size": 256 * heads, "num_attention_heads": heads}
    return hf(model, config, size, image_size=size, **width)


def swin(size: int, dim: int, depth: int, heads: int, window: int) -> Build:
    return hf(
        "SwinForImageClassification",
        "SwinConfig",
        size,
        image_size=size,
        embed_dim=dim,
        depths=[2, 2, depth, 2],
        num_heads=[heads * 2**i for i in range(4)],
        window_size=window,
    )


def clip(patch: int) -> Build:
    return hf("CLIPModel", "CLIPConfig", vision_config={"patch_size": patch})


PAPER: dict[str, tuple[str, Build]] = {
    "ViT B/16, 384": ("google/vit-base-patch16-384", vit(384, 16, BASE)),
    "ViT B/32, 384": ("google/vit-base-patch32-384", vit(384, 32, BASE)),
    "ViT L/16, 384": ("google/vit-large-patch16-384", vit(384, 16, LARGE)),
    "ViT L/32, 384": ("google/vit-large-patch32-384", vit(384, 32, LARGE)),
    "ViT B/16, 224": ("google/vit-base-patch16-224", vit(224, 16, BASE)),
    "ViT B/32, 224": ("timm/vit_base_patch32_224.augreg_in21k_ft_in1k", of_timm("vit_base_patch32_224")),
    "ViT L/32, 224": ("timm/vit_large_patch32_224.orig_in21k", of_timm("vit_large_patch32_224")),
    "DeiT base, 224": ("facebook/deit-base-patch16-224", deit(224, 12, False)),
    "DeiT base, 384": ("facebook/deit-base-patch16-384", deit(384, 12, False)),
    "DeiT tiny distilled": ("facebook/deit-tiny-distilled-patch16-224", deit(224, 3, True)),
    "DeiT small distilled": ("facebook/deit-small-distilled-patch16-224", deit(224, 6, True)),
    "DeiT base distilled": ("facebook/deit-base-distilled-patch16-224", deit(224, 12, True)),
    "DeiT base distilled, 384": ("facebook/deit-base-distilled-patch16-384", deit(384, 12, True)),
    **{
        f"{label} {size}": (f"timm/{name}.{tag}", of_timm(name))
        for label, tag, names in (
            ("CoaT lite", "in1k", {s: f"coat_lite_{s}" for s in ("tiny", "mini", "small")}),
            ("CoaT", "in1k", {s: f"coat_{s}" for s in ("tiny", "mini")}),
            ("ConViT", "fb_in1k", {s: f"convit_{s}" for s in ("tiny", "small", "base")}),
            ("PiT", "in1k", {s: f"pit_{s}_224" for s in ("ti", "xs", "s", "b")}),
            ("PiT distilled", "in1k", {s: f"pit_{s}_distilled_224" for s in ("ti", "xs", "s", "b")}),
            ("Twins PCPVT", "in1k", {s: f"twins_pcpvt_{s}" for s in ("small", "base", "large")}),
            ("Twins SVT", "in1k", {s: f"twins_svt_{s}" for s in ("small", "base", "large")}),
        )
        for size, name in names.items()
    },
    "Swin tiny": ("microsoft/swin-tiny-patch4-window7-224", swin(224, 96, 6, 3, 7)),
    "Swin small": ("microsoft/swin-small-patch4-window7-224", swin(224, 96, 18, 3, 7)),
    "Swin base": ("microsoft/swin-base-patch4-window7-224", swin(224, 128, 18, 4, 7)),
    "Swin base, 384": ("microsoft/swin-base-patch4-window12-384", swin(384, 128, 18, 4, 12)),
    "Swin large": ("microsoft/swin-large-patch4-window7-224", swin(224, 192, 18, 6, 7)),
    "Swin large, 384": ("microsoft/swin-large-patch4-window12-384", swin(384, 192, 18, 6, 12)),
    "CLIP ViT-B/32": ("openai/clip-vit-base-patch32", clip(32)),
    "CLIP ViT-B/16": ("openai/clip-vit-base-patch16", clip(16)),
}
CNNS: dict[str, tuple[str, Build]] = {
    "ResNet-50": ("timm/resnet50.a1_in1k", of_timm("resnet50")),
    "ResNet-152": ("timm/resnet152.a1_in1k", of_timm("resnet152")),
    "DenseNet-121": ("timm/densenet121.ra_in1k", of_timm("densenet121")),
    "MobileNet v2": ("timm/mobilenetv2_100.ra_in1k", of_timm("mobilenetv2_100")),
}
_TINY_SWIN_V2 = {"image_size": 256, "window_size": 8}
OTHERS: dict[str, tuple[str, Build]] = {
    "BEiT base": (
        "microsoft/beit-base-patch16-224",
        hf("BeitForImageClassification", "BeitConfig", use_relative_position_bias=True),
    ),
    "Data2VecVision base": (
        "facebook/data2vec-vision-base-ft1k",
        hf("Data2VecVisionForImageClassification", "Data2VecVisionConfig", use_relative_position_bias=True),
    ),
    "ViTMSN base": ("facebook/vit-msn-base", hf("ViTMSNModel", "ViTMSNConfig")),
    "ViTMAE base": ("facebook/vit-mae-base", hf("ViTMAEForPreTraining", "ViTMAEConfig")),
    "I-JEPA, base width": ("facebook/ijepa_vith14_1k", hf("IJepaModel", "IJepaConfig")),
    "DINOv2 base": ("facebook/dinov2-base", hf("Dinov2Model", "Dinov2Config", patch_size=14)),
    "DINOv2 giant": (
        "facebook/dinov2-giant",
        hf(
            "Dinov2Model",
            "Dinov2Config",
            patch_size=14,
            hidden_size=1536,
            num_hidden_layers=40,
            num_attention_heads=24,
            use_swiglu_ffn=True,
        ),
    ),
    "DINOv2 base, registers": (
        "facebook/dinov2-with-registers-base",
        hf("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", patch_size=14),
    ),
    "DINOv3 base": (
        "facebook/dinov3-vitb16-pretrain-lvd1689m",
        hf(
            "DINOv3ViTModel",
            "DINOv3ViTConfig",
            hidden_size=768,
            intermediate_size=3072,
            num_attention_heads=12,
            num_register_tokens=4,
        ),
    ),
    "MetaCLIP 2 B/32": (
        "facebook/metaclip-2-worldwide-b32",
        hf("MetaClip2Model", "MetaClip2Config", text_config={"vocab_size": 1000}),
    ),
    "SigLIP base": (
        "google/siglip-base-patch16-224",
        hf("SiglipModel", "SiglipConfig", text_config={"vocab_size": 1000}),
    ),
    "SigLIP 2 base, NaFlex": (
        "google/siglip2-base-patch16-naflex",
        hf("Siglip2Model", "Siglip2Config", text_config={"vocab_size": 1000}),
    ),
    "AIMv2 large": (
        "apple/aimv2-large-patch14-224-lit",
        hf("Aimv2Model", "Aimv2Config", text_config={"vocab_size": 1000}),
    ),
    "Swin v2 tiny": (
        "microsoft/swinv2-tiny-patch4-window8-256",
        hf("Swinv2ForImageClassification", "Swinv2Config", 256, **_TINY_SWIN_V2),
    ),
    "PVT tiny": ("Zetatech/pvt-tiny-224", hf("PvtForImageClassification", "PvtConfig")),
    "PVT v2 b0": ("OpenGVLab/pvt_v2_b0", hf("PvtV2ForImageClassification", "PvtV2Config")),
    "CvT-13": ("microsoft/cvt-13", hf("CvtForImageClassification", "CvtConfig")),
    "LeViT-128S": (
        "facebook/levit-128S",
        hf("LevitForImageClassificationWithTeacher", "LevitConfig", depths=[2, 3, 4], num_attention_heads=[4, 6, 8]),
    ),
    "Hiera tiny": ("facebook/hiera-tiny-224-hf", hf("HieraForImageClassification", "HieraConfig", depths=[1, 2, 7, 2])),
    "ConvNeXt tiny": ("facebook/convnext-tiny-224", hf("ConvNextForImageClassification", "ConvNextConfig")),
    "BEiT v2 base, timm": ("timm/beitv2_base_patch16_224.in1k_ft_in1k", of_timm("beitv2_base_patch16_224")),
    "EVA-02 base, timm": ("timm/eva02_base_patch14_224.mim_in22k", of_timm("eva02_base_patch14_224")),
    "Swin tiny, timm": ("timm/swin_tiny_patch4_window7_224.ms_in1k", of_timm("swin_tiny_patch4_window7_224")),
    "MaxViT tiny, timm": ("timm/maxvit_tiny_tf_224.in1k", of_timm("maxvit_tiny_tf_224")),
    "XCiT small 12/16, timm": ("timm/xcit_small_12_p16_224.fb_in1k", of_timm("xcit_small_12_p16_224")),
}

HEAD = """# Models

Written by `python benchmarks/models.py`: every architecture below was built from its published configuration with
random weights, saved as a repository, and loaded by `load_model`. Nothing in the table is declared; it is what one
forward pass showed.

- **Grids**: patch grids, with the number of layers that have each; layers are counted through all stages, and in
  CoaT, whose parallel blocks work on three grids at once, each grid is a layer.
- **Prefix**: class, distillation and register tokens that a layer sees, and in how many layers.
- **Layout**: what the model itself works on. Maps are always in image order.
- **Maps**: other noise in one corner of an image of noise changes the first layer's maps most in that corner.
- **Score**: of a feature in the middle layer, before and after three steps of optimization (random weights).
"""


def measure(name: str, example: str, build: Build) -> str:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        gc.collect()
        view = load_model(folder, device="cpu")
    size = f"{view.input_size[0]}x{view.input_size[1]}"
    if not view.layers:
        return f"| {name} | `{example}` | {size} | {len(view.labels or ())} |"
    layers = view.layers
    lacking = [k for k in KINDS if any(k not in layer.taps for layer in layers)]
    in_place = keeps_places(view.module, partial(run, view), layers[0], view.input_size)
    before, after = three_steps(view)
    cells = [
        name,
        f"`{example}`",
        size,
        str(len(layers)),
        counts(f"{r}x{c}" for r, c in (layer.patch_grid for layer in layers)),
        counts(str(layer.n_prefix) for layer in layers),
        "; ".join(dict.fromkeys(layer.layout for layer in layers)),
        ", ".join(dict.fromkeys(str(layer.taps["mlp_act"].size) for layer in layers)),
        ", ".join(lacking) or "none",
        "in place" if in_place else "**wrong**",
        f"{before:.3g} to {after:.3g}" + ("" if after > before else " **fails**"),
    ]
    return "| " + " | ".join(cells) + " |"


def counts(values: Iterable[str]) -> str:
    """`56x56 (2), 28x28 (2)`, or the value alone if there is only one."""
    found = Counter(values)
    return next(iter(found)) if len(found) == 1 else ", ".join(f"{v} ({n})" for v, n in found.items())


def three_steps(view: ModelView) -> tuple[float, float]:
    still = {"rotate": 0.0, "zoom": 0.0, "noise": 0.0, "smoothness": 0.0, "margin": 0, "revive": False}
    config = VisualizeConfig.preset("fourier", steps=3, copies=1, learning_rate=0.01, **still)
    objective = to_objective(f"{len(view.layers) // 2}.mlp_act:7")
    first, *_, last = visualize_steps(view, [objective], config)
    before, after = (score_pixels(view, [objective], s.pixels[:, None]) for s in (first, last))
    return float(before), float(after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these; the table is then printed, not written")
    parser.add_argument("--out", type=Path, default=Path("docs/models.md"))
    args = parser.parse_args()
    columns = (
        "Model",
        "For example",
        "Input",
        "Layers",
        "Grids",
        "Prefix",
        "Layout",
        "Neurons",
        "Lacks",
        "Maps",
        "Score",
    )
    features = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    cnns = "| Model | For example | Input | Classes |\n|---|---|---|---|"
    text = HEAD
    for title, head, models in (
        ("The transformers of arXiv:2212.06727, appendix C", features, PAPER),
        ("Its CNNs, for the classification experiments", cnns, CNNS),
        ("One model of every other family", features, OTHERS),
    ):
        rows = []
        for name, (example, build) in models.items():
            if args.names and name not in args.names:
                continue
            start = time.monotonic()
            rows.append(measure(name, example, build))
            gc.collect()
            print(f"{rows[-1]}  {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        text += f"\n## {title}\n\n{head}\n" + "\n".join(rows) + "\n"
    if args.names:
        print(text)
    else:
        args.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
