"""A process of `tests/backends/test_torch_replicas.py`: rank, replicas, folder.

What it pickles is {"cases": {(name, fused): result}, ...}, one entry for each fact.
"""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import batchnorm
import engines
import launcher
import replicated
from batchnorm.backends.torch import replicas as torch_replicas

RANK, REPLICAS, FOLDER = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
ENGINE = engines.ENGINES["torch"]
SENT: list[tuple[str, str, int]] = []  # collectives of this process: name, type, bytes


def counting(name: str) -> None:
    """Notes every call of a collective."""
    function = getattr(dist, name)

    def counted(*tensors: Any, **options: Any) -> Any:
        own = tensors[-1]
        SENT.append((name, str(own.dtype), own.numel() * own.element_size()))
        return function(*tensors, **options)

    setattr(dist, name, counted)


def sent() -> list[tuple[str, str, int]]:
    """The collectives since the last call, without those of shapes."""
    result = [one for one in SENT if one[1] != "torch.int64"]
    SENT.clear()
    return result


def modes() -> dict[Any, Any]:
    results = {}
    for name in replicated.NAMES:
        one = replicated.case(name, REPLICAS)
        for fused in (False, None):
            sent()
            results[name, fused] = replicated.run(one, ENGINE, RANK, fused=fused)
            results[name, fused]["sent"] = sent()
    return results


def steady() -> list[Any]:
    """All collectives of one more step, comparisons included, of a shape used for long."""
    one = replicated.case("plain", REPLICAS)
    for _ in range(torch_replicas.COMPARED + 1):
        SENT.clear()
        replicated.run(one, ENGINE, RANK)
    return list(SENT)


def ghost_steps() -> list[Any]:
    """Steps with other numbers of ghost batches each time, and the collectives of the last."""
    found = []
    for rows in (replicated.UNEQUAL, replicated.GHOST, replicated.UNEQUAL):
        SENT.clear()
        found.append(replicated.run(replicated.case("ghost", REPLICAS, rows), ENGINE, RANK))
    return [found, list(SENT)]


def second_derivatives() -> dict[Any, Any]:
    """The gradient of a gradient penalty, which needs every replica's second derivatives."""
    one = replicated.case("channels last", REPLICAS)
    results = {}
    for fused in (False, None):
        x = torch.tensor(one.part(one.x, RANK), dtype=torch.float64, requires_grad=True)
        dy = torch.tensor(one.part(one.dy, RANK), dtype=torch.float64)
        parameters = {k: torch.tensor(v, dtype=torch.float64) for k, v in one.parameters.items()}
        _, state = batchnorm.init(x)
        y, _ = batchnorm.batch_norm(
            x, parameters, state, training=True, fused=fused, synchronized=True
        )
        (slope,) = torch.autograd.grad((y**2 * dy).sum(), x, create_graph=True)
        (penalty,) = torch.autograd.grad((slope**2).sum(), x)
        results[fused] = penalty.numpy()
    return results


def compiled() -> list[Any]:
    """Gradients and moving means of a step, eager and in one graph of torch.compile, by path."""
    one = replicated.case("plain", REPLICAS)
    x = torch.tensor(one.part(one.x, RANK))
    parameters, state = batchnorm.init(x)
    found = []
    for fused in (False, None):

        def step(x: torch.Tensor) -> Any:
            y, new = batchnorm.batch_norm(
                x,
                parameters,
                state,
                training=True,
                synchronized=True,
                fused=fused,  # noqa: B023
            )
            return (y**3).sum(), new["moving_mean"]

        for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
            leaf = x.clone().requires_grad_()
            loss, mean = function(leaf)
            found.append((torch.autograd.grad(loss, leaf)[0].numpy(), mean.numpy()))
    return found


def subgroups() -> dict[str, Any]:
    """Two groups of two: by object, and by name."""
    groups = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    mine = groups[RANK // 2]
    one = replicated.case("plain", 2)
    run = lambda group: replicated.run(one, ENGINE, RANK % 2, synchronized=group)  # noqa: E731
    return {"object": run(mine), "name": run(mine.group_name)}


class Nobody:
    def __repr__(self) -> str:
        return "<object>"


def errors() -> dict[str, str]:
    """What is said to each rank where the ranks disagree, or the group is none."""
    said = {}

    def attempt(name: str, shape: tuple[int, ...], synchronized: Any = True, **options: Any):
        x = torch.ones(shape, dtype=options.pop("dtype", torch.float32))
        parameters, state = batchnorm.init(x, axis=options.get("axis", -1))
        try:
            batchnorm.batch_norm(
                x, parameters, state, training=True, synchronized=synchronized, **options
            )
        except (RuntimeError, TypeError, ValueError) as error:
            said[name] = f"{type(error).__name__}: {error}"

    attempt("channels", (4, 3 + RANK % 2))
    attempt("groups", (4, 3), virtual_batch_size=2 if RANK % 2 else None)
    attempt("axes", (4, 2 + RANK % 2, 5, 3 - RANK % 2), axis=[1, 3])
    attempt("types", (4, 3), dtype=torch.float64 if RANK % 2 else torch.float32)
    attempt("name", (4, 3), "nobody")
    attempt("object", (4, 3), Nobody())
    dist.barrier()
    return said


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{FOLDER}/rendezvous",
        rank=RANK,
        world_size=REPLICAS,
        timeout=dt.timedelta(seconds=60),
    )
    # first: a disagreement at the start must be seen; and dynamo cannot trace what counts
    first = {"errors": errors(), "compiled": compiled()}
    counting("all_gather_single")
    counting("all_reduce")
    result = {
        **first,
        "modes": modes(),
        "steady": steady(),
        "ghost": ghost_steps(),
        "second": second_derivatives(),
    }
    if REPLICAS == 4:
        result["subgroups"] = subgroups()
    launcher.keep(FOLDER, RANK, result)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
