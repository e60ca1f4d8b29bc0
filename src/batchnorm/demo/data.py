"""The digits of scikit-learn, and the ways of drawing batches from them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Digits:
    """Images `[N, 8, 8, 1]` in [0, 1] and labels `[N]`, split once for all runs."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load() -> Digits:
    """1,197 images to train on and 600 to test on, each class in the same share."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=600, random_state=0, stratify=labels
    )
    return Digits(train_images, train_labels, test_images, test_labels)


def batches(digits: Digits, size: int, classes: int | None, seed: int) -> Iterator[Batch]:
    """Endless batches: of any images, or each of images of `classes` random classes.

    The same seed gives the same batches to every kind of normalization, so that runs pair up.
    """
    random = np.random.default_rng(seed)
    labels = digits.train_labels
    by_class = [np.flatnonzero(labels == label) for label in range(10)]
    while True:
        if classes is None:
            rows = random.choice(len(labels), size, replace=False)
        else:
            drawn = random.choice(10, classes, replace=False)
            rows = np.concatenate(
                [random.choice(by_class[label], size // classes, replace=False) for label in drawn]
            )
        yield digits.train_images[rows], labels[rows]
