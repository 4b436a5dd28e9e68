"""Names of tokens."""

import re

import pytest

from vitviz_hf.errors import ConfigError
from vitviz_hf.inside.places import parse_place, prefix_names

REGISTERS = ("cls", "register 1", "register 2")


@pytest.mark.parametrize(
    ("text", "tokens", "box", "told"),
    [
        ("cls", (0,), None, "the class token"),
        ("register 2", (2,), None, "the register 2 token"),
        ("1,2", (3 + 1 * 5 + 2,), (1, 2, 1, 2), "patch 1,2"),
        (" 0, 1 - 1 , 2 ", (4, 5, 9, 10), (0, 1, 1, 2), "patches 0,1 to 1,2"),
        ("", (3 + 2 * 5 + 2,), (2, 2, 2, 2), "patch 2,2"),
    ],
)
def test_a_token_is_named_by_its_place_or_its_name(text, tokens, box, told):
    place = parse_place(text, (4, 5), REGISTERS)

    assert (place.tokens, place.box, place.told) == (tokens, box, told)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4,0", "'4,0' is outside the grid of 4 rows (0-3) and 5 columns (0-4)."),
        ("2,2-1,3", "'2,2-1,3' is outside the grid"),
        ("nose", "'nose' is no token; write ROW,COLUMN, a box such as 3,4-5,6, or a token without a patch (cls, reg"),
        ("-1,2", "'-1,2' is no token"),
    ],
)
def test_what_is_no_token_is_told(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_place(text, (4, 5), REGISTERS)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("vit", ("cls",)),
        ("dinov2-registers", ("cls", "register 1", "register 2")),
        ("deit", ("cls", "prefix 1")),
        ("siglip", ()),
    ],
)
def test_tokens_without_a_patch_are_named_as_the_model_has_them(tiny_view, family, names):
    found = prefix_names(tiny_view(family))

    assert found[: len(names)] == names and len(found) == max(x.n_prefix for x in tiny_view(family).layers)
