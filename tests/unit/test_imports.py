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
    inside = [i for i, layer in enumerate(ORDER) if module == layer or module.startswith(layer + ".")]
    # `evaluations.metrics` is inside `evaluations` too: the longer name decides.
    return max(inside, key=lambda i: len(ORDER[i])) if inside else None


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str) -> Iterator[str]:
    """Every module a file imports, at any depth, and every "package.module:TABLE" it looks up by name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and TABLE.fullmatch(str(node.value)):
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
        ("evaluations.metrics.fd", "from tokenizer import model"),
        ("common.loop", "build('tokenizer.losses:LOSSES', {})"),
    ],
)
def test_a_wrong_import_is_seen(module, line):
    assert against_the_order(module, line)


def test_metrics_may_be_used_by_the_tokenizer():
    assert against_the_order("tokenizer.model", "from evaluations.metrics import psnr") == []


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


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_nothing_runs_data_as_code(path):
    assert dangers(path.read_text()) == []


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
