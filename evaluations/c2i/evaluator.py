"""The ADM evaluator for current TensorFlow: python evaluator.py REFERENCE.npz SAMPLES.npz [--inception-path GRAPH.pb]

Inception score, FID, sFID, precision and recall of SAMPLES (arr_0, uint8 N x H x W x 3) against REFERENCE (arr_0 and,
where it has them, mu, sigma, mu_s, sigma_s). Prints them and writes SAMPLES.txt (five lines) and SAMPLES.json beside
the samples. The script is self-contained: it needs numpy, tqdm and TensorFlow and imports nothing of this repository.

Files that would give a wrong number are refused (exit code 2): values that are not pixels, reconstructions against
training images, or generated samples against validation images, if the files say what they contain. Weak comparisons
(few images, different resolutions, files of unknown origin) are scored and named in `flags`. A figure that needs more
images than there are (4 for precision and recall, 2 for FID) is null, and `nan` in the text.

Precision and recall use half-precision distances where they are finite, as the published numbers do, which inflates
them; the exact values are reported beside them as precision_float64 and recall_float64.
Source: Dhariwal and Nichol, Diffusion models beat GANs (2021), evaluations; rewritten.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

FILE = "classify_image_graph_def.pb"
URL = f"https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/{FILE}"
BLOCK, SPLIT, NEIGHBOURS = 4096, 5000, 3
PROTOCOL_IMAGES = 50_000
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")
LINES = {
    "Inception Score": "inception_score", "FID": "fid", "sFID": "sfid", "Precision": "precision", "Recall": "recall",
}
Distances = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Features (M,D) and (N,D) -> squared distances (M,N)."""


class UnusableError(ValueError):
    """A file that cannot be scored; the message is one sentence for the user."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--inception-path", type=Path, help=f"{FILE}; default: the cache folder")
    arguments = parser.parse_args()
    try:
        figures = score(arguments.reference, arguments.samples, arguments.inception_path)
    except UnusableError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    text = five_lines(figures)
    arguments.samples.with_suffix(".txt").write_text(text)
    arguments.samples.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    print(text, end="")


def five_lines(figures: dict[str, Any]) -> str:
    """The text that the papers' scripts parse; a figure that needs more images than there are is `nan`."""
    return "".join(f"{label}: {'nan' if figures[key] is None else figures[key]}\n" for label, key in LINES.items())


def score(reference: Path, samples: Path, graph: Path | None = None) -> dict[str, Any]:
    """All figures of `samples` against `reference`, with hashes and origins of both files.

    Raises: UnusableError for files that cannot be scored, or not against each other.
    """
    about = [read_about(path) for path in (reference, samples)]
    check_pair(reference, about[0], samples, about[1])
    graph = find_graph(graph)
    with Engine(graph) as engine:
        figures = evaluate(engine, reference, samples)
    return {
        **figures, "engine": "tensorflow", "graph_sha256": sha256(graph), "reference_sha256": sha256(reference),
        "samples_sha256": sha256(samples), "reference_about": about[0], "samples_about": about[1],
        "flags": weaknesses(figures, *about),
    }


def find_graph(path: Path | None) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "image-token-lab" / FILE
    found = path or cache
    if not found.is_file():
        raise UnusableError(
            f"the Inception graph {str(found)!r} does not exist: curl -L --create-dirs -o {found} {URL}"
        )
    return found


def evaluate(engine: Engine, reference: Path, samples: Path) -> dict[str, Any]:
    pool, _, spatial = activations(engine, reference)
    sample_pool, probabilities, sample_spatial = activations(engine, samples)
    given = read_statistics(reference)
    if given:
        pool_moments, spatial = ((given[at], factor_of(given[at + 1])) for at in (0, 2))
    else:
        pool_moments = fit(pool)
    enough = min(len(pool), len(sample_pool)) > NEIGHBOURS
    published = precision_recall(pool, sample_pool, engine.distances) if enough else (None, None)
    exact = precision_recall(pool, sample_pool, distances_float64) if enough else (None, None)
    return {
        "inception_score": inception_score(probabilities),
        "fid": frechet(pool_moments, fit(sample_pool)), "sfid": frechet(spatial, sample_spatial),
        "precision": published[0], "recall": published[1],
        "precision_float64": exact[0], "recall_float64": exact[1],
        "images": len(sample_pool), "reference_images": len(pool),
        "image_size": image_size(samples), "reference_image_size": image_size(reference),
        "reference_statistics": describe(*pool_moments, in_file=given is not None),
    }


# ---------------------------------------------------------------------------------------------- what may be scored


def read_about(path: str | Path) -> dict[str, Any]:
    """The file's own description (`about`, a JSON text; files written elsewhere have none), and whether it contains
    feature statistics, as ADM's references of training images do.

    Raises: UnusableError when the file is not an `.npz`.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            about = json.loads(archive["about"].item()) if "about" in archive.files else {}
            return {**about, "statistics": set(STATISTICS) <= set(archive.files)}
    except Exception as error:  # zip's, numpy's and JSON's readers raise many kinds for damaged files
        raise UnusableError(f"{str(path)!r} cannot be read as .npz with arr_0 (N,H,W,3) uint8 ({error})") from error


def split_of(reference: dict[str, Any]) -> str | None:
    """Split of a reference: "train" or "val" as it says, "train" if it contains statistics; None = unknown."""
    return reference.get("split") or ("train" if reference["statistics"] else None)


def check_pair(reference: str | Path, holds: dict[str, Any], samples: str | Path, made: dict[str, Any]) -> None:
    """Reconstructions need a reference of validation images, generated samples one of training images.

    Raises: UnusableError when both files say what they contain and that is mixed up.
    """
    wanted, found = {"reconstruction": "val", "generation": "train"}.get(made.get("kind")), split_of(holds)
    if wanted and found and wanted != found:
        words = {"train": "training", "val": "validation"}
        raise UnusableError(
            f"{str(samples)!r} is a {made['kind']} set, which needs a reference of {words[wanted]} images, but "
            f"{str(reference)!r} contains {words[found]} images; pass what 'scripts/val.sh --split {wanted}' writes"
            + (", or ADM's VIRTUAL batch" if wanted == "train" else "")
        )


def weaknesses(figures: dict[str, Any], reference: dict[str, Any], samples: dict[str, Any]) -> list[str]:
    """Reasons why these figures do not compare with published ones."""
    found = few_images(figures["images"])
    sizes = [" x ".join(map(str, figures[key])) for key in ("image_size", "reference_image_size")]
    if sizes[0] != sizes[1]:
        found.append(f"the samples have {sizes[0]} pixels, the reference {sizes[1]}: compare only equal resolutions")
    if split_of(reference) is None:
        found.append("the reference file does not say whether it contains training or validation images")
    if "kind" not in samples:
        found.append("the sample file does not say how it was made")
    missing = [name for name in LINES.values() if figures[name] is None]
    if missing:
        found.append(f"too few images for {', '.join(missing)}")
    return found


def few_images(count: int) -> list[str]:
    """A flag for distribution metrics from fewer images than published numbers use."""
    if count >= PROTOCOL_IMAGES:
        return []
    return [f"{count} images, published Frechet distances use {PROTOCOL_IMAGES}: compare only at equal counts"]


def describe(mean: np.ndarray, factor: np.ndarray | None, in_file: bool) -> dict[str, Any]:
    """A short description of a reference's statistics, by which two references can be told apart."""
    return {
        "source": "in the file" if in_file else "computed from its images",
        "mean_norm": float(np.linalg.norm(mean)),
        "covariance_trace": None if factor is None else float((factor**2).sum()),
    }


# ---------------------------------------------------------------------------------------------------- the network


class Engine:
    """A TensorFlow session with the graph: features of pixels, and half-precision distances."""

    def __init__(self, graph: Path) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        import tensorflow.compat.v1 as tf

        definition = tf.GraphDef.FromString(graph.read_bytes())
        self._graph = tf.Graph()
        with self._graph.as_default():
            self._pixels = tf.placeholder(tf.float32, [None, None, None, 3])
            pool, spatial, weights = tf.import_graph_def(
                definition, input_map={"ExpandDims:0": self._pixels}, name="inception",
                return_elements=["pool_3:0", "mixed_6/conv:0", "softmax/logits/MatMul"],
            )
            pool = tf.reshape(pool, [-1, pool.shape[-1]])
            spatial = tf.reshape(spatial[..., :7], [tf.shape(spatial)[0], -1])
            # Published scores use the logits without the bias.
            probabilities = tf.nn.softmax(tf.matmul(pool, weights.inputs[1]))
            self._outputs = (pool, probabilities, spatial)
            self._rows, self._columns = (tf.placeholder(tf.float32, [None, None]) for _ in range(2))
            half = squared_distances(tf, *(tf.cast(x, tf.float16) for x in (self._rows, self._columns)))
            del definition
            self._distances = tf.cond(
                tf.reduce_all(tf.math.is_finite(half)),
                lambda: tf.cast(half, tf.float32), lambda: squared_distances(tf, self._rows, self._columns),
            )
        # Small batches keep a CPU's caches warm and its memory low; a GPU wants larger ones.
        self.batch_size = 64 if tf.config.list_physical_devices("GPU") else 16
        options = tf.ConfigProto(allow_soft_placement=True)
        options.gpu_options.allow_growth = True
        self._session = tf.Session(graph=self._graph, config=options)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def features(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels (B,H,W,3) in [0,255] -> pool (B,2048), class probabilities (B,K), spatial (B,2023)."""
        return self._session.run(self._outputs, {self._pixels: pixels.astype(np.float32)})

    def distances(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Squared distances in float16, or all in float32 when one of them is not finite."""
        return self._session.run(self._distances, {self._rows: rows, self._columns: columns})


def squared_distances(tf: Any, rows: Any, columns: Any) -> Any:
    """TensorFlow (M,D), (N,D) -> (M,N)."""
    norms = [tf.reduce_sum(tf.square(x), 1) for x in (rows, columns)]
    product = tf.matmul(rows, columns, transpose_b=True)
    return tf.maximum(norms[0][:, None] - 2 * product + norms[1][None, :], 0.0)


def activations(engine: Engine, path: Path) -> tuple[np.ndarray, np.ndarray, Gaussian]:
    """Pool features (N,2048), class probabilities (N,K), and the Gaussian of the spatial features."""
    from tqdm import tqdm

    pool, probabilities, moments = [], [], Moments()
    blocks, count = open_images(path, engine.batch_size)
    with tqdm(total=count, desc=path.name, unit="image") as bar:
        for block in blocks:
            found = engine.features(block)
            pool.append(found[0])
            probabilities.append(found[1])
            moments.add(found[2])
            bar.update(len(block))
    return np.concatenate(pool), np.concatenate(probabilities), moments.finish()


def open_array(path: Path) -> tuple[zipfile.ZipFile, Any, tuple[int, ...], bool, np.dtype]:
    """The archive, the open member `arr_0`, and its shape, whether it is in Fortran order, and its type."""
    try:
        archive = zipfile.ZipFile(path)
        member = archive.open("arr_0.npy")
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
    except Exception as error:  # numpy parses the header as Python and passes on what the parser raises
        raise UnusableError(f"{str(path)!r} is not an .npz with arr_0 ({error})") from error
    if len(shape) != 4 or shape[-1] != 3 or not shape[0] or dtype.kind not in "uif":
        raise UnusableError(f"{str(path)!r} contains {dtype} {shape}; expected pixels (N,H,W,3), N > 0")
    return archive, member, shape, fortran, dtype


def image_size(path: Path) -> list[int]:
    """Height and width of the images of a file."""
    archive, member, shape, _, _ = open_array(path)
    with archive, member:
        return [int(side) for side in shape[1:3]]


def open_images(path: Path, batch_size: int) -> tuple[Iterator[np.ndarray], int]:
    """Batches of arr_0 and the number of images, without loading the whole array where its layout allows."""
    archive, member, shape, fortran, dtype = open_array(path)

    def batches() -> Iterator[np.ndarray]:
        with archive, member:
            whole = None
            if fortran:
                whole = np.frombuffer(member.read(), dtype).reshape(shape[::-1]).T
            for start in range(0, shape[0], batch_size):
                count = min(batch_size, shape[0] - start)
                if whole is None:
                    size = count * int(np.prod(shape[1:])) * dtype.itemsize
                    data = member.read(size)
                    if len(data) != size:
                        raise UnusableError(f"{str(path)!r} ends before its last image")
                    block = np.frombuffer(data, dtype).reshape(count, *shape[1:])
                else:
                    block = whole[start : start + count]
                # Written so that NaN, which compares false with everything, is refused.
                if not (block.min() >= 0 and block.max() <= 255) or (dtype.kind == "f" and 0 < block.max() <= 1):
                    raise UnusableError(
                        f"{str(path)!r} contains values {block.min()} to {block.max()}; expected pixels, 0 to 255"
                    )
                yield block

    return batches(), shape[0]


def read_statistics(path: Path) -> tuple[np.ndarray, ...] | None:
    """`mu`, `sigma`, `mu_s`, `sigma_s` of a reference that contains all four, else None."""
    with np.load(path, allow_pickle=False) as archive:
        if not set(STATISTICS) <= set(archive.files):
            return None
        return tuple(finite(archive[key]) for key in STATISTICS)


# ---------------------------------------------------------------------------------------------------- the formulas


Gaussian = tuple[np.ndarray, np.ndarray | None]
"""Mean (D,) and a factor L (D,R) of the covariance L L^T; the factor is None for a single image."""


class Moments:
    """Streaming mean and unbiased covariance in float64, summed around the first batch's mean.

    Up to D images the features are kept as well: centred, they are a factor of the covariance.
    """

    def __init__(self) -> None:
        self.count, self.shift, self.total, self.outer = 0, None, 0.0, 0.0
        self.few: list[np.ndarray] = []

    def add(self, features: np.ndarray) -> None:
        features = features.astype(np.float64)
        self.shift = features.mean(axis=0) if self.shift is None else self.shift
        self.few = [*self.few, features] if self.count + len(features) <= features.shape[1] else []
        centred = features - self.shift
        self.count += len(features)
        self.total = self.total + centred.sum(axis=0)
        self.outer = self.outer + centred.T @ centred

    def finish(self) -> Gaussian:
        """Raises: UnusableError for features that are not finite."""
        mean = self.total / self.count
        if self.count < 2:
            return self.shift + mean, None
        if self.few:
            factor = (np.concatenate(self.few) - (self.shift + mean)).T / np.sqrt(self.count - 1)
            return self.shift + mean, finite(factor)
        covariance = (self.outer - self.count * np.outer(mean, mean)) / (self.count - 1)
        return self.shift + mean, factor_of(covariance)


def fit(features: np.ndarray) -> Gaussian:
    moments = Moments()
    moments.add(features)
    return moments.finish()


def factor_of(covariance: np.ndarray) -> np.ndarray:
    """L with L L^T = covariance (D,D), without its null directions."""
    values, vectors = np.linalg.eigh(finite((covariance + covariance.T) / 2))
    kept = values > max(values[-1], 0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def finite(statistics: np.ndarray) -> np.ndarray:
    if not np.isfinite(statistics).all():
        raise UnusableError("the feature statistics contain NaN or infinity; the features of some image are not finite")
    return statistics


def frechet(first: Gaussian, second: Gaussian) -> float | None:
    """Squared Frechet distance of two Gaussians; None without a covariance.

    tr sqrt(S1 S2) is the nuclear norm of L1^T L2 for the factors L, which is exact for rank-deficient covariances.
    """
    factors = [first[1], second[1]]
    if any(factor is None for factor in factors):
        return None
    cross = np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum() if all(f.size for f in factors) else 0.0
    traces = sum((factor**2).sum() for factor in factors)
    return max(float(((first[0] - second[0]) ** 2).sum() + traces - 2 * cross), 0.0)


def inception_score(probabilities: np.ndarray, split: int = SPLIT) -> float:
    """Mean over consecutive splits of exp(mean KL(p(y|x) || p(y))) of class probabilities (N,K), N > 0; 0 log 0 is 0.

    The order of the images matters, and a short last split has the same weight as a full one: both are rules of the
    published evaluator. Source: Salimans et al., Improved techniques for training GANs (2016).
    """
    scores = []
    for start in range(0, len(probabilities), split):
        part = probabilities[start : start + split].astype(np.float64)
        ratio = np.divide(part, part.mean(axis=0, keepdims=True), out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratio)).sum(axis=1).mean()))
    return float(np.mean(scores))


def distances_float64(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    a, b = rows.astype(np.float64), columns.astype(np.float64)
    apart = a @ b.T
    apart *= -2
    apart += (a * a).sum(axis=1)[:, None]
    apart += (b * b).sum(axis=1)[None, :]
    return np.maximum(apart, 0, out=apart)


def precision_recall(reference: np.ndarray, samples: np.ndarray, distances: Distances) -> tuple[float, float]:
    """Fractions of samples inside a reference ball and of references inside a sample ball; radius: third neighbour."""
    radii = [neighbour_radii(features, distances) for features in (reference, samples)]
    precise, recalled = np.zeros(len(samples), bool), np.zeros(len(reference), bool)
    for row in range(0, len(reference), BLOCK):
        for column in range(0, len(samples), BLOCK):
            rows, columns = slice(row, row + BLOCK), slice(column, column + BLOCK)
            apart = distances(reference[rows], samples[columns])
            precise[columns] |= (apart <= radii[0][rows, None]).any(axis=0)
            recalled[rows] |= (apart <= radii[1][None, columns]).any(axis=1)
    return float(precise.mean()), float(recalled.mean())


def neighbour_radii(features: np.ndarray, distances: Distances) -> np.ndarray:
    """Squared distance to the third neighbour; the point itself is neighbour number zero."""
    radii = []
    for row in range(0, len(features), BLOCK):
        nearest = np.empty((len(features[row : row + BLOCK]), 0))
        for column in range(0, len(features), BLOCK):
            apart = distances(features[row : row + BLOCK], features[column : column + BLOCK])
            nearest = smallest(np.concatenate([nearest, apart], axis=1))
        radii.append(nearest.max(axis=1))
    return np.concatenate(radii)


def smallest(distances: np.ndarray) -> np.ndarray:
    """The NEIGHBOURS + 1 smallest of every row, unordered; all of a shorter row."""
    if distances.shape[1] <= NEIGHBOURS + 1:
        return distances
    return np.partition(distances, NEIGHBOURS, axis=1)[:, : NEIGHBOURS + 1]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
