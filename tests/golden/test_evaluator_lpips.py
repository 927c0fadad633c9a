"""LPIPS against the original: a narrow trunk with stored weights, and the full trunk with formula weights."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from common.networks.lpips import LPIPSNetwork, _heads_file, _load

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"

if not (GOLDEN / "tiny").is_dir():
    pytest.skip(f"no reference numbers in {GOLDEN}", allow_module_level=True)


def load(name: str) -> dict[str, torch.Tensor]:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return {key: value.float() if value.dtype == torch.bfloat16 else value for key, value in tensors.items()}


def formula(seed: int, key: str, count: int) -> np.ndarray:
    """The fixtures' pseudo-random numbers in [0,1): a 64-bit mixer seeded by the tensor's name."""
    start = int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = np.uint64(start) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) * 2.0**-24


def test_distance_gradient_and_trunk_of_the_narrow_network():
    weights, io = load("tiny/lpips.weights"), load("tiny/lpips.io")
    network = LPIPSNetwork(channels=(4, 8, 8, 12, 12))
    network.load_state_dict(weights)
    y = io["y"].requires_grad_()
    distance = network(io["x"], y)
    close(distance, io["distance"].flatten())
    close(network.features(io["x"])[4], io["trunk_4"])
    distance.mean().backward()
    close(y.grad, io["grad_second"], 1e-4)


def test_released_names_and_shapes():
    contract = json.loads((GOLDEN / "contracts" / "lpips_vgg16.json").read_text())
    with torch.device("meta"):
        ours = {name: list(value.shape) for name, value in LPIPSNetwork().state_dict().items()}
    assert ours == {name: shape for name, (shape, _) in contract["keys"].items()}


def test_full_trunk_with_formula_weights():
    about = json.loads((GOLDEN / "fullsize" / "lpips.json").read_text())
    np.testing.assert_allclose(formula(1, "a", 4), [0.5010783672, 0.7197649479, 0.4650167227, 0.6415699124], atol=1e-10)
    network, io = LPIPSNetwork(), load("fullsize/lpips.io")
    weights = network.state_dict()
    for key, fill in about["fill"].items():
        if not isinstance(fill, str):
            values = fill[0] + fill[1] * (2 * formula(about["seed"], key, weights[key].numel()) - 1)
            weights[key] = torch.from_numpy(values.astype(np.float32)).reshape(weights[key].shape)
    network.load_state_dict(weights)
    x, y = (io[name].float() / 127.5 - 1 for name in ("x_uint8", "y_uint8"))
    with torch.no_grad():
        close(network(x, y), io["distance_formula_heads"].flatten())
        network.load_state_dict({**weights, **_load(_heads_file(None))})
        close(network(x, y), io["distance_released_heads"].flatten())


def close(ours: torch.Tensor, expected: torch.Tensor, relative: float = 1e-5) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= relative * expected.abs().max()
