"""Relevance: against the papers' formulas on a vision transformer that is written out here, and on real families."""

import re

import pytest
import torch
from torch.nn import functional

from vitviz_hf.errors import ConfigError, FeatureError, ModelError, NonFiniteError
from vitviz_hf.inside.relevance import relevance
from vitviz_hf.models.view import at_size, logits, normalize
from vitviz_hf.optimize.objectives import AtToken, Direction, to_objective
from vitviz_hf.optimize.scores import score_pixels
from vitviz_hf.sites import Site

TARGETS = ["logit:1", "2.resid:5@cls", "1.resid:3@1,2", "1.mlp_act:7", "2.mlp_act:7@cls", "1.attn_q:3@0,1"]
SUM = "logit:0 - 2*1.mlp_act:7 + 0.5*1.resid:3@cls"


def noise(view, batch=1, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


class ByHand:
    """The tiny ViT from its weights alone: 3 layers, 2 heads of 16, a class token and 4 x 4 patches."""

    def __init__(self, view):
        self.w = dict(view.module.state_dict())
        self.eps = view.module.config.layer_norm_eps

    def linear(self, name, x):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def norm(self, name, x):
        return functional.layer_norm(x, (32,), self.w[name + ".weight"], self.w[name + ".bias"], self.eps)

    def start(self, view, pixels):
        patches = normalize(view, pixels)[0].unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(16, -1)
        name = "vit.embeddings."
        x = patches @ self.w[name + "patch_embeddings.projection.weight"].flatten(1).T
        x = x + self.w[name + "patch_embeddings.projection.bias"]
        return torch.cat([self.w[name + "cls_token"][0], x]) + self.w[name + "position_embeddings"][0]

    def block(self, i, x):
        """Tokens after layer i, its attention as a part of the graph, and values at sites inside of it."""
        name, values = f"vit.layers.{i}.", {}
        inner = self.norm(name + "layernorm_before", x)
        for letter in "qkv":
            values[f"attn_{letter}"] = self.linear(name + f"attention.{letter}_proj", inner)
        q, k, v = (values[f"attn_{letter}"].view(17, 2, 16).transpose(0, 1) for letter in "qkv")
        attention = (q @ k.mT / 4).softmax(-1)
        attention = attention if attention.requires_grad else attention.requires_grad_()
        x = x + self.linear(name + "attention.o_proj", (attention @ v).transpose(0, 1).reshape(17, 32))
        inner = self.linear(name + "mlp.fc1", self.norm(name + "layernorm_after", x))
        values["mlp_act"] = functional.gelu(inner)
        values["resid"] = x + self.linear(name + "mlp.fc2", values["mlp_act"])
        return values["resid"], attention, values

    def head(self, x):
        return self.linear("classifier", self.norm("vit.layernorm", x)[0])


def read(term, values):
    """One target of a sum from the values [T, F] of its site, or the logits."""
    factor, target = term
    address, _, token = str(target).partition("@")
    index = int(address.partition(":")[2])
    if address.startswith("logit"):
        return factor * values[index]
    if token == "cls":
        return factor * values[0, index]
    if token:
        row, col = map(int, token.split(","))
        return factor * values[1 + 4 * row + col, index]
    return factor * values[1:, index].mean()


def rows_of(text):
    """[T], the share of each token that an objective of one target is read from."""
    _, _, token = text.partition("@")
    if text.startswith("logit") or token == "cls":
        return torch.eye(17)[0]
    if token:
        row, col = map(int, token.split(","))
        return torch.eye(17)[1 + 4 * row + col]
    return torch.cat([torch.zeros(1), torch.full((16,), 1 / 16)])


@pytest.mark.parametrize("text", TARGETS)
def test_chefers_map_is_the_papers_formula(text, vit):
    hand, pixels, (term,) = ByHand(vit), noise(vit), to_objective(text).terms
    x, attentions, values, last = hand.start(vit, pixels), [], [], term[1].site.layer if term[1].site else 2
    for i in range(last + 1):
        x, attention, found = hand.block(i, x)
        attentions.append(attention)
        values.append(found)
    score = read(term, values[last][term[1].site.kind] if term[1].site else hand.head(x))
    gradients = torch.autograd.grad(score, attentions, allow_unused=True)
    joined = torch.eye(17)
    for attention, gradient in zip(attentions, gradients, strict=True):
        if gradient is not None:  # a layer after the site adds nothing
            joined = joined + torch.stack([(gradient[h] * attention[h]).relu() for h in (0, 1)]).mean(0) @ joined

    made = relevance(vit, pixels, text, "chefer")

    expected = (rows_of(text) @ (joined - torch.eye(17)))[1:].view(4, 4).detach()
    assert made.method == "chefer" and made.score == pytest.approx(score.item(), rel=1e-4, abs=1e-6)
    torch.testing.assert_close(made.map, expected, rtol=1e-3, atol=float(expected.max()) * 1e-4)


def legrad_by_hand(vit, pixels, text):
    """For each layer the objective with all layers skipped between it and what is read, differentiated alone."""
    hand, total = ByHand(vit), torch.zeros(17)
    x = hand.start(vit, pixels)
    for i in range(3):
        x, attention, values = hand.block(i, x.detach())
        score = torch.zeros(())
        for term in to_objective(text).terms:
            site = term[1].site
            if site is None:
                score = score + read(term, hand.head(x))
            elif site.kind == "resid" and i <= site.layer:
                score = score + read(term, x)
            elif site.kind != "resid" and i < site.layer:
                score = score + read(term, hand.block(site.layer, x)[2][site.kind])
            elif i == site.layer:
                score = score + read(term, values[site.kind])
        if score.requires_grad:
            (gradient,) = torch.autograd.grad(score, attention, allow_unused=True)
            total += 0 if gradient is None else gradient.relu().sum((0, 1)) / (2 * 17)
    found = total[1:].view(4, 4)
    return (found - found.min()) / (found.max() - found.min())


@pytest.mark.parametrize("text", [*TARGETS, SUM])
def test_legrads_map_is_the_papers_formula(text, vit):
    pixels = noise(vit)

    made = relevance(vit, pixels, text, "legrad")

    torch.testing.assert_close(made.map, legrad_by_hand(vit, pixels, text), rtol=1e-3, atol=1e-3)
    assert made.score == pytest.approx(float(score_pixels(vit, [to_objective(text)], pixels[None])), rel=1e-4)


def test_the_methods_do_not_agree_by_chance(vit):
    maps = [relevance(vit, noise(vit), "logit:1", m).map.flatten() for m in ("legrad", "chefer", "gradient-input")]

    assert torch.corrcoef(torch.stack(maps)).triu(1).abs().max() < 0.95


@pytest.mark.parametrize("family", ["vit", "swin", "pvt", "timm-xcit", "convnext", "resnet"])
def test_gradient_times_input_is_summed_over_the_pixels_of_each_patch(family, tiny_view):
    view = tiny_view(family)
    pixels = noise(view)
    rows, cols = view.layers[0].patch_grid if view.layers else (n // 16 for n in view.input_size)
    given = pixels.expand(2, -1, -1, -1).clone().requires_grad_()  # a single one: see `Readout.twice`
    (gradient,) = torch.autograd.grad(logits(view, given)[:, 1].sum(), given)

    made = relevance(view, pixels, "logit:1", "gradient-input")

    height, width = view.input_size[0] // rows, view.input_size[1] // cols
    product = gradient[0] * (pixels[0] - torch.tensor(view.mean)[:, None, None])
    expected = product.unfold(1, height, height).unfold(2, width, width).sum((0, 3, 4))
    torch.testing.assert_close(made.map, expected, rtol=1e-3, atol=float(expected.abs().max()) * 1e-4)
    assert made.map.min() < 0


@pytest.mark.parametrize("method", ["legrad", "chefer"])
@pytest.mark.parametrize(
    "family", ["deit", "beit", "dinov2-registers", "dinov3", "clip", "siglip", "siglip2", "timm-vit"]
)
def test_families_keep_their_scores_where_attention_is_opened(family, method, tiny_view):
    view = tiny_view(family) if family == "siglip2" else at_size(tiny_view(family), (32, 48))
    texts = ["2.mlp_act:3 + 0.5*1.resid:2@1,1"] + (["logit:1"] if view.labels else [])
    pixels = noise(view)

    for text in texts:
        made = relevance(view, pixels, text, method)

        assert made.map.shape == view.layers[0].patch_grid and made.map.min() >= 0 and made.map.std() > 0
        expected = float(score_pixels(view, [to_objective(text)], pixels[None]))
        assert made.score == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("family", "token"), [("vit", "cls"), ("beit", None)])
def test_a_logit_takes_the_rows_of_the_tokens_that_the_head_reads(family, token, tiny_view):
    """ViT's head reads the class token, BEiT's the mean of the patches: as the direction of its gradient there."""
    view, kept = tiny_view(family), []
    pixels = noise(view)
    hook = view.module.get_submodule(view.layers[-1].name).register_forward_hook(lambda _, __, out: kept.append(out))
    (gradient,) = torch.autograd.grad(logits(view, pixels.clone().requires_grad_())[0, 1], kept[0])
    hook.remove()
    direction = Direction(Site(2, "resid"), tuple(gradient[0].sum(0).tolist()))

    made = relevance(view, pixels, "logit:1", "chefer").map

    expected = relevance(view, pixels, AtToken(direction, token) if token else direction, "chefer").map
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=float(expected.max()) * 1e-4)


@pytest.mark.parametrize(
    ("family", "target", "method"),
    [
        ("vit", "logit:1", "legrad"),
        ("siglip", "1.mlp_act:2", "legrad"),
        ("swin", "logit:1", "gradient-input"),
        ("timm-xcit", "logit:1", "gradient-input"),
        ("resnet", "logit:1", "gradient-input"),
        ("vit", "0.attn_q:2", "gradient-input"),
    ],
)
def test_auto_takes_legrad_where_attention_can_be_read(family, target, method, tiny_view):
    view = tiny_view(family)

    made = relevance(view, noise(view), target)

    assert made.method == method and torch.equal(made.map, relevance(view, noise(view), target, method).map)


def test_auto_tells_what_is_not_finite_and_takes_no_other_method(vit):
    with pytest.raises(NonFiniteError, match="the relevance by"):
        relevance(vit, noise(vit) * torch.nan, "logit:1")


def test_directions_are_explained_as_the_features_they_are_made_of(vit):
    vector = [0.0] * 32
    vector[5] = 2.0

    one = relevance(vit, noise(vit), Direction(Site(1, "resid"), tuple(vector)), "legrad")

    other = relevance(vit, noise(vit), "1.resid:5", "legrad")
    torch.testing.assert_close(one.map, other.map, rtol=1e-3, atol=1e-4)
    assert one.score == pytest.approx(2 * other.score)


@pytest.mark.parametrize("method", ["legrad", "chefer", "gradient-input"])
def test_nothing_is_left_behind(method, vit):
    pixels = noise(vit).requires_grad_()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vit.module.modules()]

    made = relevance(vit, pixels, "logit:1", method)

    assert pixels.grad is None and all(p.grad is None for p in vit.module.parameters())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vit.module.modules()]
    assert not made.map.requires_grad and torch.equal(made.map, relevance(vit, pixels, "logit:1", method).map)


@pytest.mark.parametrize("method", ["legrad", "chefer"])
def test_what_cannot_be_explained_by_attention_is_told(method, tiny_view, vit):
    with pytest.raises(ModelError, match="cannot be read"):
        relevance(tiny_view("timm-xcit"), noise(tiny_view("timm-xcit")), "logit:1", method)
    with pytest.raises(ConfigError, match="its layers work on several patch grids, or on windows"):
        relevance(tiny_view("swin"), noise(tiny_view("swin")), "logit:1", method)
    with pytest.raises(ConfigError, match=re.escape("no attention comes before '0.attn_q:2'; choose gradient-input")):
        relevance(vit, noise(vit), "0.attn_q:2", method)


def test_wrong_questions_are_told(vit):
    with pytest.raises(ConfigError, match="method must be one of auto, legrad, chefer, gradient-input; got 'lrp'"):
        relevance(vit, noise(vit), "logit:1", "lrp")
    with pytest.raises(ConfigError, match="relevance takes one picture; got a batch of 2"):
        relevance(vit, noise(vit, 2), "logit:1")
    with pytest.raises(FeatureError, match="has 3 classes; got 'logit:3'"):
        relevance(vit, noise(vit), "logit:3")
