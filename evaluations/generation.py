"""Sample a generator and measure the samples; with --search, find the best guidance scale.

    bash scripts/sample_c2i_search_cfg.sh --gpt-ckpt RUN --vq-ckpt RUN --sample-dir OUT --cfg-scale 2.0 \\
        --reference-path data/photos/train --frechet fd_efficientnet_lite2

Each point (schedule, scale, window) is sampled into `<sample-dir>/<point>/` and `<point>.npz`, measured into
`<point>.results.json` and added to `<sample-dir>/search.csv` and the plot `search.png`; `<sample-dir>/results.json` is
the best point, or the only one. Run again, a point that was measured before is read, not repeated. --search climbs with
fewer images (--search-num-images) and measures only the winner with all. With --samples FILE.npz nothing is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoregressive.config import SampleConfig
from autoregressive.legacy import SAMPLE_FLAGS
from common import config
from common.config import opt


@dataclass
class GenerationConfig(SampleConfig):
    """What to sample (as autoregressive.sample) and how to measure it."""

    sample_dir: str = opt("results/samples", "folder for all points")
    gpt_ckpt: str | None = opt(None, "generator checkpoint or run; not needed with samples")
    vq_ckpt: str | None = opt(None, "tokenizer checkpoint or run that decodes; not needed with samples")
    samples: str | None = opt(None, "measure this .npz instead of sampling")
    samples_labels: str | None = opt(None, "labels of the samples (.npy), for class accuracy; null = not measured")
    reference_path: str | None = opt(None, "image folder with the generator's training images; needs frechet")
    held_out_path: str | None = opt(None, "other images of the same classes, to judge the class classifier itself")
    num_reference_images: int | None = opt(None, "so many reference images, evenly spread; null = all")
    frechet: str | None = opt(None, "distance to the reference: a name in evaluations.metrics:FEATURES")
    gt_npz_path: str | None = opt(None, "reference .npz for FID and its companions; null = not measured")
    engine: str = opt("auto", "for gt_npz_path: tensorflow | torch | auto = TensorFlow where eval_python_path has it")
    eval_python_path: str = opt("python", "for gt_npz_path: the Python that has TensorFlow")
    inception_path: str | None = opt(None, "for gt_npz_path: the Inception graph; null = the cache folder")
    search: bool = opt(False, "climb to the best scale in steps of 0.25 (schedules constant, step, rectangular)")
    search_num_images: int | None = opt(None, "images per point of the search; null = a fifth, at least 1,000")
    clear_cache: bool = opt(False, "delete each point's images and .npz once nothing needs them any more")


def main() -> None:
    settings = config.parse(GenerationConfig, aliases=SAMPLE_FLAGS, about=__doc__)
    from evaluations.generation_job import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
