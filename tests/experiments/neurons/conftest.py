"""Models and pictures of which the neurons are shown."""

import pytest
import torch

from vitviz_hf import open_image
from vitviz_hf.models.view import at_size, normalize
from vitviz_hf.stream import builtin_paths


@pytest.fixture(params=["vit", "builtin"])
def model(request, tiny_view):
    return tiny_view("vit") if request.param == "vit" else at_size(request.getfixturevalue("builtin"), (112, 112))


@pytest.fixture(scope="session")
def cat():
    return open_image(builtin_paths()["chelsea"])


@pytest.fixture
def normal(vit):
    """Normalized pixels of one picture, [3, H, W]."""
    return normalize(vit, torch.rand(1, 3, *vit.input_size, generator=torch.Generator().manual_seed(0)))[0]
