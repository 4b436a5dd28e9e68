"""From checked files to a module of transformers or timm, and how to feed it."""

import copy
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import timm
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.transforms import v2

from vitviz_hf.errors import ModelError, NoClassifierError, first_line
from vitviz_hf.images import cover
from vitviz_hf.models.families import BY_MODEL_TYPE, BY_TIMM_MODULE, TIMM
from vitviz_hf.models.gate import VOCABULARY_FILES, Snapshot

# transformers finds the vision tower in a repository with two towers by itself, except in AIMv2's.
_AIMV2_KEYS = {r"^vision_model\.": ""}


def load_module(snapshot: Snapshot, dtype: torch.dtype) -> tuple[Any, tuple[str, ...] | None]:
    """The vision model in eval mode, and the labels of its classifier if it has a trained one.

    Raises:
        ModelError: the weights do not fit, or an architecture is unknown.
    """
    name, has_labels = _class_name(snapshot)
    keys = _AIMV2_KEYS if snapshot.config["model_type"] == "aimv2" else None
    module = _from_pretrained(snapshot, name, dtype, vision_only=not has_labels, key_mapping=keys)
    labels = None
    if has_labels:
        names = module.config.id2label or {}  # PVT's config may count its labels without naming them
        labels = tuple(str(names.get(i, f"LABEL_{i}")) for i in range(len(names) or module.config.num_labels))
    return module, labels


# Architectures draw their weights from torch's one generator: one at a time.
_GLOBAL_DRAWS = threading.Lock()


def reinitialized(module: Any, seed: int) -> Any:
    """A module of the same architecture whose weights are drawn anew by its own code."""
    with _GLOBAL_DRAWS, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(module)(module.config)
    weight = next(module.parameters())
    return fresh.eval().requires_grad_(False).to(weight.device, weight.dtype)


def shuffled(module: Any, seed: int) -> Any:
    """A copy of the module with the values of each weight tensor in a random order."""
    generator = torch.Generator().manual_seed(seed)
    copied = copy.deepcopy(module)
    for weight in copied.parameters():
        order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
        weight.data = weight.data.flatten()[order].view_as(weight)
    return copied


@dataclass(frozen=True, slots=True)
class TextTower:
    """The half of a two-tower model that reads, and what joins the halves."""

    encode: Callable[[Sequence[str]], Tensor]
    """Texts -> [N, E] embeddings of length 1."""
    project: Tensor | None
    """[E, D], from the vision tower's pooled output; None where that is an embedding already."""
    scale: float
    """Logit = scale * cosine + bias."""
    bias: float


def load_text_tower(snapshot: Snapshot, tokenizer_folder: Path, dtype: torch.dtype, device: torch.device) -> TextTower:
    """The text tower of a repository that holds both.

    Raises:
        NoClassifierError: the repository has no text tower.
        ModelError: no usable tokenizer, or the weights do not fit.
    """
    family = BY_MODEL_TYPE.get(snapshot.config["model_type"])
    if family is None or "text_config" not in snapshot.config:
        raise NoClassifierError(
            f"{snapshot.model_id!r} has no text tower; give a whole CLIP, SigLIP or AIMv2 repository."
        )
    # Without one of these transformers makes a tokenizer that knows no words, and says nothing.
    if not any((tokenizer_folder / name).is_file() for name in VOCABULARY_FILES):
        raise ModelError(f"{snapshot.model_id!r} has no tokenizer files, so its text tower cannot read.")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            tokenizer_folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        raise ModelError(f"{snapshot.model_id!r} has no usable tokenizer: {first_line(error)}") from error
    model = _from_pretrained(snapshot, family.text_class, dtype).requires_grad_(False).to(device)
    length = model.config.text_config.max_position_embeddings
    sigmoid = hasattr(model, "logit_bias")  # SigLIP: trained on padded texts, and without a mask

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        padding = "max_length" if sigmoid else "longest"
        tokens = tokenizer(list(texts), padding=padding, truncation=True, max_length=length, return_tensors="pt")
        mask = {} if sigmoid else {"attention_mask": tokens["attention_mask"].to(device)}
        embeddings: Tensor = model.get_text_features(input_ids=tokens["input_ids"].to(device), **mask).pooler_output
        return nn.functional.normalize(embeddings.float(), dim=-1)

    projection = getattr(model, "visual_projection", None)
    scale = model.logit_scale.clamp(max=getattr(model, "max_log_logit_scale", torch.inf)).exp()
    return TextTower(
        encode,
        projection.weight if projection is not None else None,
        float(scale),
        float(model.logit_bias) if sigmoid else 0.0,
    )


def _from_pretrained(
    snapshot: Snapshot,
    name: str,
    dtype: torch.dtype,
    vision_only: bool = False,
    key_mapping: dict[str, str] | None = None,
) -> Any:
    try:
        config = _read_config(snapshot, vision_only)
        with _no_progress_bars():
            module, report = getattr(transformers, name).from_pretrained(
                snapshot.folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                config=config,
                key_mapping=key_mapping,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{snapshot.model_id!r} could not be loaded: {first_line(error)}") from error
    missing = {k for k in report["missing_keys"] if not re.search(r"(^|\.)(pooler|mask_token)\b", k)}
    if missing or report["mismatched_keys"]:
        names = ", ".join(sorted(missing)[:3]) or str(next(iter(report["mismatched_keys"])))
        raise ModelError(f"the weights of {snapshot.model_id!r} do not fit its config.json (first: {names}).")
    return module.eval()


def _class_name(snapshot: Snapshot) -> tuple[str, bool]:
    """Class of transformers, and whether it has a trained classifier."""
    config = snapshot.config
    if config["model_type"] == TIMM:
        has_classifier = bool(config.get("num_classes"))
        return ("TimmWrapperForImageClassification" if has_classifier else "TimmWrapperModel"), has_classifier
    family = BY_MODEL_TYPE[config["model_type"]]
    named = (config.get("architectures") or [""])[0]
    return (named, True) if named in family.classifiers else (family.vision_class, False)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    enabled = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers.utils.logging.enable_progress_bar()


def _read_config(snapshot: Snapshot, vision_only: bool) -> Any:
    config = transformers.AutoConfig.from_pretrained(snapshot.folder, trust_remote_code=False, local_files_only=True)
    if snapshot.config["model_type"] == TIMM:
        if not timm.is_model(config.architecture):
            raise ModelError(f"{snapshot.model_id!r} is of architecture {config.architecture!r}, unknown to timm.")
        # timm 1.0.31 writes num_classes a second time here, which transformers 5.23 refuses.
        arguments = {k: v for k, v in (config.model_args or {}).items() if k != "num_classes"}
        config.model_args = arguments | _timm_size_options(config.architecture)
    elif snapshot.config["model_type"] == "vit_mae":
        config.mask_ratio = 0.0
    return getattr(config, "vision_config", config) if vision_only else config


def _timm_module(architecture: str) -> str:
    return str(timm.models.model_entrypoint(architecture).__module__)


def _timm_size_options(architecture: str) -> dict[str, bool]:
    """What makes a timm model take other input sizes, where its class knows how."""
    models = [c for c in vars(sys.modules[_timm_module(architecture)]).values() if inspect.isclass(c)]
    known = {p for c in models if c.__module__.startswith("timm.models") for p in inspect.signature(c).parameters}
    return {k: v for k, v in {"dynamic_img_size": True, "strict_img_size": False}.items() if k in known}


def is_tested(module: Any) -> bool:
    """Whether this kind of model is in the table of families: any other of timm's is tried before it is used."""
    if module.config.model_type != TIMM:
        return True
    return _timm_module(module.config.architecture).rpartition(".")[2] in BY_TIMM_MODULE


def load_preprocessing(
    snapshot: Snapshot, config: Any
) -> tuple[Callable[[Image.Image], Tensor], tuple[float, ...], tuple[float, ...]]:
    """The checkpoint's own resize and crop to [3, H, W] in [0, 1], and its mean and standard deviation.

    Args:
        config: the loaded module's.

    Raises:
        ModelError: no usable preprocessor_config.json.
    """
    if snapshot.config["model_type"] == TIMM:
        return _timm_preprocessing(snapshot.config["pretrained_cfg"])
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            snapshot.folder, backend="torchvision", trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{snapshot.model_id!r} has no usable preprocessor_config.json: {first_line(error)}"
        ) from error

    def preprocess(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(image, do_normalize=False, return_tensors="pt")["pixel_values"][0]
        return pixels

    if is_naflex(config):  # of any shape, so the square with as many patches as it was trained on
        side = int(config.num_patches**0.5) * config.patch_size
        preprocess = partial(cover_pixels, size=(side, side))
    mean = processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0)
    std = processor.image_std if processor.do_normalize else (1.0, 1.0, 1.0)
    return preprocess, tuple(mean), tuple(std)


def _timm_preprocessing(
    pretrained_cfg: dict[str, Any],
) -> tuple[Callable[[Image.Image], Tensor], tuple[float, ...], tuple[float, ...]]:
    config = timm.data.resolve_data_config(pretrained_cfg, model=None, verbose=False)
    steps = timm.data.create_transform(**config, is_training=False).transforms
    transform = v2.Compose([s for s in steps if type(s).__name__ != "Normalize"])
    return transform, tuple(config["mean"]), tuple(config["std"])


def cover_pixels(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """The picture scaled to cover (height, width) and cropped at the center, [3, H, W] in [0, 1]."""
    pixels: Tensor = v2.functional.to_dtype(v2.functional.to_image(cover(image, size)), torch.float32, scale=True)
    return pixels


def sized_pixels(preprocess: Callable[[Image.Image], Tensor], image: Image.Image, size: tuple[int, int]) -> Tensor:
    """The checkpoint's own preprocessing if it gives (height, width), else as `cover_pixels`."""
    pixels = preprocess(image)
    return pixels if tuple(pixels.shape[1:]) == size else cover_pixels(image, size)


def module_inputs(module: Any) -> Callable[[Tensor], dict[str, Any]]:
    """How normalized pixels [B, 3, H, W] become the module's keyword arguments."""
    if is_naflex(module.config):
        return partial(_naflex_inputs, module.config.patch_size)
    interpolate = "interpolate_pos_encoding" in inspect.signature(module.forward).parameters
    options = {"interpolate_pos_encoding": True} if interpolate else {}
    if module.config.model_type == "vit_mae":
        return partial(_mae_inputs, module.config.patch_size)
    return lambda pixel_values: {"pixel_values": pixel_values, **options}


def _mae_inputs(patch: int, pixel_values: Tensor) -> dict[str, Any]:
    """MAE drops and shuffles patches by the rank of a noise value: rising values (and mask_ratio 0) keep them all."""
    n_patches = (pixel_values.shape[2] // patch) * (pixel_values.shape[3] // patch)
    noise = torch.arange(n_patches, device=pixel_values.device).expand(len(pixel_values), -1)
    return {"pixel_values": pixel_values, "noise": noise, "interpolate_pos_encoding": True}


def imagenet_synsets() -> dict[str, str]:
    """WordNet ids of ImageNet's 1000 classes in order, with their names, `tench, Tinca tinca` and so on."""
    info = timm.data.ImageNetInfo()
    return dict(zip(info.label_names(), info.label_descriptions(), strict=True))


def is_naflex(config: Any) -> bool:
    """Whether the model takes patches instead of an image."""
    return str(config.model_type).startswith("siglip2")


def _naflex_inputs(patch: int, pixel_values: Tensor) -> dict[str, Any]:
    """SigLIP 2 takes patches [B, P, p*p*3] and their grid instead of an image."""
    batch, channels, height, width = pixel_values.shape
    rows, cols = height // patch, width // patch
    grid = pixel_values.reshape(batch, channels, rows, patch, cols, patch).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": grid.reshape(batch, rows * cols, -1),
        "pixel_attention_mask": torch.ones(batch, rows * cols, dtype=torch.long, device=pixel_values.device),
        "spatial_shapes": torch.tensor([[rows, cols]] * batch),
    }
