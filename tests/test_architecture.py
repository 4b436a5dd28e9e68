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
from tests.conftest import draw_noise
from tests.mutants import MUTANTS

ROOT = Path(vitviz_hf.__file__).parent
WINGS = [
    "errors _torchvision",
    "sites manifest images hub",
    "config templates",
    "stream models",
    "cluster",
    "reading",
    "optimize",
    "atlas inside",
    "experiments",
    "ui",
    "cli",
    "__main__",
]
"""Imports go down: a module may import what stands in a row before its own, so that there are no circles."""
FLOORS = {
    "models": ["families hooks builtin trace device", "gate measure", "taps loading", "text view", "seen"],
    "reading": ["recording batches classification tokens", "maps", "attention reference", "exemplars"],
    "optimize": [
        "config draws objectives collages",
        "transforms canvas",
        "penalties scores recipe",
        "guides",
        "loop",
        "replay",
    ],
    "atlas": [
        "config fold parquet agreement",
        "state",
        "search card",
        "store",
        "write words page",
        "spreading guiding",
    ],
    "inside": [
        "components curves edits figures heads lens norms places relevance similarity words",
        "reasons",
        "looks",
    ],
    "experiments": [
        "config tables figures masks verdict",
        "claims",
        "bootstrap perturb registry",
        "result",
        "accuracy pictures neurons",
        "run",
    ],
    "experiments.accuracy": [
        "crops labels boxes paper",
        "classifiers",
        "study",
        "token_mixing background low_pass position occlusion",
    ],
    "experiments.pictures": [
        "choosing judge realism",
        "trials",
        "progression narrow_sites triplets concepts spatial agreement",
        "judging",
    ],
    "experiments.neurons": ["filters scenes clusters", "views", "occlude group", "live"],
    "ui": [
        "made ahead durations visitor uploads",
        "shelf lane link events picker statistics memory growing growth tray files compare editor",
        "cards stored sheets searching telling",
        "guiding",
        "jobs drawing strip inside_values",
        "beside",
        "page",
        "maps_tab experiments_tab layer_grid",
        "atlas_panel",
        "optimize_tab features_tab behavior_tab inside_tab",
        "api",
        "inside_api",
        "app",
    ],
    "cli": ["options", "atlas behavior experiment inside optimization picture", "main"],
}
"""Inside a folder too."""
FENCES = {
    "gradio": {"ui"},
    "huggingface_hub": {"hub"},
    "transformers": {"models.loading", "models.text"},
    "timm": {"models.builtin", "models.loading"},
    "spaces": set(),
    "argparse": {"cli"},
    "datasets": {"stream", "atlas.write"},
    "jinja2": {"templates"},
    "matplotlib": {"experiments.figures"},
    "scipy": {"experiments"},
    "sklearn": {"experiments"},
    "ray": {"cluster"},
}


def rank(folder, name):
    floors = FLOORS[folder] if folder else WINGS
    found = [i for i, names in enumerate(floors) if name in names.split()]
    assert len(found) == 1, f"{name!r} stands in no row, or in several, of {folder or 'WINGS'}"
    return found[0]


def stands_above(importer, imported):
    """Both are names such as `reading.maps`; they are compared in the folder that holds them both."""
    own, other = importer.split("."), imported.split(".")
    depth = next(i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b)
    folder = ".".join(own[:depth])
    return rank(folder, own[depth]) > rank(folder, other[depth])


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__init__":
            yield ".".join(parts), path


NAMES = {name for name, _ in modules()}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            yield from [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            yield from [a.name for a in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            yield from [a.value for a in node.args if isinstance(a, ast.Constant)]


def fenced(module, name):
    owners = FENCES.get(name.split(".")[0])
    homes = {".".join(module.split(".")[: i + 1]) for i in range(module.count(".") + 1)}
    return owners is not None and not owners & homes


@pytest.mark.parametrize(("module", "path"), [pytest.param(m, p, id=str(p.relative_to(ROOT))) for m, p in modules()])
def test_imports_go_down_and_stay_within_their_fences(module, path):
    for name in imports(path):
        assert not fenced(module, name), f"{module} imports {name}"
        inner = name.removeprefix("vitviz_hf.")
        if inner != name and inner not in ("__version__", "_torchvision"):
            other = inner if inner in NAMES else inner.rpartition(".")[0]
            assert stands_above(module, other), f"{module} imports {name}"
        assert name != "vitviz_hf", f"{module} imports the package itself, which knows every wing"


def test_the_packages_own_file_imports_nothing_fenced():
    assert not [name for name in imports(ROOT / "__init__.py") if fenced("__init__", name)]


def test_every_folder_below_the_root_has_a_docstring_only():
    for path in ROOT.rglob("*/__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr), path


def test_tests_mirror_the_package():
    folders = {p.parent.relative_to(ROOT) for p in ROOT.rglob("*.py")} | {Path("stress")}
    tests = ROOT.parent / "tests"
    for path in set(tests.rglob("test_*.py")) - set(tests.glob("stress/*")):
        assert path.parent.relative_to(tests) in folders, path


def test_modules_and_functions_are_short():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_the_formatter_wins():
    for folder in (ROOT, ROOT.parent / "tests", ROOT.parent / "benchmarks"):
        assert not [p for p in folder.rglob("*.py") if "fmt: " + "skip" in p.read_text("utf-8")]


def test_every_planted_fault_has_its_place_and_its_tests():
    for fault in MUTANTS:
        assert (ROOT.parent / fault.path).read_text("utf-8").count(fault.old) == 1, fault
        for test in fault.tests:
            file, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}" in (ROOT.parent / file).read_text("utf-8"), fault


def test_no_folder_is_called_like_a_public_name():
    assert not {p.parent.name for p in ROOT.rglob("*/__init__.py")} & set(vitviz_hf.__all__)


def test_print_is_the_command_lines_only():
    for module, path in modules():
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert module.startswith("cli.") or not [c for c in calls if getattr(c.func, "id", "") == "print"], path


def test_hooks_are_registered_in_one_place():
    assert [m for m, p in modules() if re.search(r"\.register_\w*hook", p.read_text())] == ["models.hooks"]


def test_files_take_their_names_in_one_place():
    moving = r"os\.(replace|rename|link)\(|mkstemp|\.rename\("
    assert [m for m, p in modules() if re.search(moving, p.read_text())] == ["manifest"]


def test_pixels_become_bytes_and_pictures_in_one_place():
    by_hand = r"[*/] 255\b|255 \*|permute\((2, 0, 1|1, 2, 0)\)|transpose\((2, 0, 1|1, 2, 0)\)"
    found = [m for m, p in modules() if re.search(by_hand, p.read_text())]
    assert found == ["images", "models.builtin"]  # the latter is a checkpoint's own file


def test_public_names_are_sorted_and_importable():
    assert sorted(vitviz_hf.__all__) == vitviz_hf.__all__
    for name in vitviz_hf.__all__:
        assert not isinstance(getattr(vitviz_hf, name), type(sys)), f"{name} is a module"


def test_importing_the_package_imports_nothing_heavy():
    code = "import vitviz_hf.cli.main, sys; print(sorted({'torch','gradio','transformers','numpy'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


APP_AND_DATASETS = ["gradio", "datasets", "pyarrow", "spaces", "cachetools", "jinja2"]
"""And what comes with them."""
FIGURES = ["matplotlib", "sklearn", "scipy", "skimage", "onnx"]


@pytest.mark.slow
def test_models_are_read_optimized_and_searched_without_the_apps_and_the_datasets_packages(tmp_path, tiny_folder):
    """A machine that only computes has torch, transformers and timm."""
    draw_noise(0).save(tmp_path / "a.png")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({APP_AND_DATASETS + FIGURES}))
from pathlib import Path
import vitviz_hf as v
from vitviz_hf.atlas.search import search
view = v.load_model({str(tiny_folder("vit"))!r}, device="cpu")
made, = v.visualize(view, ["1.mlp_act:5"], v.VisualizeConfig.preset("fast", steps=2))
source = v.open_source({str(tmp_path)!r})
found = search(view, source, v.SearchConfig(), Path({str(tmp_path / "work")!r}))
print(made.pixels.shape, found.n_images)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert run.stdout == "torch.Size([3, 32, 32]) 1\n", run.stderr


FIRST = ["models.view", "optimize.loop", "reading.reference", "ui.app"]
FORKING = """
import importlib, os, sys
import gradio, matplotlib.figure, scipy.stats, sklearn.cluster, torch._dynamo
for module in sys.argv[1:]:
    if os.fork() == 0:
        importlib.import_module(f"vitviz_hf.{module}")
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"{module} cannot be the first")
"""
"""Others' packages are imported once, but for those that torchvision must precede."""


def test_a_module_can_be_the_first_to_be_imported():
    run = subprocess.run([sys.executable, "-c", FORKING, *FIRST], capture_output=True, text=True)

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
