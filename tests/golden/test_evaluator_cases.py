"""Every case and file variant of the evaluator's fixtures through both engines, TensorFlow where it is installed.

The large cases are slow: python -m pytest tests/golden/test_evaluator_cases.py -m slow
"""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import zipfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from evaluations.c2i import evaluator as original
from evaluations.c2i.evaluator_torch import Evaluator
from evaluations.metrics.inception import InceptionGraph

ROOT = Path(__file__).parents[2]
FOLDER = ROOT.parent / "shared" / "golden" / "evaluator"
if not FOLDER.is_dir():
    pytest.skip(f"no reference numbers in {FOLDER}", allow_module_level=True)

GRAPH = str(FOLDER / "classify_image_graph_def.pb")
PYTHON = ROOT / ".venv-eval" / "bin" / "python"
RECIPE = json.loads((FOLDER / "recipe.json").read_text())
EXPECTED = json.loads((FOLDER / "expected_metrics.json").read_text())
TOLERANCE = EXPECTED["tolerance"]
QUICK = ("n1", "n2", "n3", "n4", "n5_vs_n65", "side8", "side1", "side256", "wide", "flat_sample")
LARGE = tuple(case for case in EXPECTED["cases"] if case not in QUICK)
ENGINES = (
    "torch",
    pytest.param("tensorflow", marks=pytest.mark.skipif(not PYTHON.exists(), reason="env_install.sh --eval")),
)

DRIVER = """
import json, sys
from pathlib import Path
import evaluator
for reference, samples in json.loads(sys.argv[2]):
    try:
        found = evaluator.score(Path(reference), Path(samples), Path(sys.argv[1]))
    except evaluator.UnusableError as error:
        found = {"error": str(error)}
    print("FOUND", json.dumps(found))
"""


@cache
def batches() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_batches", FOLDER / "make_batches.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batch(name: str) -> np.ndarray:
    return batches().make(RECIPE["batches"][name])


def save(path: Path, images: np.ndarray) -> Path:
    np.savez(path, arr_0=images)
    return path


def score(engine: str, pairs: list[tuple[Path, Path]]) -> list[dict[str, Any]]:
    """Figures of each (reference, samples), or what was said against them; one process for all of them."""
    if engine == "torch":
        return [_score_with_torch(*pair) for pair in pairs]
    words = [str(PYTHON), "-c", DRIVER, GRAPH, json.dumps([[str(path) for path in pair] for pair in pairs])]
    done = subprocess.run(
        words, env={"PYTHONPATH": str(ROOT / "evaluations/c2i"), "OPENBLAS_NUM_THREADS": "1"}, capture_output=True,
        text=True, check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line.removeprefix("FOUND ")) for line in done.stdout.splitlines() if line.startswith("FOUND ")]


def _score_with_torch(reference: Path, samples: Path) -> dict[str, Any]:
    try:
        return Evaluator(reference, GRAPH).score(samples)
    except UserError as error:
        return {"error": str(error)}


# ---------------------------------------------------------------------------------------------------------- cases


def write_case(folder: Path, case: str) -> tuple[Path, Path]:
    expected = EXPECTED["cases"][case]
    reference = save(folder / f"{case}-ref.npz", batch(expected["ref"]))
    if expected["ref"] in RECIPE["statistics_from"]:
        add_statistics(reference, batch(RECIPE["statistics_from"][expected["ref"]]))
    return reference, save(folder / f"{case}.npz", batch(expected["sample"]))


def add_statistics(path: Path, source: np.ndarray) -> None:
    """As virtual reference files carry them: of other images than arr_0."""
    network = InceptionGraph(GRAPH)
    found = [network.features(torch.from_numpy(part)) for part in np.array_split(source, len(source) // 50)]
    pool, spatial = (np.concatenate([getattr(f, kind).numpy() for f in found]) for kind in ("pool", "spatial"))
    with np.load(path) as archive:
        images = archive["arr_0"]
    np.savez(path, arr_0=images, mu=pool.mean(0), sigma=np.cov(pool, rowvar=False), mu_s=spatial.mean(0),
             sigma_s=np.cov(spatial, rowvar=False))


@pytest.mark.parametrize("engine", ENGINES)
def test_quick_cases(engine, tmp_path):
    for case, found in zip(QUICK, score(engine, [write_case(tmp_path, case) for case in QUICK]), strict=True):
        check(case, found, engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", LARGE)
def test_large_cases(case, engine, tmp_path):
    check(case, score(engine, [write_case(tmp_path, case)])[0], engine)


def check(case: str, found: dict[str, Any], engine: str) -> None:
    expected = EXPECTED["cases"][case]
    assert found["engine"] == engine and "error" not in found
    score_of = expected["inception_score"]
    assert found["inception_score"] == pytest.approx(score_of, rel=TOLERANCE["inception_score"]["rel"]), case
    if "fid" in expected:
        for name in ("fid", "sfid"):
            allowed = TOLERANCE[name].get(f"abs_{case}", TOLERANCE[name]["abs"])
            assert found[name] == pytest.approx(expected[name], rel=TOLERANCE[name]["rel"], abs=allowed), case
            if f"{name}_exact_float64" in expected:
                exact = expected[f"{name}_exact_float64"]
                # Features of float32 networks that sum in another order: the floor of what can agree.
                allowed = TOLERANCE[f"{name}_exact_float64"]["rel"]
                assert found[name] == pytest.approx(exact, rel=allowed), case
    for name in ("precision", "recall"):
        if expected[name] is None:  # the original stops: fewer images than neighbours
            assert found[name] is found[f"{name}_float64"] is None
            assert any("too few images" in flag for flag in found["flags"])
        else:
            assert found[name] == pytest.approx(expected[name], abs=TOLERANCE["precision_recall"]["abs"]), case
            assert found[f"{name}_float64"] == pytest.approx(expected[f"{name}_float64"], abs=1e-9), case
    if case == "n1":
        assert found["fid"] is None  # one image has no covariance


# ---------------------------------------------------------------------------------------------------- file variants


def header_version(path: Path, images: np.ndarray, version: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, images, version=version)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", buffer.getvalue())


VARIANTS = {
    "plain": lambda path, images: np.savez(path, arr_0=images),
    "compressed": lambda path, images: np.savez_compressed(path, arr_0=images),
    "fortran": lambda path, images: np.savez(path, arr_0=np.asfortranarray(images)),
    "float32": lambda path, images: np.savez(path, arr_0=images.astype(np.float32)),
    "float64": lambda path, images: np.savez(path, arr_0=images.astype(np.float64)),
    "int64": lambda path, images: np.savez(path, arr_0=images.astype(np.int64)),
    "header_v2": lambda path, images: header_version(path, images, (2, 0)),
    "header_v3": lambda path, images: header_version(path, images, (3, 0)),
    "with_labels": lambda path, images: np.savez(path, arr_0=images, arr_1=np.arange(len(images))),
}

WRONG = {
    "float_0_1": lambda path, images: np.savez(path, arr_0=images / 255),
    "empty": lambda path, images: np.savez(path, arr_0=images[:0]),
    "grey": lambda path, images: np.savez(path, arr_0=images[..., :1]),
    "nchw": lambda path, images: np.savez(path, arr_0=images.transpose(0, 3, 1, 2)),
    "missing_arr_0": lambda path, images: np.savez(path, images=images),
    "negative": lambda path, images: np.savez(path, arr_0=images.astype(np.int64) - 9),
    "nan": lambda path, images: np.savez(path, arr_0=np.where(images > 250, np.nan, images)),
    "text": lambda path, images: np.savez(path, arr_0=images.astype("U3")),
    "no_npz": lambda path, images: path.write_bytes(b"not a zip file"),
}


def test_the_fixtures_name_no_other_variants():
    assert set(EXPECTED["npz_variants"]["results"]) <= {*VARIANTS, *WRONG}


@pytest.mark.parametrize("engine", ENGINES)
def test_files_that_hold_the_same_and_files_that_cannot_be_scored(engine, tmp_path):
    """Other ways to store the images change nothing; what would score wrongly is refused by its file's name."""
    reference, images = save(tmp_path / "ref.npz", batch("n5")), batch("n65")
    paths = {name: tmp_path / f"{name}.npz" for name in (*VARIANTS, *WRONG)}
    for name, write in {**VARIANTS, **WRONG}.items():
        write(paths[name], images)
    told = score(engine, [(reference, path) for path in paths.values()])
    found = dict(zip(paths, told, strict=True))
    figures = {name: [found[name].get(key) for key in original.LINES.values()] for name in VARIANTS}
    assert all(values == figures["plain"] for values in figures.values()), figures
    for name in WRONG:
        assert f"{name}.npz" in found[name].get("error", ""), (name, found[name])


# -------------------------------------------------------------------------------------- what does not belong together


def labelled(path: Path, images: np.ndarray, **about: str) -> Path:
    np.savez(path, arr_0=images, about=np.array(json.dumps(about)))
    return path


@pytest.mark.parametrize("engine", ENGINES)
def test_sets_that_do_not_belong_to_a_reference_are_refused_and_unknown_ones_flagged(engine, tmp_path):
    images = batch("n5")
    val = labelled(tmp_path / "val.npz", images, kind="reference", split="val")
    train = labelled(tmp_path / "train.npz", images, kind="reference", split="train")
    unknown = save(tmp_path / "unknown.npz", images)
    virtual = save(tmp_path / "virtual.npz", images)
    add_statistics(virtual, batch("n65"))
    rebuilt = labelled(tmp_path / "rebuilt.npz", images, kind="reconstruction")
    made_up = labelled(tmp_path / "made_up.npz", images, kind="generation")
    small = labelled(tmp_path / "small.npz", images[:, ::2, ::2], kind="reconstruction")
    told = score(engine, [
        (val, rebuilt), (train, made_up), (virtual, made_up), (unknown, rebuilt), (val, unknown),
        (train, rebuilt), (virtual, rebuilt), (val, made_up), (val, small),
    ])
    for found in told[:3]:
        assert found["fid"] is not None and len(found["flags"]) == 1  # only that five images are few
    assert any("reference file does not say" in flag for flag in told[3]["flags"])
    assert any("sample file does not say" in flag for flag in told[4]["flags"])
    height, width = images.shape[1:3]
    sizes = f"samples have {height // 2} x {width // 2} pixels, the reference {height} x {width}"
    assert any(sizes in flag for flag in told[8]["flags"])
    for found, right in zip(told[5:8], ("--split val", "--split val", "--split train"), strict=True):
        assert right in found["error"]
