"""MAML: a gradient through a gradient step, in loops, where batch normalization is in both passes.

Second derivatives inside `map_fn` and `while_loop`, with either control flow, equal those of the
same steps written one after the other.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from batchnorm import tf1

v1 = tf.compat.v1
RNG = np.random.default_rng(11)
TASKS = RNG.normal(size=(3, 5, 4)).astype("float32")


@pytest.fixture(params=["v1", "v2"])
def control_flow(request):
    was = v1.control_flow_v2_enabled()
    (v1.enable_control_flow_v2 if request.param == "v2" else v1.disable_control_flow_v2)()
    yield request.param
    (v1.enable_control_flow_v2 if was else v1.disable_control_flow_v2)()


def layers(x):
    return tf1.layers.batch_normalization(x, training=True, name="bn", reuse=v1.AUTO_REUSE)


def contrib(x):
    return tf1.contrib.layers.batch_norm(
        x, activation_fn=tf.nn.relu, scope="bn", reuse=v1.AUTO_REUSE
    )


def in_python(task, tasks):
    return tf.stack([task(one) for one in tf.unstack(tasks)])


def in_map_fn(task, tasks):
    return tf.map_fn(task, tasks, fn_output_signature=tf.float32)


def in_a_while_loop(task, tasks):
    def body(i, total):
        return i + 1, total + task(tasks[i])

    rounds = tf.constant(len(TASKS))
    return v1.while_loop(lambda i, _: i < rounds, body, [0, 0.0], parallel_iterations=1)[1]


def meta_gradient(normalized, over):
    """The gradient of the tasks' losses after a step that each takes on its own."""
    with tf.Graph().as_default(), v1.Session() as session:
        tasks = v1.placeholder(tf.float32, TASKS.shape)
        start = 0.3 * np.eye(4, dtype="float32") + 0.1
        weights = v1.get_variable("w", initializer=start)
        normalized(tasks[0])  # the variables are made outside of the loop

        def loss(x, weights):
            return tf.reduce_mean(tf.square(normalized(tf.matmul(x, weights)) - x))

        def task(x):
            (step,) = tf.gradients(loss(x, weights), [weights])
            return loss(x, weights - 0.1 * step)

        total = tf.reduce_sum(over(task, tasks))
        gradients = tf.gradients(total, v1.trainable_variables())
        session.run(v1.global_variables_initializer())
        return session.run([total, *gradients], {tasks: TASKS})


@pytest.mark.parametrize("normalized", [layers, contrib])
@pytest.mark.parametrize("over", [in_map_fn, in_a_while_loop])
def test_the_meta_gradient_in_a_loop_is_that_of_the_steps_written_out(
    normalized, over, control_flow
):
    for got, want in zip(
        meta_gradient(normalized, over), meta_gradient(normalized, in_python), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
