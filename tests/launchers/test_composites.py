"""The chains of scripts/composite_cmd: every stage's command is understood, a chain runs, stops and goes on.

All eight for real, on toys, take minutes: python -m pytest -m slow tests/launchers/test_composites.py
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import toys

ROOT = Path(__file__).parents[2]
CHAINS = ROOT / "scripts/composite_cmd"
TRAIN_TOK, REC = ("train tokenizer", "tokenizer.train"), ("reconstruct", "evaluations.reconstruction")
TRAIN_LM, GEN = ("train generator", "autoregressive.train"), ("sample and measure", "evaluations.generation")
VAL = ("validation loss", "evaluations.val_loss")
PROBE_TOK, PROBE_LM = (
    (f"probe {which}", "evaluations.linear_probe") for which in ("tokenizer", "generator")
)
STAGES = {
    "train_vq_and_eval.sh": [TRAIN_TOK, REC, TRAIN_LM, GEN, VAL],
    "train_vq_and_eval_fsdp.sh": [TRAIN_TOK, REC, TRAIN_LM, GEN, VAL],
    "train_c2i_and_eval.sh": [TRAIN_LM, GEN, VAL],
    "train_c2i_and_eval_fsdp.sh": [TRAIN_LM, GEN, VAL],
    "eval_c2i.sh": [GEN, VAL],
    "train_lm_lin_probe_and_eval.sh": [PROBE_LM],
    "train_tok_lin_probe_and_eval.sh": [PROBE_TOK],
    "train_all_lin_probe_and_eval.sh": [PROBE_TOK, PROBE_LM],
}
NAMES = {
    "TOK_CONFIG": "configs/vq/VQ_SS256.yaml", "VQ_EXP_DIR": "ss", "LM_EXP_DIR": "b", "LM_LIN_EXP_DIR": "lm",
    "TOK_LIN_EXP_DIR": "tok",
}


def run(script: str, folder: Path = ROOT, **variables: object) -> subprocess.CompletedProcess:
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "WANDB_MODE")
            if key in os.environ}  # fmt: skip
    given = {"GPUS": "1", **{key: str(value) for key, value in variables.items()}}
    return subprocess.run(
        ["bash", CHAINS / script], cwd=folder, env=kept | given, capture_output=True, text=True, check=False
    )


def commands(script: str, **variables: object) -> list[tuple[str, list[str]]]:
    """The (module, arguments) of every stage."""
    done = run(script, DRY_RUN="1", **{**NAMES, **variables})
    assert done.returncode == 0, done.stderr
    words = [shlex.split(line) for line in done.stdout.splitlines()]
    return [(line[2], line[3:]) for line in words]


def test_every_chain_is_listed_here() -> None:
    assert {path.name for path in CHAINS.glob("*.sh")} - {"chain.sh"} == set(STAGES)


@pytest.mark.parametrize("script", STAGES)
def test_every_stage_is_understood(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    found = commands(script)
    assert [module for module, _ in found] == [module for _, module in STAGES[script]]
    monkeypatch.chdir(ROOT)
    for module, arguments in found:
        monkeypatch.setattr(sys, "argv", [module, *arguments, "--dry-run"])
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(module).main()
        assert stopped.value.code == 0, (module, capsys.readouterr())
    sharded = [module for module, arguments in found if "run.parallel=fsdp" in arguments]
    assert sharded == ([STAGES[script][0][1]] if "fsdp" in script else [])


def flags(arguments: list[str]) -> dict[str, str]:
    return {word[2:]: after for word, after in zip(arguments, [*arguments[1:], ""], strict=True) if word[:2] == "--"}


def test_the_papers_variables_reach_the_jobs() -> None:
    """The defaults of the papers' chains, and what their documents set."""
    (_, vq), (_, rec), (_, lm), (_, gen), (_, val) = commands("train_vq_and_eval.sh", VAL_PATH="/v", GT_NPZ_PATH="/g")
    assert flags(vq)["iterations"] == "1000000" and flags(vq)["global-batch-size"] == "128"
    assert flags(rec)["data-path"] == "/v" and flags(rec)["gt-npz-path"] == "/v.npz"
    assert [flags(lm)[key] for key in ("iterations", "early-stop-iter", "warmup")] == ["1500000", "250000", "0"]
    assert (flags(gen)["cfg-schedule"], flags(gen)["gt-npz-path"]) == ("constant", "/g") and "--search" in gen
    assert flags(val)["gpt-ckpt"] == flags(lm)["out"] == "results/gpt/b"
    (_, lm), (_, gen), _ = commands(
        "train_c2i_and_eval.sh", VQ_CKPT="x.pt", LM_EXP_DIR="results/gpt/c", LM_EPOCH=50, LM_BSZ=512, WARM_ITER=200,
        GPT_MODEL="GPT-XL", LR="2e-4", FRACT_DECAY=0.1, DATASET="imagenet_code", CODEPATH="/codes", USE_QK_NORM="True",
    )
    told = [flags(lm)[key] for key in ("iterations", "global-batch-size", "gpt-model", "warmup", "lr", "fract-decay")]
    assert told == ["125000", "512", "GPT-XL", "200", "2e-4", "0.1"] and "--qk-norm" in lm
    assert (flags(lm)["code-path"], flags(lm)["out"]) == ("/codes", "results/gpt/c") and "--data-path" not in lm
    assert (flags(gen)["vq-ckpt"], flags(gen)["step-start-ratio"]) == ("x.pt", "0.18")
    (_, gen), _ = commands("eval_c2i.sh", CFG_SCALE=1.75, TOP_K=5, SEED=3, EVAL_BATCH_PER_GPU=8, GPT_CKPT="gpt.pt")
    told = [flags(gen)[key] for key in ("cfg-scale", "top-k", "global-seed", "per-proc-batch-size", "gpt-ckpt")]
    assert told == ["1.75", "5", "3", "8", "gpt.pt"] and "--search" not in gen
    assert [module for module, _ in commands("eval_c2i.sh", VAL_ONLY="True")] == ["evaluations.val_loss"]
    ((_, probe),) = commands("train_all_lin_probe_and_eval.sh", LM_ONLY="True", NUM_CODE=64, LIN_BSZ=32, SAVE_DIR="/s")
    told = [flags(probe)[key] for key in ("num-code", "batch-size", "ckpt-epoch", "out")]
    assert told == ["64", "32", "5", "/s/lm"]
    ((_, probe),) = commands("train_tok_lin_probe_and_eval.sh", FROM_DECODER="True", TOK_PRECISION="none")
    assert "--from-decoder" in probe and flags(probe)["out"] == "results/lin_probe/tok"


def test_a_variable_that_is_not_set_is_one_sentence() -> None:
    done = run("train_vq_and_eval.sh", VQ_EXP_DIR="a", LM_EXP_DIR="None", TOK_CONFIG="c.yaml")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "LM_EXP_DIR is not set" in done.stderr


def test_a_chain_stops_at_the_stage_that_fails(tmp_path: Path) -> None:
    done = run("eval_c2i.sh", tmp_path, GPT_CKPT=tmp_path, VQ_CKPT=tmp_path)
    assert done.returncode == 2 and "stage 'sample and measure' failed with exit code 2" in done.stderr
    assert "== validation loss" not in done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chains")
    toys.write_images(root / "images")
    toys.write_images(root / "val", counts=(3, 2, 3), side=(32, 32))
    toys.save_tokenizer(root / "vq")
    toys.save_generator(root / "gpt")
    recipe = {"model": toys.TOKENIZER, "adversary": None, "losses": {"perceptual": None}, "ema_decay": 0.0}
    (root / "tok.yaml").write_text(yaml.safe_dump(recipe))
    return root


def toy_variables(made: Path) -> dict[str, object]:
    """As the papers' documents set them, but for a model that fits a test; `*_FLAGS` make the rest small."""
    frechet = f"gt_npz_path=null --frechet fd_efficientnet_lite2 --reference-path {made / 'images'}"
    return {
        "TOK_CONFIG": made / "tok.yaml", "DATAPATH": made / "images", "VAL_DATAPATH": made / "val",
        "VAL_PATH": made / "val",
        "VQ_EXP_DIR": "ss", "LM_EXP_DIR": "b", "LM_LIN_EXP_DIR": "lm", "TOK_LIN_EXP_DIR": "tok",
        "TOK_EPOCH": 1, "TOK_BSZ": 4, "TOK_EARLY_STOP_ITER": 2, "LM_EPOCH": 1, "LM_BSZ": 4, "LM_STOP_ITER": 2,
        "GPT_MODEL": "tiny", "EVAL_BATCH_PER_GPU": 8, "LIN_BSZ": 8, "REC_FLAGS": "gt_npz_path=null",
        "TRAIN_LM_FLAGS": "--gpt-model tiny", "VAL_FLAGS": "--gpt-model tiny",
        "GEN_FLAGS": f"{frechet} --num-fid-samples 6 --gpt-model tiny --num-token 2", "PROBE_FLAGS": "--epochs 2",
    }


def test_a_chain_runs_and_run_again_does_nothing_twice(made: Path, tmp_path: Path) -> None:
    variables = {**toy_variables(made), "VQ_CKPT": made / "vq", "GPT_CKPT": made / "gpt"}
    done = run("train_all_lin_probe_and_eval.sh", tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    for name in ("lin_probe/tok", "lin_probe_gpt/lm"):
        assert json.loads((tmp_path / "results" / name / "results.json").read_text())["images"] == 8
    again = run("train_all_lin_probe_and_eval.sh", tmp_path, **variables)
    assert again.returncode == 0 and again.stdout.count("measured before") == 2


@pytest.mark.slow
@pytest.mark.parametrize("script", STAGES)
def test_every_chain_runs_from_nothing(made: Path, tmp_path: Path, script: str) -> None:
    variables = toy_variables(made)
    if not script.startswith(("train_vq",)):
        variables["VQ_CKPT"] = made / "vq"
    if "lin_probe" in script or script == "eval_c2i.sh":
        variables["GPT_CKPT"] = made / "gpt"
    done = run(script, tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert [line[3:] for line in done.stderr.splitlines() if line[:3] == "== "] == [name for name, _ in STAGES[script]]
    again = run(script, tmp_path, **variables)
    assert again.returncode == 0
    assert again.stdout.count("nothing to do") + again.stdout.count("measured before") >= len(STAGES[script])
