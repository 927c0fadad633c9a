"""A fixture is a JSON that describes it and the tensor files beside it; nothing else about it is known here."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn

TOLERANCE = 1e-5
NEAR_ZERO = 1e-6


class Skip(Exception):  # noqa: N818
    """Raised by a check that leaves an OPTIONAL fixture out; the text is the reason."""


@dataclass(frozen=True)
class Fixture:
    """`path` is the JSON. `kind` is the name of its folder: contracts, wrappers, tiny, fullsize or schedules.

    `part`: where one JSON describes several things, which of them. `packed`: the path is a `<kind>.json.xz`, which maps
    names to JSONs, and `part` is the name.
    """

    path: Path
    kind: str
    part: str = ""
    packed: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.part or self.path.stem}"

    @cached_property
    def about(self) -> dict[str, Any]:
        return read_packed(self.path)[self.part] if self.packed else json.loads(self.path.read_text())

    @cached_property
    def io(self) -> dict[str, Tensor]:
        """Inputs and expected outputs."""
        return read_tensors(self.path.with_suffix(".io.safetensors"))

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The stored state dict under the reference's names, floats as float32."""
        return floats(read_tensors(self.path.with_suffix(".weights.safetensors")))

    def images(self, name: str = "x") -> Tensor:
        """Input images (B,3,H,W) in [-1,1], stored as floats under `name` or as 8-bit values under `<name>_uint8`."""
        return self.io[name].float() if name in self.io else self.io[f"{name}_uint8"].float() / 127.5 - 1

    @cached_property
    def keys(self) -> frozenset[str]:
        """Names of the reference's tensors, from whichever source this fixture has."""
        stored = {**self.about.get("keys", {}), **self.about.get("fill", {})}
        return frozenset(stored or (self.weights if "weights_file" in self.about else ()))

    @cached_property
    def case(self) -> frozenset[str]:
        """The settings that each of `cases` has; families without models are told apart by them."""
        cases = self.about.get("cases")
        return frozenset(next(iter(cases.values()))) if isinstance(cases, dict) and cases else frozenset()

    def arguments(self, *where: str) -> dict[str, Any]:
        """The constructor arguments: under the first of `where` that is there, or those in the contract of this name.

        Raises: ValueError if neither has them.
        """
        folder, name = self.path.parent.parent, self.about.get("name")
        path, packed = folder / "contracts" / f"{name}.json", folder / "contracts.json.xz"
        sources = [self.about]
        if path.is_file():
            sources.append(json.loads(path.read_text()))
        elif packed.is_file():
            sources.append(read_packed(packed).get(name, {}))
        found = next((source[key] for source in sources for key in where if key in source), None)
        if found is None:
            raise ValueError(f"no {' or '.join(where)} here and no contract of {name!r}")
        return found

    def beside(self, matches: Callable[[Fixture], bool]) -> Fixture:
        """The first fixture in the same folder that `matches`."""
        others = (Fixture(path, self.kind) for path in sorted(self.path.parent.glob("*.json")))
        return next(other for other in others if matches(other))


@cache
def read_packed(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(lzma.decompress(path.read_bytes()))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file, or `<path>.xz` in its place."""
    return load_file(path) if path.is_file() else load(lzma.decompress(path.with_name(f"{path.name}.xz").read_bytes()))


def floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


@dataclass
class Report:
    """Collects comparisons. `recorded`: the reference's own float32 error by tensor name, where measured."""

    recorded: Mapping[str, Any] = field(default_factory=dict)
    worst: tuple[float, str] = (0.0, "nothing compared")
    failures: list[str] = field(default_factory=list)
    compared: int = 0

    def close(
        self, name: str, got: Tensor, expected: Tensor, tolerance: float = TOLERANCE, key: str | None = None
    ) -> None:
        """max|a-b| / max|b| within the larger of `tolerance` and ten times the recorded error of `key` (or `name`)."""
        self.compared += 1
        got, expected = got.detach().double().cpu(), expected.detach().double().cpu()
        if got.shape != expected.shape:
            self.failures.append(f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
            return
        if not got.numel():
            return
        difference = (got - expected).abs().max().item()
        error = difference / max(expected.abs().max().item(), 1e-30)
        measured = self.recorded.get(key or name, 0.0)
        allowed = max(tolerance, 10 * measured if isinstance(measured, float) else 0.0)
        near_zero = got.numel() == 1 and difference <= NEAR_ZERO
        if not near_zero:
            self.worst = max(self.worst, (error, name)) if self.worst[0] else (error, name)
        elif not self.worst[0]:
            self.worst = (0.0, name)
        if not (error <= allowed or near_zero):
            self.failures.append(f"{name}: relative error {error:.2e}, allowed {allowed:.0e}")

    def equal(self, name: str, got: Any, expected: Any) -> None:
        """Exactly the same: tensors, numbers, lists or sets."""
        self.compared += 1
        if not self.worst[0]:
            self.worst = (0.0, name)
        if isinstance(got, Tensor):
            if got.shape != expected.shape:
                self.failures.append(f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
            elif not torch.equal(got.cpu(), expected.to(got.dtype).cpu()):
                different = int((got.cpu() != expected.cpu()).sum())
                self.failures.append(f"{name}: {different} of {got.numel()} values differ")
        elif got != expected:
            self.failures.append(f"{name}: got {_short(got)}, expected {_short(expected)}")

    def codes(self, name: str, got: Tensor, expected: Tensor, margin: Tensor | None = None) -> None:
        """Code indices: the same, except where the nearest two codes are closer than 2e-5."""
        if margin is not None:
            decided = margin >= 2e-5
            got, expected = got[decided], expected[decided]
        self.equal(name, got, expected)

    def gradients(
        self, module: nn.Module, order: list[str], expected: Tensor, named: Mapping[str, Tensor], prefix: str
    ) -> None:
        """Gradient norms of all parameters (-1 = none) and the stored full gradients, by our parameter names."""
        own = dict(module.named_parameters())
        none = torch.tensor(-1.0)
        norms = torch.stack([none if own[key].grad is None else own[key].grad.norm() for key in order])
        self.close(f"{prefix}grad_norms", norms, expected, key="grad_norms")
        for key, gradient in named.items():
            self.close(f"{prefix}grad/{key}", own[key].grad, gradient, key=f"grad/{key}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 120 else text[:117] + "..."


# ------------------------------------------------------------------------------------------ formula weights


def uniforms(seed: int, key: str, count: int) -> np.ndarray:
    """The fixtures' numbers in [0,1) for one tensor: a 64-bit mixer whose counter starts at a hash of its name."""
    start = np.uint64(int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        z = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) * 2.0**-24


def filled(about: Mapping[str, Any], shapes: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A state dict by formula, for reference keys with the shapes of `shapes`; constants stay as constructed.

    Spectral-norm vectors (`..._u`, `..._v`) are divided by their length.
    """
    tensors: dict[str, Tensor] = {}
    for key, tensor in shapes.items():
        fill = about["fill"][prefix + key]
        if isinstance(fill, str):
            tensors[key] = tensor
            continue
        values = uniforms(about["seed"], prefix + key, tensor.numel())
        values = torch.from_numpy((fill[0] + fill[1] * (2 * values - 1)).astype(np.float32)).reshape(tensor.shape)
        if key.endswith(("weight_u", "weight_v")):
            values = values / values.norm()
        tensors[key] = values
    return tensors
