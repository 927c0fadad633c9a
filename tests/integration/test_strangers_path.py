"""A stranger's path: the README's five commands for own images, on three classes, with nothing changed but sizes.

Takes about a minute, so it is marked slow: python -m pytest -m slow tests/integration/test_strangers_path.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests import toys

ROOT = Path(__file__).parents[2]
SMALLER = {  # what makes a README command end within seconds, by its launcher
    "train_tokenizer.sh": "--iterations 6 --global-batch-size 8 run.checkpoint_every=6 losses.perceptual=null",
    "reconstruction.sh": "",
    "extract_code_c2i.sh": "",
    "train_c2i.sh": "--iterations 6 --global-batch-size 4 run.checkpoint_every=6 model.layers=1",
    "sample_c2i_visualization.sh": "--qual-num 2",
    "sample_c2i_search_cfg.sh": "--num-fid-samples 6",
}


def readme_commands() -> list[str]:
    """The commands of the section "Train on your own images", continued lines joined."""
    section = (ROOT / "README.md").read_text().split("## Train on your own images")[1].split("\n## ")[0]
    block = re.search(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[1].replace("\\\n", " ")
    return [line for line in block.splitlines() if line.startswith("bash ")]


@pytest.mark.slow
def test_own_images_in_three_classes(tmp_path: Path) -> None:
    toys.write_images(tmp_path / "my_images/train", counts=(8, 8, 8), side=(90, 70))
    toys.write_images(tmp_path / "my_images/val", counts=(2, 2, 2), side=(90, 70))
    commands = readme_commands()
    assert len(commands) == len(SMALLER)
    for command in commands:
        launcher = re.search(r"scripts/([\w.]+)", command)[1]
        line = command.replace("scripts/", f"{ROOT}/scripts/").replace("configs/", f"{ROOT}/configs/")
        done = subprocess.run(
            ["bash", "-c", f"{line} {SMALLER[launcher]}"], cwd=tmp_path, env={**os.environ, "GPUS": "1"},
            capture_output=True, text=True, check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    results = tmp_path / "results"
    reconstructed = json.loads((results / "my_reconstructions/results.json").read_text())
    assert set(reconstructed["tokens"]) == {"8", "16", "32", "64"} and reconstructed["tokens"]["64"]["psnr"] > 5
    assert np.load(results / "my_codes/codes.npy").shape == (24, 2, 64)
    assert {path.parent.name for path in (results / "my_samples").rglob("*.png")} == {"class_0_apple", "class_2_cat"}
    measured = json.loads((results / "my_metrics/results.json").read_text())
    assert np.isfinite(measured["metrics"]["fd_efficientnet_lite2"])
