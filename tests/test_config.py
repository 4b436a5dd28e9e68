"""Options: how they are written on the command line, what their types are, and what is told of others."""

from dataclasses import dataclass, fields

import pytest

from vitviz_hf import parse_feature
from vitviz_hf.config import Checked, knob, parse_features, parse_numbers, parse_patch, parse_patches, parse_runs, read
from vitviz_hf.errors import ConfigError, SiteError
from vitviz_hf.experiments.config import GroupConfig, OccludeConfig, ViewsConfig
from vitviz_hf.experiments.registry import EXPERIMENTS
from vitviz_hf.optimize.config import VisualizeConfig
from vitviz_hf.sites import Feature


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Checked):
    limit: int | None = knob(None, "", 1, 9, blank=0)
    name: str | None = knob(None, "", blank="")
    numbers: tuple[int, ...] = knob((2, 4), "", parse=parse_numbers)
    patch: tuple[int, int] | None = knob(None, "", blank="", parse=parse_patch)
    patches: tuple[tuple[int, int], ...] | None = knob(None, "", blank="", parse=parse_patches)
    features: tuple[Feature, ...] | None = knob(None, "", blank="", parse=parse_features)


def given(**values):
    return Options(**{f.name: read(f, values[f.name]) for f in fields(Options) if f.name in values})


def test_lists_are_read_with_spaces_where_people_put_them():
    assert parse_numbers(" 3, 714", "x") == (3, 714) and parse_numbers("", "x") == ()
    assert parse_runs("3, 7-9", "x") == (3, 7, 8, 9) and parse_runs("0-2,9", "x") == (0, 1, 2, 9)
    assert parse_patches("0,0  3,2") == ((0, 0), (3, 2)) and parse_patch("3,2", "patch") == (3, 2)
    assert parse_features("5.mlp_act:1, 0.resid:2,") == (parse_feature("5.mlp_act:1"), parse_feature("0.resid:2"))


@pytest.mark.parametrize(
    ("parse", "text", "why"),
    [
        (parse_numbers, "3;4", "x must be numbers with commas between, such as 3,714; got '3;4'"),
        (parse_numbers, "-1", "x must be numbers"),
        (parse_runs, "3,a", "x must be numbers and runs such as 3,7-9; got '3,a'"),
        (parse_runs, "9-7", "x must be numbers and runs"),
        (parse_patches, "3", "row,column with spaces between, such as '0,0 4,6'; got '3'"),
        (parse_patch, "1,2 3,4", "x must be one row,column such as 4,6; got '1,2 3,4'"),
    ],
)
def test_lists_that_are_none_are_told(parse, text, why):
    with pytest.raises(ConfigError, match=why):
        parse(text, "x")


def test_features_are_addresses():
    with pytest.raises(SiteError, match="'5' is not a feature"):
        parse_features("5.mlp_act:1,5")


def test_what_the_command_line_takes_for_nothing_is_none_and_is_written_so_again():
    blank = given(limit=0, name="", patch=" ", patches="", features="")

    assert blank == Options() and blank.limit is blank.name is blank.patch is blank.features is None
    assert blank.to_dict() == {
        "limit": 0,
        "name": "",
        "numbers": "2,4",
        "patch": "",
        "patches": "",
        "features": "",
    }


def test_what_is_written_is_read_again():
    options = Options(
        limit=3,
        name="a",
        numbers=(),
        patch=(1, 2),
        patches=((0, 1), (2, 3)),
        features=(parse_feature("5.mlp_act:1"), parse_feature("0.resid:2")),
    )

    assert options.to_dict()["patches"] == "0,1 2,3" and options.to_dict()["features"] == "5.mlp_act:1,0.resid:2"
    assert given(**options.to_dict()) == options


@pytest.mark.parametrize(
    "values",
    [
        {"numbers": "2,4"},
        {"numbers": [2, 4]},
        {"numbers": None},
        {"numbers": (2, -1)},
        {"numbers": (2.0,)},
        {"numbers": (True,)},
        {"patch": (1,)},
        {"patch": (1, 2, 3)},
        {"patches": (1, 2)},
        {"features": ("5.mlp_act:1",)},
        {"limit": 0},
        {"limit": "3"},
        {"name": 3},
    ],
)
def test_other_types_are_refused(values):
    with pytest.raises(ConfigError, match=f"{next(iter(values))} must be "):
        Options(**values)


CONFIGS = {e.config for e in EXPERIMENTS.values()} | {GroupConfig, OccludeConfig, ViewsConfig, VisualizeConfig}


@pytest.mark.parametrize("config", sorted(CONFIGS, key=str))
def test_every_option_has_a_help_text_and_a_default_that_is_allowed(config):
    assert all(f.metadata["help"] for f in fields(config))
    assert config(**{f.name: read(f, x) for f, x in zip(fields(config), config().to_dict().values(), strict=True)})
