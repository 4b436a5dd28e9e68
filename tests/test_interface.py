"""What others rely on, kept in interface.json: public names, --help, the app's endpoints and links, written files.

After a change that is meant, write it anew with `python -m tests.test_interface` and tell it in the changelog.
"""

import argparse
import inspect
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import draw_noise

GOLDEN = Path(__file__).with_name("interface.json")


def public_names():
    import vitviz_hf

    return {name: _signature(getattr(vitviz_hf, name)) for name in vitviz_hf.__all__}


def _signature(thing):
    if inspect.isfunction(thing):
        return [str(p).split(":")[0].split(" =")[0] for p in inspect.signature(thing).parameters.values()]
    return sorted(n for n in dir(thing) if not n.startswith("_")) if inspect.isclass(thing) else []


def helps():
    from vitviz_hf.cli.main import _parser

    found = {}

    def walk(parser):
        found[parser.prog] = " ".join(parser.format_help().split())
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for child in action.choices.values():
                    walk(child)

    walk(_parser())
    return found


def app_interface(model):
    from vitviz_hf.ui.app import App

    app = App(str(model), lambda _: lambda job: job, False)
    named = app.demo.get_api_info()["named_endpoints"]
    endpoints = {
        name: {
            "takes": [p["parameter_name"] for p in end["parameters"]],
            "returns": [re.sub(r"value_\d+", "-", r["label"]) for r in end["returns"]],
        }
        for name, end in named.items()
    }
    return {"endpoints": endpoints, "link": [k.key for k in app.page.kept]}


def _commands(model, data, photo):
    fast = ["--steps", "2", "--preset", "fast"]
    return {
        "map": ["map", model, "1.mlp_act:3", "--image", photo],
        "visualize": ["visualize", model, "1.mlp_act:3", *fast],
        "atlas": ["search", model, data, "-k", "2"],
        "views": ["views", model, "--image", photo],
        "occlude": ["occlude", model, "--image", photo, "--seeds", "1"],
        "position": ["experiment", "position", model, data, "--limit", "6"],
        "triplets": ["experiment", "triplets", model, data, "--limit", "6", "--features", "1.mlp_act:3", *fast],
    }


def written(model, data):
    """{command: {file: what it holds}}."""
    from vitviz_hf.cli.main import main

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        draw_noise(3).save(out / "photo.png")
        for name, command in _commands(str(model), str(data), str(out / "photo.png")).items():
            assert main([*command, "--out", str(out / name)]) == 0, name
        atlas = str(out / "atlas")
        assert main(["atlas", "build", atlas, "1.mlp_act:3"]) == 0
        page = ["page", str(model), "1.mlp_act:3", "--atlas", atlas, "--out", str(out / "page.html")]
        assert main(page) == 0
        found = {}
        for path in sorted(p for p in out.rglob("*") if p.is_file()):
            parts = path.relative_to(out).parts
            found.setdefault(parts[0], {})["/".join(parts[1:])] = _content(path)
        return found


def _content(path):
    if path.suffix == ".json":
        return _keys(json.loads(path.read_text("utf-8")))
    if path.suffix == ".csv":
        return path.read_text("utf-8").splitlines()[0]
    if path.suffix == ".parquet":
        return pq.read_schema(path).names
    if path.suffix == ".png":
        return sorted(Image.open(path).text)
    return path.suffix


def _keys(value):
    return {k: _keys(v) for k, v in sorted(value.items())} if isinstance(value, dict) else type(value).__name__


def interface(model, data):
    found = {
        "names": public_names(),
        "help": helps(),
        "app": app_interface(model),
        "files": written(model, data),
    }
    return json.loads(json.dumps(found))


@pytest.fixture(scope="module")
def now(tiny_folder, labelled):
    os.environ["COLUMNS"] = "100"  # where argparse breaks a line, it may break a word
    found = interface(tiny_folder("vit"), labelled)
    if path := os.environ.get("VITVIZ_INTERFACE"):
        Path(path).write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", ["names", "help", "app", "files"])
def test_what_others_rely_on_is_as_it_was(now, part):
    assert now[part] == json.loads(GOLDEN.read_text("utf-8"))[part]


if __name__ == "__main__":  # in the tests' own surroundings, which `trained` brings
    os.environ["VITVIZ_INTERFACE"] = str(GOLDEN)
    harmless = "ignore::pytest.PytestAssertRewriteWarning"  # plugins are imported before pytest could rewrite them
    sys.exit(pytest.main(["-q", "-W", harmless, __file__]))
