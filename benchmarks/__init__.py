"""How long batch normalization takes here, beside its peers: `python -m benchmarks`.

__main__     the options
cases        what is measured: questions, sizes, and the settings that a process is given
processes    a process for each question and framework, then tables, words and files
worker       that process
timing       how it is timed: each contender twice, the second call counts, in turns
rows         one measurement, and the files it is kept in
bars         what the project promises, and whether a row keeps it
report       tables, plots, and the table of docs/performance.md
machine      the processor and the versions that a row was measured on

One file in `questions/` for each question, with `cases(settings)` and `contest(case, settings)`:
who takes turns. The question `kernels` gives `rows(case, settings)` instead: kernels/test/bench.cc
has the same loop, in C++ and on the kernels' own threads.

One file for each framework, with the same names: `with_torch`, `with_jax`, `with_tensorflow`;
`frameworks` picks one, `ours` is our side of each comparison. `measured/` holds rows and plots.

`features/` is a program beside it: the table of docs/features.md comes from there.
"""
