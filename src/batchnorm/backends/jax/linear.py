"""`tangent` and `backward`, the derivatives of the kernels: linear, each the other's transpose.

    tangent    changes of x, scale and offset -> the change of y
    backward   dy                             -> dx, dscale, doffset

Both at a point (x, scale, offset, constants), and each a primitive of JAX: it transposes the one
to the other, so that forward mode, reverse mode and what mixes them all take the kernels. Without
weights `tangent` even *is* the kernel of `backward`: the derivative of y by x is symmetric. What
depends on the point, second derivatives, is a formula in JAX's own operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from batchnorm._axes import View
from batchnorm._moments import Moments
from batchnorm.backends import composite
from batchnorm.backends.composite import Case
from batchnorm.backends.fused import ACTIVATIONS
from batchnorm.backends.jax import calls as own_kernels
from batchnorm.backends.jax import operations
from batchnorm.backends.jax import sharding as kernels
from batchnorm.backends.jax.moments import attached
from batchnorm.backends.jax.replicas import Replicas

Changes = tuple[Any, tuple[Any, Any]]  # of x, (scale, offset); None where there is none


class How(NamedTuple):
    """The constants of a call. With `replicas`, moments are those of x on all of them."""

    epsilon: float
    activation: int
    frozen: bool
    replicas: Replicas | None


class Point(NamedTuple):
    """Where the derivative is taken: x as `[A, G, B, C, D]`, what has gradients, and what has not.

    `given` are `fused.Vectors` without scale and offset.
    """

    x: Any
    affine: tuple[Any, Any]
    weights: Any
    given: Any

    @property
    def vectors(self) -> Any:
        return self.given._replace(scale=self.affine[0], offset=self.affine[1])


def tangent(how: How, changes: Changes, at: Point) -> Any:
    """The change of y."""
    (change,) = _bind("tangent", how, changes, at)
    return change


def backward(how: How, dy: Any, at: Point) -> Changes:
    """The cotangents of x, scale and offset."""
    dx, *rest = _bind("backward", how, (dy,), at)
    each = iter(rest)
    scale, offset = (None if one is None else next(each) for one in at.affine)
    return dx, (scale, offset)


def _y_of(how: How, at: Point) -> Any:
    """y, a function of x through its moments too."""
    mean, remainder, variance, count, *_ = at.given
    used = Moments(mean, remainder, variance, count)
    view = View.of(at.x.shape)
    if not how.frozen:
        used = attached(at.x, view, at.weights, used, how.replicas)
    name = next(name for name, number in ACTIVATIONS.items() if number == how.activation)
    case = Case(view, at.weights, how.epsilon, name)
    return composite.standardize(operations, at.x, case, used, *at.affine)


def _tangent_formula(how: How, changes: Changes, at: Point) -> list[Any]:
    everything = [at.x, *at.affine]
    chosen = [(i, one) for i, one in enumerate([changes[0], *changes[1]]) if one is not None]

    def y_of(*moved: Any) -> Any:
        values = list(everything)
        for (i, _), one in zip(chosen, moved, strict=True):
            values[i] = one
        return _y_of(how, at._replace(x=values[0], affine=(values[1], values[2])))

    points = tuple(everything[i] for i, _ in chosen)
    return [jax.jvp(y_of, points, tuple(one for _, one in chosen))[1]]


def _backward_formula(how: How, upstream: tuple[Any], at: Point) -> list[Any]:
    def y_of(x: Any, affine: Any) -> Any:
        return _y_of(how, at._replace(x=x, affine=affine))

    return jax.tree.leaves(jax.vjp(y_of, at.x, at.affine)[1](upstream[0]))


def _tangent_by_kernels(how: How, changes: Changes, at: Point) -> list[Any]:
    dx, (dscale, doffset) = changes
    if at.weights is not None or how.frozen or dx is None:
        return _tangent_formula(how, changes, at)
    plain = (how.epsilon, ACTIVATIONS[None])
    operands = (at.x, dx, None, at.vectors)
    if how.replicas is None:
        change = kernels.backward(*operands, *plain, False)[0]
    else:
        sums = _all_sums(how.replicas, own_kernels.backward_sums(*operands, *plain))
        change = own_kernels.backward_input(*operands, sums, *plain)
    if dscale is not None or doffset is not None:
        none = jnp.zeros_like(at.given.mean)
        moved = (none if dscale is None else dscale, none if doffset is None else doffset)
        constant = how._replace(activation=ACTIVATIONS[None], frozen=True)
        change = change + _y_of(constant, at._replace(affine=moved))
    if how.activation == ACTIVATIONS["relu"]:
        y = kernels.standardize(at.x, None, at.vectors, *plain)
        change = jnp.where(y <= 0, 0, change)
    return [change]


def _backward_by_kernels(how: How, upstream: tuple[Any], at: Point) -> list[Any]:
    operands = (at.x, upstream[0], at.weights, at.vectors)
    form = (how.epsilon, how.activation)
    if how.replicas is None or how.frozen:
        dx, sum_dy, sum_dy_xh = kernels.backward(*operands, *form, how.frozen)
    else:  # each replica has a whole array of its own: nothing to partition
        sum_dy, sum_dy_xh = own_kernels.backward_sums(*operands, *form)
        sums = _all_sums(how.replicas, (sum_dy, sum_dy_xh))
        dx = own_kernels.backward_input(*operands, sums, *form)
    scale, offset = at.affine
    return jax.tree.leaves(
        (dx, None if scale is None else sum_dy_xh, None if offset is None else sum_dy)
    )


def _all_sums(replicas: Replicas, sums: Any) -> Any:
    return jnp.split(replicas.all_reduce(jnp.concatenate(sums, 1)), 2, 1)


class Side(NamedTuple):
    """One of the two maps, `(how, what it is linear in, point) -> results`, in two ways."""

    kernels: Callable[[How, Any, Point], list[Any]]
    formula: Callable[[How, Any, Point], list[Any]]


SIDES = {
    "tangent": Side(_tangent_by_kernels, _tangent_formula),
    "backward": Side(_backward_by_kernels, _backward_formula),
}


# The primitive. Its operands are the leaves of what it is linear in, then those of the point; its
# parameters (name, how, tree, linear, program) say which side it is, how many leaves are linear,
# and, with replicas, what was traced where their names are known.

_linear = Primitive("batchnorm_linear")
_linear.multiple_results = True


def _flat(function: Any, how: How, tree: Any) -> Callable[..., list[Any]]:
    return lambda *leaves: function(how, *jax.tree.unflatten(tree, leaves))


def _bind(name: str, how: How, linear: Any, at: Point) -> list[Any]:
    leaves, tree = jax.tree.flatten((linear, at))
    program = None
    if how.replicas is not None:
        program = jax.make_jaxpr(_flat(SIDES[name].kernels, how, tree))(*leaves)
    number = len(jax.tree.leaves(linear))
    return _linear.bind(*leaves, name=name, how=how, tree=tree, linear=number, program=program)


def _run(*leaves: Any, name: str, how: How, tree: Any, linear: int, program: Any) -> list[Any]:
    if program is not None:
        return jaxpr_as_fun(program)(*leaves)
    return _flat(SIDES[name].kernels, how, tree)(*leaves)


def _types(*leaves: Any, name: str, how: How, tree: Any, linear: int, program: Any) -> list[Any]:
    if program is not None:
        return list(program.out_avals)
    _, at = jax.tree.unflatten(tree, leaves)
    results = [at.x] if name == "tangent" else jax.tree.leaves((at.x, at.affine))
    return [one.update(weak_type=False) for one in results]


def _differentiated(
    primals: Any, tangents: Any, *, name: str, how: How, tree: Any, linear: int, program: Any
) -> Any:
    """Linear in some operands: the same of their changes. And by the point: by the formula."""
    out = _linear.bind(*primals, name=name, how=how, tree=tree, linear=linear, program=program)
    changes = []
    moved = [None if isinstance(one, ad.Zero) else one for one in tangents]
    _, point = jax.tree.unflatten(tree, primals)
    if any(one is not None for one in moved[:linear]):
        along, _ = jax.tree.unflatten(tree, [*moved[:linear], *primals[linear:]])
        changes.append(_bind(name, how, along, point))
    end = linear + len(jax.tree.leaves((point.x, point.affine)))  # behind it are constants
    places = [i for i in range(linear, end) if moved[i] is not None]
    if places:
        function = _flat(SIDES[name].formula, how, tree)

        def at(*values: Any) -> list[Any]:
            leaves = list(primals)
            for i, one in zip(places, values, strict=True):
                leaves[i] = one
            return function(*leaves)

        points = tuple(primals[i] for i in places)
        changes.append(jax.jvp(at, points, tuple(moved[i] for i in places))[1])
    if not changes:
        return out, [ad.Zero(jax.typeof(one)) for one in out]
    return out, [sum(parts[1:], parts[0]) for parts in zip(*changes, strict=True)]


def _transposed(
    cotangents: Any, *leaves: Any, name: str, how: How, tree: Any, linear: int, program: Any
) -> list[Any]:
    """The cotangents of the linear operands: the other side's results."""
    upstream = [None if isinstance(one, ad.Zero) else one for one in cotangents]
    if all(one is None for one in upstream):
        return [None] * len(leaves)
    along, at = jax.tree.unflatten(tree, leaves)
    if name == "tangent":
        back = backward(how, upstream[0], at)
        wanted = [(along[0], back[0]), *zip(along[1], back[1], strict=True)]
        found = [cotangent for operand, cotangent in wanted if operand is not None]
    else:
        dx, *rest = upstream
        each = iter(rest)
        scale, offset = (None if one is None else next(each) for one in at.affine)
        found = [tangent(how, (dx, (scale, offset)), at)]
    needed = [
        one if ad.is_undefined_primal(leaf) else None
        for leaf, one in zip(leaves[:linear], found, strict=True)
    ]
    return [*needed, *[None] * (len(leaves) - linear)]


def _batched(
    axis: Any, leaves: Any, dims: Any, *, name: str, how: How, tree: Any, linear: int, program: Any
) -> Any:
    """One example after the other, as the kernels go; replicas may be the examples: the formula."""
    parameters = {"name": name, "how": how, "tree": tree, "linear": linear, "program": program}
    if all(dim is None for dim in dims):
        out = _linear.bind(*leaves, **parameters)
        return out, [None] * len(out)
    if how.replicas is not None:
        function = _flat(SIDES[name].formula, how, tree)
        mapped = jax.vmap(function, tuple(dims), axis_size=axis.size, axis_name=axis.name)
        out = mapped(*leaves)
        return out, [0] * len(out)
    # what a scan goes over has linear operands first, or it cannot be transposed
    front = [
        jnp.broadcast_to(leaf, (axis.size, *leaf.shape))
        if dim is None
        else jnp.moveaxis(leaf, dim, 0)
        for leaf, dim in zip(leaves[:linear], dims[:linear], strict=True)
    ]
    places = [i for i in range(linear, len(leaves)) if dims[i] is not None]
    behind = [jnp.moveaxis(leaves[i], dims[i], 0) for i in places]

    def one(_: None, each: Any) -> Any:
        operands = list(leaves)
        for i, operand in zip([*range(linear), *places], (*each[0], *each[1]), strict=True):
            operands[i] = operand
        return None, _linear.bind(*operands, **parameters)

    out = jax.lax.scan(one, None, (front, behind))[1]
    return out, [0] * len(out)


_linear.def_impl(_run)
_linear.def_abstract_eval(_types)
mlir.register_lowering(_linear, mlir.lower_fun(_run, multiple_results=True))
ad.primitive_jvps[_linear] = _differentiated
ad.primitive_transposes[_linear] = _transposed
batching.fancy_primitive_batchers[_linear] = _batched
