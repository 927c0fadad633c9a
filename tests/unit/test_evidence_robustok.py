"""The comparison of perturbation and post-training: its stages hang together, and its sentences follow the figures."""

from __future__ import annotations

from studies.robustok import RobustConfig, claims, stages, text


def test_every_stage_needs_earlier_ones_and_has_a_folder_of_its_own() -> None:
    made = stages(RobustConfig())
    names = [stage.name for stage in made]
    assert len(names) == len(set(names)) == 1 + 5 * 2 * (3 + 2 * 6)
    for at, stage in enumerate(made):
        assert set(stage.needs) <= set(names[:at])
    assert len({stage.words for stage in made}) == len(made)


def test_sentences_say_what_the_spread_allows() -> None:
    before, after = {"rFD": [1.0, 1.1], "gFD gpt": [9.0, 9.2]}, {"rFD": [1.0, 1.2], "gFD gpt": [5.0, 5.2]}
    rows = {
        ("plain", "main"): before, ("plain", "post-gpt"): after,
        ("perturbed", "main"): {"rFD": [2.0, 2.1], "gFD gpt": [9.0, 9.2]},
    }  # fmt: skip
    said = claims(rows, {"plain": 0, "perturbed": 0})
    assert said[0] == "Post-training changed 0 codes of the held-out images."
    assert said[1] == "Perturbation in training, rFD: +1.0 [+1.0, +1.0] (higher)."
    assert said[3].endswith("rFD +0.0 [-0.6, +0.7] (not decided), gFD gpt -4.0 [-4.0, -4.0] (lower).")
    single = {key: {name: values[:1] for name, values in figures.items()} for key, figures in rows.items()}
    assert claims(single, {})[2] == "Perturbation in training, gFD gpt: +0.0 [-inf, +inf] (not decided)."
    page = text(RobustConfig(), rows, said)
    assert "| plain | post-gpt | 1.10 ± 0.14 |  | 5.10 ± 0.14 |  |" in page and "not FID" in page
