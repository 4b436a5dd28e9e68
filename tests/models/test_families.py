"""What a family does unlike all others; most of it is tested by its tiny model."""

import pytest
import torch
from timm.models.maxxvit import AttentionCl

from vitviz_hf.models.families import BY_TIMM_MODULE
from vitviz_hf.models.measure import _columns


@pytest.mark.parametrize("head_first", [True, False])
def test_maxvits_columns_are_those_that_its_attention_takes(head_first):
    """Heads of q, k and v as timm's code cuts them: the tiny model keeps its parts side by side."""
    attention = AttentionCl(dim=32, dim_head=8, head_first=head_first)
    every = torch.arange(96)
    parts = every.view(4, 24).chunk(3, 1) if head_first else every.view(3, 4, 8).unbind(0)

    widths = BY_TIMM_MODULE["maxxvit"].exceptions.heads(attention)

    for letter, expected in zip("qkv", parts, strict=True):
        assert every[_columns(widths, "qkv", letter, 96)].tolist() == expected.flatten().tolist()
