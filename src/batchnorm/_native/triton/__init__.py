"""The kernels for NVIDIA GPUs, in Triton. No framework is in here, and nothing imports Triton but
the files of the kernels: whoever launches them has looked first whether it is there.

tiles       how a program walks x, and what every kernel does alike
moments     partial moments, and what they are together
standardize y
backward    the two sums of the backward pass, partial and together, and dx
remember    the moving averages after a batch
layout      which tiles and how many programs a call takes; integers only

Two launches each way. The first leaves partial results of each split, by channel, in float64; the
second puts those of its channels together before it starts, in the same order in every program, so
results are the same bits at every run. It begins where the first one ended, so that what is still
in the cache is read from there.

Triton compiles a kernel anew for other types, constants, absent operands, and for sizes that are 1
or that 16 divides, where it is not told otherwise: here these are C and D alone. What else decides
how loads are made are constants, FULL and VECTOR: few values, so that the layers of a network share
their kernels.
"""
