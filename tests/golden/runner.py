"""Finds the fixtures below a directory, gives each to its family, prints a line for each."""

from __future__ import annotations

import importlib
import pkgutil
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tests.golden import families
from tests.golden.fixture import Fixture, Report, Skip, read_packed

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
SHARED = ROOT.parent / "shared" / "golden"
"""More numbers of the same layout, where they are."""
KINDS = ("contracts", "wrappers", "tiny", "fullsize", "schedules")
FAMILIES: dict[str, ModuleType] = {
    info.name: importlib.import_module(f"{families.__name__}.{info.name}")
    for info in pkgutil.iter_modules(families.__path__)
}


@dataclass
class Outcome:
    """`status`: pass, fail or skip; `detail`: the largest relative error, what went wrong, or the reason."""

    name: str
    status: str
    detail: str

    def line(self) -> str:
        return f"{self.status.upper()} {self.name}: {self.detail}"


def find(directory: Path, kinds: tuple[str, ...] = KINDS) -> list[Fixture]:
    """Every fixture below a directory of the layout in its README; files that start with `_` are remarks."""
    whole = [
        Fixture(path, kind)
        for kind in kinds
        for path in sorted((directory / kind).glob("*.json"))
        if not path.name.startswith("_")
    ]
    found = []
    for kind in kinds:
        packed = directory / f"{kind}.json.xz"
        if packed.is_file():
            found += [Fixture(packed, kind, name, packed=True) for name in read_packed(packed)]
    for fixture in whole:
        parts = getattr(FAMILIES.get(family_of(fixture) or ""), "parts", lambda fixture: [""])
        found += [Fixture(fixture.path, fixture.kind, part) for part in parts(fixture)]
    return found


def family_of(fixture: Fixture) -> str | None:
    return next((name for name, family in FAMILIES.items() if family.matches(fixture)), None)


def check(fixture: Fixture) -> Outcome:
    """One fixture against our implementation."""
    family = family_of(fixture)
    if family is None:
        return Outcome(fixture.name, "fail", f"no family knows it; known: {', '.join(FAMILIES)}")
    report = Report()
    try:
        FAMILIES[family].check(fixture, report)
    except Skip as reason:
        return Outcome(fixture.name, "skip", str(reason))
    except Exception as error:  # one broken fixture must not hide the others
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return Outcome(fixture.name, "fail", f"{type(error).__name__}: {error} ({where})")
    if report.failures:
        more = f"; and {len(report.failures) - 3} more" if len(report.failures) > 3 else ""
        return Outcome(fixture.name, "fail", "; ".join(report.failures[:3]) + more)
    error, where = report.worst
    return Outcome(fixture.name, "pass", f"largest relative error {error:.1e} ({where}), {report.compared} compared")


def run(directory: Path, family: str | None = None, kinds: tuple[str, ...] = KINDS) -> Iterator[Outcome]:
    for fixture in find(directory, kinds):
        if family in (None, family_of(fixture)):
            yield check(fixture)
