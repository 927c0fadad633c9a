"""Models as folders of `model.safetensors` and `config.json`, on disk or on the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin
from safetensors.torch import save_file
from torch import nn

from common.checkpoint import load_into, read_config, read_weights
from common.config import resolve
from common.download import fetch
from common.meta import unfilled

__all__ = ["HubModel", "write_folder"]

CARD = """---
library_name: image-token-lab
tags:
- {kind}
---

A {kind} saved by image-token-lab: `{module}.load("FOLDER OR ID")`.
"""


def write_folder(folder: Path, model: nn.Module, config: Mapping[str, Any], kind: str) -> None:
    """`model.safetensors`, `config.json` and a short README. `kind`: tokenizer or generator."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"kind": kind, "model": dict(config)}, indent=1))
    module = {"tokenizer": "tokenizer", "generator": "autoregressive"}[kind]
    (folder / "README.md").write_text(CARD.format(kind=kind, module=module))


class HubModel(ModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a model with a dataclass `config`.

    A subclass sets `hub_kind` ("tokenizer" or "generator") and `Config`, and may extend `hub_config()`.
    """

    hub_kind: str
    Config: type

    def hub_config(self) -> dict[str, Any]:
        """What `config.json` says under `model`."""
        return dataclasses.asdict(self.config)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_folder(Path(save_directory), self, self.hub_config(), self.hub_kind)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: Any = None, **options: Any) -> HubModel:
        folder = Path(model_id) if Path(model_id).is_dir() else fetch(model_id, **options)
        stated = {key: value for key, value in read_config(folder)["model"].items() if key != "name"}
        with unfilled():
            model = cls(resolve(cls.Config, stated, where="model"))
        load_into(model, read_weights(folder, "model"), str(folder), assign=True)
        return model.eval().requires_grad_(False)
