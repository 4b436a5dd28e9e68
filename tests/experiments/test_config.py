"""Options of the experiments."""

import pytest

from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.config import GroupConfig, Variant, parse_variants


def test_variants_are_parsed_once_each_and_bad_ones_told():
    assert list(map(str, parse_variants("clean, shuffle  8,salient 0.5,shuffle 8"))) == [
        "clean",
        "shuffle 8",
        "salient 0.5",
    ]
    assert parse_variants("clean,shuffle 2,shuffle 8") == GroupConfig().variants
    for text in ("clean 3", "shuffle", "blur 2", "", "shuffle 2.5", "shuffle 0", "random"):
        with pytest.raises(ConfigError, match="variants are clean"):
            parse_variants(text)


@pytest.mark.parametrize("arguments", [("blur", 2), ("clean", 2), ("shuffle",), ("salient", None)])
def test_a_variant_that_does_not_exist_is_refused(arguments):
    with pytest.raises(ConfigError, match="a variant is clean, or"):
        Variant(*arguments)
