"""`save(data, create=…, force=…)` for stores that get their work as a delta."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from perdure.errors import SessionConflictError, SessionExistsError

if TYPE_CHECKING:
    from perdure._core import SessionData, SessionDelta

_T = TypeVar("_T")

_ATTEMPTS = 100


def save_with(
    data: SessionData,
    store: Callable[[SessionDelta, Callable[[], None]], _T],
    load: Callable[[str], SessionData | None],
    *,
    create: bool,
    force: bool,
) -> _T | None:
    """Store what changed in `data`. None: nothing had changed, `store` was not called.

    `store(delta, settle)` calls `settle()` as soon as the delta is what others find in the store.

    create  as a session of its own: it must not exist, and gets a lineage of its own
    force   over whatever is stored
    """
    if not create and not force:
        delta = data.delta()
        if delta is None:
            return None
        return store(delta, partial(data.settle, delta))
    for left in reversed(range(_ATTEMPTS)):
        copy = data.freeze()
        stored = load(data.id) if force else None
        if stored is None:
            copy.detach()
        else:
            copy.rebase(stored)
        delta = copy.delta(always=True)
        assert delta is not None
        try:
            return store(delta, partial(data.settle, delta))
        except (SessionConflictError, SessionExistsError):
            # Forced, but somebody else was quicker between the look and the save: look again.
            if not force or not left:
                raise
            continue
    raise AssertionError("unreachable")
