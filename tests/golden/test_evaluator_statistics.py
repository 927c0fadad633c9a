"""Frechet distance, inception score and precision/recall against numbers of the ADM evaluator.

The fixtures say what the reference returns and, beside it, an independent float64 value.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluations.c2i.evaluator import inception_score
from evaluations.metrics.frechet import Gaussian, fit, frechet_distance
from evaluations.metrics.precision_recall import precision_recall

FOLDER = Path(__file__).parents[2].parent / "shared" / "golden" / "evaluator"
EXPECTED = json.loads((FOLDER / "expected_statistics.json").read_text()) if FOLDER.is_dir() else {}
if not EXPECTED:
    pytest.skip(f"no reference numbers in {FOLDER}", allow_module_level=True)

FID_CASES = EXPECTED["fid_from_statistics"]
IS_CASES = EXPECTED["inception_score"]["cases"]
PR_CASES = EXPECTED["precision_recall_from_features"]["cases"]
REFUSED = ("nan_covariance_8", "shape_mismatch", "not_psd_12")


def pair(case: str) -> tuple[Gaussian, Gaussian]:
    with np.load(FOLDER / "statistics_pairs.npz") as arrays:
        return tuple(Gaussian(arrays[f"{case}__mu{side}"], arrays[f"{case}__sigma{side}"]) for side in (1, 2))


@pytest.mark.parametrize("case", [name for name in FID_CASES if name not in REFUSED])
def test_frechet_distance_from_statistics(case):
    ours = frechet_distance(*pair(case))
    assert ours == pytest.approx(FID_CASES[case]["exact_float64"], rel=1e-6, abs=1e-12)
    if FID_CASES[case]["fid"] is not None:
        assert ours == pytest.approx(FID_CASES[case]["fid"], rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("case", REFUSED)
def test_frechet_distance_refuses_what_the_reference_refuses(case):
    assert FID_CASES[case]["error"]
    with pytest.raises(ValueError):
        frechet_distance(*pair(case))


@pytest.mark.parametrize("case", EXPECTED["fid_from_recipe"]["cases"])
def test_frechet_distance_from_features(case):
    recipe = EXPECTED["fid_from_recipe"]["cases"][case]

    def side(seed: int, count: int) -> Gaussian:
        random, width = np.random.RandomState(seed), recipe["d"]
        x = random.standard_normal((count, width)) / np.sqrt(1 + np.arange(width)) + random.uniform(-0.2, 0.2, width)
        return fit(x)

    ours = frechet_distance(side(recipe["seed1"], recipe["n1"]), side(recipe["seed2"], recipe["n2"]))
    assert ours == pytest.approx(recipe["exact_float64"], rel=1e-6)
    assert ours == pytest.approx(recipe["fid"], rel=1e-5, abs=1e-3)


def table(recipe: dict) -> np.ndarray:
    kind = recipe["kind"]
    if kind == "softmax_table":
        z = np.random.RandomState(recipe["seed"]).standard_normal((recipe["n"], recipe["c"])) * recipe["sharp"]
        z = np.exp(z - z.max(axis=1, keepdims=True))
        return (z / z.sum(axis=1, keepdims=True)).astype(recipe["dtype"])
    if kind == "full":
        return np.full(recipe["shape"], recipe["value"], recipe["dtype"])
    one_hot = np.eye(recipe["c"], dtype=np.float32)[np.arange(recipe["n"]) % recipe["c"]]
    return one_hot if kind == "one_hot" else one_hot * np.float32(0.99) + np.float32(0.001)


@pytest.mark.parametrize("case", [name for name in IS_CASES if name != "empty"])
def test_inception_score(case):
    expected = IS_CASES[case]
    ours = inception_score(table(expected["recipe"]), expected.get("split_size", 5000))
    assert ours == pytest.approx(expected["float64_with_0log0_as_0"], rel=1e-9)
    if np.isfinite(float(expected["inception_score"])):  # the reference's float32 logarithm of zero is not
        assert ours == pytest.approx(expected["inception_score"], rel=1e-5)


def features(seed: int, count: int, width: int, scale: float, shift: float) -> np.ndarray:
    return (np.random.RandomState(seed).standard_normal((count, width)) * scale + shift).astype(np.float32)


@pytest.mark.parametrize("case", [name for name in PR_CASES if name not in ("clamped", "duplicates")])
def test_precision_and_recall(case):
    """Both variants agree to the last image: the half-precision one with the reference, the exact one with float64."""
    expected = PR_CASES[case]
    width, scale = expected["d"], expected["scale"]
    reference = features(expected["seed_ref"], expected["n_ref"], width, scale, expected["shift_ref"])
    samples = features(expected["seed_sample"], expected["n_sample"], width, scale, expected["shift_sample"])
    k = expected["options"].get("nhood_sizes", [3])[0]
    block = expected["options"].get("row_batch_size", 4096)
    published = precision_recall(reference, samples, k, exact=False, block=block)
    exact = precision_recall(reference, samples, k, exact=True, block=block)
    assert published.precision == pytest.approx(expected["precision"], abs=1e-12)
    assert published.recall == pytest.approx(expected["recall"], abs=1e-12)
    assert exact.precision == pytest.approx(expected["precision_float64"], abs=1e-12)
    assert exact.recall == pytest.approx(expected["recall_float64"], abs=1e-12)


def test_duplicated_points_have_radius_zero_and_match():
    rows = np.repeat(features(PR_CASES["duplicates"]["seed_ref"], 20, 8, 1, 0), 5, axis=0)
    for exact in (True, False):
        found = precision_recall(rows, rows, exact=exact)
        assert (found.precision, found.recall) == (1, 1)
