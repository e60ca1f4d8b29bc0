"""TensorFlow under `tf.distribute`: inside `strategy.run` every replica runs this.

`tf.distribute` has no all-gather that is one message and runs eagerly (2.21), so gathering is a sum
of tensors that are 0 but in the replica's own row: exact, and in a ring it sends twice as much.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf


class Replicas(NamedTuple):
    """How many replicas there are to take statistics over.

    `groups`: how many rows messages have, of which a replica fills the first; None: its own.
    """

    number: int
    groups: tf.Tensor | None = None

    def all_reduce(self, x: tf.Tensor) -> tf.Tensor:
        """The sum of x over the replicas, and of its derivatives."""
        return all_reduce(x, self)


def find_replicas(synchronized: Any, owner: str) -> Replicas | None:
    """The replicas of the strategy around this call; None without one, or outside `strategy.run`.

    Raises:
        TypeError: `synchronized` is not True: a strategy is found, not named.
    """
    if synchronized is not True:
        raise TypeError(
            f"{owner}: synchronized must be True or False on TensorFlow, which finds the "
            f"tf.distribute strategy itself; got {synchronized!r}."
        )
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return Replicas(context.num_replicas_in_sync)


def aligned(replicas: Replicas, means: tf.Tensor) -> Replicas:
    """The replicas, and how many ghost batches the one with most has: a message of its own."""
    return replicas._replace(groups=tf.reduce_max(all_gather(tf.shape(means)[:1], replicas)))


def all_gather(x: tf.Tensor, replicas: Replicas) -> tf.Tensor:
    """x of every replica, `[replicas, *x.shape]`, the same on all of them; no derivative.

    Behind the rows of a replica that has fewer than another there are zeros.
    """
    x = _padded(tf.stop_gradient(x), replicas)
    own = tf.distribute.get_replica_context().replica_id_in_sync_group
    row = tf.reshape(tf.range(replicas.number) == own, [-1] + [1] * x.shape.rank)
    return _sum(tf.where(row, x[None], tf.zeros((), x.dtype)))


def all_reduce(x: tf.Tensor, replicas: Replicas) -> tf.Tensor:
    """The sum of x over the replicas, row by row, and of its derivatives."""
    total = _sum(_padded(x, replicas))
    return total if replicas.groups is None else total[: tf.shape(x)[0]]


def _padded(x: tf.Tensor, replicas: Replicas) -> tf.Tensor:
    """x with as many rows as messages have."""
    if replicas.groups is None:
        return x
    missing = replicas.groups - tf.shape(x)[0]
    return tf.pad(x, [[0, missing], *[[0, 0]] * (x.shape.rank - 1)])


def _sum(x: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, x)
