import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitviz_hf import Feature, Site, parse_feature, parse_site
from vitviz_hf.errors import SiteError
from vitviz_hf.sites import KINDS, file_stem

sites = st.builds(Site, st.integers(0, 9999), st.sampled_from(KINDS))


@given(st.builds(Feature, sites, st.integers(0, 9_999_999)))
def test_an_address_is_read_back(feature):
    assert parse_feature(str(feature)) == feature
    assert parse_site(str(feature.site)) == feature.site


@pytest.mark.parametrize(
    "text", ["", "6", "6.mlp_act", "mlp_act:3", "-1.mlp_act:3", "6.mlp_act:-1", "6.mlp_act:x", "6.mlp_act:3:4"]
)
def test_malformed_features_are_refused(text):
    with pytest.raises(SiteError, match=r"LAYER\.KIND"):
        parse_feature(text)


def test_the_papers_names_are_translated():
    with pytest.raises(
        SiteError, match=r"unknown kind 'keys' in '6.keys'; kinds are attn_in, attn_q, .*the paper's 'keys' is attn_k"
    ):
        parse_site("6.keys")


def test_file_stem_has_no_separators():
    assert file_stem("6.mlp_act:20") == "6.mlp_act-20"
    assert "/" not in file_stem("../../etc:1")
    long = [file_stem(" + ".join(["5.mlp_act:3"] * n)) for n in (40, 41)]
    assert all(len(name) < 100 for name in long) and len(set(long)) == 2


@pytest.mark.parametrize(
    ("name", "kind"),
    [("in_feat", "attn_in"), ("queries", "attn_q"), ("out_feat", "attn_mix"), ("high", "mlp_act"), ("low", "mlp_out")],
)
def test_in_and_out_feat_are_the_papers_input_and_mixed_values_of_self_attention(name, kind):
    with pytest.raises(SiteError, match=f"the paper's '{name}' is {kind}"):
        parse_site(f"3.{name}")
