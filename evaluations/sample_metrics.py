"""Distribution metrics of samples against a folder of reference images, in the features of one extractor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common import npz
from common.containers import open_images
from common.data import ImageFolder
from common.errors import UserError
from common.images import from_pixels
from evaluations.c2i.evaluator import inception_score
from evaluations.harness import load_extractor, spread, visit
from evaluations.metrics import linear_classifier
from evaluations.metrics.features import Extractor, Features, extract
from evaluations.metrics.frechet import fit, frechet_distance
from evaluations.metrics.precision_recall import precision_recall

__all__ = ["Reference", "folder_features"]

BATCH = 32

FEWEST = 4
"""Precision and recall need the third neighbour of every image."""


class Reference:
    """The reference images of a generator: their features, a classifier of their classes, their mean colours.

    Args:
        path: image folder, one sub-folder per class.
        frechet: name of the distance in `FEATURES`, e.g. "fd_efficientnet_lite2".
        num_images: at most this many, evenly spread over the folder; None = all.
        held_out_path: other images of the same classes, on which the classifier is tested.
        classes: names of the classes in the order of the samples' labels; None = those of the folder.

    Raises: UserError for an unknown name, missing folders, or classes that are not in `classes`.
    """

    def __init__(
        self, path: str, frechet: str, image_size: int, num_images: int | None = None, held_out_path: str | None = None,
        device: torch.device | str = "cpu", classes: Sequence[str] | None = None,
    ) -> None:
        self.name, self.extractor = frechet, load_extractor(frechet, device)
        dataset = open_images(path, image_size, classes=classes)
        self.classes = dataset.classes
        self.features, self.labels, self.mean_colours = folder_features(self.extractor, dataset, num_images)
        self.gaussian = fit(self.features.pooled)
        self.classifier = linear_classifier.fit(self.features.pooled, self.labels, len(self.classes))
        self.held_out: dict[str, float] = {}
        if held_out_path:
            other = open_images(held_out_path, image_size, classes=self.classes)
            features, labels, _ = folder_features(self.extractor, other, None)
            self.held_out = {
                "probe_accuracy": self.classifier.accuracy(features.pooled, labels),
                "fd_held_out": frechet_distance(self.gaussian, fit(features.pooled)),
            }

    def score(self, samples: str | Path, labels: np.ndarray | None) -> dict[str, float]:
        """Figures of the images in an `.npz`; with their intended labels (N,) also the accuracy of their classes.

        Raises: UserError when labels and images differ in number or the labels are not classes of the reference.
        """
        count = npz.header(samples).count
        if count < FEWEST:
            raise UserError(f"{str(samples)!r} contains {count} images; expected at least {FEWEST} (--num-images)")
        with tqdm(total=count, desc=f"features of {Path(samples).name}", unit="image", dynamic_ncols=True) as bar:
            found = extract(self.extractor, _images(npz.stream(samples, BATCH), bar))
        against = precision_recall(self.features.pooled, found.pooled, device=self.extractor.device)
        figures = {
            self.name: frechet_distance(self.gaussian, fit(found.pooled)),
            f"precision_{self.extractor.name}": against.precision,
            f"recall_{self.extractor.name}": against.recall,
            **self.held_out,
        }
        if found.probabilities.shape[1]:
            figures[f"inception_score_{self.extractor.name}"] = inception_score(found.probabilities)
        if labels is not None:
            if len(labels) != count or labels.max() >= len(self.classes):
                raise UserError(
                    f"{len(labels)} labels up to {labels.max()} do not fit {count} images and the {len(self.classes)} "
                    "classes of the reference; pass the --reference-path the generator was trained on"
                )
            figures["class_accuracy"] = self.classifier.accuracy(found.pooled, labels)
            figures["fd_mean_colour"] = self._mean_colour_distance(labels)
        return figures

    def _mean_colour_distance(self, labels: np.ndarray) -> float:
        """The distance of samples that show only the mean colour of their class, as a scale for the others."""
        size = 64
        flat = self.mean_colours[:, :, None, None].expand(-1, -1, size, size)
        features = extract(self.extractor, flat.split(BATCH)).pooled
        return frechet_distance(self.gaussian, fit(features[labels]))


def folder_features(
    extractor: Extractor, dataset: ImageFolder, num_images: int | None
) -> tuple[Features, np.ndarray, Tensor]:
    """Features and labels of images evenly spread over a folder, and each class's mean colour (K,3) in [-1,1]."""
    chosen = spread(len(dataset), min(num_images or len(dataset), len(dataset)))
    labels = np.array([dataset.labels[index] for index in chosen])
    totals = torch.zeros(len(dataset.classes), 3, dtype=torch.float64)

    def images() -> Iterator[Tensor]:
        for batch in visit(dataset, chosen, "features of the reference", BATCH):
            pictures = from_pixels(batch["pixels"])
            totals.index_add_(0, batch["label"], pictures.mean(dim=(2, 3)).double())
            yield pictures

    features = extract(extractor, images())
    per_class = torch.bincount(torch.from_numpy(labels), minlength=len(dataset.classes)).clamp_min(1)
    return features, labels, (totals / per_class[:, None]).float()


def _images(blocks: Iterable[np.ndarray], bar: tqdm) -> Iterator[Tensor]:
    for block in blocks:
        yield from_pixels(torch.from_numpy(block))
        bar.update(len(block))
