"""The launchers: they parse, each starts its job and nothing else, and `DRY_RUN=1` only prints."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JOBS = {
    "train_tokenizer.sh": "tokenizer.train",
    "train_vq.sh": "tokenizer.train",
    "reconstruction.sh": "evaluations.reconstruction",
    "val.sh": "evaluations.reference",
    "eval_pfid.sh": "evaluations.pfid",
    "extract_code_c2i.sh": "autoregressive.extract_codes",
    "evidence_robustok.sh": "studies.robustok",
    "make_pairs.sh": "autoregressive.make_pairs",
    "train_c2i.sh": "autoregressive.train",
    "train_c2i_fsdp.sh": "autoregressive.train",
    "train_vq_fsdp.sh": "tokenizer.train",
    "check_code_c2i.sh": "autoregressive.check_codes",
    "train_rar.sh": "autoregressive.train",
    "sample_c2i_visualization.sh": "autoregressive.sample",
    "sample_c2i_search_cfg.sh": "evaluations.generation",
    "val_loss_c2i.sh": "evaluations.val_loss",
    "pack_images.sh": "common.shards",
    "train_lin_probe.sh": "evaluations.linear_probe",
    "train_lin_probe_gpt.sh": "evaluations.linear_probe",
    "diagnose_tokenizer.sh": "evaluations.diagnose",
    "evidence.sh": "studies.tokenizers",
    "convert_checkpoint.sh": "autoregressive.convert",
    "download_checkpoints.sh": "common.download",
    "model_card.sh": "evaluations.model_card",
    "benchmark.sh": "benchmarks.run",
    "check_gpu.sh": "benchmarks.check_gpu.run",
    "bench_tokenizers.sh": "evaluations.bench",
    "quickstart.sh": "studies.quickstart",
    "demo.sh": "studies.demo",
    "test.sh": "pytest",
}
VARIABLES = (
    "GPUS gpus NNODES NODE_RANK MASTER_ADDR PORT TORCH_RUN_PATH PROJECT_ROOT EVAL_PYTHON_PATH DRY_RUN "
    "VQ_CKPT TOK_CONFIG CODE_PATH"
).split()


def run(script, *arguments, folder=ROOT, root=ROOT, **variables):
    """Run a launcher with none of its variables set but these."""
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES} | variables
    return subprocess.run(
        ["bash", root / "scripts" / script, *arguments],
        env=environment, cwd=folder, capture_output=True, text=True, check=False,
    )


def printed(script, *arguments, **keywords):
    """The command a launcher would run, as words."""
    done = run(script, *arguments, DRY_RUN="1", **keywords)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def test_every_launcher_is_listed_here():
    here = {path.name for path in (ROOT / "scripts").glob("*.sh")} - {"launch.sh"}
    assert here == set(JOBS)


SHELL = [*ROOT.glob("*.sh"), *ROOT.glob("scripts/**/*.sh"), *ROOT.glob("scripts/slurm/*"), ROOT / ".ci/run"]


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_it_parses(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", JOBS)
def test_it_is_short(script):
    assert len((ROOT / "scripts" / script).read_text().splitlines()) < 10


@pytest.mark.parametrize("script", JOBS)
def test_its_job_exists(script):
    assert importlib.util.find_spec(JOBS[script]) is not None


@pytest.mark.parametrize("script", JOBS)
def test_one_process_runs_plain_python_with_the_arguments_untouched(script):
    words = printed(script, "--a", "two words", "model.b=$HOME *", GPUS="1")
    assert Path(words[0]).name.startswith("python")
    assert words[1:3] == ["-m", JOBS[script]]
    assert words[-3:] == ["--a", "two words", "model.b=$HOME *"]


def test_the_variables_of_the_papers_reach_the_job():
    words = printed("extract_code_c2i.sh", "--ten-crop", VQ_CKPT="a run", TOK_CONFIG="t.yaml", CODE_PATH="codes")
    assert words[3:] == ["--vq-ckpt", "a run", "--tok-config", "t.yaml", "--code-path", "codes", "--ten-crop"]
    assert printed("extract_code_c2i.sh", "--ten-crop")[3:] == ["--ten-crop"]
    for script in ("reconstruction.sh", "sample_c2i_search_cfg.sh", "eval_pfid.sh"):
        assert printed(script, EVAL_PYTHON_PATH="/x/python")[3:] == ["--eval-python-path", "/x/python"]


def test_several_processes_run_torchrun(tmp_path):
    words = printed("train_vq.sh", "--x=1", folder=tmp_path, gpus="2", PORT="11086", TORCH_RUN_PATH="/bin/echo")
    assert words == [
        "/bin/echo", "--nnodes=1", "--nproc-per-node=2", "--node-rank=0", "--master-addr=127.0.0.1",
        "--master-port=11086", "-m", "tokenizer.train", "--x=1",
    ]  # fmt: skip


@pytest.mark.parametrize(("visible", "count"), [
    ("2,5", "2"), ("0,1,2", "3"), ("GPU-8932f937,MIG-0a1b", "2"), ("0,1,-1,2", "2"),
])  # fmt: skip
def test_visible_devices_are_counted(visible, count):
    words = printed("train_vq.sh", CUDA_VISIBLE_DEVICES=visible, gpus="", GPUS="")
    assert f"--nproc-per-node={count}" in words and "--standalone" in words


@pytest.mark.parametrize("visible", ["3", "", "-1"])
def test_one_visible_device_or_none_is_one_process(visible):
    assert printed("train_vq.sh", CUDA_VISIBLE_DEVICES=visible, gpus="", GPUS="")[1:3] == ["-m", "tokenizer.train"]


def test_a_port_in_use_is_named(free_port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        done = run("train_vq.sh", GPUS="2", PORT=str(free_port), TORCH_RUN_PATH="/bin/echo")
    assert done.returncode == 2 and f"PORT={free_port} of 127.0.0.1 is in use" in done.stderr


def test_several_machines_run_torchrun_with_one_process_each():
    words = printed("train_c2i.sh", GPUS="1", NNODES="3", NODE_RANK="2", MASTER_ADDR="first.example")
    given = {"--nnodes=3", "--nproc-per-node=1", "--node-rank=2", "--master-addr=first.example"}
    assert given <= set(words)


def test_a_torchrun_that_is_not_there_is_replaced_by_its_module():
    words = printed("train_c2i.sh", GPUS="2", TORCH_RUN_PATH="/nowhere/torchrun")
    assert words[1:3] == ["-m", "torch.distributed.run"]


def test_dry_run_runs_nothing(tmp_path):
    """Even set-up is left out: a clone without an environment stays without one."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("set_env_vars.sh", "env_install.sh"):
        shutil.copy(ROOT / name, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for script in JOBS:
        done = run(script, root=tmp_path, folder=tmp_path, DRY_RUN="1")
        assert done.returncode == 0, done.stderr
        assert "no .venv here" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def clone(tmp_path):
    """The launchers beside a .venv with this Python and, in the place of a job, a module the test writes."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "set_env_vars.sh", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / ".venv/bin/python").chmod(0o755)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/__init__.py").touch()
    return tmp_path


def test_the_exit_code_is_the_jobs_and_the_folder_the_callers(clone, tmp_path_factory):
    (clone / "tokenizer/train.py").write_text("import os, sys; print(os.getcwd(), sys.argv[1:]); sys.exit(7)")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = run("train_vq.sh", "--lr", "1e-4", root=clone, folder=elsewhere, GPUS="1")
    assert done.returncode == 7
    assert done.stdout.strip() == f"{elsewhere} ['--lr', '1e-4']"


def test_a_signal_reaches_the_job(clone):
    """The job takes the shell's place, so Ctrl-C and a scheduler's SIGTERM arrive where they can be handled."""
    (clone / "tokenizer/train.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('saved'))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    job = subprocess.Popen(
        ["bash", clone / "scripts/train_vq.sh"], env={**os.environ, "GPUS": "1", "NNODES": "1"}, cwd=clone,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    assert job.stdout.readline() == "ready\n"
    job.terminate()
    assert "saved" in job.communicate(timeout=30)[1]
    assert job.returncode == 1
