"""Models as folders of `model.safetensors` and `config.json`, as runs and as files, on disk or on the hub."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from common.card import card
from common.checkpoint import has_weights, load_into, read_config, read_weights, resolve_folder
from common.config import read_yaml, resolve
from common.download import fetch
from common.errors import UserError
from common.meta import unfilled
from common.weights import open_weights

__all__ = ["Found", "HubModel", "find", "model_part", "write_folder"]

STEP = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Found:
    """Weights at a path, not read yet.

    config: the `model` part of the config beside them; None for a released file, whose config is recognised from
    `mapped` (tensors by name, for their shapes) and `args` (settings in the file). part: the key of the weights in it.
    averaged: whether averages are among its tensors.
    """

    path: Path
    read: Callable[[], dict[str, Tensor]]
    config: dict[str, Any] | None = None
    mapped: dict[str, Tensor] = field(default_factory=dict)
    part: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    averaged: bool = False


def find(path: str | Path, order: Sequence[str], known: Callable[[Mapping[str, Tensor]], bool]) -> Found:
    """The first weights of `order` at a path: a run, a checkpoint folder, a folder as above, a file or a hub id.

    `known` says whether names of tensors belong to the model that is wanted.

    Raises: UserError when there is nothing to load, or it is damaged.
    """
    found = _accelerate_run(Path(path), order) or resolve_folder(path)
    beside = found.suffix == ".safetensors" and found.stem in order and found.with_name("config.json").is_file()
    folder = found.parent if beside else found
    stored = read_config(folder) if folder.is_dir() else {}
    config = stored.get("model")
    if isinstance(config, dict) and "vq_model" not in config:  # not of 1d-tokenizer
        name = found.stem if beside else next((name for name in order if has_weights(folder, name)), order[0])
        return Found(folder, partial(read_weights, folder, name), config)
    file = open_weights(folder / "model.safetensors" if found.is_dir() else found, order, known)
    return Found(file.path, file.tensors, None, file.mapped, file.part, file.args or stored, file.averaged)


def _accelerate_run(path: Path, order: Sequence[str]) -> Path | None:
    """The weights in the newest checkpoint of a run of 1d-tokenizer's trainers, or None."""
    steps = {int(found[1]): folder for folder in path.glob("checkpoint-*") if (found := STEP.fullmatch(folder.name))}
    for name in order if steps else ():
        file = steps[max(steps)] / {"ema": "ema_model"}.get(name, "unwrapped_model") / "pytorch_model.bin"
        if file.is_file():
            return file
    return None


def model_part(config: Mapping[str, Any] | str | Path | None) -> Mapping[str, Any]:
    """The `model` part of a YAML file, or that part itself; empty for None."""
    return read_yaml(config).get("model", {}) if isinstance(config, str | Path) else config or {}


def write_folder(folder: Path, model: nn.Module, config: Mapping[str, Any], kind: str) -> None:
    """`model.safetensors` and `config.json`. `kind`: tokenizer or generator."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"kind": kind, "model": dict(config)}, indent=1))


class HubModel(ModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a model with a dataclass `config`.

    A subclass sets `hub_kind` ("tokenizer" or "generator") and `Config`, and may extend `hub_config()`.
    """

    hub_kind: str
    Config: type
    source: str | None = None
    """The path or id that the weights were loaded from."""

    def hub_config(self) -> dict[str, Any]:
        """The `model` part of `config.json`."""
        return dataclasses.asdict(self.config)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_folder(Path(save_directory), self, self.hub_config(), self.hub_kind)

    def generate_model_card(
        self, *, results: str | None = None, data: str | None = None, license: str = "mit"
    ) -> ModelCard:
        """See `common.card`; `save_pretrained` and `push_to_hub` pass `model_card_kwargs`."""
        try:
            source = resolve_folder(self.source) if self.source else None
        except UserError:  # it was removed since
            source = None
        return ModelCard(card(self, self.hub_kind, source, results, data, license))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: Any = None, **options: Any) -> HubModel:
        folder = Path(model_id) if Path(model_id).is_dir() else fetch(model_id, **options)
        stated = {key: value for key, value in read_config(folder)["model"].items() if key != "name"}
        with unfilled():
            model = cls(resolve(cls.Config, stated, where="model"))
        load_into(model, read_weights(folder, "model"), str(folder), assign=True)
        model.source = str(folder)
        return model.eval().requires_grad_(False)
