"""Every shipped generator config resolves, builds and takes a training pass, on the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from autoregressive.config import TrainConfig
from common import config, optim

ROOT = Path(__file__).parents[2]
CONFIGS = [
    *sorted((ROOT / "configs/gpt").glob("*.yaml")), *sorted((ROOT / "configs/generator").glob("RAR-*.yaml")),
    ROOT / "configs/quickstart/gpt.yaml",
]  # fmt: skip
PARAMETERS = {
    "GPT-B": 111_085_824, "GPT-L": 343_174_144, "GPT-XL": 775_028_480, "GPT-XXL": 1_411_367_424,
    "llamagen_GPT-B": 110_888_448, "llamagen_GPT-L": 342_910_976, "llamagen_GPT-B_384": 110_888_448,
    "llamagen_GPT-L_384": 342_910_976, "llamagen_GPT-XL_384": 774_699_520, "llamagen_GPT-XXL_384": 1_410_972_672,
    "llamagen_GPT-3B_384": 3_096_659_200, "RAR-B": 265_645_312, "RAR-L": 467_962_880, "RAR-XL": 963_292_416,
    "RAR-XXL": 1_507_174_528,
}  # fmt: skip
SCHEDULES = {"GPT": "wsd", "gpt": "wsd", "llamagen": "constant", "RAR": "cosine"}
DECAYS = {"GPT": 0.05, "gpt": 0.1, "llamagen": 0.05, "RAR": 0.03}
"""By how a file's name begins; `gpt` is the quickstart's own, the others are the papers'."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds_and_passes(path: Path) -> None:
    settings = config.parse(TrainConfig, ["--config", str(path)])
    family = path.stem.partition("_")[0].partition("-")[0]
    assert (settings.optim.schedule, settings.optim.weight_decay) == (SCHEDULES[family], DECAYS[family])
    with torch.device("meta"):
        model = config.build("autoregressive.models:GENERATORS", settings.model)
        codes, labels = torch.zeros(2, model.num_tokens, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
        loss = F.cross_entropy(model.train()(codes, labels, labels == 0).flatten(0, 1), codes.flatten())
        loss.backward()
    optimizer = optim.adamw(model, settings.optim)
    decayed, plain = (group["params"] for group in optimizer.param_groups)
    assert all(p.dim() >= 2 for p in decayed) and all(p.dim() == 1 for p in plain)
    if path.parent.name != "quickstart":
        assert sum(value.numel() for value in model.parameters()) == PARAMETERS[path.stem]


def test_variants_state_only_their_differences() -> None:
    settings = config.parse(TrainConfig, ["--config", str(ROOT / "configs/gpt/GPT-XXL.yaml")])
    assert (settings.run.steps, settings.data.batch_size, settings.optim.warmup) == (750_000, 512, 200)
    assert (settings.optim.beta2, settings.run.checkpoint_every, settings.model["num_classes"]) == (0.95, 5000, 1000)
