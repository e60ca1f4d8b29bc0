"""TensorFlow under `tf.distribute`: inside `strategy.run` every replica runs this.

`tf.distribute` has no all-gather that is one message and runs eagerly (2.21), so gathering is a sum
of tensors that are 0 but in the replica's own row: exact, and in a ring it sends twice as much.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf


class Replicas(NamedTuple):
    """How many replicas there are to take statistics over."""

    number: int


def replicas(synchronized: Any, owner: str) -> Replicas | None:
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


def all_gather(x: tf.Tensor, replicas: Replicas) -> tf.Tensor:
    """x of every replica, `[replicas, *x.shape]`, the same on all of them; no derivative."""
    own = tf.distribute.get_replica_context().replica_id_in_sync_group
    row = tf.reshape(tf.range(replicas.number) == own, [-1] + [1] * x.shape.rank)
    return all_reduce(tf.where(row, tf.stop_gradient(x)[None], tf.zeros((), x.dtype)), replicas)


def all_reduce(x: tf.Tensor, replicas: Replicas) -> tf.Tensor:
    """The sum of x over the replicas, and of its derivatives."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, x)


def sum_of_zeros(x: tf.Tensor, replicas: Replicas) -> tf.Tensor:
    """The sum over the replicas of an x that is 0 on each: x, with the derivative of the sum."""

    @tf.custom_gradient
    def function(x: tf.Tensor) -> Any:
        return tf.identity(x), lambda dy: all_reduce(dy, replicas)

    return function(x)
