"""Sampling that is recorded, compiled or stored in eight bits draws what it draws without.

A CUDA graph needs a GPU. What it asks of the code it records can be had without one: traced into a fixed list of
operations, which replays whatever inputs it gets, the sampler must still draw what it draws when it is called.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx

from autoregressive import cuda_graph
from autoregressive.config import Sampling
from autoregressive.cuda_graph import RecordedDraw, SideQueue
from autoregressive.fast_linears import EIGHT_BITS, store_in_eight_bits
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.models.gpt import GPT
from autoregressive.sample import ImageSampler
from common.config import build
from common.errors import UserError
from tests.unit.test_fast_sampling import KINDS, asked, captions
from tests.unit.test_generators import randomise

GUIDANCE = Guidance(3.0, "step", window_start=0.3, off=1.0)
SAMPLING = Sampling(temperature=0.9, top_k=20, top_p=0.95)


@pytest.fixture(params=["learned", "rope2d", "caption", "rar"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return randomise(build("autoregressive.models:GENERATORS", KINDS[request.param])).requires_grad_(False)


def no_tokenizer() -> torch.nn.Module:
    module = torch.nn.Identity()
    module.decode = module.forward
    return module


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the recordings that are made, a traced list of operations each."""
    # Tracing sees nothing of what runs in inference mode.
    monkeypatch.setattr(cuda_graph, "generate", generate.__wrapped__)
    return []


def record(made: list[int], function: object, *inputs: torch.Tensor) -> object:
    made.append(len(inputs[0]))
    return make_fx(function)(*inputs)


def test_a_recording_draws_what_a_call_draws(model: torch.nn.Module, traced: list[int]) -> None:
    draw, cache = RecordedDraw(model, partial(record, traced)), model.new_cache(6)
    first = asked(model)
    other = captions(1, 5, 3) if first.is_floating_point() else torch.tensor([2, 2, 1])
    for labels, ids in ((first, torch.tensor([0, 1, 2])), (other, torch.tensor([7, 100, 3]))):
        expected = generate(model, labels, 8, guidance=GUIDANCE, sampling=SAMPLING, seed=5, image_ids=ids)
        assert torch.equal(draw(labels, ids, cache, 8, GUIDANCE, SAMPLING, 5), expected)
    assert traced == [3]  # recorded once


def test_new_settings_and_larger_batches_are_recorded_anew_and_smaller_ones_filled_up(traced: list[int]) -> None:
    model = randomise(build("autoregressive.models:GENERATORS", KINDS["learned"])).requires_grad_(False)
    draw, labels = RecordedDraw(model, partial(record, traced)), torch.tensor([0, 4, 2, 1])
    ids = torch.arange(4)

    def check(count: int, guidance: Guidance, seed: int, sizes: list[int]) -> None:
        given = (labels[:count], ids[:count])
        expected = generate(model, given[0], 3, guidance=guidance, sampling=SAMPLING, seed=seed, image_ids=given[1])
        found = draw(*given, model.new_cache(2 * count), 3, guidance, SAMPLING, seed)
        assert torch.equal(found, expected) and traced == sizes

    check(3, GUIDANCE, 0, [3])
    check(1, GUIDANCE, 0, [3])
    check(3, GUIDANCE, 0, [3])
    check(4, GUIDANCE, 0, [3, 4])
    check(3, Guidance(2.0), 0, [3, 4, 3])
    check(3, Guidance(2.0), 1, [3, 4, 3, 3])


class _Queue:
    """A GPU's queue as far as `SideQueue` uses one: keeps the order in which things are asked of it."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.device = name, log, torch.device("cpu")

    def record_event(self) -> str:
        self.log.append(f"{self.name} marked")
        return f"mark of {self.name}"

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")

    def synchronize(self) -> None:
        self.log.append(f"wait for {self.name}")

    def __enter__(self) -> None:
        self.log.append(f"into {self.name}")

    def __exit__(self, *_: object) -> None:
        self.log.append(f"out of {self.name}")


def test_the_side_queue_waits_for_what_was_queued_when_it_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(cuda_graph.torch.cuda, "Stream", lambda device: _Queue("side", log))
    monkeypatch.setattr(cuda_graph.torch.cuda, "current_stream", lambda device: _Queue("main", log))
    monkeypatch.setattr(cuda_graph.torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: log.append("kept for side"))
    result = SideQueue(torch.device("cuda")).after_now(lambda value: log.append("decode") or value + 1, torch.zeros(1))
    log.append("next batch")
    assert result().item() == 1
    assert log == [
        "main marked", "next batch", "side waits for mark of main", "into side", "kept for side", "decode",
        "out of side", "wait for side",
    ]  # fmt: skip


def test_on_a_cpu_the_work_is_done_when_it_is_wanted() -> None:
    done: list[int] = []
    result = SideQueue(torch.device("cpu")).after_now(lambda value: done.append(1) or value + 1, torch.zeros(1))
    assert not done and result().item() == 1 and done


def test_everything_is_made_on_the_models_device(model: torch.nn.Module) -> None:
    """On "meta", where tensors have no values, so that waiting for one fails and so does meeting one of the CPU."""
    labels = asked(model).to("meta")
    found = generate(model.to("meta"), labels, 8, guidance=GUIDANCE, sampling=SAMPLING)
    assert found.device.type == "meta" and found.shape == (3, 8)


# ------------------------------------------------------------------------------------------------------- compiled


@pytest.mark.parametrize("kind", ["learned", "rar"])
def test_compiled_blocks_draw_the_same_and_are_compiled_for_shapes_alone(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for every layer nor for every place."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    ids, frames = torch.arange(3), []
    for layers in (2, 4):
        config = {**KINDS[kind], "layers": layers}
        model = randomise(build("autoregressive.models:GENERATORS", config)).requires_grad_(False)
        torch._dynamo.reset()
        counter.clear()
        plain = ImageSampler(deepcopy(model), no_tokenizer())
        compiled = ImageSampler(model, no_tokenizer(), compile=True)
        for labels in (asked(model), torch.tensor([1, 1, 3])):
            expected = plain.codes(labels, ids, GUIDANCE, SAMPLING, 0)
            assert torch.equal(compiled.codes(labels, ids, GUIDANCE, SAMPLING, 0), expected)
            frames.append(counter.frame_count)
    assert frames == [frames[0]] * 4 and frames[0] > 0


# ----------------------------------------------------------------------------------------------------- eight bits


@pytest.mark.parametrize("kind", EIGHT_BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits_compute_with_the_rounded_weights(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(96, 64).to(dtype)
    stored = store_in_eight_bits(torch.nn.Sequential(deepcopy(plain)), kind)[0]
    assert stored.weight.element_size() == 1
    weight = stored.weight.double() * stored.scale.double()[:, None]
    step = {"int8": 1 / 127, "fp8": 1 / 8}[kind]  # of the output's largest weight; of the weight itself
    largest = plain.weight.double().abs()
    largest = largest.amax(dim=1, keepdim=True) if kind == "int8" else largest.clamp(min=1e-3)
    assert ((weight - plain.weight).abs() <= (0.5 * step + 2**-8) * largest).all()
    x = torch.randn(3, 5, 96, dtype=dtype)
    expected = x.double() @ weight.T + plain.bias.double()
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(stored(x).double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.03), ("fp8", 0.06)])
def test_eight_bits_draw_from_nearly_the_same_distribution(kind: str, most: float) -> None:
    """Total variation between what float32 and eight bits give the next code, averaged over places."""
    torch.manual_seed(0)
    model = GPT(GPT.Config(size="small", codebook_size=256, num_tokens=64, num_classes=5)).eval().requires_grad_(False)
    torch.nn.init.normal_(model.output.weight, std=0.1)
    codes, labels = torch.randint(256, (4, 64)), torch.tensor([0, 1, 2, 3])
    expected = model(codes, labels).softmax(-1)
    found = ImageSampler(model, no_tokenizer(), kind).generator(codes, labels).softmax(-1)
    assert expected.max(-1).values.mean() > 0.02  # no uniform guess
    assert 0 < (found - expected).abs().sum(-1).mean() / 2 < most


def test_an_unknown_precision_is_one_sentence() -> None:
    model = build("autoregressive.models:GENERATORS", KINDS["learned"])
    with pytest.raises(UserError, match=r"int4.*none, bf16, int8, fp8"):
        ImageSampler(model, no_tokenizer(), "int4")
