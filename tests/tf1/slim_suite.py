"""Runs tf_slim's own `BatchNormTest` on our function and prints what came of it, as JSON.

A program of its own: tf_slim's tests turn eager execution off for the whole process. Bodies that
run only where there is a GPU are forced open. With the argument `references`, variables and control
flow are those of TensorFlow 1.
"""

from __future__ import annotations

import json
import sys
import unittest
import warnings

import numpy as np
import tensorflow as tf

import tf1_originals
from batchnorm.tf1.contrib.layers import batch_norm


def main() -> None:
    warnings.simplefilter("ignore")
    np.product = np.prod  # what NumPy 2 calls it
    if not hasattr(unittest.TestCase, "assertRaisesRegexp"):  # Python 3.12
        unittest.TestCase.assertRaisesRegexp = unittest.TestCase.assertRaisesRegex
    tf1_originals.slim()
    from tf_slim.layers import layers_test

    layers_test.test.is_gpu_available = lambda *args, **kwargs: True
    layers_test._layers.batch_norm = batch_norm
    layers_test.setUpModule()
    if "references" in sys.argv:
        tf.compat.v1.disable_v2_behavior()
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(layers_test.BatchNormTest)
    own = [test for test in suite if test.id().split(".")[-1] != "test_session"]
    result = unittest.TextTestRunner(stream=sys.stderr).run(unittest.TestSuite(own))
    failed = {test.id(): text for test, text in (*result.failures, *result.errors)}
    print(json.dumps({"ran": result.testsRun, "failed": failed, "skipped": len(result.skipped)}))


if __name__ == "__main__":
    main()
