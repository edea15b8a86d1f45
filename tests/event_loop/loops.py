"""The loops that leave the calling thread free, of each available kind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from asgiref.sync import ThreadSensitiveEventLoop, thread_sensitive_loop_factory

from ..conftest import LOOP_FACTORIES, LoopFactory

__all__ = ["FACTORIES", "UsersLoop", "every_loop", "run"]


class UsersLoop(asyncio.SelectorEventLoop):
    """A class of a user: it makes tasks of its own class, and counts its runs."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(lambda loop, coroutine, **options: _UsersTask(coroutine, loop=loop, **options))

    def run_forever(self) -> None:
        self.runs += 1
        super().run_forever()


class _UsersTask(asyncio.Task[Any]):
    pass


FACTORIES: dict[str, LoopFactory] = {
    "class": ThreadSensitiveEventLoop,
    **{name: thread_sensitive_loop_factory(factory) for name, factory in LOOP_FACTORIES.items()},
    "user's": thread_sensitive_loop_factory(UsersLoop),
}

every_loop = pytest.mark.parametrize("factory", FACTORIES.values(), ids=list(FACTORIES))


def run(factory: LoopFactory, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of the coroutine function, as ``asyncio.run`` does."""
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(function(*arguments))
