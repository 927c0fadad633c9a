"""Which kernels attention may use where it is called; cuDNN must not see lengths that vary."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoregressive.generate import generate
from autoregressive.models.gpt import GPT
from autoregressive.models.rar import RAR
from common.attention import attention
from tests.unit.test_imports import PACKAGES, ROOT
from tokenizer.layers.resnet import AttnBlock
from tokenizer.layers.transformer import QFormerLayer, ViTLayer
from tokenizer.layers.vit import VitBlock


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether cuDNN was allowed, call by call."""
    calls: list[bool] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def noted(*args: object, **named: object) -> torch.Tensor:
        calls.append(torch.backends.cuda.cudnn_sdp_enabled())
        return plain(*args, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    return calls


NUMBERS = {"codebook_size": 8, "num_tokens": 4, "num_classes": 3}
GENERATORS = {
    "learned": lambda: GPT(GPT.Config(size="tiny", **NUMBERS)),
    "rope2d": lambda: GPT(GPT.Config(size="tiny", positions="rope2d", **NUMBERS)),
    "rar": lambda: RAR(RAR.Config(size="tiny", **NUMBERS)),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_decoding_never_uses_cudnn_and_teacher_forcing_may(kind: str, cudnn: list[bool]) -> None:
    model, labels = GENERATORS[kind]().eval(), torch.tensor([0, 1])
    generate(model, labels)
    assert cudnn == [False] * 2 * 4
    cudnn.clear()
    model(torch.zeros(2, 4, dtype=torch.int64), labels)
    assert cudnn == [True, True]


def test_training_in_bf16_on_a_cpu_computes_attention_in_float32() -> None:
    """And sampling, which has no backward pass, in bf16."""
    query, key, value = (torch.randn(2, 2, 8, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    exact = torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=True)
    found = attention(query, key, value, causal=True)
    assert torch.equal(found, exact.bfloat16())
    [gradient] = torch.autograd.grad(found.float().sum(), query)
    assert gradient.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention(query.float(), key, value, causal=True), found)
    with torch.no_grad():
        plain = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        assert torch.equal(attention(query, key, value, causal=True), plain)


def test_tokenizers_exclude_cudnn_only_over_codes(cudnn: list[bool]) -> None:
    """Nested dropout shortens the memory of cross-attention; images always have the same number of patches."""
    x = torch.zeros(1, 9, 32)
    QFormerLayer(32, 2)(x, x[:, :5], x, x[:, :5])
    assert cudnn == [True, False]
    cudnn.clear()
    ViTLayer(32, 2)(x)
    VitBlock(32, 2)(x)
    AttnBlock(32)(torch.zeros(1, 32, 3, 3))
    assert cudnn == [True] * 3


def test_the_kernels_that_were_allowed_before_are_allowed_after() -> None:
    x = torch.randn(1, 1, 4, 8)
    with sdpa_kernel(SDPBackend.MATH):
        attention(x, x, x, varying=True)
        assert not torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_compiled_attention_is_the_same() -> None:
    x = torch.randn(1, 2, 4, 8)

    def mixed(x: torch.Tensor) -> torch.Tensor:
        return attention(x, x, x, causal=True, varying=True)

    compiled = torch.compile(mixed, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), mixed(x))


@pytest.mark.parametrize("package", PACKAGES)
def test_one_place_calls_torchs_attention(package: str) -> None:
    """Except the benchmark's plain sampler, which does what the original projects do."""
    allowed = {ROOT / "common/attention.py", ROOT / "benchmarks/plain_sampler.py"}
    calling = [path for path in sorted((ROOT / package).rglob("*.py")) if path not in allowed and calls(path)]
    assert calling == []


def calls(path: Path) -> bool:
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return any(ast.unparse(node.func).endswith("scaled_dot_product_attention") for node in nodes)
