"""The evaluator in torch against the original, on the fixtures' small graph: activations, figures, file variants."""

from __future__ import annotations

import importlib.util
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from evaluations import adm, npz
from evaluations.metrics.graphdef import read_graph
from evaluations.metrics.inception import InceptionGraph
from evaluations.twin import TwinConfig
from evaluations.twin_job import Evaluator, run

FOLDER = Path(__file__).parents[2].parent / "shared" / "golden" / "evaluator"
if not FOLDER.is_dir():
    pytest.skip(f"no reference numbers in {FOLDER}", allow_module_level=True)

GRAPH = str(FOLDER / "classify_image_graph_def.pb")
RECIPE = json.loads((FOLDER / "recipe.json").read_text())
EXPECTED = json.loads((FOLDER / "expected_metrics.json").read_text())
QUICK = ("n4", "n5_vs_n65", "side8", "side1", "side256", "wide", "flat_sample")
SLOW = ("same_recipe", "statistics_in_ref_npz")


def batch(name: str) -> np.ndarray:
    spec = importlib.util.spec_from_file_location("make_batches", FOLDER / "make_batches.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make(RECIPE["batches"][name])


@pytest.fixture(scope="module")
def network() -> InceptionGraph:
    return InceptionGraph(InceptionGraph.Config(path=GRAPH))


@pytest.mark.parametrize("name", ["n65", "side8_ref", "side1_ref", "side256_ref", "wide_ref", "flat_sample"])
def test_activations(name, network):
    expected, found = EXPECTED["batches"][name], network.features(torch.from_numpy(batch(name)))
    assert found.spatial.shape[1] == expected["spatial_dim"]
    for kind, values in (("pool", found.pool.double()), ("spatial", found.spatial.double())):
        assert values.sum().item() == pytest.approx(expected[f"{kind}_sum"], rel=1e-6)
        assert values.square().sum().item() == pytest.approx(expected[f"{kind}_sq_sum"], rel=1e-6)
        np.testing.assert_allclose(values[0, :8], expected[f"{kind}_first_image_0_to_7"], atol=1e-5)


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)])
def test_figures(case, tmp_path):
    expected = EXPECTED["cases"][case]
    reference, samples = save(tmp_path / "ref.npz", batch(expected["ref"])), tmp_path / "sample.npz"
    if expected["ref"] in RECIPE["statistics_from"]:
        add_statistics(reference, batch(RECIPE["statistics_from"][expected["ref"]]))
    found = Evaluator(reference, GRAPH).score(save(samples, batch(expected["sample"])))
    wide = 10 if case == "side1" else 1  # the fixtures' own tolerance for nearly rank-one features
    if "fid_exact_float64" in expected:
        assert found["fid"] == pytest.approx(expected["fid_exact_float64"], rel=1e-5, abs=1e-5)
        assert found["sfid"] == pytest.approx(expected["sfid_exact_float64"], rel=1e-5, abs=1e-5)
    assert found["fid"] == pytest.approx(expected["fid"], rel=1e-5, abs=1e-3)
    assert found["sfid"] == pytest.approx(expected["sfid"], rel=1e-5, abs=1e-3 * wide)
    if np.isfinite(float(expected["inception_score"])):
        assert found["inception_score"] == pytest.approx(expected["inception_score"], rel=1e-5)
    for kind in ("precision", "recall"):
        assert found[kind] == pytest.approx(expected[kind], abs=0.002)
        assert found[f"{kind}_float64"] == pytest.approx(expected[f"{kind}_float64"], abs=1e-9)
    assert found["engine"] == "torch" and found["flags"]


def save(path: Path, images: np.ndarray) -> Path:
    np.savez(path, arr_0=images)
    return path


def add_statistics(path: Path, source: np.ndarray) -> None:
    """As virtual reference files carry them: of other images than arr_0."""
    network = InceptionGraph(InceptionGraph.Config(path=GRAPH))
    found = [network.features(torch.from_numpy(part)) for part in np.array_split(source, len(source) // 50)]
    pool, spatial = (np.concatenate([getattr(f, kind).numpy() for f in found]) for kind in ("pool", "spatial"))
    with np.load(path) as archive:
        images = archive["arr_0"]
    np.savez(path, arr_0=images, mu=pool.mean(0), sigma=np.cov(pool, rowvar=False), mu_s=spatial.mean(0),
             sigma_s=np.cov(spatial, rowvar=False))


def header_version(path: Path, images: np.ndarray, version: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, images, version=version)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", buffer.getvalue())


VARIANTS = {
    "compressed": lambda path, images: np.savez_compressed(path, arr_0=images),
    "fortran": lambda path, images: np.savez(path, arr_0=np.asfortranarray(images)),
    "float32": lambda path, images: np.savez(path, arr_0=images.astype(np.float32)),
    "float64": lambda path, images: np.savez(path, arr_0=images.astype(np.float64)),
    "int64": lambda path, images: np.savez(path, arr_0=images.astype(np.int64)),
    "header_v2": lambda path, images: header_version(path, images, (2, 0)),
    "header_v3": lambda path, images: header_version(path, images, (3, 0)),
    "with_labels": lambda path, images: np.savez(path, arr_0=images, arr_1=np.arange(len(images))),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_ways_to_store_the_same_images(variant, tmp_path):
    images = batch("n65")
    VARIANTS[variant](tmp_path / "x.npz", images)
    blocks = list(npz.stream(tmp_path / "x.npz", 16, any_type=True))
    assert [len(block) for block in blocks] == [16, 16, 16, 16, 1]
    np.testing.assert_array_equal(np.concatenate(blocks), images)


REFUSED = {
    "float_0_1": lambda images: images / 255,
    "empty": lambda images: images[:0],
    "grey": lambda images: images[..., :1],
    "nchw": lambda images: images.transpose(0, 3, 1, 2), "negative": lambda images: images.astype(np.int64) - 9,
    "three_images": lambda images: images[:3],
}


@pytest.mark.parametrize("variant", REFUSED)
def test_what_would_score_wrongly_is_refused(variant, tmp_path):
    reference = save(tmp_path / "ref.npz", batch("n5"))
    samples = save(tmp_path / "x.npz", REFUSED[variant](batch("n65")))
    with pytest.raises(UserError, match=r"x\.npz"):
        Evaluator(reference, GRAPH).score(samples)


def test_the_job_writes_the_five_lines(tmp_path, capsys):
    reference, samples = save(tmp_path / "ref.npz", batch("n5")), save(tmp_path / "a.npz.npz", batch("n65"))
    figures = run(TwinConfig(gt_npz_path=str(reference), samples=str(samples), inception_path=GRAPH, device="cpu"))
    text = (tmp_path / "a.npz.txt").read_text()
    assert adm.parse(text) == {key: figures[key] for key in adm.NAMES.values()}
    assert text in capsys.readouterr().out
    assert json.loads((tmp_path / "a.npz.json").read_text())["graph_sha256"] == figures["graph_sha256"]


def test_a_missing_or_broken_graph_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.pb.*curl"):
        InceptionGraph(InceptionGraph.Config(path=str(tmp_path / "gone.pb")))
    whole = Path(GRAPH).read_bytes()
    for content in (b"not a graph at all", whole[: len(whole) // 2], b""):
        (tmp_path / "bad.pb").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.pb"):
            read_graph(tmp_path / "bad.pb")
    (tmp_path / "other.pb").write_bytes(b"\x0a\x08\x0a\x01x\x12\x03Add" + struct.pack("<0s", b""))
    with pytest.raises(UserError, match="no node 'ExpandDims'"):
        InceptionGraph(InceptionGraph.Config(path=str(tmp_path / "other.pb")))
