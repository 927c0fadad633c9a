"""Sampling that is recorded or compiled draws what it draws without; the defaults of a GPU.

A CUDA graph needs a GPU. What it asks of the code it records can be had without one: traced into a fixed list of
operations, which replays whatever inputs it gets, the sampler must still draw what it draws when it is called.
"""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx

from autoregressive import cuda_graph
from autoregressive.config import SampleConfig, Sampling, for_device
from autoregressive.cuda_graph import RecordedDraw, SideQueue
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.models.gpt import GPT
from autoregressive.sample import ImageSampler, fitting_batch
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


# ------------------------------------------------------------------------------------------------------- defaults


def test_a_gpu_samples_in_bf16_compiled_and_a_cpu_as_the_papers() -> None:
    asked = SampleConfig(gpt_ckpt="a", vq_ckpt="b", sample_dir="c")
    found = [for_device(asked, torch.device(name)) for name in ("cuda:0", "cpu")]
    assert [(each.precision, each.vq_precision, each.compile) for each in found] == [
        ("bf16", "bf16", True), ("none", "none", False),
    ]  # fmt: skip
    chosen = dataclasses.replace(asked, precision="none", vq_precision="none", compile=False)
    assert for_device(chosen, torch.device("cuda")) == chosen


@pytest.mark.parametrize(("size", "free", "batch"), [("L", 75e9, 256), ("L", 10e9, 32), ("XXL", 40e9, 64), ("L", 1, 1)])
def test_the_default_batch_fills_a_quarter_of_the_memory(size: str, free: float, batch: int) -> None:
    with torch.device("meta"):
        model = GPT(GPT.Config(size=size, codebook_size=16, num_tokens=256, num_classes=9))
        cache = model.bfloat16().new_cache(2 * batch)
    assert fitting_batch(model, 2, int(free)) == batch
    assert batch == 1 or cache.keys.nbytes + cache.values.nbytes <= free / 4


def test_a_rotary_table_made_while_sampling_serves_training() -> None:
    """It is made on the device at the first call; "meta" is another device than the one of the model's making."""
    model = GPT(GPT.Config(size="tiny", positions="rope2d", codebook_size=8, num_tokens=4, num_classes=3))
    with torch.inference_mode():
        assert not model._rotary(0, 4, torch.device("meta")).is_inference()


def test_an_unknown_precision_is_one_sentence() -> None:
    model = build("autoregressive.models:GENERATORS", KINDS["learned"])
    with pytest.raises(UserError, match=r"int4.*none or bf16"):
        ImageSampler(model, no_tokenizer(), "int4")
