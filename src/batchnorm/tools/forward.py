"""Models run with a visitor in every batch-normalization layer, and left as they were.

A Keras model runs under a `StatelessScope`, so that whatever its layers assign never reaches their
variables: an interruption at any point leaves the model bit for bit as it was. JAX and TensorFlow
compile the pass once; `keeping.py` keeps it for later calls. PyTorch's and nnx's modules are put
back from copies.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchnorm._moments import Moments
from batchnorm.tools.arguments import unwrapped
from batchnorm.tools.data import Caller
from batchnorm.tools.norm import Norm
from batchnorm.tools.norms import is_keras, is_nnx


@dataclass(frozen=True)
class Call:
    """One call of a layer, as a visitor sees it.

    Attributes:
        x, mask, weights: what the layer was called with.
        proceed: `proceed()` is the layer itself, `proceed(mean, variance)` with these in place of
            its moving statistics, `proceed(training=True)` as in training.
        given: what the program was given for this layer; None where there is nothing.
    """

    norm: Norm
    x: Any
    mask: Any
    weights: Any
    proceed: Callable[..., Any]
    given: Any

    def moments(self) -> Moments:
        """The moments of the input, as `Norm.measured` has them."""
        return self.norm.measured(self.x, self.mask, self.weights)


# Returns the layer's output and a tuple of tensors to hand out.
Visit = Callable[[Call], tuple[Any, Any]]
Results = dict[str, list[Any]]  # by index of the norm: what the visitor handed out at each call


class Program:
    """Forward passes over a batch, one for each visitor; every other layer is in inference.

    Called with a batch and `given`: for indices of norms, as text, a tree of arrays for their
    visitors. Returns what each visitor handed out, as NumPy arrays.

    Attributes:
        order: indices of the norms in the order in which the model calls them, as far as the
            batches until now have shown; a batch need not reach all of them.
    """

    def __init__(
        self,
        model: Any,
        norms: Sequence[Norm],
        visits: Sequence[Visit],
        call: Caller | None = None,
    ) -> None:
        self._model, self._norms, self._visits = model, norms, visits
        self._call = call
        self.order: list[int] = []
        self._keras = is_keras(model)
        if self._keras:
            self._run = self._keras_program()
        else:
            self._run = self._nnx_passes if is_nnx(model) else self._torch_passes

    def __call__(self, batch: Any, given: Any) -> list[Results]:
        return _to_numpy(self._run(batch, given))

    def _passes(
        self, batch: Any, given: Any, scope: Callable[[], Any] = contextlib.nullcontext
    ) -> list[Results]:
        """The passes themselves, eagerly or under a trace; each in a scope of its own."""
        every: list[Results] = []
        for visit in self._visits:
            results: Results = {}
            with scope(), _visited(self._norms, visit, given, results):
                run_model(self._model, batch, self._call)
            every.append(results)
        self.order = in_one_order(self.order, [int(key) for key in every[0]])
        return every

    def _keras_program(self) -> Callable[[Any, Any], Any]:
        keras = sys.modules["keras"]
        backend, model = keras.backend.backend(), self._model

        def passes(batch: Any, given: Any) -> Any:
            return self._passes(batch, given, keras.StatelessScope)

        if backend == "torch":
            torch = sys.modules["torch"]

            def eager(batch: Any, given: Any) -> Any:
                with torch.no_grad():
                    return passes(batch, _map_arrays(given, keras.ops.convert_to_tensor))

            return eager
        if getattr(model, "run_eagerly", False):
            return lambda batch, given: passes(
                batch, _map_arrays(given, keras.ops.convert_to_tensor)
            )
        if backend == "tensorflow":
            tf = sys.modules["tensorflow"]
            compiled = tf.function(passes, reduce_retracing=True)

            def run(batch: Any, given: Any) -> Any:
                # numbers and NumPy scalars would each be traced anew
                return compiled(*_map_arrays((batch, given), tf.convert_to_tensor))

            return run
        return self._jax_program()

    def _jax_program(self) -> Callable[[Any, Any], Any]:
        import jax

        keras, model = sys.modules["keras"], self._model
        variables = model.variables

        def passes(values: Any, batch: Any, given: Any) -> Any:
            # as arguments: constants in the program would be folded, and compiled for ever
            held = list(zip(variables, values, strict=True))
            return self._passes(batch, given, lambda: keras.StatelessScope(state_mapping=held))

        compiled = jax.jit(passes)
        return lambda batch, given: compiled([one.value for one in variables], batch, given)

    def _torch_passes(self, batch: Any, given: Any) -> Any:
        torch = sys.modules["torch"]
        given = _map_arrays(given, torch.as_tensor)
        with torch.no_grad(), put_back(self._model) as again:
            return self._passes(batch, given, lambda: _in_inference(self._model, again))

    def _nnx_passes(self, batch: Any, given: Any) -> Any:
        import jax.numpy as jnp

        from batchnorm.tools.norm_nnx import in_inference, put_back

        given = _map_arrays(given, jnp.asarray)
        with put_back(self._model) as again:
            return self._passes(batch, given, lambda: in_inference(self._model, again))


def run_model(model: Any, batch: Any, call: Caller | None = None) -> Any:
    """The model's outputs in inference, for a batch that `Batches` gave."""
    if is_keras(model):
        return model(batch, training=False) if call is None else call(model, batch)
    # what `torch.compile` made would not see a visitor
    own = unwrapped(model)
    return call(own, batch) if call is not None else own(*batch.args, **batch.kwargs)


def in_one_order(known: Sequence[int], seen: Sequence[int]) -> list[int]:
    """The known order with what is new in another one, each before what comes behind it there."""
    result, place = list(known), len(known)
    for one in reversed(seen):
        if one in result:
            place = result.index(one)
        else:
            result.insert(place, one)
    return result


@contextlib.contextmanager
def put_back(model: Any) -> Iterator[Callable[[], None]]:
    """Whatever happens inside, buffers and modes of a PyTorch module are what they were.

    Gives a function that puts the buffers back inside already, as often as it is called.
    """
    held = [(module, dict(module._buffers), module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]

    def again() -> None:
        for module, tensors, _ in held:  # it may have put another tensor in the place of one
            module._buffers.update(tensors)
        with sys.modules["torch"].no_grad():
            for buffer, value in buffers:
                if 0 in buffer.stride() and buffer.equal(value):
                    continue  # expanded: torch refuses to write there
                buffer.copy_(value)

    try:
        yield again
    finally:
        again()
        for module, _, mode in held:
            if module.training is not mode:  # a module takes long to set an attribute
                module.training = mode


@contextlib.contextmanager
def _in_inference(model: Any, again: Callable[[], None]) -> Iterator[None]:
    """A PyTorch module in inference; calls `again` at the end, whatever happens inside."""
    if any(module.training for module in model.modules()):
        model.eval()
    try:
        yield
    finally:
        again()


@contextlib.contextmanager
def _visited(norms: Sequence[Norm], visit: Visit, given: Any, results: Results) -> Iterator[None]:
    """Layers whose `call` (torch: `forward`) goes through the visitor."""
    changed: list[tuple[dict[str, Any], str, Any]] = []
    called: list[tuple[Any, Callable[..., Any]]] = []

    def put(layer: Any, name: str, value: Any) -> None:
        # into the instance's dictionary: its `__setattr__` would track the value
        changed.append((vars(layer), name, vars(layer).get(name, changed)))
        vars(layer)[name] = value

    try:
        for index, norm in enumerate(norms):
            function = _visiting(index, norm, visit, given, results)
            if hasattr(norm.layer, "call"):
                put(norm.layer, "_remat_mode", None)  # nothing is differentiated here
                put(norm.layer, "call", function)
            elif hasattr(norm.layer, "forward"):
                put(norm.layer, "forward", function)
            else:
                called.append((norm.layer, function))
        with _called(called):
            yield
    finally:
        for attributes, name, value in reversed(changed):
            if value is changed:  # there was none
                attributes.pop(name, None)
            else:
                attributes[name] = value


def _called(visitors: list[tuple[Any, Callable[..., Any]]]) -> Any:
    """Layers that are called by `__call__` alone, those of nnx."""
    if not visitors:
        return contextlib.nullcontext()
    from batchnorm.tools.norm_nnx import visited

    return visited(visitors)


def _visiting(index: int, norm: Norm, visit: Visit, given: Any, results: Results) -> Any:
    layer = norm.layer
    name = next((one for one in ("call", "forward") if hasattr(layer, one)), "__call__")
    original = getattr(layer, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        x, mask, weights = _arguments(original, args, kwargs)
        attached = getattr(x, "_keras_mask", None)
        if attached is not None and (mask is None or mask.shape == attached.shape):
            mask = _over_the_first(attached if mask is None else mask, len(x.shape))

        def proceed(mean: Any = None, variance: Any = None, training: bool = False) -> Any:
            if mean is not None:
                norm.set_device_statistics(mean, variance)
            if training:
                return norm.in_training(original, args, kwargs)
            return original(*args, **kwargs)

        outputs, result = visit(Call(norm, x, mask, weights, proceed, given.get(str(index))))
        results.setdefault(str(index), []).append(result)
        return outputs

    return call


def _arguments(function: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
    """The input, mask and weights of a call."""
    if len(args) == 1 and not kwargs:  # almost always: a signature takes its time
        return args[0], None, None
    arguments = inspect.signature(function).bind(*args, **kwargs).arguments
    x = next(iter(arguments.values()))
    return x, arguments.get("mask"), arguments.get("batch_weights")


def _over_the_first(mask: Any, rank: int) -> Any:
    """A mask that came with its tensor, which covers the dimensions before the last."""
    return mask[(..., *[None] * (rank - len(mask.shape)))]


def _map_arrays(tree: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _map_arrays(one, function) for key, one in tree.items()}
    if isinstance(tree, (list, tuple)):
        parts = [_map_arrays(one, function) for one in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return function(tree)


def _to_numpy(tree: Any) -> Any:
    def convert(leaf: Any) -> np.ndarray:
        if hasattr(leaf, "detach"):
            leaf = leaf.detach().cpu()
            leaf = leaf.float() if str(leaf.dtype) == "torch.bfloat16" else leaf
        return np.asarray(leaf)

    return _map_arrays(tree, convert)
