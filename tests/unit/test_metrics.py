"""Image and distribution metrics against scikit-image, closed forms and one another."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from evaluations.c2i.evaluator import inception_score
from evaluations.metrics import linear_classifier
from evaluations.metrics.frechet import Gaussian, Moments, fit, frechet_distance
from evaluations.metrics.precision_recall import precision_recall
from evaluations.metrics.psnr import psnr
from evaluations.metrics.ssim import ssim


def image_pair(batch: int = 3, height: int = 24, width: int = 31) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    clean = rng.random((batch, height, width, 3))
    return clean, np.clip(clean + rng.normal(0, 0.1, clean.shape), 0, 1)


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_psnr_and_ssim_are_those_of_scikit_image(data_range):
    clean, noisy = image_pair()
    tensors = [torch.from_numpy(array).permute(0, 3, 1, 2) for array in (noisy, clean)]
    expected_psnr = [peak_signal_noise_ratio(a, b, data_range=data_range) for a, b in zip(clean, noisy, strict=True)]
    expected_ssim = [
        structural_similarity(a, b, channel_axis=-1, data_range=data_range) for a, b in zip(clean, noisy, strict=True)
    ]
    np.testing.assert_allclose(psnr(*tensors, data_range=data_range), expected_psnr, rtol=1e-10)
    np.testing.assert_allclose(ssim(*tensors, 3.0, data_range)[1], expected_ssim, rtol=1e-9)


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="at least 7x7"):
        ssim(torch.zeros(1, 3, 6, 9), torch.zeros(1, 3, 6, 9), 1.0)


def test_streamed_moments_are_those_of_numpy_far_from_zero():
    features = np.random.default_rng(0).normal(size=(57, 5)) + 1e4
    moments = Moments()
    for part in np.array_split(features, 7):
        moments.update(part)
    gaussian = moments.gaussian()
    np.testing.assert_allclose(gaussian.mean, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(gaussian.covariance, np.cov(features, rowvar=False), rtol=1e-9)


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2"):
        Moments().update(np.ones((1, 4))).gaussian()


def test_frechet_distance_of_diagonal_gaussians_has_a_closed_form():
    a, b = np.array([1.0, 4.0, 0.0]), np.array([9.0, 1.0, 0.25])
    mean = np.array([1.0, 0.0, 2.0])
    expected = (mean**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(Gaussian(mean, np.diag(a)), Gaussian(np.zeros(3), np.diag(b))) == pytest.approx(expected)


def test_frechet_distance_with_fewer_images_than_dimensions_is_exact():
    """Rotating and shifting both sides alike changes nothing; the trace term is the nuclear norm of Xc Yc^T."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 64)), rng.normal(size=(15, 64)) * 0.5 + 0.2
    xc, yc = x - x.mean(axis=0), y - y.mean(axis=0)
    cross = np.linalg.svd(xc @ yc.T / np.sqrt(19 * 14), compute_uv=False).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (xc**2).sum() / 19 + (yc**2).sum() / 14 - 2 * cross
    assert frechet_distance(fit(x), fit(y)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(fit(x), fit(x)) == pytest.approx(0, abs=1e-9)
    rotation = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    assert frechet_distance(fit(x @ rotation + 3), fit(y @ rotation + 3)) == pytest.approx(expected, rel=1e-9)


def test_inception_score_of_known_tables():
    assert inception_score(np.full((40, 10), 0.1)) == pytest.approx(1)
    assert inception_score(np.eye(10)[np.arange(100) % 10]) == pytest.approx(10)
    sorted_by_class = np.eye(10)[np.arange(100) // 10]
    assert inception_score(sorted_by_class, split=10) == pytest.approx(1)  # the order matters


def test_precision_and_recall_count_what_falls_into_the_balls():
    line = np.arange(10.0)[:, None]
    near, far = line + 0.1, line + 1000.0
    assert precision_recall(line, near).precision == 1
    assert precision_recall(line, far).precision == 0
    half = np.concatenate([near[:5], far[:5]])
    assert precision_recall(line, half).precision == 0.5


@pytest.mark.parametrize("exact", [True, False])
def test_precision_and_recall_do_not_depend_on_the_block_size(exact):
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(90, 16)).astype(np.float32), rng.normal(size=(70, 16)).astype(np.float32) + 0.3
    assert precision_recall(a, b, exact=exact, block=17) == precision_recall(a, b, exact=exact)


@pytest.mark.parametrize("block", [7, 4096])
@pytest.mark.parametrize("scale", [1.0, 300.0])  # at 300 half-precision distances overflow
@pytest.mark.parametrize("exact", [True, False])
def test_precision_and_recall_equal_brute_force(exact, scale, block):
    """Small integers have the same distances in every precision."""
    rng = np.random.default_rng(4)
    a, b = (scale * rng.integers(0, 4, (size, 6)).astype(np.float32) for size in (40, 23))
    apart = ((a[:, None] - b[None]) ** 2).sum(axis=2)
    radii_a, radii_b = (np.sort(((x[:, None] - x[None]) ** 2).sum(axis=2), axis=1)[:, 3] for x in (a, b))
    found = precision_recall(a, b, exact=exact, block=block)
    assert found.precision == (apart <= radii_a[:, None]).any(axis=0).mean()
    assert found.recall == (apart <= radii_b[None, :]).any(axis=1).mean()


def test_precision_and_recall_need_enough_images():
    with pytest.raises(ValueError, match="at least 4"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))


def test_linear_classifier_separates_and_repeats():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(4, 32)) * 2
    labels = np.arange(200) % 4
    features = (centres[labels] + rng.normal(size=(200, 32))).astype(np.float32)
    first = linear_classifier.fit(features[:120], labels[:120], num_classes=4)
    assert first.accuracy(features[120:], labels[120:]) > 0.95
    assert first.accuracy(features[120:], (labels[120:] + 1) % 4) < 0.05
    second = linear_classifier.fit(features[:120], labels[:120], num_classes=4)
    np.testing.assert_array_equal(first.weight, second.weight)
