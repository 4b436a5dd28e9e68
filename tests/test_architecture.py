"""The order of the modules and what each may import, as the README of the design has it; and consistency."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import vitviz_hf

ROOT = Path(vitviz_hf.__file__).parent
RANKS = [
    "errors", "families sites", "config", "_torchvision", "manifest hooks images canvas transforms tables figures",
    "hub stream measure", "loading", "model", "recording labels scenes",
    "maps objectives classification search tokens occlusion", "attention filters",
    "reference optimization atlas", "naming page", "experiments", "ui", "cli", "__main__",
]  # fmt: skip
RANK = {name: i for i, names in enumerate(RANKS) for name in names.split()}
FENCES = {
    "gradio": {"ui"},
    "huggingface_hub": {"hub", "stream", "atlas"},
    "transformers": {"loading"},
    "timm": {"loading"},
    "spaces": set(),
    "argparse": {"cli"},
    "datasets": {"stream", "atlas"},
    "matplotlib": {"figures"},
    "scipy": {"experiments", "filters"},
    "sklearn": {"experiments"},
}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts != ("__init__",):
            yield parts[0], path


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            yield from [a.name for a in node.names]


@pytest.mark.parametrize(("module", "path"), [pytest.param(m, p, id=str(p.relative_to(ROOT))) for m, p in modules()])
def test_imports_go_down_and_stay_within_their_fences(module, path):
    for name in imports(path):
        if name in ("vitviz_hf.__version__",):
            continue
        if name.startswith("vitviz_hf."):
            other = name.split(".")[1]
            assert other == module or RANK[other] <= RANK[module], f"{module} imports {name}"
        owners = FENCES.get(name.split(".")[0])
        assert owners is None or module in owners, f"{module} imports {name}"


def test_print_is_the_command_lines_only():
    for module, path in modules():
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert module == "cli" or not [c for c in calls if getattr(c.func, "id", "") == "print"], path


def test_hooks_are_registered_in_one_place():
    assert [m for m, p in modules() if "register_forward" in p.read_text()] == ["hooks"]


def test_public_names_are_sorted_and_importable():
    assert sorted(vitviz_hf.__all__) == vitviz_hf.__all__
    for name in vitviz_hf.__all__:
        assert not isinstance(getattr(vitviz_hf, name), type(sys)), f"{name} is a module"


def test_importing_the_package_imports_nothing_heavy():
    code = "import vitviz_hf.cli, sys; print(sorted({'torch','gradio','transformers','numpy'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["model", "optimization", "reference", "ui"])
def test_a_module_can_be_the_first_to_be_imported(module):
    run = subprocess.run([sys.executable, "-c", f"import vitviz_hf.{module}"], capture_output=True, text=True)

    assert run.returncode == 0, run.stderr


def test_requirements_pin_what_the_package_depends_on():
    root = ROOT.parent
    pinned = {r.name: r for r in map(Requirement, (root / "requirements.txt").read_text().split("\n")[:-1])}
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    declared = {r.name: r for r in map(Requirement, project["dependencies"])}

    assert set(pinned) == set(declared)
    for name, requirement in pinned.items():
        version = str(requirement.specifier).removeprefix("==")
        assert declared[name].specifier.contains(version), requirement
        assert declared[name].extras == requirement.extras
    assert requires("vitviz_hf")


def test_the_space_header_matches_requirements():
    readme = (ROOT.parent / "README.md").read_text()
    sdk = re.search(r'sdk_version: "(.+)"', readme)[1]

    assert f"gradio[mcp]=={sdk}\n" in (ROOT.parent / "requirements.txt").read_text()
    assert len(re.search(r"short_description: (.+)", readme)[1]) <= 60
    assert 'python_version: "3.12"' in readme
