"""The gate for models: an id from a stranger becomes a checked, pinned, local folder.

Nothing is executed on the way: known architectures only, safetensors only, no repository code. The size is read
before the download. This module knows files; view.py knows what is in them.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitviz_hf.config import BUILTIN
from vitviz_hf.errors import (
    HubUnreachableError,
    ModelError,
    ModelNotFoundError,
    ModelTooLargeError,
    UnsafeModelError,
    first_line,
)
from vitviz_hf.hub import (
    MODEL,
    TOO_LARGE,
    Token,
    download,
    find_cached,
    find_path,
    hub_reachable,
    is_hub_id,
    list_files,
    size_limit,
)
from vitviz_hf.models.builtin import BUILTINS, builtin_folder
from vitviz_hf.models.families import MODEL_TYPES, TIMM

DEFAULT_MODEL = "google/vit-base-patch16-224"
SUGGESTED_MODELS = (
    "google/vit-base-patch16-224",
    "openai/clip-vit-base-patch32",
    "openai/clip-vit-base-patch16",
    "facebook/deit-base-distilled-patch16-224",
    "facebook/dinov2-base",
    "facebook/dinov2-with-registers-base",
    "google/siglip-base-patch16-224",
    "microsoft/beit-base-patch16-224",
    "microsoft/swin-tiny-patch4-window7-224",
    "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "timm/deit_small_patch16_224.fb_in1k",
    "timm/coat_lite_mini.in1k",
)
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
"""A tokenizer has at least one of these."""
_TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
_TOKENIZER_LIMIT, _TEXT_LIMIT = 100_000_000, 20_000_000
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files of one checked model, which stay as they are: no second visit to the Hub is needed for them."""

    model_id: str
    """Hub id, folder or `builtin`, as given."""
    revision: str | None
    """Commit sha; None for a local folder and the built-in model."""
    folder: Path
    config: dict[str, Any]
    """What config.json holds."""
    sizes: Mapping[str, int]
    """File -> bytes of all that the repository holds at this commit, not only of what is in `folder` already."""
    token: Token = field(default=None, repr=False, compare=False)
    """What the Hub was asked with; what is fetched later of this model is asked for with it too."""

    def digest(self) -> str | None:
        """Sha256 of the files of a local folder that decide what it gives; None where a commit pins them."""
        if self.revision is not None:
            return None
        whole = hashlib.sha256()
        for path in sorted(self.folder.iterdir()):
            named = ("config.json", "preprocessor_config.json", _INDEX, *_TOKENIZER_FILES)
            if path.name in named or path.suffix == ".safetensors":
                with path.open("rb") as file:
                    whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()


def fetch_model(model_id: str, revision: str | None = None, token: Token = None) -> Snapshot:
    """Checked local files of a model.

    Args:
        model_id: Hub id, path of a local folder, `builtin` or `builtin-cnn`.
        revision: branch, tag or commit of a Hub id; the default branch if None.
        token: Hub token; False asks anonymously even where the machine is logged in.

    Raises:
        ModelError: one subclass for each reason, see errors.py.
    """
    if model_id in BUILTINS:
        return _local(model_id, builtin_folder(model_id))
    if model_id.strip() and (folder := find_path(model_id)) and folder.is_dir():
        return _local(model_id, folder)
    if model_id.startswith((".", "/", "~")):
        raise ModelNotFoundError(f"there is no folder {model_id[:200]!r}.")
    if not is_hub_id(model_id):
        raise ModelNotFoundError(
            f"{model_id[:200]!r} is not a Hub id; write OWNER/NAME as in 'google/vit-base-patch16-224', or 'builtin'."
        )
    return _from_hub(model_id, revision, token)


def fetch_tokenizer(snapshot: Snapshot, token: Token = None) -> Path:
    """Folder with the tokenizer files of a model, at the same commit; downloaded when first asked for.

    Args:
        token: None asks as the model was asked for.

    Raises:
        ModelError: one subclass for each reason; also files larger than a tokenizer is.
    """
    sizes = {name: n for name, n in snapshot.sizes.items() if name in _TOKENIZER_FILES}
    if snapshot.revision is None or all((snapshot.folder / name).is_file() for name in sizes):
        return snapshot.folder
    if (size := sum(sizes.values())) > _TOKENIZER_LIMIT:
        raise ModelTooLargeError(f"the tokenizer of {snapshot.model_id!r} takes {size / 1e6:.0f} MB, over 100 MB.")
    return download(
        MODEL, snapshot.model_id, snapshot.revision, _TOKENIZER_FILES, snapshot.token if token is None else token
    )


def default_model() -> str:
    """Model to start with: `VITVIZ_MODEL`, else ViT-B/16 with a Hub and the built-in one without."""
    return os.environ.get("VITVIZ_MODEL") or (DEFAULT_MODEL if hub_reachable() else BUILTIN)


def _from_hub(model_id: str, revision: str | None, token: Token) -> Snapshot:
    if not hub_reachable():
        return replace(_from_cache(model_id, revision, token), token=token)
    name = repr(model_id) + (f" at {revision!r}" if revision else "")
    listing = list_files(MODEL, model_id, revision, token)
    sha, sizes = listing.sha, listing.sizes
    if "config.json" not in sizes:
        raise ModelError(f"{name} has no config.json, so it is not a transformers or timm model.")
    _check_texts(sizes, name)
    config = _read_config(download(MODEL, model_id, sha, ["config.json"], token), name)
    _check_architecture(config, name)
    files = _weight_files(sizes, name, lambda f: download(MODEL, model_id, sha, [f], token) / f)
    _check_there(files, sizes, name)
    _check_size(sum(sizes[f] for f in files), name)
    folder = download(MODEL, model_id, sha, ["config.json", "preprocessor_config.json", *files], token)
    return Snapshot(model_id, sha, folder, config, sizes, token)


def _from_cache(model_id: str, revision: str | None, token: Token) -> Snapshot:
    folder = find_cached(MODEL, model_id, revision, "config.json", token)
    if folder is None:
        raise HubUnreachableError(
            f"the Hub cannot be reached and {model_id!r} is not in the cache.",
            "Check the connection, or use 'builtin' or a model folder.",
            "Use 'builtin', or try again later.",
        )
    return _local(model_id, folder, folder.name)


def _local(model_id: str, folder: Path, revision: str | None = None) -> Snapshot:
    name = repr(model_id)
    if not (folder / "config.json").is_file():
        raise ModelError(f"the folder of {name} has no config.json; give a folder written by save_pretrained.")
    config = _read_config(folder, name)
    _check_architecture(config, name)
    sizes = {p.name: p.stat().st_size for p in folder.iterdir() if p.is_file()}
    files = _weight_files(sizes, name, lambda f: folder / f)
    _check_there(files, sizes, name)
    _check_size(sum(sizes[f] for f in files), name)
    return Snapshot(model_id, revision, folder, config, sizes)


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"config.json of {name} is not valid JSON: {first_line(error)}.") from error
    if not isinstance(config, dict):
        raise ModelError(f"config.json of {name} holds no object.")
    if "model_type" not in config and isinstance(config.get("pretrained_cfg"), dict):
        config["model_type"] = TIMM
    return config


def _check_architecture(config: dict[str, Any], name: str) -> None:
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in MODEL_TYPES:
        return
    if "auto_map" in config:
        raise UnsafeModelError(f"{name} needs the repository's own code, which is never run here.")
    raise ModelError(
        f"{name} has model_type {model_type!r:.100}, which is not a vision model known here.",
        "'vitviz models' lists those that are.",
        "Choose one of the suggestions, or any of their kind.",
    )


def _weight_files(sizes: Mapping[str, int], name: str, open_file: Callable[[str], Path]) -> list[str]:
    if _WEIGHTS in sizes:
        return [_WEIGHTS]
    if _INDEX in sizes:
        try:
            shards = set(json.loads(open_file(_INDEX).read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ModelError(f"{_INDEX} of {name} is damaged.") from error
        if not all(isinstance(s, str) and re.fullmatch(r"[\w.-]+\.safetensors", s) for s in shards):
            raise ModelError(f"{_INDEX} of {name} names files that are not safetensors.")
        return [_INDEX, *sorted(shards)]
    if any(f.endswith((".bin", ".pt", ".pth", ".ckpt")) for f in sizes):
        raise UnsafeModelError(
            f"{name} has only pickled weights, which can run code when loaded. "
            "Use a revision with model.safetensors (often 'refs/pr/1'), or convert it."
        )
    raise ModelError(f"{name} has no model.safetensors.")


def _check_there(files: Sequence[str], sizes: Mapping[str, int], name: str) -> None:
    if missing := [f for f in files if f not in sizes]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(f"{name} lacks weight files: {', '.join(missing[:3])[:300]}{more}.")


def _check_texts(sizes: Mapping[str, int], name: str) -> None:
    for file in ("config.json", "preprocessor_config.json", _INDEX):
        if (size := sizes.get(file, 0)) > _TEXT_LIMIT:
            raise ModelTooLargeError(f"{file} of {name} takes {size / 1e6:.0f} MB, over {_TEXT_LIMIT / 1e6:.0f} MB.")


def _check_size(size: int, name: str) -> None:
    if size > size_limit():
        raise ModelTooLargeError(
            f"the weights of {name} take {size / 1e9:.1f} GB, more than the limit of {size_limit() / 1e9:.1f} GB.",
            *TOO_LARGE,
        )
