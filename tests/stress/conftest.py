"""What several of these tests start from."""

import pytest

from tests.stress.sizes import SEED, SHARE
from vitviz_hf import SearchConfig, load_model, open_source
from vitviz_hf.atlas.write import make_atlas


def pytest_report_header():
    return f"stress: share {SHARE:g}, seed {SEED}"


@pytest.fixture(scope="session")
def atlas(tiny_folder, labelled, tmp_path_factory):
    out = tmp_path_factory.mktemp("atlas") / "atlas"
    view = load_model(str(tiny_folder("vit")), device="cpu")
    make_atlas(view, open_source(str(labelled)), SearchConfig(k=3, layers=(1,)), out)
    return out
