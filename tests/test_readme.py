"""The README's Python runs, and its commands exist."""

import re
import shlex
from pathlib import Path

import pytest

from vitviz_hf.cli.main import _parser

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.S)
VERBS = "models|sites|top|map|visualize|replay|classify|search|atlas|page|experiment|views|occlude|group"
COMMANDS = re.findall(rf"vitviz (?:{VERBS}) [^`\n#]+", README)


@pytest.mark.slow
@pytest.mark.parametrize("block", [text for language, text in BLOCKS if language == "python"])
def test_python_blocks_run(block, builtin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    exec(compile(block, "README.md", "exec"), {})

    assert (tmp_path / "fur.png").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    assert _parser().parse_args(shlex.split(command)[1:]).run


def test_make_targets_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()

    for target in re.findall(r"^make (\w+)", README, flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M)


def test_the_readme_is_short_and_its_pictures_exist():
    assert len(README.splitlines()) <= 150
    for path in re.findall(r"!\[.+?\]\((.+?)\)", README):
        assert (Path(__file__).parent.parent / path).is_file()
