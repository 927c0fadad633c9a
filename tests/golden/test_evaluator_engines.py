"""The TensorFlow evaluator where its environment is installed, and both engines behind the jobs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from evaluations.c2i import scores
from evaluations.c2i.scores import Scores, choose

ROOT = Path(__file__).parents[2]
FOLDER = ROOT.parent / "shared" / "golden" / "evaluator"
GRAPH = str(FOLDER / "classify_image_graph_def.pb")
PYTHON = str(ROOT / ".venv-eval" / "bin" / "python")
needs_graph = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no reference graph in {FOLDER}")
needs_tensorflow = pytest.mark.skipif(not Path(PYTHON).exists(), reason="bash env_install.sh --eval was not run")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    paths = tmp_path / "ref.npz", tmp_path / "a sample.npz"
    for path, shift in zip(paths, (0, 40), strict=True):
        coarse = rng.integers(0, 216, (40, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
        np.savez(path, arr_0=(coarse + shift).astype(np.uint8))
    return paths


@needs_graph
@needs_tensorflow
@pytest.mark.slow
def test_both_engines_give_the_same_figures(files):
    found = {}
    for engine in ("tensorflow", "torch"):
        figures, about, flags = Scores(str(files[0]), engine, PYTHON, GRAPH, torch.device("cpu"))(files[1])
        assert about.engine == engine and about.reference["images"] == 40
        assert any("40" in flag for flag in flags)  # fewer images than the protocol's
        assert scores.parse(files[1].with_suffix(".txt").read_text()).keys() <= figures.keys()
        told = json.loads(files[1].with_suffix(".json").read_text())
        assert told["engine"] == engine and told["images"] == 40
        hashes = [told[name] for name in ("graph_sha256", "reference_sha256", "samples_sha256")]
        found[engine] = figures, hashes, flags
    (ours, *rest), (theirs, *others) = found["torch"], found["tensorflow"]
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5) and rest == others


@needs_tensorflow
def test_the_tensorflow_evaluator_names_a_missing_graph(files, tmp_path):
    with pytest.raises(UserError, match=r"gone\.pb.*curl"):
        scores.evaluate(*files, PYTHON, tmp_path / "gone.pb")


@needs_graph
def test_the_torch_engine_measures_the_reference_once(files, monkeypatch):
    from evaluations.metrics.inception import InceptionGraph

    seen: list[int] = []
    features = InceptionGraph.features
    monkeypatch.setattr(InceptionGraph, "features", lambda self, x: seen.append(len(x)) or features(self, x))
    scores = Scores(str(files[0]), "torch", "no python", GRAPH, torch.device("cpu"))
    first, second = scores(files[1])[0], scores(files[0])[0]
    assert sum(seen) == 3 * 40
    assert second["fid"] == pytest.approx(0, abs=1e-6) and second["precision_float64"] == 1 and first["fid"] > 1


def test_auto_takes_tensorflow_only_where_it_is(tmp_path):
    assert choose("auto", str(tmp_path / "no python")) == "torch"
    assert choose("auto", sys.executable) == "torch"  # the main environment does not hold TensorFlow
    assert choose("tensorflow", "anything") == "tensorflow"
    with pytest.raises(UserError, match="auto, tensorflow or torch"):
        choose("jax", "python")


@needs_tensorflow
def test_auto_finds_the_evaluation_environment():
    assert choose("auto", PYTHON) == "tensorflow"
