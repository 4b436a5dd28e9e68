"""A view gains kinds of sites, which work wherever the others do."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vitviz_hf import (
    Feature,
    SearchConfig,
    Site,
    VisualizeConfig,
    activation_map,
    activations,
    at_size,
    feature_page,
    list_sites,
    load_model,
    make_atlas,
    open_image,
    open_source,
    parse_feature,
    parse_objective,
    parse_site,
    reference_scores,
    replay,
    to_pixels,
    top_features,
    visualize,
)
from vitviz_hf.errors import AtlasError, ConfigError, FeatureError, RecipeError, SiteError
from vitviz_hf.models.taps import ExtraTap
from vitviz_hf.models.view import check_feature, with_taps
from vitviz_hf.sites import KINDS

ADDRESS, SITE, G = "2.my_kind", Site(2, "my_kind"), 48
QUICK = VisualizeConfig.preset("fast", steps=8, copies=2, seed=0)


def linear(seed=0, features=G):
    layer = nn.Linear(32, features)
    generator = torch.Generator().manual_seed(seed)
    layer.weight.data = torch.randn(features, 32, generator=generator)
    layer.bias.data = torch.randn(features, generator=generator)
    return layer


def extended(view, seed=0):
    return with_taps(view, {ADDRESS: ExtraTap("resid", linear(seed))})


@pytest.fixture(scope="module")
def more(tiny_view):
    return extended(tiny_view("vit"))


def noise(view, batch=1, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


def by_hand(view, pixels, seed=0):
    """[B, P, G]"""
    layer = linear(seed)
    with torch.no_grad():
        tokens = activations(view, pixels, ["2.resid"])[Site(2, "resid")].patches
        return tokens @ layer.weight.T + layer.bias


def test_it_is_listed_after_the_kinds_that_every_model_has(more, vit):
    assert (SITE, G) in list_sites(more)
    assert [s for s in list_sites(more) if s[0] != SITE] == list_sites(vit)
    assert more.kinds == (*KINDS, "my_kind") and vit.kinds == KINDS


def test_its_map_is_the_product_with_the_source(more, vit):
    pixels = noise(vit, 2)

    acts = activations(more, pixels, [ADDRESS])[SITE]

    expected = by_hand(vit, pixels).unflatten(1, vit.layers[2].patch_grid)
    torch.testing.assert_close(activation_map(acts, Feature(SITE, 7)), expected[..., 7])
    assert acts.prefix.shape == (2, 1, G)


@pytest.mark.parametrize("family", ["swin", "clip", "hiera", "timm-coat"])
def test_it_lies_on_the_grid_of_its_source_in_every_layout(family, tiny_view):
    view = tiny_view(family)
    kind = "resid" if "resid" in view.layers[1].taps else "mlp_out"
    size = view.layers[1].taps[kind].size
    twice = nn.Linear(size, size, bias=False)
    twice.weight.data = 2 * torch.eye(size)

    found = activations(with_taps(view, {"1.twice": ExtraTap(kind, twice)}), noise(view), ["1.twice", f"1.{kind}"])

    torch.testing.assert_close(found[Site(1, "twice")].map(3), 2 * found[Site(1, kind)].map(3))


def test_features_of_it_are_ranked(more, vit):
    pixels = noise(vit)
    values = by_hand(vit, pixels)[0]

    whole = top_features(more, pixels, ADDRESS, k=4)
    patch = top_features(more, pixels, SITE, k=4, patch=(1, 2))

    assert [f.index for f, _ in whole] == values.mean(0).argsort(descending=True)[:4].tolist()
    assert [f.index for f, _ in patch] == values[1 * 4 + 2].argsort(descending=True)[:4].tolist()


def test_each_view_has_its_own_reference(vit, more):
    one, other = (reference_scores(v)[SITE] for v in (more, extended(vit, seed=1)))

    assert one.shape == other.shape and not torch.allclose(one, other)
    assert reference_scores(more).keys() - reference_scores(vit).keys() == {SITE}
    assert torch.equal(reference_scores(more)[SITE], one)


def test_it_is_searched_and_has_pages(more, vit, labelled, tmp_path):
    source = open_source(str(labelled))
    rows = [row for row, _ in source.read(0, 1, None)]
    pixels = torch.cat([(to_pixels(vit, open_image(row.data)) * 255).round() / 255 for row in rows])
    scores = by_hand(vit, pixels).mean(1)

    atlas = make_atlas(more, source, SearchConfig(kinds=("my_kind",), k=5), tmp_path / "atlas")

    assert list(atlas.sites) == [SITE]
    for index in (0, 7, G - 1):
        hits = atlas.hits(Feature(SITE, index))
        torch.testing.assert_close(
            torch.tensor([h.score for h in hits]), scores[:, index].sort(descending=True).values[:5]
        )
    page = feature_page(more, atlas, Feature(SITE, 7), n=2)
    assert "2.my_kind:7" in page and page.count("<img") >= 4


def test_an_atlas_of_other_taps_is_refused(more, vit, labelled, tmp_path):
    source, config = open_source(str(labelled)), SearchConfig(kinds=("my_kind",), k=2, limit=4)
    atlas = make_atlas(more, source, config, tmp_path / "atlas")

    with pytest.raises(AtlasError, match="it was made with taps"):
        feature_page(extended(vit, seed=1), atlas, Feature(SITE, 7))
    with pytest.raises(SiteError, match=r"layer 2 of .* has no my_kind; it has attn_in"):
        feature_page(vit, atlas, Feature(SITE, 7))


def test_its_score_is_raised(more, vit):
    before = by_hand(vit, noise(vit)).mean(1)[0, 7]

    (result,) = visualize(more, ["2.my_kind:7"], QUICK)

    assert result.score == pytest.approx(by_hand(vit, result.pixels[None]).mean(1)[0, 7].item(), abs=1e-4)
    assert result.score > before + 1
    assert result.recipe["address"] == "2.my_kind:7"


def test_a_picture_is_made_again_with_the_taps_and_refused_without(more, vit, tmp_path):
    (result,) = visualize(more, ["2.my_kind:7"], QUICK)
    path = tmp_path / "a.png"
    result.save(path)

    assert replay(path, more).score == result.score
    with pytest.raises(RecipeError, match="unknown kind 'my_kind'"):
        replay(path, vit)


def test_addresses_of_it_are_read_for_the_view_and_refused_without(more, tmp_path):
    assert parse_site(ADDRESS, more.kinds) == SITE
    assert parse_feature("2.my_kind:3", more.kinds) == Feature(SITE, 3)
    assert parse_objective("2.my_kind:3", more.kinds).sites == {SITE}
    with pytest.raises(SiteError, match=r"unknown kind 'my_kind' in '2\.my_kind'; kinds are attn_in"):
        parse_site(ADDRESS)
    with pytest.raises(SiteError, match=r"unknown kind 'other' in '2\.other'; kinds are attn_in, .*, resid, my_kind"):
        activations(more, noise(more), ["2.other"])
    with pytest.raises(SiteError, match=r"layer 1 of .* has no my_kind"):
        activations(more, noise(more), ["1.my_kind"])
    with pytest.raises(FeatureError, match=r"'2\.my_kind' has 48 features \(0-47\); got 48"):
        check_feature(more, Feature(SITE, G))
    with pytest.raises(ConfigError, match=r"unknown kind 'other'; kinds are .*my_kind"):
        make_atlas(more, open_source("builtin"), SearchConfig(kinds=("other",)), tmp_path / "a")


def test_the_identity_tells_the_taps_and_is_as_before_without(more, vit):
    assert "taps" not in vit.identity.to_json() and more.identity.to_json()["taps"]
    assert more.identity == extended(vit).identity and more.identity.key == extended(vit).identity.key
    assert len({v.identity.key for v in (vit, more, extended(vit, seed=1))}) == 3
    named = with_taps(vit, {"2.other": ExtraTap("resid", linear())})
    assert named.identity.key != more.identity.key


def test_what_happens_to_the_function_later_changes_no_view(vit):
    layer = linear()
    view = with_taps(vit, {ADDRESS: ExtraTap("resid", layer)})
    before = activations(view, noise(vit), [ADDRESS])[SITE].values

    layer.weight.data.zero_()

    assert torch.equal(activations(view, noise(vit), [ADDRESS])[SITE].values, before)
    assert all(p.requires_grad for p in layer.parameters())


def test_it_stays_at_another_size_and_in_half_precision(more, tiny_folder):
    wide = at_size(more, (32, 48))
    half = extended(load_model(str(tiny_folder("vit")), device="cpu", dtype=torch.bfloat16))

    assert activations(wide, noise(wide), [ADDRESS])[SITE].map(0).shape == (1, 4, 6)
    assert activations(half, noise(half), [ADDRESS])[SITE].values.dtype == torch.bfloat16


def test_a_tap_of_a_tap_is_both_in_turn(more):
    view = with_taps(more, {"2.after": ExtraTap("my_kind", nn.ReLU())})

    found = activations(view, noise(view), ["2.after", ADDRESS])

    assert torch.equal(found[Site(2, "after")].values, found[SITE].values.relu())
    assert found[SITE].values.min() < 0


@pytest.mark.parametrize(
    ("address", "tap", "error", "text"),
    [
        ("2.resid", ExtraTap("resid", linear()), SiteError, "a new kind needs a name of its own"),
        ("2.mlp_pre", ExtraTap("resid", linear()), SiteError, "a new kind needs a name of its own"),
        ("2.my_kind", ExtraTap("resid", linear()), SiteError, r"the view has a tap '2\.my_kind' already"),
        ("3.new", ExtraTap("resid", linear()), SiteError, r"'3\.new' cannot be made: there is no '3\.resid'"),
        ("1.new", ExtraTap("keys", linear()), SiteError, r"'1\.new' cannot be made: there is no '1\.keys'"),
        ("new", ExtraTap("resid", linear()), SiteError, r"write LAYER\.KIND"),
        ("1.new", ExtraTap("resid", nn.Flatten()), ConfigError, "each token of .* from itself alone"),
    ],
)
def test_taps_that_cannot_be_are_refused(address, tap, error, text, more):
    with pytest.raises(error, match=text):
        with_taps(more, {address: tap})


def test_the_other_sites_are_as_they_were(more, vit):
    pixels = noise(vit)
    sites = [s for s, _ in list_sites(vit)]
    ours, plain = (activations(v, pixels, sites) for v in (more, vit))

    assert all(torch.equal(ours[s].values, plain[s].values) for s in sites)
    assert replace(more, extra_taps={}, layers=vit.layers).identity == vit.identity


class Buffers(nn.Module):
    """A matrix that is no parameter, and is not stored."""

    def __init__(self, factor):
        super().__init__()
        self.register_buffer("matrix", factor * torch.eye(32), persistent=False)

    def forward(self, values):
        return values @ self.matrix


class Mixing(nn.Module):
    def forward(self, values):
        return values - values.mean(1, keepdim=True)


def test_whatever_decides_the_values_decides_the_identity(vit):
    first, second = (with_taps(vit, {"2.new": ExtraTap("resid", Buffers(x))}) for x in (1.0, 2.0))
    a, b = ("2.a", ExtraTap("resid", linear(1))), ("2.b", ExtraTap("resid", linear(2)))

    assert first.identity.key != second.identity.key
    assert with_taps(vit, dict([a, b])).identity == with_taps(vit, dict([b, a])).identity


def test_a_tap_of_another_extra_one_may_come_first(vit):
    taps = {"2.b": ExtraTap("a", linear(2, 8)), "2.a": ExtraTap("resid", linear(1, 32))}
    view, pixels = with_taps(vit, taps), noise(vit)

    found = activations(view, pixels, ["2.resid", "2.b"])

    expected = linear(2, 8)(linear(1, 32)(found[Site(2, "resid")].values))
    torch.testing.assert_close(found[Site(2, "b")].values, expected)


def test_a_tap_without_parameters_follows_the_views_precision(tiny_folder):
    view = load_model(str(tiny_folder("vit")), device="cpu", dtype=torch.bfloat16)

    more = with_taps(view, {"2.new": ExtraTap("resid", Buffers(2.0))})

    found = activations(more, noise(view), ["2.new", "2.resid"])
    torch.testing.assert_close(found[Site(2, "new")].values, 2 * found[Site(2, "resid")].values)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (nn.Linear(5, 3), r"'2\.new' must take \[B, T, 32\] and give \[B, T, G\]"),
        (nn.LSTM(32, 4), r"'2\.new' must take"),
        (torch.relu, r"'2\.new' must be a torch module"),
        (Mixing(), r"'2\.new' must make each token of \[B, T, 32\] from itself alone"),
    ],
)
def test_functions_that_are_none_of_a_token_are_refused(vit, function, text):
    with pytest.raises(ConfigError, match=text):
        with_taps(vit, {"2.new": ExtraTap("resid", function)})
