"""The half of a two-tower model that reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitviz_hf import _torchvision  # noqa: F401  before anything that imports torchvision

# isort: split
import torch
import transformers
from torch import Tensor, nn

from vitviz_hf.errors import ModelError, NoClassifierError, first_line
from vitviz_hf.models.families import BY_MODEL_TYPE
from vitviz_hf.models.gate import VOCABULARY_FILES, Snapshot
from vitviz_hf.models.loading import from_pretrained


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
    model = from_pretrained(snapshot, family.text_class, dtype).requires_grad_(False).to(device)
    length = model.config.text_config.max_position_embeddings
    padded = family.exceptions.padded_texts

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        padding = "max_length" if padded else "longest"
        tokens = tokenizer(list(texts), padding=padding, truncation=True, max_length=length, return_tensors="pt")
        mask = {} if padded else {"attention_mask": tokens["attention_mask"].to(device)}
        embeddings: Tensor = model.get_text_features(input_ids=tokens["input_ids"].to(device), **mask).pooler_output
        return nn.functional.normalize(embeddings.float(), dim=-1)

    projection = getattr(model, "visual_projection", None)
    scale = model.logit_scale.clamp(max=getattr(model, "max_log_logit_scale", torch.inf)).exp()
    return TextTower(
        encode,
        projection.weight if projection is not None else None,
        float(scale),
        float(getattr(model, "logit_bias", 0.0)),
    )
