"""When numbers of Ghiasi et al. 2022 (arXiv:2212.06727) may stand beside ours: only if they were measured alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitviz_hf.config import IMAGENET
from vitviz_hf.experiments.perturb import origins
from vitviz_hf.models.view import ModelView
from vitviz_hf.stream import Source

MODELS: Mapping[str, tuple[str, ...]] = {
    # Name in the paper -> where these weights are on the Hub. Its ViTs are those of Dosovitskiy et al., trained on
    # ImageNet-21k and then at 384 px; its CNNs are torchvision's first ones. The Hub has no such MobileNetV2.
    "ViT-B/32": ("google/vit-base-patch32-384",),
    "ViT-L/16": ("google/vit-large-patch16-384",),
    "ViT-L/32": ("timm/vit_large_patch32_384.orig_in21k_ft_in1k", "google/vit-large-patch32-384"),
    "ViT-B/16": ("timm/vit_base_patch16_384.orig_in21k_ft_in1k", "google/vit-base-patch16-384"),
    "ResNet-50": ("timm/resnet50.tv_in1k",),
    "ResNet-152": ("timm/resnet152.tv_in1k",),
    "MobileNetV2": (),
    "DenseNet-121": ("timm/densenet121.tv_in1k",),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a table of the paper was measured: on ImageNet, and on which images.

    Its code scales the shorter side to the input size (384 px for ViTs, 224 for CNNs) and crops the center, for all
    models. Many checkpoints do something else: google/vit-*-384 squash, timm's CNNs crop an eighth more. What they do
    is measured. Interpolation (bilinear in the paper's code) is not compared.
    """

    split: str
    n_images: int
    """Images that were scored."""

    def model(self, view: ModelView, source: Source, n_images: int) -> str:
        """The model's name in the paper if the run is measured as there, else nothing."""
        return "" if self.difference(view, source, n_images) else _name(view)

    def difference(self, view: ModelView, source: Source, n_images: int) -> str:
        """What is not as in the paper of model, weights, input, preprocessing and data, in words; empty if nothing is.

        Args:
            n_images: that were scored; at least as many as in the paper.
        """
        name, who = _name(view), view.model_id
        side = 384 if name.startswith("ViT") else 224
        size, dtype = "x".join(map(str, view.input_size)), view.identity.dtype
        reasons = (
            (source.dataset == IMAGENET, f"the dataset is {source.dataset}, not {IMAGENET}"),
            (source.split == self.split, f"the split is {source.split or '-'}, not {self.split}"),
            (n_images >= self.n_images, f"{n_images:,} images were scored, not {self.n_images:,}"),
            (bool(name), f"{who} is none of its models"),
            (view.control is None, f"the weights of {who} are a control ({view.control})"),
            (dtype == "float32", f"{who} computes in {dtype}, not float32"),
            (view.input_size == (side, side), f"the input of {who} is {size} pixels, not {side}x{side}"),
            (fits_shorter_side(view), f"{who} does not scale the shorter side to {side} px and crop the center"),
        )
        return next((text for holds, text in reasons if not holds), "")

    def notes(self, views: Sequence[ModelView], source: Source, n_images: int) -> tuple[str, ...]:
        """The sentence that says why numbers of the paper are not shown; none if all of them are."""
        found = dict.fromkeys(self.difference(view, source, n_images) for view in views)
        reasons = "; ".join(reason for reason in found if reason)
        return (f"The paper's numbers are shown only for what was measured as in the paper: {reasons}.",) * bool(
            reasons
        )


VALIDATION = Setting("validation", 50_000)
WITH_BOXES = Setting("train", 482_632)
"""Every percentage of the released log is a whole count of 482,632 images, and of no other number up to a million but
twice it. ILSVRC has 544,546 training images with boxes; which of them are in the authors' list is not known."""


def fits_shorter_side(view: ModelView) -> bool:
    """Whether the preprocessing scales the shorter side of a picture to the input, and crops the longer at its center.

    Measured on a picture of 640 x 480, for square inputs; to 2 % of its height.
    """
    rows, cols = origins(view, 640, 480)
    ends = ((rows[0], 0), (rows[-1], 479), (cols[0], 80), (cols[-1], 559))
    return all(abs(int(found) - wanted) <= 10 for found, wanted in ends)


def _name(view: ModelView) -> str:
    return next((name for name, ids in MODELS.items() if view.model_id in ids), "")
