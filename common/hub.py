"""Models as folders of `model.safetensors` and `config.json`, on disk or on the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn

from common.errors import UserError

__all__ = ["HubModel", "fetch", "is_repo_id", "write_folder"]

FILES = ("config.json", "model.safetensors")
CARD = """---
library_name: image-token-lab
tags:
- {kind}
---

A {kind} saved by image-token-lab: `{module}.load("FOLDER OR ID")`.
"""


def is_repo_id(text: str) -> bool:
    """Whether `text` looks like `owner/name` and is nothing on this disk."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text)) and not Path(text).exists()


def fetch(repo_id: str, **options: Any) -> Path:
    """A hub model's folder in the local cache, downloaded if need be; options as `hf_hub_download` takes them.

    Raises: UserError when it is neither cached nor reachable.
    """
    try:
        paths = [hf_hub_download(repo_id, name, **options) for name in FILES]
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise UserError(
            f"no file or folder {repo_id!r} here, and the hub does not give {' and '.join(FILES)} for it "
            f"({type(error).__name__}); expected a run, a checkpoint file, a folder or a reachable hub id"
        ) from error
    return Path(paths[0]).parent


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

    A subclass says its `hub_kind`, describes itself in `hub_config()` and loads a folder in `from_folder(folder)`.
    """

    hub_kind: str

    def hub_config(self) -> dict[str, Any]:
        """What `config.json` says under `model`."""
        return dataclasses.asdict(self.config)

    @classmethod
    def from_folder(cls, folder: Path) -> HubModel:
        raise NotImplementedError

    def _save_pretrained(self, save_directory: Path) -> None:
        write_folder(Path(save_directory), self, self.hub_config(), self.hub_kind)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: Any = None, **options: Any) -> HubModel:
        folder = Path(model_id) if Path(model_id).is_dir() else fetch(model_id, **options)
        return cls.from_folder(folder)
