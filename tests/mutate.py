"""Mutation testing: cosmic-ray's changes of the modules that compute results, and which of them no test notices.

`python -m tests.mutate [--sample N] [--seed S] [FILE ...]`, or `make mutate`. Every change runs the tests that reach
its line, the shortest first, until one fails. Survivors that cannot be noticed stand in equivalent_mutants.toml.
"""

import argparse
import ast
import json
import os
import random
import re
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.warm import FAILED, PACKAGE, PASSED, ROOT, TIMED_OUT, Job, run_jobs, warm_up

TARGET = 90.0
"""Percent of the changes of a file that tests must notice."""
KILLED, ALIVE, EQUAL, UNLOADED = "killed", "alive", "equivalent", "does not load"
FILES = ("reading", "optimize", "atlas/search", "atlas/words", "experiments")
# The browser, the Hub and the text of the README compute nothing.
_NO_TESTS = ("test_app*.py", "test_readme.py", "test_architecture.py", "test_hub.py")
_KEPT = ROOT / ".mutation"
# What fails for any test with a TypeError, such as a shift of floats, would only raise the share.
_TARGETS = {
    "Binary": {"Add", "Sub", "Mul", "Div", "FloorDiv"},
    "Comparison": {"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE", "In", "NotIn"},
    "Unary": {"UAdd", "USub", "Not"},
}
_BITS = {"BitOr", "BitAnd", "BitXor"}
_DATA = re.compile(r"_?(PAPER|CLASSES|COLOR)")


@dataclass(frozen=True)
class Change:
    """One mutation of a file."""

    path: str
    operator: str
    line: int
    old: str
    new: str
    """The changed lines."""
    source: str
    """Of the whole file."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is known by in the list of equivalent ones."""
        return self.path, _bare(self.old), _bare(self.new)


@dataclass(frozen=True)
class Spot:
    """Where cosmic-ray would change a file."""

    path: str
    operator: str
    occurrence: int
    line: int

    def change(self) -> Change:
        """The change itself."""
        from cosmic_ray import plugins
        from cosmic_ray.mutating import mutate_code

        source = (ROOT / self.path).read_text("utf-8")
        changed = mutate_code(source, plugins.get_operator(self.operator)(), self.occurrence)
        return Change(self.path, self.operator.partition("/")[2], self.line, *_difference(source, changed), changed)


def list_spots(path: str) -> list[Spot]:
    """All changes of a file: those of annotations and of the papers' numbers are left out."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    nodes, found = list(ast_nodes(get_ast((ROOT / path).read_text("utf-8")))), []
    for name in plugins.operator_names():
        kind = plugins.get_operator(name)
        if kind.arguments() or not _is_wanted(name):
            continue
        operator = kind()
        spots = [(node, start) for node in nodes for start, _ in operator.mutation_positions(node)]
        found += [
            Spot(path, name, i, start[0])
            for i, (node, start) in enumerate(spots)
            if not (_is_annotation(node) or _is_data(node) or _is_dotted(node, start))
        ]
    return found


def _is_wanted(name: str) -> bool:
    match = re.fullmatch(r"core/Replace(Binary|Comparison|Unary)Operator_(\w+?)_(\w+)", name)
    if match is None:
        return True
    kind, old, new = match.groups()
    return new in _TARGETS[kind] or (old in _BITS and new in _BITS)


def _is_annotation(node: Any) -> bool:
    while (parent := node.parent) is not None:
        if parent.type == "funcdef" and parent.annotation is node:
            return True
        if parent.type in ("tfpdef", "annassign") and ":" in (n.get_code().strip() for n in parent.children[:2]):
            at = next(i for i, n in enumerate(parent.children) if n is node)
            return at == (2 if parent.type == "tfpdef" else 1)
        node = parent
    return False


def _is_data(node: Any) -> bool:
    while node.parent is not None:
        if node.type == "expr_stmt" and _DATA.match(node.children[0].get_code(include_prefix=False)):
            return True
        node = node.parent
    return False


def _is_dotted(node: Any, start: tuple[int, int]) -> bool:
    """Whether it is an exception such as `csv.Error`, which cosmic-ray cannot replace."""
    inside = start[0], start[1] + 1  # at its start the leaf before it ends
    return node.type == "except_clause" and node.get_leaf_for_position(inside).get_next_leaf() == "."


def _difference(before: str, after: str) -> tuple[str, str]:
    old, new = before.splitlines(), after.splitlines()
    start = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    end = next((i for i, (a, b) in enumerate(zip(old[::-1], new[::-1], strict=False)) if a != b), 0)
    return "\n".join(x.strip() for x in old[start : len(old) - end]), "\n".join(
        x.strip() for x in new[start : len(new) - end]
    )


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", text)


class _Trace:
    """A plugin of pytest: which lines of the package each test reaches, and how long it takes."""

    def __init__(self, out: Path) -> None:
        import coverage

        self._out = out
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()
        self._coverage = coverage.Coverage(data_file=None, source=[str(ROOT / PACKAGE)], config_file=False)

    def pytest_configure(self) -> None:
        self._coverage.start()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        # A thread does not survive a fork, and with it no server.
        items[:] = [i for i in items if "hub" not in i.fixturenames and i.get_closest_marker("gpu") is None]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        # What a fixture of a whole file does belongs to all tests of it.
        self._coverage.switch_context(nodeid.partition("::")[0])

    def pytest_runtest_call(self, item: Any) -> None:
        self._coverage.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration
        if not report.passed:
            self._failed.add(report.nodeid)

    def pytest_unconfigure(self) -> None:
        self._coverage.stop()
        data = self._coverage.get_data()
        lines = {
            str(Path(file).relative_to(ROOT)): {
                line: [c for c in contexts if c] for line, contexts in data.contexts_by_lineno(file).items()
            }
            for file in data.measured_files()
        }
        seconds = {test: s for test, s in self._seconds.items() if test not in self._failed}
        self._out.write_text(json.dumps({"seconds": seconds, "lines": lines, "failed": sorted(self._failed)}))


@dataclass(frozen=True)
class Reach:
    """Which tests reach which lines."""

    seconds: Mapping[str, float]
    lines: Mapping[str, Mapping[str, Sequence[str]]]

    def tests(self, path: str, rows: range | None) -> list[str]:
        """Tests that reach some of the lines, or any of the file, the shortest first."""
        found: set[str] = set()
        for line, contexts in self.lines.get(path, {}).items():
            if rows is None or int(line) in rows:
                found.update(contexts)
        files = {c for c in found if "::" not in c}
        tests = [t for t in self.seconds if t in found or t.partition("::")[0] in files]
        return sorted(tests, key=lambda t: (self.seconds[t], t))


def trace(n_at_once: int) -> Reach:
    """Run every test once, unless that was done with the same code."""
    tests = (p for p in (ROOT / "tests").rglob("test_*.py") if not any(map(p.match, _NO_TESTS)))
    files = sorted(tests, key=lambda p: (-p.stat().st_size, p))
    code = b"".join(p.read_bytes() for name in ("tests", PACKAGE) for p in sorted((ROOT / name).rglob("*.py")))
    kept = _KEPT / f"{sha256(code).hexdigest()[:16]}.json"
    if not kept.is_file():
        seconds: dict[str, float] = {}
        lines: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        with tempfile.TemporaryDirectory() as folder:
            jobs = [
                Job(
                    (str(p.relative_to(ROOT)),),
                    timeout=1800,
                    plugins=(_Trace(Path(folder) / str(i)),),
                    options=(),
                    tag=i,
                )
                for i, p in enumerate(files)
            ]
            for job, outcome in run_jobs(jobs, n_at_once):
                print(f"traced {job.tests[0]} in {outcome.seconds:.0f} s", file=sys.stderr)
                found = json.loads((Path(folder) / str(job.tag)).read_text())
                if outcome.code not in (PASSED, FAILED) or found["failed"]:
                    print(f"  left out: {', '.join(found['failed']) or outcome.output[-500:]}", file=sys.stderr)
                seconds |= found["seconds"]
                for file, reached in found["lines"].items():
                    for line, contexts in reached.items():
                        lines[file][line] += contexts
        _KEPT.mkdir(exist_ok=True)
        kept.write_text(json.dumps({"seconds": seconds, "lines": lines}))
    return Reach(**json.loads(kept.read_text()))


def statement(source: str, line: int) -> range | None:
    """Lines of the smallest statement around one; of the whole function for its head; None outside of functions."""
    best: ast.stmt | None = None
    inside = False
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and _first(node) <= line <= (node.end_lineno or 0):
            inside = inside or (isinstance(node, ast.FunctionDef) and node.body[0].lineno <= line)
            if best is None or _first(node) >= _first(best):
                best = node
    if isinstance(best, ast.FunctionDef):
        return range(_first(best), (best.end_lineno or 0) + 1)
    if best is None or not inside:
        return None
    body = getattr(best, "body", None)
    return range(_first(best), (body[0].lineno if body else (best.end_lineno or 0) + 1))


def _first(node: ast.stmt) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def _job(change: Change, reach: Reach, most: float) -> Job:
    """The tests that reach a change, the shortest first, up to so many seconds in all."""
    tests: list[str] = []
    seconds = 0.0
    source = (ROOT / change.path).read_text("utf-8")
    for test in reach.tests(change.path, statement(source, change.line)):
        seconds += reach.seconds[test]
        if tests and seconds > most:
            break
        tests.append(test)
    return Job(tuple(tests), change.path, change.source, timeout=60 + 5 * most, tag=change)


def equivalent() -> dict[tuple[str, str, str], str]:
    """The list of changes that cannot be noticed, with the reason."""
    listed = tomllib.loads((ROOT / "tests/equivalent_mutants.toml").read_text("utf-8")).get("mutant", [])
    return {(m["file"], _bare(m["line"]), _bare(m["becomes"])): m["reason"] for m in listed}


def main(words: Sequence[str] | None = None) -> int:
    """Print the share of each file and the survivors; 0 if every file reaches the target."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument("files", nargs="*", default=FILES, help="modules or folders of the package")
    parser.add_argument("--sample", type=int, default=0, help="changes of each file, drawn at random; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    parser.add_argument("--seconds", type=float, default=60.0, help="most seconds of tests for a change")
    args = parser.parse_args(words)
    n_at_once, start = int(os.environ.get("JOBS", os.cpu_count() or 1)), time.monotonic()
    spots = {path: list_spots(path) for path in _paths(args.files)}
    chosen = [
        spot.change()
        for path, some in spots.items()
        for spot in random.Random(f"{args.seed} {path}").sample(some, min(args.sample or len(some), len(some)))
    ]
    warm_up()
    reach = trace(n_at_once)
    verdicts = list(_verdicts([_job(change, reach, args.seconds) for change in chosen], n_at_once))
    enough = _show_shares({path: len(some) for path, some in spots.items()}, verdicts)
    print(f"\nWhat does not load is not counted. {time.monotonic() - start:.0f} s.\n")
    for change, verdict, n_tests in sorted(verdicts, key=lambda v: (v[0].path, v[0].line)):
        if verdict == ALIVE:
            print(f"{change.path}:{change.line} ({n_tests} tests pass)\n  - {change.old}\n  + {change.new}")
    return 0 if enough else 1


def _verdicts(jobs: Sequence[Job], n_at_once: int) -> Iterator[tuple[Change, str, int]]:
    """Each change, what came of it, and the number of its tests."""
    known = equivalent()
    for job in jobs:
        if not job.tests:
            yield job.tag, ALIVE, 0
    tested = [job for job in jobs if job.tests]
    for n, (job, outcome) in enumerate(run_jobs(tested, n_at_once), 1):
        change = job.tag
        if outcome.code in (FAILED, TIMED_OUT):
            verdict = KILLED
        elif outcome.code != PASSED:
            verdict = UNLOADED
        else:
            verdict = EQUAL if change.key in known else ALIVE
        where = f"{change.path}:{change.line} {change.operator}"
        print(f"{n}/{len(tested)} {outcome.seconds:5.1f} s  {verdict:13} {where}", file=sys.stderr, flush=True)
        yield change, verdict, len(job.tests)


def _show_shares(n_all: Mapping[str, int], verdicts: Sequence[tuple[Change, str, int]]) -> bool:
    """Print a line for each file; whether all reach the target."""
    print(f"{'':48} {'changes':>8} {KILLED:>8} {ALIVE:>8} {EQUAL:>10} {UNLOADED:>13}  share killed")
    enough = True
    for path, n in n_all.items():
        found = Counter(verdict for change, verdict, _ in verdicts if change.path == path)
        counted = found[KILLED] + found[ALIVE]
        share = 100 * found[KILLED] / counted if counted else 100.0
        enough = enough and share >= TARGET
        cells = f"{n:8} {found[KILLED]:8} {found[ALIVE]:8} {found[EQUAL]:10} {found[UNLOADED]:13}"
        print(f"{path:48} {cells}  {share:5.1f} %")
    return enough


def _paths(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        bare = name.removeprefix(f"{PACKAGE}/").removesuffix(".py")
        whole = ROOT / PACKAGE / bare
        paths = sorted(whole.rglob("*.py")) if whole.is_dir() else [whole.with_suffix(".py")]
        found += [str(p.relative_to(ROOT)) for p in paths if p.stem != "__init__"]
    if missing := [p for p in found if not (ROOT / p).is_file()]:
        raise SystemExit(f"there is no {missing[0]}")
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    sys.exit(main())
