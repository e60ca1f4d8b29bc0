"""`batchnorm bench`: how long batch normalization takes here, beside its peers, in one run.

plan         what is measured: questions, sizes, and the settings that a process is given
timing       how it is timed: each contender twice, the second call counts, in turns
row          one measurement, and the files it is kept in
bars         what the project promises, and whether a row keeps it
command      the command itself: a process for each question and framework
worker       that process
report       tables, words and plots
machine      the processor and the versions that a row was measured on

One file for each question, with `cases(settings)` and `measure(case, settings)`:
kernels      the kernels over a copy of the same tensor (`copies`)
frameworks   forward and backward against the framework's own
modes        renorm, ghost batches, weights, masks, adjustment, two axes over plain
activation   ReLU in the same kernel against ReLU after it
small        one call on a small tensor
models       a training step of a small ResNet in Keras
synchronized over one replica, against not synchronized
tf1          the TensorFlow 1 functions in a session against the originals

One file for each framework, with the same names: `with_torch`, `with_jax`, `with_tensorflow`.
"""

from batchnorm.bench.command import run

__all__ = ["run"]
