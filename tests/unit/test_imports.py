"""The house's rules that can be read off the source: import direction, file names, nothing that runs data as code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "tokenizer", "autoregressive", "evaluations", "studies", "benchmarks")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ORDER = ("common", "tokenizer", "autoregressive", "evaluations", "studies", "benchmarks")
TABLE = re.compile(r"[a-z_]\w*(\.\w+)*:[A-Za-z_]\w*")
EVALUATOR = ROOT / "evaluations/c2i/evaluator.py"


def rank(module: str) -> int | None:
    """A module's place in the import order; None for modules that are not ours."""
    package = module.partition(".")[0]
    return ORDER.index(package) if package in ORDER else None


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, tables: bool = True) -> Iterator[str]:
    """Every module a file imports, at any depth, and with `tables` every "package.module:TABLE" it looks up by name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif tables and isinstance(node, ast.Constant) and TABLE.fullmatch(str(node.value)):
            yield node.value.partition(":")[0]


def against_the_order(module: str, source: str) -> list[str]:
    return [name for name in imported(source) if (rank(name) or 0) > rank(module)]


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_go_one_way(path):
    assert against_the_order(module_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("common.data", "import tokenizer"),
        ("common.data", "def f():\n    from evaluations.metrics import psnr"),
        ("tokenizer.model", "from autoregressive.models import gpt"),
        ("tokenizer.model", "from evaluations import reconstruction"),
        ("evaluations.record", "from studies import report"),
        ("common.loop", "build('tokenizer.losses:LOSSES', {})"),
    ],
)
def test_a_wrong_import_is_seen(module, line):
    assert against_the_order(module, line)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, directly or through others."""
    reached: dict[str, set[str]] = {}
    for module in graph:
        todo, seen = [module], set()
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo += new
        reached[module] = seen
    return sorted({tuple(sorted(m for m in graph if m in reached[n] and n in reached[m])) for n in graph} - {()})


def test_no_module_imports_itself_through_others():
    """Imports inside functions count as well."""
    files = {module_of(path): path for path in SOURCES}

    def ours(path: Path) -> set[str]:
        names = list(imported(path.read_text(), tables=False))
        return {known for name in names for known in (name, name.rpartition(".")[0]) if known in files}

    graph = {module: ours(path) - {module} for module, path in files.items()}
    assert sum(map(len, graph.values())) > 300
    assert circles(graph) == []


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b", "c")]


LONGEST = 80


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_functions_are_short(path):
    functions = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef))
    assert [n.name for n in functions if n.end_lineno - n.lineno + 1 > LONGEST] == []


def test_the_evaluator_of_the_other_interpreter_imports_nothing_of_ours():
    source = EVALUATOR.read_text() if EVALUATOR.exists() else ""
    assert [name for name in imported(source) if rank(name) is not None] == []


def test_no_file_is_called_utils_misc_or_helpers():
    named = [path for folder in (*PACKAGES, "scripts", "tests") for path in (ROOT / folder).rglob("*")]
    assert [p for p in named if p.stem in ("utils", "util", "misc", "helpers", "helper")] == []


# ------------------------------------------------------------------------------- nothing runs data as code

CODE_CARRIERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def dangers(source: str) -> list[str]:
    """What in a file could execute what it reads: pickle, eval, a shell, torch.load of objects."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"import {name}" for name in names if name.split(".")[0] in CODE_CARRIERS]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in ("eval", "exec", "os.system", "os.popen", "yaml.load"):
            found.append(called)
        if called == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if given.get("allow_pickle", "False") != "False":
            found.append("allow_pickle")
        if given.get("shell", "False") != "False":
            found.append("shell=True")
    return found


UNPICKLER = ROOT / "common/weights.py"
"""Subclasses `pickle.Unpickler` with a `find_class` that imports nothing; test_released_files.py attacks it."""


@pytest.mark.parametrize("path", [path for path in SOURCES if path != UNPICKLER], ids=module_of)
def test_nothing_runs_data_as_code(path):
    assert dangers(path.read_text()) == []


def test_the_one_unpickler_is_the_only_exception():
    assert dangers(UNPICKLER.read_text()) == ["import pickle", "torch.load without weights_only=True"]


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "eval(name)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_a_danger_is_seen(line):
    assert dangers(line)


def test_eval_mode_is_no_danger():
    assert dangers("model.eval()\ntorch.load(path, map_location='cpu', weights_only=True)") == []
