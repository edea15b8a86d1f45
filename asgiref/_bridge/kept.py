"""Contexts that are kept for the next call, so that a token of one call is valid in later calls.

``ContextVar.reset`` accepts a token only in the ``Context`` in which it was created. A call runs in a copy of the
caller's context. If it changes a variable, the copy is kept, and the next call of the same caller runs in it, after it
has been updated with the caller's current values.

The caller of ``sync_to_async`` calls is a task; the kept context is an attribute of the task. The caller of
``async_to_sync`` calls is the enclosing ``sync_to_async`` call; the kept context is in its ``InnerCalls``.

Two threads cannot enter one ``Context`` concurrently. If a function whose caller was cancelled is still running in it,
the next call does not wait: it runs in a copy, which is kept from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import operator
import time
from typing import TYPE_CHECKING, Any

from .carry import changes_between

if TYPE_CHECKING:
    from collections.abc import Callable

    Tokens = dict[contextvars.ContextVar[Any], contextvars.Token[Any]]

__all__ = ["ATTRIBUTE_OF_TASK", "KeptContext", "keep_for_task", "set_all"]

_MISSING: Any = object()

# The attribute of a task that has its kept context.
ATTRIBUTE_OF_TASK = "_asgiref_kept_context"

# How long, in seconds, the thread of a loop waits until another thread has left the context of an ended coroutine. A
# guess: this takes microseconds, unless a task factory of the user works there.
LEAVING = 1.0


class KeptContext:
    """A context in which several calls run, one after the other.

    Args:
        context: The context in which the first of them has run.
        tokens: The tokens of variables that this call has set and the caller had not.
    """

    __slots__ = ("_of_caller", "_own", "_values", "context", "user")

    def __init__(self, context: contextvars.Context, tokens: Tokens) -> None:
        self.context = context
        # The ``ThreadCall`` that may be running in it: the last one, unless it has ended or never started.
        self.user: Any = None
        # Tokens of variables that were not set before, in the caller's context and in this one: removing such a
        # variable needs its token.
        self._of_caller = tokens
        self._own: Tokens = {}
        # The values of the context before the next call, if known: reading a list is faster.
        self._values: list[Any] | None = None

    def follow(self, here: contextvars.Context) -> contextvars.Context:
        """Copy the values of *here*, the caller's context, and return the context to run in.

        If this is not possible, it is *here* itself, which is kept from then on. This is so if a function may be
        running in the kept context, or if the caller has removed a variable that it had when the first call started.
        """
        user = self.user
        if user is not None and user.settled:
            self.user = user = self._values = None
        if user is None:  # else another thread changes it
            if self._values is None:
                self._values = list(self.context.values())
            if _is_same(self._values, self.context, here) or self._enter(here):
                return self.context
        self.context = here
        self._values = None
        self._own.clear()
        self._of_caller.clear()
        return here

    def _enter(self, here: contextvars.Context) -> bool:
        context = self.context
        self._values = None
        deadline = 0.0
        while True:
            try:
                return context.run(_make_same, context, here, self._own)
            except RuntimeError:
                # The thread of the loop is still inside: its coroutine has ended and woken this thread.
                if not deadline:
                    deadline = time.monotonic() + LEAVING
                elif time.monotonic() > deadline:
                    return False
                time.sleep(0)

    def bring_back(
        self, before: contextvars.Context, after: contextvars.Context, restore: Callable[[contextvars.Context], Any]
    ) -> None:
        """Apply the changes from *before* to *after* to the caller's context, which is the current one.

        Args:
            restore: Sets the variables of a context, as ``set_all`` does.
        """
        if self._values is not None and _is_same(self._values, before, after):
            return
        self._values = None
        changes = changes_between(before, after)
        if changes:
            self._of_caller.update(restore(changes) or {})
        _unset(before, after, self._of_caller)


def set_all(context: contextvars.Context) -> Tokens:
    """Set each variable of *context* in the current one; return the tokens of those that were not set there."""
    tokens = {}
    for variable, value in context.items():
        token = variable.set(value)
        if token.old_value is contextvars.Token.MISSING:
            tokens[variable] = token
    return tokens


def keep_for_task(loop: asyncio.AbstractEventLoop, context: contextvars.Context, tokens: Tokens) -> None:
    """Keep *context* for the running task of *loop* until the task ends."""
    task = asyncio.current_task(loop)
    if task is None:
        return
    with contextlib.suppress(AttributeError):  # task classes of other packages may not allow attributes
        setattr(task, ATTRIBUTE_OF_TASK, KeptContext(context, tokens))
        # A task may be kept alive for its result. An empty context keeps no objects alive.
        task.add_done_callback(_forget, context=contextvars.Context())


def _forget(task: asyncio.Task[Any]) -> None:
    with contextlib.suppress(AttributeError):
        delattr(task, ATTRIBUTE_OF_TASK)


def _is_same(values: list[Any], one: contextvars.Context, other: contextvars.Context) -> bool:
    """Return whether *one*, which has these *values*, and *other* have the same variables with the same objects."""
    if len(values) != len(other) or not all(map(operator.is_, values, other.values())):
        return False
    # The values are the same, in order, so this compares the variables. It is fast for an unchanged copy. If the
    # variables differ, it may call an __eq__ of the user.
    try:
        return one == other
    except Exception:
        return False


def _make_same(current: contextvars.Context, other: contextvars.Context, tokens: Tokens) -> bool:
    """Give the *current* context the variables of *other*; return False if one cannot be removed."""
    superfluous = [variable for variable in current if variable not in other]
    if not all(variable in tokens for variable in superfluous):
        return False
    for variable in superfluous:
        variable.reset(tokens.pop(variable))
    for variable, value in other.items():
        if current.get(variable, _MISSING) is not value:
            token = variable.set(value)
            if token.old_value is contextvars.Token.MISSING:
                tokens[variable] = token
    return True


def _unset(before: contextvars.Context, after: contextvars.Context, tokens: Tokens) -> None:
    """Remove from the current context, by *tokens*, the variables in *before* that are not in *after*."""
    for variable in before:
        if variable not in after and variable in tokens:
            with contextlib.suppress(ValueError, LookupError):  # set in another context, or removed already
                variable.reset(tokens.pop(variable))
