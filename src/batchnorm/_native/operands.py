"""What each kernel takes and gives, by name: once, for C and for every framework.

Names are those of kernels/include/batchnorm.h. A binding asks here, and writes no list of its own.
"""

from __future__ import annotations

from typing import NamedTuple


class Kernel(NamedTuple):
    """One kernel.

    `c` are the arguments of the C function, in order; `takes` those of an operator, `gives` its
    results. `sizes` are [A, G, B, C, D]; the sizes of weights go with them, and `dtype` is x's.
    What ends in `_add` adds a residual before the activation; `y` is what it returned.
    """

    c: str
    takes: str
    gives: str


KERNELS = {
    name: Kernel(*(" ".join(part.split()) for part in parts))
    for name, parts in {
        "moments": (
            "dtype sizes x weights mean remainder variance count",
            "x sizes weights",
            "mean remainder variance count",
        ),
        "standardize": (
            """dtype sizes x weights mean remainder variance epsilon scale offset activation y""",
            """x sizes weights mean remainder variance count scale offset live epsilon activation
            frozen""",
            "y",
        ),
        "forward": (
            """dtype sizes x weights epsilon scale offset activation mean remainder variance count
            y""",
            "x sizes weights scale offset epsilon activation",
            "y mean remainder variance count",
        ),
        "backward": (
            """dtype sizes x dy weights count mean remainder variance epsilon scale offset
            activation live frozen sum_dy sum_dy_xh dx""",
            """x sizes dy weights mean remainder variance count scale offset live epsilon
            activation frozen""",
            "dx sum_dy sum_dy_xh",
        ),
        "backward_sums": (
            """dtype sizes x dy weights mean remainder variance epsilon scale offset activation
            sum_dy sum_dy_xh""",
            "x sizes dy weights mean remainder variance scale offset epsilon activation",
            "sum_dy sum_dy_xh",
        ),
        "backward_input": (
            """dtype sizes x dy weights count mean remainder variance epsilon scale offset
            activation live frozen sum_dy sum_dy_xh dx""",
            """x sizes dy weights mean remainder variance count scale offset live sum_dy sum_dy_xh
            epsilon activation""",
            "dx",
        ),
        "standardize_add": (
            """dtype sizes x residual weights mean remainder variance epsilon scale offset
            activation y""",
            """x sizes residual weights mean remainder variance count scale offset live epsilon
            activation frozen""",
            "y",
        ),
        "forward_add": (
            """dtype sizes x residual weights epsilon scale offset activation mean remainder
            variance count y""",
            "x sizes residual weights scale offset epsilon activation",
            "y mean remainder variance count",
        ),
        "backward_add": (
            """dtype sizes x dy y weights count mean remainder variance epsilon scale offset
            activation live frozen sum_dy sum_dy_xh dx d_residual""",
            """x sizes dy y weights mean remainder variance count scale offset live epsilon
            activation frozen""",
            "dx d_residual sum_dy sum_dy_xh",
        ),
    }.items()
}
OTHERS = {  # torch and JAX have no operators of their arguments
    "backward_sums_add": """dtype sizes x dy y weights mean remainder variance epsilon scale offset
        activation sum_dy sum_dy_xh""",
    "backward_input_add": """dtype sizes x dy y weights count mean remainder variance epsilon scale
        offset activation live frozen sum_dy sum_dy_xh dx d_residual""",
    "remember": """dtype groups columns mean remainder variance count momentum unbiased propagate
        old_mean old_variance old_skipped old_updates new_mean new_variance new_skipped
        new_updates""",
}
C_TYPES = {  # of what is no pointer: i int, n int64, d double, s sizes; weights come with theirs
    "dtype": "i", "sizes": "s", "weights": "ps", "epsilon": "d", "activation": "i", "frozen": "i",
    "groups": "n", "columns": "n", "momentum": "d", "unbiased": "i", "propagate": "i",
}  # fmt: skip


def prototype(names: str) -> str:
    """The C types of these arguments, a letter each; p is a pointer."""
    return "".join(C_TYPES.get(name, "p") for name in names.split())
