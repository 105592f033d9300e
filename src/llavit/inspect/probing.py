"""Probes: what can be read off features by a nearest neighbour or by a linear layer (scikit-learn), with intervals.

Shapes: n pictures, m patches, d width, c classes, r resamples.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from llavit.evaluate.intervals import LEVEL, RESAMPLES


def require_sklearn() -> None:
    """Raise an ImportError that names the extra, if scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError("probes need scikit-learn: pip install 'llavit[inspect]'") from error


def nearest_neighbours(
    train_nd: np.ndarray, labels_n: np.ndarray, test_nd: np.ndarray, neighbours: int = 5
) -> np.ndarray:
    """Predict labels by a vote of the nearest neighbours, by cosine, of standardised features.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> train, labels = np.array([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]]), np.array([0, 0, 1, 1])
        >>> nearest_neighbours(train, labels, np.array([[0.0, 2.0], [3.0, 0.0]]), neighbours=1).tolist()
        [0, 1]
    """
    require_sklearn()
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vote = KNeighborsClassifier(min(neighbours, len(train_nd)), metric="cosine", algorithm="brute")
    return make_pipeline(StandardScaler(), vote).fit(train_nd, labels_n).predict(test_nd)


def linear(
    train_nd: np.ndarray,
    labels_n: np.ndarray,
    test_nd: np.ndarray,
    *,
    strength: float = 0.1,
    balanced: bool = False,
    steps: int = 300,
) -> np.ndarray:
    """Predict labels by logistic regression on standardised features.

    Args:
        train_nd: features to learn from.
        labels_n: their labels.
        test_nd: features to predict from.
        strength: inverse of the L2 penalty (scikit-learn's C).
        balanced: weigh each class alike.
        steps: at most, of L-BFGS.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> train, labels = np.array([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]]), np.array([0, 0, 1, 1])
        >>> linear(train, labels, np.array([[0.0, 2.0], [3.0, 0.0]])).tolist()
        [0, 1]
    """
    require_sklearn()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    weights = "balanced" if balanced else None
    fit: Any = make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, class_weight=weights, max_iter=steps)
    )
    with warnings.catch_warnings():
        # A penalised fit that stops early is a probe as well, and the same for every layer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fit.fit(train_nd, labels_n).predict(test_nd)


def tallies(truth_m: np.ndarray, guess_m: np.ndarray, owner_m: np.ndarray, classes: int) -> np.ndarray:
    """Count patches by picture and class: those guessed right, those that are there, those guessed.

    Args:
        truth_m: class of each patch.
        guess_m: what was predicted.
        owner_m: number of the picture that each patch is of.
        classes: c.

    Returns:
        (pictures, 3, c) float64; the pictures in ascending order.

    Example:
        >>> tallies(np.array([0, 1]), np.array([1, 1]), np.array([0, 0]), classes=2).tolist()
        [[[0.0, 1.0], [1.0, 1.0], [0.0, 2.0]]]
    """
    pictures, rows = np.unique(owner_m, return_inverse=True)
    counts = np.zeros((len(pictures), 3, classes))
    np.add.at(counts[:, 0], (rows, truth_m), truth_m == guess_m)
    np.add.at(counts[:, 1], (rows, truth_m), 1)
    np.add.at(counts[:, 2], (rows, guess_m), 1)
    return counts


def balanced_accuracy(counts_3c: np.ndarray) -> np.ndarray:
    """Mean over classes of the share that is predicted right; classes that do not occur are left out.

    Args:
        counts_3c: (..., 3, c) of `tallies`.

    Example:
        >>> balanced_accuracy(np.array([[8, 1], [10, 2], [9, 3]])).round(3)
        np.float64(0.65)
    """
    right, there, _ = np.moveaxis(counts_3c, -2, 0)
    return _mean_where(right, there, there > 0)


def mean_iou(counts_3c: np.ndarray) -> np.ndarray:
    """Mean over classes that occur of intersection over union.

    Args:
        counts_3c: (..., 3, c) of `tallies`.

    Example:
        >>> mean_iou(np.array([[8, 1], [10, 2], [9, 3]])).round(3)
        np.float64(0.489)
    """
    right, there, guessed = np.moveaxis(counts_3c, -2, 0)
    return _mean_where(right, there + guessed - right, there > 0)


def _mean_where(part: np.ndarray, whole: np.ndarray, counts: np.ndarray) -> np.ndarray:
    shares = np.divide(part, whole, out=np.zeros(part.shape), where=counts)
    return (shares * counts).sum(-1) / np.maximum(counts.sum(-1), 1)


def patch_interval(counts_n3c: np.ndarray, measure: Any, seed: int = 0) -> tuple[float, float, float]:
    """A measure of patches with its 95 % interval: pictures are resampled, since patches of one are not independent.

    Args:
        counts_n3c: of `tallies`.
        measure: `balanced_accuracy` or `mean_iou`.
        seed: of the resampling.

    Returns:
        (score, low, high).

    Example:
        >>> patch_interval(np.array([[[3, 3], [3, 3], [3, 3]]] * 4), balanced_accuracy)
        (1.0, 1.0, 1.0)
    """
    pictures = len(counts_n3c)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLES).astype(np.float64)
    resampled = measure((drawn @ counts_n3c.reshape(pictures, -1)).reshape(-1, *counts_n3c.shape[1:]))
    low, high = np.percentile(resampled, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(measure(counts_n3c.sum(0))), float(low), float(high)
