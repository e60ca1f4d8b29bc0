"""Calls that are repeated for their derivative, where the call before has changed the state."""

from __future__ import annotations

from collections import deque
from typing import Any

import keras

from batchnorm._options import Options
from batchnorm._plan import decide

State = dict[str, Any]


class States:
    """The states of the last calls, for calls that repeat them in a backward pass.

    Such a call must normalize as the first one did, with a state that is gone by then. JAX
    recomputes pure functions, and needs none of this.
    """

    def __init__(self) -> None:
        self._newest_last: deque[State] = deque(maxlen=8)

    def of_this_call(self, options: Options, training: Any, state: State, again: bool) -> State:
        """The state that a call normalizes with: a copy; if `again`, the one from before."""
        if keras.backend.backend() == "jax" or not _changes_what_it_reads(options, training):
            return state
        if again:
            return self._newest_last.pop() if self._newest_last else state
        kept = {name: keras.ops.copy(value) for name, value in state.items()}
        self._newest_last.append(kept)
        return kept


def _changes_what_it_reads(options: Options, training: Any) -> bool:
    """Whether the state that the call changes has a part in its output."""
    known = (training,) if isinstance(training, bool) else (True, False)
    how = (options.statistics, options.update_statistics)
    moves = any(decide(*how, one).update for one in known)
    return moves and (options.renorm or options.statistics == "moving")
