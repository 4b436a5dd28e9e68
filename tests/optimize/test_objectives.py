"""Sums of objectives, and what the presets maximize against."""

import pytest

from vitviz_hf import Logit, VisualizeConfig, parse_feature, parse_objective
from vitviz_hf.errors import ConfigError, FeatureError
from vitviz_hf.optimize.objectives import MAX_TERMS, number_classes, to_objective
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


LABELS = ("tabby, tabby cat", "tiger cat", "crane", "crane", "black-footed ferret")


@pytest.mark.parametrize(
    ("text", "numbered"),
    [
        ("logit:tabby", "logit:0"),
        ("-logit:Tiger_cat", "-logit:1"),
        ('5.mlp_act:1 - 0.5*logit:"black-footed ferret" + logit:3', "5.mlp_act:1 - 0.5*logit:4 + logit:3"),
        ("logit:17", "logit:17"),
    ],
)
def test_a_class_is_found_by_name(text, numbered):
    assert number_classes(text, LABELS) == numbered


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("logit:tiger", r"no class is named 'tiger'; close are logit:1 \(tiger cat\)"),
        ("logit:tabi", r"no class is named 'tabi'; close are logit:0 \(tabby, tabby cat\)"),
        ("logit:crane", r"several classes are named 'crane'; close are logit:2 \(crane\), logit:3 \(crane\)"),
        ("logit:xyzxyz", "no class is named 'xyzxyz'; no name is close"),
    ],
)
def test_a_class_that_is_not_found_brings_names_that_are_close(text, message):
    with pytest.raises(FeatureError, match=message):
        number_classes(text, LABELS)


def test_a_model_without_a_classifier_has_no_classes_by_name():
    assert number_classes("5.mlp_act:10 + logit:3", None) == "5.mlp_act:10 + logit:3"
    with pytest.raises(FeatureError, match="has no classifier, so there is no class 'tabby'"):
        number_classes("logit:tabby", None)


def test_an_objective_in_words_has_so_many_terms():
    terms = ["5.mlp_act:1"] * MAX_TERMS

    assert len(parse_objective(" + ".join(terms)).terms) == MAX_TERMS
    with pytest.raises(ConfigError, match=f"at most {MAX_TERMS} terms; got {MAX_TERMS + 1}"):
        parse_objective(" + ".join([*terms, "5.mlp_act:2"]))
