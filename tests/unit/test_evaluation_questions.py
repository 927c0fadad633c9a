"""A result is reused for the same question only: every option of every evaluation job changes it, or is listed here."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from autoregressive.config import Sampling
from autoregressive.guidance import Guidance
from benchmarks.inception_graph import write_graph
from common import checkpoint
from common.config import MISSING
from common.npz import NpzWriter
from common.options import LogConfig
from evaluations import diagnose, generation, harness, linear_probe, pfid, reconstruction, record, val_loss
from tests import toys

FD = "fd_efficientnet_lite2"
LITE0 = {"name": "perceptual_efficientnet_lite0"}
SPEED = {"device", "num_workers", "per_proc_batch_size"}
SAME_CHECKPOINT = {"gpt_model", "tok_config", "image_size"}

JOBS: dict[ModuleType, tuple[type, set[str]]] = {
    reconstruction: (
        reconstruction.ReconstructionConfig, SPEED | {"sample_dir", "clear_cache", "eval_python_path"}
    ),
    pfid: (pfid.PfidConfig, SPEED | {"sample_dir", "eval_python_path"}),
    diagnose: (diagnose.DiagnoseConfig, {"out", "device", "batch_size"}),
    val_loss: (val_loss.ValLossConfig, SPEED | SAME_CHECKPOINT | {"out"}),
    generation: (
        generation.GenerationConfig,
        {"sample_dir", "clear_cache", "png", "device", "batch_size", "search", "search_num_images", "gpt_model",
         "tok_config", "image_size", "eval_python_path"},
    ),
    linear_probe: (
        linear_probe.ProbeConfig,
        SPEED | {"gpt_model", "tok_config", "out", "log", "eval"}
        # What the probe was trained with is in its weights, whose hash is in the question.
        | {"data_path", "crop", "flip", "epochs", "warmup_epochs", "blr", "lr", "min_lr", "weight_decay", "seed",
           "ckpt_epoch", "lin_probe_ckpt"},
    ),
}  # fmt: skip
"""Job -> its config and the options that do not change its figures."""

OTHER: dict[str, Any] = {
    "model_config": "vq.yaml", "weights": "model", "vq_weights": "model", "gpt_weights": "ema", "vq_ckpt": "other_vq",
    "gpt_ckpt": "other_gpt", "data_path": "other_images", "val_path": "other_images", "num_images": 3,
    "num_tokens": [4],
    "sample_dir": "elsewhere", "out": "elsewhere", "frechet": None, "gt_npz_path": "other.npz", "engine": "tensorflow",
    "eval_python_path": "no_python", "inception_path": "other.pb", "per_proc_batch_size": 5, "batch_size": 5,
    "num_workers": 1, "device": "auto", "perceptual": LITE0, "qualitative": True, "num_previews": 2,
    "clear_cache": True, "global_seed": 1, "precision": "bf16", "vq_precision": "bf16", "alphas": [0.1], "deltas": [3],
    "neighbours": "latent", "rhos": [0.3], "seed": 1, "every": 5, "gpt_model": "tiny", "tok_config": "vq.yaml",
    "image_size": 32, "code_path": "codes", "generator": {"num_tokens": 16}, "guidance": None,
    "sampling": Sampling(top_k=5), "compile": True, "classes": [1], "labels": "uniform", "png": False,
    "samples": "samples.npz", "samples_labels": "labels.npy", "reference_path": "other_images",
    "held_out_path": "other_images", "num_reference_images": 4, "search": True, "search_num_images": 3, "n_layer": 1,
    "num_code": 4, "features": "fix_dim", "crop": "center", "flip": False, "epochs": 2, "warmup_epochs": 1, "blr": 0.2,
    "lr": 0.5, "min_lr": 0.1, "weight_decay": 0.1, "ckpt_epoch": 1, "eval": False, "lin_probe_ckpt": None,
    "log": LogConfig(every=7),
}
"""Option -> another legal value than in `base`."""

EXCEPT: dict[tuple[str, str], Any] = {("generation", "num_tokens"): 4, ("generation", "guidance"): Guidance(scale=3.0)}
"""Another value than in `OTHER`, for one job."""

WITH: dict[tuple[str, str], dict[str, Any]] = {
    ("val_loss", "code_path"): {"data_path": None},
    ("generation", "frechet"): {"reference_path": None},
    ("generation", "samples"): {"gpt_ckpt": None},
}
"""Options that must change together with one."""

BEFORE: dict[tuple[str, str], dict[str, Any]] = {
    ("reconstruction", "qualitative"): {"gt_npz_path": None},
    ("generation", "samples_labels"): {"samples": "samples.npz", "gpt_ckpt": None},
    ("linear_probe", "eval"): {"lin_probe_ckpt": None},
}
"""Options that must be set for one to be changed."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("questions")
    for name in ("images", "other_images"):
        toys.write_images(root / name)
    for name in ("vq", "other_vq"):
        toys.save_tokenizer(root / name)
    for name in ("gpt", "other_gpt"):
        plain = checkpoint.newest(toys.save_generator(root / f"plain_{name}"))
        weights = checkpoint.read_weights(plain, "model")
        about = checkpoint.read_config(plain)
        checkpoint.save(root / name, 1, {"model": weights, "ema": weights}, {}, about, {"classes": list(toys.COLOURS)})
    (root / "vq.yaml").write_text(yaml.safe_dump({"model": toys.TOKENIZER}))
    for name, about in (("reference", {}), ("other", {}), ("samples", {"kind": "generation"})):
        writer = NpzWriter(root / f"{name}.npz", 4, (32, 32), about)
        writer.write(np.zeros((4, 32, 32, 3), np.uint8))
        writer.close()
    np.save(root / "labels.npy", np.zeros(4, np.int64))
    (root / "codes").mkdir()
    (root / "codes" / "codes.npy").write_bytes(b"stands for codes")
    for seed, name in enumerate(("graph", "other")):
        write_graph(root / f"{name}.pb", width=1 / 16, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        linear_probe.run(linear_probe.ProbeConfig(**{**base(linear_probe), "eval": False, "lin_probe_ckpt": None}))
    return root


def base(job: ModuleType) -> dict[str, Any]:
    """Options with which most others can be changed alone; paths are relative to the fixture's folder."""
    fid = {"frechet": FD, "gt_npz_path": "reference.npz", "engine": "torch", "inception_path": "graph.pb"}
    generator = {"gpt_ckpt": "gpt", "vq_ckpt": "vq"}
    words = {
        reconstruction: {"vq_ckpt": "vq", "data_path": "images", "sample_dir": "out", **fid},
        pfid: {"vq_ckpt": "vq", "data_path": "images", "sample_dir": "out", **fid},
        diagnose: {"vq_ckpt": "vq", "data_path": "images", "out": "out", "frechet": FD},
        val_loss: {**generator, "data_path": "images"},
        generation: {
            **generator, "sample_dir": "out", "num_images": 6, "reference_path": "images",
            "guidance": Guidance(scale=2.0), **fid,
        },
        linear_probe: {
            **generator, "data_path": "images", "val_path": "images", "out": "probe", "lin_probe_ckpt": "probe",
            "eval": True, "epochs": 1,
        },
    }
    return {**words[job], "device": "cpu"}


EXTRACTOR, KEY = functools.cache(harness.load_extractor), functools.cache(record.weights_key)
"""Loaded and hashed once, not once a test."""


class AskedError(Exception):
    """Carries the question of a job that is stopped before it measures."""


def asked(job: ModuleType, options: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(AskedError) as stopped:
        job.run(JOBS[job][0](**options))
    return stopped.value.args[0]


@pytest.fixture
def stopped(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(path: Path, question: dict[str, Any], *_: Any) -> None:
        raise AskedError(question)

    monkeypatch.chdir(made)
    monkeypatch.setattr(harness, "answer", answer)
    monkeypatch.setattr(harness, "load_extractor", EXTRACTOR)
    monkeypatch.setattr(record, "weights_key", KEY)
    monkeypatch.setattr(val_loss, "CodeStore", lambda *_, **__: Codes())


class Codes:
    """Stands for a code store of held-out images."""

    codebook_size, classes = 64, list(toys.COLOURS)

    def __len__(self) -> int:
        return 4


def name_of(job: ModuleType) -> str:
    return job.__name__.rpartition(".")[2]


@pytest.mark.parametrize(("job", "field"), [
    pytest.param(job, field.name, id=f"{name_of(job)}-{field.name}")
    for job, (kind, _) in JOBS.items() for field in dataclasses.fields(kind)
])  # fmt: skip
def test_every_option_changes_the_question_or_is_listed(stopped: None, job: ModuleType, field: str) -> None:
    key = name_of(job), field
    before = {**base(job), **BEFORE.get(key, {})}
    after = {**before, field: EXCEPT.get(key, OTHER[field]), **WITH.get(key, {})}
    assert after[field] != before.get(field, MISSING)
    assert (asked(job, after) == asked(job, before)) == (field in JOBS[job][1])


@pytest.mark.parametrize("job", JOBS, ids=name_of)
def test_the_options_that_do_not_count_have_a_reason(job: ModuleType) -> None:
    assert set(job.NOT_IN_QUESTION) == JOBS[job][1] and all(job.NOT_IN_QUESTION.values())


def test_other_weights_of_a_checkpoint_are_another_question(stopped: None) -> None:
    for job in (val_loss, generation, linear_probe):
        raw, average = (asked(job, {**base(job), "gpt_weights": name}) for name in ("model", "ema"))
        assert (raw["generator"]["weights"], average["generator"]["weights"]) == ("model", "ema")
        assert raw["tokenizer"]["weights"] == "model"  # the run kept no average
