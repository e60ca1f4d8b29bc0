"""The digits and the ways of drawing batches."""

from itertools import islice

import numpy as np

from batchnorm.demo.data import batches, load


def test_every_digit_is_in_exactly_one_part():
    digits = load()
    assert digits.train_images.shape == (1197, 8, 8, 1)
    assert digits.test_images.shape == (600, 8, 8, 1)
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 1


def test_two_class_batches_hold_two_classes_in_equal_shares():
    for images, labels in islice(batches(load(), 64, 2, seed=3), 20):
        assert images.shape == (64, 8, 8, 1)
        assert np.unique(labels, return_counts=True)[1].tolist() == [32, 32]


def test_one_class_batches_hold_every_class_in_their_turn():
    seen = [set(labels) for _, labels in islice(batches(load(), 16, 1, seed=3), 60)]
    assert all(len(labels) == 1 for labels in seen)
    assert set().union(*seen) == set(range(10))


def test_a_seed_gives_the_same_batches_again():
    first, again, other = (next(batches(load(), 4, None, seed))[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
