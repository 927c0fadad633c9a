"""`env_install.sh`, its start-up hook and `set_env_vars.sh`, without a network and without touching the real .venv."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOOK = "requirements/torchvision_operators.py"

FAKE_TORCH = """
import pathlib
pathlib.Path(__file__).with_name("torch_was_imported").touch()
DECLARED = []
class version: cuda = {cuda!r}
class library:
    class Library:
        def __init__(self, namespace, kind): self.namespace = namespace
        def define(self, schema): DECLARED.append(self.namespace + "::" + schema.partition("(")[0])
"""
FAKE_TORCHVISION = """
import torch
if "torchvision::nms" not in torch.DECLARED and torch.version.cuda is None:
    raise RuntimeError("operator torchvision::nms does not exist")
"""
FAKE_PIP = """
import pathlib, sys
here = pathlib.Path(__file__).parent
print(*sys.argv[1:], file=open(here / "calls.txt", "a"))
if "-r" in sys.argv:
    here.joinpath("../torch.py").write_text({torch!r})
    here.joinpath("../torchvision.py").write_text({torchvision!r})
"""


def python(folder, code):
    """Run `code` with nothing on the path but `folder`, in a Python that starts without site-packages."""
    command = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ------------------------------------------------------------------------------------------------- the hook


@pytest.fixture
def site(tmp_path):
    """A site-packages folder with the hook, a CPU torch and the torchvision that fails beside it."""
    shutil.copy(ROOT / HOOK, tmp_path)
    (tmp_path / "torch.py").write_text(FAKE_TORCH.format(cuda=None))
    (tmp_path / "torchvision.py").write_text(FAKE_TORCHVISION)
    return tmp_path


def test_without_the_hook_the_import_fails(site):
    assert "operator torchvision::nms does not exist" in python(site, "import torchvision").stderr


def test_the_hook_declares_both_operators(site):
    code = "import torchvision_operators, torchvision, torch; print(torch.DECLARED)"
    assert python(site, code).stdout.strip() == "['torchvision::nms', 'torchvision::qnms']"


def test_the_hook_alone_does_not_import_torch(site):
    assert python(site, "import torchvision_operators, json").returncode == 0
    assert not (site / "torch_was_imported").exists()


def test_the_hook_leaves_a_cuda_torch_alone(site):
    (site / "torch.py").write_text(FAKE_TORCH.format(cuda="13.0"))
    assert python(site, "import torchvision_operators, torchvision, torch; print(torch.DECLARED)").stdout == "[]\n"


def test_torchvision_imports_in_the_environment_the_tests_run_in():
    code = "import sys; early = 'torch' in sys.modules; import torchvision.transforms; sys.exit(early)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------- env_install.sh


@pytest.fixture
def clone(tmp_path):
    """A folder with the set-up script and a .venv whose pip only writes down what it is asked for."""
    shutil.copy(ROOT / "env_install.sh", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    pip = next((tmp_path / ".venv/lib").glob("python*")) / "site-packages/pip"
    pip.mkdir()
    fake = FAKE_PIP.format(torch=FAKE_TORCH.format(cuda=None), torchvision=FAKE_TORCHVISION)
    (pip / "__main__.py").write_text(fake)
    (tmp_path / ".venv/bin/pip").write_text(f'#!/bin/sh\nexec "{tmp_path}/.venv/bin/python" -m pip "$@"\n')
    (tmp_path / ".venv/bin/pip").chmod(0o755)
    return tmp_path


def install(clone, *arguments, gpu=False, **variables):
    """Run env_install.sh; what it says and the pip calls it made (its own look at pip's version left out)."""
    tools = clone / ("gpu" if gpu else "no_gpu")
    tools.mkdir(exist_ok=True)
    smi = f"echo 'GPU 0: A'; exit {0 if gpu else 1}"
    (tools / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
    (tools / "nvidia-smi").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        ["bash", clone / "env_install.sh", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    log = next(clone.glob(".venv/lib/*/site-packages/pip")) / "calls.txt"
    calls = [line for line in log.read_text().splitlines() if line.startswith("install")] if log.exists() else []
    log.unlink(missing_ok=True)
    return done, calls


def test_a_second_run_does_nothing(clone):
    first, calls = install(clone)
    assert first.returncode == 0, first.stderr
    assert any("-r requirements/base.txt -r requirements/dev.txt" in call for call in calls)
    second, calls = install(clone)
    assert (second.returncode, calls) == (0, [])
    assert "up to date" in second.stdout


def test_changed_pins_are_installed(clone):
    install(clone)
    with (clone / "requirements/base.txt").open("a") as file:
        file.write("one-more==1.0\n")
    done, calls = install(clone)
    assert done.returncode == 0
    assert calls


def test_a_failed_install_is_tried_again(clone):
    pip = clone / ".venv/bin/pip"
    working = pip.read_text()
    pip.write_text("#!/bin/sh\nexit 1\n")
    assert install(clone)[0].returncode != 0
    pip.write_text(working)
    done, calls = install(clone)
    assert done.returncode == 0
    assert calls


def test_torchvision_is_mended_where_it_fails(clone):
    done, _ = install(clone)
    assert "start-up hook" in done.stdout
    imported = subprocess.run([clone / ".venv/bin/python", "-c", "import torchvision"], check=False)
    assert imported.returncode == 0


def test_torchvision_is_left_alone_where_it_works(clone):
    pip = next(clone.glob(".venv/lib/*/site-packages/pip/__main__.py"))
    pip.write_text(FAKE_PIP.format(torch=FAKE_TORCH.format(cuda="13.0"), torchvision=FAKE_TORCHVISION))
    done, _ = install(clone, gpu=True)
    assert done.returncode == 0
    assert not list(clone.glob(".venv/lib/*/site-packages/torchvision_operators*"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has separate CPU builds")
def test_the_cpu_build_is_asked_for_only_without_a_gpu(clone):
    _, calls = install(clone)
    assert any("+cpu" in call for call in calls)
    _, calls = install(clone, gpu=True)  # other hardware, so the stamp no longer holds
    assert calls
    assert not any("+cpu" in call for call in calls)


def test_an_unsuitable_interpreter_is_refused(clone):
    shutil.rmtree(clone / ".venv")
    done = subprocess.run(
        ["bash", clone / "env_install.sh"], env={**os.environ, "PYTHON": "/bin/false"}, capture_output=True, text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "PYTHON=/bin/false is not a Python of version" in done.stderr
    assert not (clone / ".venv").exists()


def test_an_unknown_argument_is_refused(clone):
    done, calls = install(clone, "--evla")
    assert (done.returncode, calls) == (1, [])
    assert "got '--evla'" in done.stderr


def test_every_pin_is_exact_and_written_once():
    lines = [line for name in ("base", "dev") for line in (ROOT / f"requirements/{name}.txt").read_text().splitlines()]
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    names = [pin.partition("==")[0].lower() for pin in pins]
    assert len(names) == len(set(names))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "dependencies" in project["project"]["dynamic"]


def test_the_installed_versions_are_the_pinned_ones():
    from importlib.metadata import version

    lines = (ROOT / "requirements/base.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    installed = {name: version(name).partition("+")[0] for name in pins}
    assert installed == pins


# ------------------------------------------------------------------------------------------ set_env_vars.sh


def variables(folder=ROOT, path="", **given):
    """The environment after sourcing set_env_vars.sh in a bare shell."""
    start = {"PATH": f"{path}:/usr/bin:/bin", **given}
    done = subprocess.run(
        ["bash", "-euc", f'. "{ROOT}/set_env_vars.sh"; env'], env=start, cwd=folder, capture_output=True, text=True,
        check=True,
    )
    assert done.stderr == ""
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


NAMES = (
    "PROJECT_ROOT IMGNET_ROOT VAL_PATH GT_VAL_NPZ_PATH GT_NPZ_PATH EVAL_PYTHON_PATH TORCH_RUN_PATH "
    "GPUS NNODES NODE_RANK MASTER_ADDR PORT"
).split()


def test_every_variable_of_the_papers_is_exported_from_any_folder(tmp_path):
    here, elsewhere = variables(), variables(folder=tmp_path)
    assert {name: here.get(name) for name in NAMES} == {name: elsewhere.get(name) for name in NAMES}
    assert all(here.get(name) for name in NAMES if name != "PORT") and here["PORT"] == ""  # a free one is chosen
    assert here["PROJECT_ROOT"] == str(ROOT)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_set_stays(name):
    assert variables(**{name: "7"})[name] == "7"


def test_processes_follow_the_gpus(tmp_path):
    assert variables(path="/nowhere")["GPUS"] == "1" or shutil.which("nvidia-smi")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: A'\necho 'GPU 1: B'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert variables(path=str(tmp_path))["GPUS"] == "2"


def test_lower_case_gpus_wins_over_an_exported_default():
    assert variables(GPUS="8", gpus="1")["GPUS"] == "1"


def test_wandb_asks_for_no_login():
    assert variables()["WANDB_MODE"] == "offline"
    assert "WANDB_MODE" not in variables(WANDB_API_KEY="given")


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"])
def test_on_a_cpu_freed_memory_is_kept(name, tmp_path):
    nothing, two = tmp_path / "nothing", tmp_path / "two"
    for folder, listed in ((nothing, ":"), (two, "echo 'GPU 0: A'")):
        folder.mkdir()
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{listed}\n")
        (folder / "nvidia-smi").chmod(0o755)
    assert int(variables(path=str(nothing))[name]) >= 2**30
    assert variables(path=str(nothing), **{name: "7"})[name] == "7"
    assert name not in variables(path=str(two))
