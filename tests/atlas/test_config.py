"""The options of a search, from Python and from the command line."""

import argparse

import pytest

from vitviz_hf import SearchConfig
from vitviz_hf.cli.main import main
from vitviz_hf.cli.options import add_knobs, read_knobs
from vitviz_hf.errors import ConfigError


def given(*words):
    parser = argparse.ArgumentParser()
    add_knobs(parser, SearchConfig, None, defaults=True)
    return SearchConfig(**read_knobs(parser.parse_args(words), SearchConfig))


def test_the_command_line_gives_the_config_its_types():
    words = "--kinds mlp_act,resid --layers 7,2-4,3 --limit 50 -k 3 --reduce max --batch 8 --workers 2"

    expected = SearchConfig(
        kinds=("mlp_act", "resid"), layers=(2, 3, 4, 7), limit=50, k=3, reduce="max", batch=8, workers=2
    )
    assert given(*words.split()) == expected
    assert given() == given("--layers", "") == SearchConfig()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--kinds", "mlp_act,keys"], "unknown kind 'keys'; kinds are attn_in"),
        (["--layers", "3-x"], "layers must be numbers and runs such as 3,7-9; got '3-x'"),
        (["--reduce", "sum"], "reduce must be one of mean, max; got 'sum'"),
        (["--limit", "0"], "limit must be a whole number from 1 to 1e+12; got 0"),
        (["-k", "many"], "k must be a whole number from 1 to 1000; got 'many'"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_possible(words, text, capsys, tmp_path):
    assert main(["search", "nowhere", "builtin", "--out", str(tmp_path / "a"), *words]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"kinds": "mlp_act"}, {"layers": (1, -1)}, {"k": True}, {"workers": None}])
def test_values_of_another_type_are_refused(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} must be"):
        SearchConfig(**options)
