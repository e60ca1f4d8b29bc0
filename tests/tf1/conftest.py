"""What the tests of the TensorFlow 1 functions share: a graph to build in, a session to run it."""

from __future__ import annotations

import pytest
import tensorflow as tf


@pytest.fixture
def graph():
    with tf.Graph().as_default() as graph:
        yield graph


@pytest.fixture
def session(graph):
    with tf.compat.v1.Session() as session:
        yield session
