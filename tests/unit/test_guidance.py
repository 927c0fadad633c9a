"""Guidance schedules: every table entry, its limits, and where the published step schedule begins."""

import pytest
import torch

from autoregressive.guidance import OFF, SCHEDULES, Guidance
from common.errors import UserError


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_runs_and_stays_in_range(schedule: str) -> None:
    scales = Guidance(3.0, schedule).scales(17)
    first = 1.0 if schedule == "power_cosine" else 3.0
    assert len(scales) == 17 and scales[0] == first
    assert all(1.0 <= scale <= 3.0 + 1e-4 + 1e-12 for scale in scales)
    assert Guidance(1.0, schedule).scales(17) == [1.0] * 17
    assert Guidance(3.0, schedule).scales(1) == [first]


@pytest.mark.parametrize(("num_tokens", "first_guided"), [(256, 46), (128, 23), (64, 12), (32, 6)])
def test_step_begins_where_the_published_results_did(num_tokens: int, first_guided: int) -> None:
    scales = Guidance(1.75, "step", window_start=0.18).scales(num_tokens)
    assert scales[1:first_guided] == [OFF] * (first_guided - 1)
    assert scales[first_guided:] == [1.75] * (num_tokens - first_guided)


def test_shapes_of_the_smooth_schedules() -> None:
    falling = Guidance(3.0, "cosine").scales(9)[1:]
    rising = Guidance(3.0, "sigmoid").scales(9)[1:]
    assert falling == sorted(falling, reverse=True) and falling[-1] == pytest.approx(1.0)
    assert rising == sorted(rising) and rising[3] == pytest.approx(2.0)


def test_power_cosine_counts_from_the_first_code_and_sets_in_later_the_larger_its_power() -> None:
    early, late = (Guidance(6.0, "power_cosine", power=power).scales(16) for power in (1.0, 2.75))
    assert early == sorted(early) and early[0] == 1.0 and early[8] == pytest.approx(3.5)
    assert all(a > b for a, b in zip(early[1:], late[1:], strict=True))
    assert Guidance(6.0, "power_cosine", power=0.0).scales(4) == [6.0] * 4


def test_interval_ends_guidance() -> None:
    assert Guidance(3.0, interval=4).scales(10) == [3.0] * 6 + [1.0] * 4


def test_errors() -> None:
    with pytest.raises(UserError, match="step"):
        Guidance(2.0, "stepp").scales(4)
    with pytest.raises(UserError, match="scale is 0"):
        Guidance(0.5).scales(4)


def test_interval_keeps_the_conditional_half_only() -> None:
    """After the last guided code the unconditional rows are dropped; the samples must not notice."""
    from autoregressive.generate import generate
    from autoregressive.models.gpt import GPT

    torch.manual_seed(0)
    model = GPT(GPT.Config(size="tiny", codebook_size=20, num_tokens=8, num_classes=3)).eval()
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)
    labels = torch.tensor([0, 1, 2])
    early = generate(model, labels, guidance=Guidance(4.0, interval=2), seed=5)
    always = generate(model, labels, guidance=Guidance(4.0), seed=5)
    assert torch.equal(early[:, :4], always[:, :4]) and not torch.equal(early, always)
