"""`batchnorm demo`: train one small network on real digits with every normalization.

data       the digits, and the three ways of drawing batches
plan       what is trained: kinds of normalization, regimes of batches
network    the network, the same for every kind
training   one compilation per row, one run per seed
claims     published claims, judged from the runs
report     the table, the words, the plot and the files
trials     all of it, in turn
command    the options
"""
