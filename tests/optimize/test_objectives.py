"""Sums of objectives, and what the presets maximize against."""

import pytest

from vitviz_hf import Logit, VisualizeConfig, parse_feature, parse_objective
from vitviz_hf.optimize.objectives import to_objective
from vitviz_hf.sites import Site

FIVE, SIX = parse_feature("1.mlp_act:5"), parse_feature("2.attn_q:6")


def test_objectives_are_added_subtracted_scaled_and_negated_term_by_term():
    one, two = to_objective(FIVE), parse_objective("2*2.attn_q:6 - logit:3")

    assert two.terms == ((2.0, SIX), (-1.0, Logit(3)))
    assert (one + two).terms == ((1.0, FIVE), (2.0, SIX), (-1.0, Logit(3)))
    assert (one - two).terms == ((1.0, FIVE), (-2.0, SIX), (1.0, Logit(3)))
    assert (-two).terms == ((-2.0, SIX), (1.0, Logit(3)))
    assert (0.5 * two).terms == ((1.0, SIX), (-0.5, Logit(3)))
    assert (one - two).sites == {Site(1, "mlp_act"), Site(2, "attn_q")}
    assert two.needs_logits and not one.needs_logits and str(-two) == "-2*2.attn_q:6 + logit:3"


@pytest.mark.parametrize(("preset", "smoothness"), [("paper", 4e-3), ("fourier", "auto"), ("fast", "auto")])
def test_presets_are_as_smooth_as_they_say(preset, smoothness):
    assert VisualizeConfig.preset(preset).smoothness == smoothness
