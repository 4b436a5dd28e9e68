"""Repositories as strangers could publish them: a harmless one, spoiled, with what must come of it."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

REFUSED, EITHER, WORKS = "refused", "either", "works"
CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
MARKUP = "<img src=x onerror=alert(1)>"

Files = dict[str, bytes]
Spoil = Callable[[Files, Any, "Places"], str]


class Places:
    """What a stranger would like to reach."""

    def __init__(self, trap: str, executed: Path) -> None:
        self.trap = trap
        """Address of another host that must not be asked."""
        self.executed = executed
        """File that a pickle makes if it is executed."""

    @property
    def pickled(self) -> bytes:
        return pickle.dumps(_Evil(str(self.executed)))


class _Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def edit(files: Files, name: str, **changes: Any) -> None:
    files[name] = json.dumps(json.loads(files[name]) | changes).encode()


def rewrite(files: Files, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load(files[WEIGHTS])
    change(tensors)
    files[WEIGHTS] = save(tensors, {"format": "pt"})


def header(files: Files, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what the weights' own header says."""
    data = files[WEIGHTS]
    n = struct.unpack("<Q", data[:8])[0]
    facts = json.loads(data[8 : 8 + n])
    text = json.dumps(change(facts) or facts).encode()
    files[WEIGHTS] = struct.pack("<Q", len(text)) + text + data[8 + n :]


# config.json


def nested_config(files: Files, rng: Any, places: Places) -> str:
    name, depth = str(rng.choice([CONFIG, PROCESSOR])), int(rng.choice([2_000, 100_000]))
    value = b'{"a":' * depth + b"1" + b"}" * depth if rng.integers(2) else b"[" * depth + b"]" * depth
    files[name] = value if rng.integers(2) else files[name].rstrip()[:-1] + b', "x": ' + value + b"}"
    return EITHER


def no_config(files: Files, rng: Any, places: Places) -> str:
    texts = [b"", b"{", b"null", b"[]", b"3", b'"x"', b"\xff\xfe\0", b"NaN", b"{}", b'{"model_type": null}']
    files[CONFIG] = texts[rng.integers(len(texts))]
    return REFUSED


def long_config(files: Files, rng: Any, places: Places) -> str:
    files[str(rng.choice([CONFIG, PROCESSOR]))] = b'{"model_type": "vit", "x": "' + b"a" * 30_000_000 + b'"}'
    return REFUSED


ODD_VALUES = (None, -1, 0, 1.5, "32", "", [], {}, [1, 2], True, 10**9, 2**70, float("nan"), MARKUP, [[]] * 9)


def odd_value(files: Files, rng: Any, places: Places) -> str:
    config = json.loads(files[CONFIG])
    edit(files, CONFIG, **{str(rng.choice(list(config))): ODD_VALUES[rng.integers(len(ODD_VALUES))]})
    return EITHER


def odd_processor(files: Files, rng: Any, places: Places) -> str:
    config = json.loads(files[PROCESSOR])
    edit(files, PROCESSOR, **{str(rng.choice(list(config))): ODD_VALUES[rng.integers(len(ODD_VALUES))]})
    return EITHER


def huge_input(files: Files, rng: Any, places: Places) -> str:
    side = int(rng.choice([8_192, 20_000, 100_000, 10**6]))
    edit(files, PROCESSOR, size={"height": side, "width": side})
    return REFUSED


def huge_model(files: Files, rng: Any, places: Places) -> str:
    name = str(rng.choice(["hidden_size", "intermediate_size", "num_hidden_layers", "image_size"]))
    edit(files, CONFIG, **{name: {"num_hidden_layers": 2_000}.get(name, 2**20)})
    return REFUSED


def other_class(files: Files, rng: Any, places: Places) -> str:
    names = [["os.system"], [MARKUP], "ViTModel", {"a": 1}, [1], 7, ["BertModel"], ["AutoModel"], [None], [["x"]]]
    edit(files, CONFIG, architectures=names[rng.integers(len(names))])
    return EITHER


def other_type(files: Files, rng: Any, places: Places) -> str:
    names = [["vit"], {"a": 1}, 7, "VIT", "bert", "../vit", MARKUP, "timm_wrapper", "vit\0", "clip", "swin"]
    edit(files, CONFIG, model_type=names[rng.integers(len(names))])
    return REFUSED


def own_code(files: Files, rng: Any, places: Places) -> str:
    code = f"open({str(places.executed)!r}, 'w')"
    for name in ("evil.py", "modeling_evil.py", "__init__.py"):
        files[name] = code.encode()
    where = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config", "AutoImageProcessor": ["evil.P", "evil.Q"]}
    how = int(rng.integers(4))
    if how == 0:
        edit(files, CONFIG, model_type="mine", auto_map=where)
        return REFUSED
    if how == 1:
        edit(files, CONFIG, auto_map={k: f"odd/evil--{v}" for k, v in where.items()}, trust_remote_code=True)
    elif how == 2:
        edit(files, PROCESSOR, auto_map=where, image_processor_type="Evil")
    else:
        edit(files, CONFIG, custom_pipelines={"x": {"impl": "evil.P"}}, _attn_implementation="odd/kernel")
    return EITHER


def other_places(files: Files, rng: Any, places: Places) -> str:
    """Keys that some library might follow."""
    address = f"{places.trap}/w.safetensors"
    keys: list[dict[str, Any]] = [
        {"_name_or_path": address, "name_or_path": "../../x"},
        {"base_model_name_or_path": "odd/other", "peft_type": "LORA"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"quantization_config": {"quant_method": MARKUP}},
        {"attn_implementation": "odd/kernel", "_attn_implementation_internal": "odd/kernel"},
        {"use_kernels": True, "kernel_config": {"x": address}},
        {"torch_dtype": "evil"},
        {"dtype": "float8_e4m3fn"},
        {"backbone": "odd/other", "use_pretrained_backbone": True},
        {"gguf_file": "../x", "subfolder": "../..", "transformers_weights": "../../x.safetensors"},
        {"transformers_weights": "pytorch_model.bin"},
    ]
    edit(files, CONFIG, **keys[rng.integers(len(keys))])
    files["adapter_config.json"] = json.dumps({"base_model_name_or_path": "odd/other", "peft_type": "LORA"}).encode()
    files["pytorch_model.bin"] = places.pickled
    return EITHER


def labels(files: Files, rng: Any, places: Places) -> str:
    values: list[Any] = [
        {"0": MARKUP, "1": "b", "2": "c"},
        {"x": "a"},
        {},
        None,
        ["a"],
        {"0": {"a": 1}},
        {"0": "a" * 10**6},
    ]
    edit(files, CONFIG, id2label=values[rng.integers(len(values))])
    return EITHER


# Weights


def lying_header(files: Files, rng: Any, places: Places) -> str:
    lengths = [0, 1, 2**63, 2**64 - 1, 100_000_001, len(files[WEIGHTS]), len(files[WEIGHTS]) - 8, 10]
    length = struct.pack("<Q", lengths[rng.integers(len(lengths))])
    files[WEIGHTS] = length + files[WEIGHTS][8:]
    return REFUSED


def lying_offsets(files: Files, rng: Any, places: Places) -> str:
    def change(facts: dict[str, Any]) -> None:
        names = [n for n in facts if n != "__metadata__"]
        entry = facts[str(rng.choice(names))]
        first, last = entry["data_offsets"]
        options = [
            [first, last + 4],
            [last, first],
            [-1, last],
            [first, 2**63],
            [0, 0],
            [first + 1, last + 1],
            ["a", 2],
        ]
        entry["data_offsets"] = options[rng.integers(len(options))]

    header(files, change)
    return REFUSED


def lying_shapes(files: Files, rng: Any, places: Places) -> str:
    def change(facts: dict[str, Any]) -> None:
        entry = facts[str(rng.choice([n for n in facts if n != "__metadata__"]))]
        entry["shape"] = [[10**6, 10**6], [2**40, 2**40], [-1], ["a"], [0], [[1]], None][rng.integers(7)]

    header(files, change)
    return REFUSED


def lying_types(files: Files, rng: Any, places: Places) -> str:
    def change(facts: dict[str, Any]) -> None:
        entry = facts[str(rng.choice([n for n in facts if n != "__metadata__"]))]
        entry["dtype"] = ["F64", "U8", "Q4", "", None, 3, MARKUP][rng.integers(7)]

    header(files, change)
    return REFUSED


def odd_header(files: Files, rng: Any, places: Places) -> str:
    bad = [b"[]", b"null", b"{" * 5000, b'{"a":' * 20_000, b'{"__metadata__": {"format": "pickle"}}', b'{"a": 1}']
    text = bad[rng.integers(len(bad))]
    files[WEIGHTS] = struct.pack("<Q", len(text)) + text
    return REFUSED


def other_shapes(files: Files, rng: Any, places: Places) -> str:
    def change(tensors: dict[str, Any]) -> None:
        name = str(rng.choice(sorted(tensors)))
        tensors[name] = np.zeros((*tensors[name].shape, 2) if rng.integers(2) else (1,), np.float32)

    rewrite(files, change)
    return REFUSED


def lost_or_strange_names(files: Files, rng: Any, places: Places) -> str:
    def change(tensors: dict[str, Any]) -> None:
        taken = tensors.pop(str(rng.choice(sorted(n for n in tensors if "layer" in n))))
        tensors[str(rng.choice(["../../x", MARKUP, "a.__class__", "", "\n"]))] = taken

    rewrite(files, change)
    return REFUSED


def not_finite(files: Files, rng: Any, places: Places) -> str:
    def change(tensors: dict[str, Any]) -> None:
        for name in tensors:
            tensors[name] = np.full_like(tensors[name], [np.nan, np.inf, 3e38][rng.integers(3)])

    rewrite(files, change)
    return EITHER


def cut_weights(files: Files, rng: Any, places: Places) -> str:
    files[WEIGHTS] = files[WEIGHTS][: int(rng.integers(len(files[WEIGHTS])))]
    return REFUSED


def flipped_weights(files: Files, rng: Any, places: Places) -> str:
    data = bytearray(files[WEIGHTS])
    for _ in range(20):
        data[rng.integers(min(len(data), 3000))] = rng.integers(256)
    files[WEIGHTS] = bytes(data)
    return EITHER


def pickle_by_another_name(files: Files, rng: Any, places: Places) -> str:
    files[WEIGHTS] = places.pickled
    return REFUSED


def pickle_beside(files: Files, rng: Any, places: Places) -> str:
    """Safetensors that cannot be read, and pickles that can."""
    files[WEIGHTS] = b""
    for name in ("pytorch_model.bin", "model.pt", "tf_model.h5", "flax_model.msgpack", "training_args.bin"):
        files[name] = places.pickled
    return REFUSED


def only_pickles(files: Files, rng: Any, places: Places) -> str:
    del files[WEIGHTS]
    files[str(rng.choice(["pytorch_model.bin", "model.pt", "a.ckpt", "x.pth"]))] = places.pickled
    return REFUSED


def index_elsewhere(files: Files, rng: Any, places: Places) -> str:
    targets: list[Any] = [
        "../../x.safetensors",
        "/etc/passwd",
        f"{places.trap}/x.safetensors",
        "pytorch_model.bin",
        "a/b.safetensors",
        "..\\x.safetensors",
        "x.safetensors\n",
        MARKUP,
        "missing.safetensors",
        "...safetensors",
        3,
        None,
        ["x"],
        {"a": "b"},
    ]
    files["pytorch_model.bin"] = places.pickled
    names = list(load(files.pop(WEIGHTS)))
    files[INDEX] = json.dumps({"weight_map": dict.fromkeys(names, targets[rng.integers(len(targets))])}).encode()
    return REFUSED


def odd_index(files: Files, rng: Any, places: Places) -> str:
    del files[WEIGHTS]
    texts = [b"", b"[]", b"null", b'{"weight_map": []}', b'{"weight_map": {}}', b"[" * 100_000, b'{"a":' * 100_000]
    texts += [b"\xff", b'{"weight_map": {"a": "' + b"x" * 5_000 + b'.safetensors"}}']
    files[INDEX] = texts[rng.integers(len(texts))]
    return REFUSED


def index_of_too_much(files: Files, rng: Any, places: Places) -> str:
    del files[WEIGHTS]
    weights = {f"w{i}": f"{i}.safetensors" for i in range(50_000)}
    files[INDEX] = json.dumps({"metadata": {"total_size": -1}, "weight_map": weights}).encode()
    return REFUSED


def odd_files(files: Files, rng: Any, places: Places) -> str:
    """Names that would lie elsewhere; nobody asks for them."""
    for name in (
        "../../evil.json",
        "/etc/evil",
        "a\\..\\evil",
        "..",
        f"{MARKUP}.json",
        "config.json/../../evil",
        "x" * 300,
    ):
        files[name] = b"{}"
    return EITHER


MODEL_SPOILS: tuple[Spoil, ...] = (
    nested_config,
    no_config,
    long_config,
    odd_value,
    odd_processor,
    huge_input,
    huge_model,
    other_class,
    other_type,
    own_code,
    other_places,
    labels,
    lying_header,
    lying_offsets,
    lying_shapes,
    lying_types,
    odd_header,
    other_shapes,
    lost_or_strange_names,
    not_finite,
    cut_weights,
    flipped_weights,
    pickle_by_another_name,
    pickle_beside,
    only_pickles,
    index_elsewhere,
    odd_index,
    index_of_too_much,
    odd_files,
)


# timm's own config.json


def timm_arguments(files: Files, rng: Any, places: Places) -> str:
    given: list[dict[str, Any]] = [
        {"checkpoint_path": str(places.executed.with_name("weights.pth"))},
        {"checkpoint_path": f"{places.trap}/w.pth"},
        {"pretrained": True},
        {"pretrained_cfg": {"url": f"{places.trap}/w.pth"}},
        {"pretrained_cfg_overlay": {"file": str(places.executed.with_name("weights.pth"))}},
        {"cache_dir": str(places.executed.with_name("cache")), "pretrained": True},
        {"scriptable": True, "exportable": True},
        {"features_only": True},
        {"depth": 10**5},
        {"img_size": 10**6},
        {"embed_dim": "x"},
        {"norm_layer": "os.system"},
        {"act_layer": MARKUP},
        {"weight_init": "evil"},
    ]
    edit(files, CONFIG, model_args=given[rng.integers(len(given))])
    return REFUSED if rng is None else EITHER


def timm_architecture(files: Files, rng: Any, places: Places) -> str:
    names = [
        "hf-hub:odd/other",
        "hf_hub:odd/other",
        "local-dir:/etc",
        "../x",
        MARKUP,
        7,
        None,
        [],
        "resnet50.a1_in1k:x",
    ]
    edit(files, CONFIG, architecture=names[rng.integers(len(names))])
    return REFUSED


def timm_pretrained(files: Files, rng: Any, places: Places) -> str:
    config = json.loads(files[CONFIG])["pretrained_cfg"]
    values = [*ODD_VALUES, "bicubic", [3, 10**6, 10**6], [3, "a", 2], ["a", "b", "c"], [0, 0, 0]]
    changes = {str(rng.choice(list(config))): values[rng.integers(len(values))]}
    changes |= {"url": f"{places.trap}/w.pth", "hf_hub_id": "odd/other", "custom_load": True, "file": "/etc/passwd"}
    edit(files, CONFIG, pretrained_cfg=config | changes)
    return EITHER


TIMM_SPOILS: tuple[Spoil, ...] = (timm_arguments, timm_architecture, timm_pretrained)

IDS = (
    "../x",
    "a/../b",
    "a/..",
    "..",
    ".",
    "/",
    "/dev/null",
    "/proc/self/mem",
    "~",
    "~nobody-at-all/x",
    "a/b/../../c",
    "..%2f..%2fetc",
    "%2e%2e/x",
    "a\\..\\b",
    "a/b?token=hf_friend",
    "a/b#main",
    "a/b@main",
    "a/b:main",
    "hf://a/b",
    "file:///etc/passwd",
    "TRAP/a/b",
    "http://user:hf_friend@127.0.0.1:9/a",
    "//127.0.0.1/a",
    "a/b\nAuthorization: x",
    "a/b\r\n\r\nGET /",
    "a\0b",
    "a/b\0",
    "\ud800/x",
    "a/" + "b" * 5_000,
    "b" * 300,
    "a/" * 200,
    " ",
    "\u202egnp.exe/x",
    MARKUP,
    "datasets/a/b",
    "a/b.git",
    "--help",
    "$(touch x)",
    "a/b;rm",
    "*",
    "a/*",
    "tiny/vit/",
    "/tiny/vit",
    " tiny/vit",
    "hf-hub:tiny/vit",
)
REVISIONS = (
    "../../x",
    "main/../../x",
    "a?b=c",
    "a#b",
    "a b",
    "\n",
    "x" * 3_000,
    "-x",
    "refs/pr/../../x",
    "a\0b",
    "%2e%2e",
    MARKUP,
)
