"""The evaluator in torch: activations against the original's, on the fixtures' small graph, and the job around it."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from evaluations.c2i import scores
from evaluations.c2i.evaluator_torch import EvaluatorConfig, run
from evaluations.metrics.inception import InceptionGraph, read_graph

FOLDER = Path(__file__).parents[2].parent / "shared" / "golden" / "evaluator"
if not FOLDER.is_dir():
    pytest.skip(f"no reference numbers in {FOLDER}", allow_module_level=True)

GRAPH = str(FOLDER / "classify_image_graph_def.pb")
RECIPE = json.loads((FOLDER / "recipe.json").read_text())
EXPECTED = json.loads((FOLDER / "expected_metrics.json").read_text())


def batch(name: str) -> np.ndarray:
    spec = importlib.util.spec_from_file_location("make_batches", FOLDER / "make_batches.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make(RECIPE["batches"][name])


@pytest.fixture(scope="module")
def network() -> InceptionGraph:
    return InceptionGraph(GRAPH)


@pytest.mark.parametrize("name", ["n65", "side8_ref", "side1_ref", "side256_ref", "wide_ref", "flat_sample"])
def test_activations(name, network):
    expected, found = EXPECTED["batches"][name], network.features(torch.from_numpy(batch(name)))
    assert found.spatial.shape[1] == expected["spatial_dim"]
    for kind, values in (("pool", found.pool.double()), ("spatial", found.spatial.double())):
        assert values.sum().item() == pytest.approx(expected[f"{kind}_sum"], rel=1e-6)
        assert values.square().sum().item() == pytest.approx(expected[f"{kind}_sq_sum"], rel=1e-6)
        np.testing.assert_allclose(values[0, :8], expected[f"{kind}_first_image_0_to_7"], atol=1e-5)


def save(path: Path, images: np.ndarray) -> Path:
    np.savez(path, arr_0=images)
    return path


def test_the_job_writes_the_five_lines(tmp_path, capsys):
    reference, samples = save(tmp_path / "ref.npz", batch("n5")), save(tmp_path / "a.npz.npz", batch("n65"))
    figures = run(EvaluatorConfig(gt_npz_path=str(reference), samples=str(samples), inception_path=GRAPH, device="cpu"))
    text = (tmp_path / "a.npz.txt").read_text()
    assert scores.parse(text) == {key: figures[key] for key in scores.LINES.values()}
    assert text in capsys.readouterr().out
    assert json.loads((tmp_path / "a.npz.json").read_text())["graph_sha256"] == figures["graph_sha256"]


def test_a_missing_or_broken_graph_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.pb.*curl"):
        InceptionGraph(str(tmp_path / "gone.pb"))
    whole = Path(GRAPH).read_bytes()
    for content in (b"not a graph at all", whole[: len(whole) // 2], b""):
        (tmp_path / "bad.pb").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.pb"):
            read_graph(tmp_path / "bad.pb")
    (tmp_path / "other.pb").write_bytes(b"\x0a\x08\x0a\x01x\x12\x03Add" + struct.pack("<0s", b""))
    with pytest.raises(UserError, match="no node 'ExpandDims'"):
        InceptionGraph(str(tmp_path / "other.pb"))
