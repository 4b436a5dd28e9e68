"""Attention: against the libraries' own open code, with masks, and from several threads at once on one module."""

import re
import threading

import pytest
import torch
import transformers
from torch.nn import functional

from vitviz_hf import load_model
from vitviz_hf.errors import ConfigError, ModelError
from vitviz_hf.models.view import normalize, run
from vitviz_hf.reading.attention import attention_weights, joint_attention

HF = [
    "vit",
    "deit",
    "beit",
    "data2vec",
    "dinov2",
    "dinov2-registers",
    "dinov3",
    "clip",
    "siglip",
    "siglip2",
    "aimv2",
    "ijepa",
]
TIMM = ["timm-vit", "timm-deit", "timm-beitv2", "timm-eva02"]


def noise(view, batch=1, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


def state(view):
    """All that opening an attention could leave behind."""
    fused = {n: m.fused_attn for n, m in view.module.named_modules() if hasattr(m, "fused_attn")}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in view.module.modules())
    registered = sorted(transformers.AttentionInterface._global_mapping)
    return fused, hooks, registered, getattr(view.module.config, "_attn_implementation", None)


def own_attention(folder, family, pixels):
    """[B, L, heads, T, T] by the library's own code that computes the weights openly, in a model of its own."""
    view, found = load_model(str(folder), device="cpu"), []
    if family.startswith("timm"):
        for module in view.module.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
                module.attn_drop.register_forward_hook(lambda _, __, out: found.append(out))
        run(view, pixels)
    elif view.module._can_set_attn_implementation():
        view.module.set_attn_implementation("eager")
        found = view.module(**view.inputs(normalize(view, pixels)), output_attentions=True).attentions
    else:
        view.module.config._attn_implementation = "eager"
        eager = type(view.module)._from_config(view.module.config, attn_implementation="eager").eval()
        eager.load_state_dict(view.module.state_dict())
        found = eager(**view.inputs(normalize(view, pixels)), output_attentions=True).attentions
    return torch.stack([a for a in found if a.shape[-1] == a.shape[-2]], 1).detach()


@pytest.mark.parametrize("family", [*HF, *TIMM])
def test_attention_is_that_of_the_librarys_own_open_code(family, tiny_view, tiny_folder):
    view, pixels = tiny_view(family), noise(tiny_view(family), 2)
    before, untouched = run(view, pixels)[0], state(view)

    weights = attention_weights(view, pixels)

    n = view.layers[0].n_prefix + 16
    own = own_attention(tiny_folder(family), family, pixels)
    assert weights.shape == (2, 3, n, n) and not torch.allclose(weights[:, 0], weights[:, 2], atol=1e-6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, n))
    torch.testing.assert_close(weights, own.mean(2), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(attention_weights(view, pixels, heads=True), own, atol=1e-6, rtol=1e-5)
    assert torch.equal(run(view, pixels)[0], before) and state(view) == untouched


def test_some_layers_are_those_of_all_in_the_order_asked_for(vit):
    pixels = noise(vit, 2)

    some = attention_weights(vit, pixels, heads=True, layers=[2, 0])

    assert some.shape == (2, 2, 2, 17, 17)
    assert torch.equal(some, attention_weights(vit, pixels, heads=True)[:, [2, 0]])


@pytest.mark.parametrize("layers", [[3], [-1], []])
def test_a_layer_that_is_not_there_is_told(layers, vit):
    with pytest.raises(ConfigError, match=re.escape(f"has layers 0-2; got layers {layers}.")):
        attention_weights(vit, noise(vit), layers=layers)


def test_masks_and_scales_are_those_of_the_call(monkeypatch, vit, generator):
    query, key, value = torch.randn(3, 1, 2, 17, 5, generator=generator)
    allowed, bias = torch.ones(17, 17).tril().bool(), torch.randn(17, 17, generator=generator)
    attend = functional.scaled_dot_product_attention

    def fake_run(*_):
        attend(query, key, value, attn_mask=allowed, scale=1.0)
        attend(query[..., :1, :], key, value)  # pools the tokens
        attend(query, key, value, bias)
        attend(query, key, value)

    monkeypatch.setattr("vitviz_hf.reading.attention.run", fake_run)

    weights = attention_weights(vit, noise(vit))[0]

    scores = query[0] @ key[0].mT
    expected = [
        torch.where(allowed, scores.exp(), 0) / torch.where(allowed, scores.exp(), 0).sum(-1, keepdim=True),
        *((scores / 5**0.5 + add).exp() / (scores / 5**0.5 + add).exp().sum(-1, keepdim=True) for add in (bias, 0)),
    ]
    torch.testing.assert_close(weights, torch.stack(expected).mean(1))


@pytest.mark.parametrize("family", ["vit", "timm-vit"])
@pytest.mark.parametrize("other", ["attention", "forward"])
def test_two_threads_on_one_module_do_not_disturb_each_other(family, other, tiny_view):
    view = tiny_view(family)
    pixels = {name: noise(view, 1, seed) for seed, name in enumerate(("first", "second"))}
    work = {"first": attention_weights, "second": attention_weights if other == "attention" else forward}
    alone, untouched = {name: work[name](view, pixels[name]) for name in work}, state(view)
    inside = {name: threading.Event() for name in work}
    first_done, found = threading.Event(), {}

    def meet(*_):  # the second begins when the first is inside, and ends after it
        name = threading.current_thread().name
        inside[name].set()
        assert (inside["second"] if name == "first" else first_done).wait(20)

    def call(name):
        try:
            if name == "second":
                assert inside["first"].wait(20)
            found[name] = work[name](view, pixels[name])
        except Exception as error:
            found[name] = error
        finally:
            inside[name].set()
            if name == "first":
                first_done.set()

    hook = view.module.get_submodule(view.layers[0].name).register_forward_hook(meet)
    threads = [threading.Thread(target=call, args=(name,), name=name) for name in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    hook.remove()

    for name in work:
        assert isinstance(found[name], torch.Tensor), found[name]
        assert torch.equal(found[name], alone[name]), name
    assert not torch.equal(found["first"], found["second"]) or other == "forward"
    assert state(view) == untouched


def forward(view, pixels):
    with torch.no_grad():
        return run(view, pixels)[0]


def test_an_attention_that_is_no_matrix_over_all_tokens_is_told(tiny_view):
    with pytest.raises(ModelError, match="cannot be read"):
        attention_weights(tiny_view("timm-xcit"), noise(tiny_view("timm-xcit")))


def test_levels_and_layers_of_joint_attention_by_hand():
    """Two layers, one class token and two patches, worked on paper."""
    first = torch.tensor([[0.2, 0.6, 0.2], [0.5, 0.5, 0.0], [0.0, 0.4, 0.6]])
    second = torch.tensor([[0.0, 0.0, 1.0], [0.2, 0.4, 0.4], [1.0, 0.0, 0.0]])

    found = joint_attention(torch.stack([first, second]), 1)

    one = torch.tensor([[0.6, 0.3, 0.1], [0.25, 0.75, 0.0], [0.0, 0.2, 0.8]])
    two = torch.tensor([[0.3, 0.25, 0.45], [0.235, 0.595, 0.17], [0.3, 0.25, 0.45]])
    torch.testing.assert_close(found.joint, torch.stack([one, two]))
    levels = [torch.tensor([[0.0, 0], [1, 0], [0, 1]]), one[:, 1:], two[:, 1:]]
    torch.testing.assert_close(found.views, torch.stack(levels))
