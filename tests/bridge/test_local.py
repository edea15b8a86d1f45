"""``Local``: which code sees which values, and what is refused."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import pickle
import sys
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import asgiref.local
from asgiref.local import Local
from asgiref.sync import AsyncSingleThreadContext, async_to_sync, sync_to_async

from ..helpers import Thread, no_garbage, output_of


@pytest.fixture(params=[False, True], ids=["plain", "critical"])
def local(request: pytest.FixtureRequest) -> Local:
    return Local(thread_critical=request.param)


def test_attributes_are_set_read_and_deleted(local: Local) -> None:
    local.color = "red"
    assert "red" == local.color
    del local.color
    for use in (lambda: local.color, lambda: delattr(local, "color")):
        with pytest.raises(AttributeError, match="has no attribute 'color'") as caught:
            use()
        assert ("color", local) == (caught.value.name, caught.value.obj)


async def test_attributes_in_tasks(local: Local) -> None:
    """A task starts with the values of its creator; its changes stay in the task."""
    local.color = "red"

    async def paint() -> tuple[str, bool]:
        before = local.color
        local.color = "blue"
        local.shape = "round"
        await asyncio.sleep(0)
        assert ("blue", "round") == (local.color, local.shape)
        del local.color
        return before, hasattr(local, "color")

    for task in [asyncio.create_task(paint()) for _ in range(2)]:
        assert ("red", False) == await task
    assert "red" == local.color
    assert not hasattr(local, "shape")
    for use in (lambda: local.shape, lambda: delattr(local, "shape")):
        with pytest.raises(AttributeError, match="has no attribute 'shape'"):
            use()


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps, pickle._dumps])  # type: ignore[attr-defined]
def test_copies_are_refused(local: Local, make: Callable[[Any], Any]) -> None:
    """Also as a part of another object: a copy would be a separate, empty Local."""
    local.color = "red"
    for whole in (local, *([] if make is copy.copy else [[local], SimpleNamespace(part=local)])):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            make(whole)
    assert "red" == local.color


@pytest.mark.parametrize("kind", [Local, type(Local(True))])
def test_copies_by_way_of_the_type_are_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        kind.__reduce_ex__(Local(kind is not Local), 2)


def test_module_in_the_place_of_asyncio_is_asked_for_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages with loops of their own replace the module; it only needs ``get_running_loop``."""

    class Loop: ...

    def no_loop() -> Any:
        raise RuntimeError

    def scenario() -> None:
        local, loops = Local(thread_critical=True), [Loop(), Loop()]
        local.color = "none"
        for loop in loops:
            monkeypatch.setattr(asgiref.local, "asyncio", SimpleNamespace(get_running_loop=lambda loop=loop: loop))
            assert not hasattr(local, "color")
            local.color = "red"
            assert "red" == local.color
            del local.color
        monkeypatch.setattr(asgiref.local, "asyncio", SimpleNamespace(get_running_loop=no_loop))
        assert "none" == local.color
        monkeypatch.undo()
        assert "none" == local.color

    contextvars.Context().run(scenario)


def test_plain_threads_start_empty(local: Local) -> None:
    local.color = "red"
    assert not Thread(hasattr, local, "color").get()


@pytest.mark.parametrize("name", ["_variable", "_in_thread", "x", "context", "__private", "thread_critical", ""])
def test_no_name_is_lost(local: Local, name: str) -> None:
    assert not hasattr(local, name)
    setattr(local, name, "kept")
    assert "kept" == getattr(local, name)


@pytest.mark.parametrize("name", ["__class__", "__doc__", "__setattr__", "__weakref__"])
def test_names_that_could_not_be_read_back_are_refused(local: Local, name: str) -> None:
    with pytest.raises(AttributeError, match="choose another name"):
        setattr(local, name, "lost")


async def test_names_that_every_object_has_are_refused_in_tasks_too(local: Local) -> None:
    with pytest.raises(AttributeError, match="choose another name"):
        local.__doc__ = "lost"
    assert local.__doc__


def test_cannot_be_subclassed() -> None:
    with pytest.raises(TypeError, match="cannot be subclassed"):
        type("Mine", (Local,), {})
    assert isinstance(Local(True), Local)


def test_two_are_independent() -> None:
    one, two = Local(), Local()
    one.color = "red"
    assert not hasattr(two, "color")


def test_crosses_the_bridge_both_ways() -> None:
    local = Local()

    def inner() -> str:
        before = str(local.color)
        local.color = "blue"
        return before

    async def middle() -> str:
        before = await sync_to_async(inner)()
        assert "blue" == local.color
        local.color = "green"
        return before

    def main() -> None:
        local.color = "red"
        assert "red" == async_to_sync(middle)()
        assert "green" == local.color

    contextvars.Context().run(main)


def test_deletion_crosses_the_bridge() -> None:
    local = Local()

    async def middle() -> None:
        await sync_to_async(delattr)(local, "color")
        assert not hasattr(local, "color")

    def main() -> None:
        local.color, local.shape = "red", "round"
        async_to_sync(middle)()
        assert not hasattr(local, "color")
        assert "round" == local.shape

    contextvars.Context().run(main)


async def test_strangers_changes_in_a_shared_context_stay() -> None:
    """Attribute by attribute, not only Local by Local."""
    local = Local()
    shared = contextvars.copy_context()
    away, go_on = asyncio.Event(), asyncio.Event()

    async def inner() -> None:
        away.set()
        await go_on.wait()
        local.color = "blue"

    async def stranger() -> None:
        await away.wait()
        local.shape = "round"
        go_on.set()

    one = asyncio.create_task(sync_to_async(async_to_sync(inner))(), context=shared)
    await asyncio.gather(one, asyncio.create_task(stranger(), context=shared))
    assert ("blue", "round") == (shared.run(getattr, local, "color"), shared.run(getattr, local, "shape"))


async def test_visible_in_to_thread() -> None:
    if getattr(sys.flags, "thread_inherit_context", False):
        pytest.skip("isolation of plain threads comes first")
    local = Local()
    local.color = "red"

    def look() -> str:
        before = str(local.color)
        local.color = "lost"
        return before

    assert "red" == await asyncio.to_thread(look)
    assert "red" == local.color


def test_survives_whoever_copies_all_variables_one_by_one() -> None:
    """Instrumentation does so to pass contexts to its threads: they get a snapshot and nothing else."""
    local = Local()

    def copy(context: contextvars.Context) -> Any:
        for variable, value in context.items():
            variable.set(value)
        before = getattr(local, "color", None)
        local.color = "theirs"
        return before

    def main() -> None:
        local.color = "red"
        seen = Thread(copy, contextvars.copy_context()).get()
        assert seen == (None if getattr(sys.flags, "thread_inherit_context", False) else "red")
        assert "red" == local.color

    contextvars.Context().run(main)


async def test_critical_values_stay_with_their_thread() -> None:
    """Values that a task sets are hidden from the threads in between, and visible again where its loop continues."""
    local = Local(thread_critical=True)
    local.color = "red"

    async def inner() -> str:
        return str(local.color)

    def middle() -> tuple[bool, str]:
        seen = hasattr(local, "color")
        local.color = "of the thread"
        return seen, async_to_sync(inner)()

    assert (False, "red") == await sync_to_async(middle)()
    assert "red" == local.color


def test_critical_values_of_a_fresh_loop_end_with_it() -> None:
    local = Local(thread_critical=True)

    class Connection:
        pass

    references = []

    async def connect() -> None:
        local.connection = Connection()
        references.append(weakref.ref(local.connection))

    async_to_sync(connect)()
    gc.collect()
    assert [None] == [reference() for reference in references]


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
def test_critical_values_of_ended_loops_do_not_pile_up() -> None:
    """A caller's context keeps the values of at most one loop."""
    local = Local(thread_critical=True)
    references = []

    class Connection:
        pass

    async def connect() -> None:
        local.connection = Connection()
        references.append(weakref.ref(local.connection))

    def main() -> None:
        for _ in range(5):
            with AsyncSingleThreadContext():
                async_to_sync(connect)()
        gc.collect()
        assert sum(reference() is not None for reference in references) <= 1

    contextvars.Context().run(main)


def test_leaves_no_garbage(local: Local) -> None:
    def use() -> None:
        local.color = "red"
        hasattr(local, "shape")
        del local.color

    with no_garbage():
        use()


THREADS_THAT_INHERIT = """
local = Local()
def name(): return getattr(local, "name", None)
local.name = "main"
results = []
def plain():
    results.append(name())
    local.name = "thread"
    results.append(name())
    results.append(async_to_sync(back)())
async def back():
    seen = name()
    local.name = "task"
    return seen, await sync_to_async(name)()
thread = threading.Thread(target=plain)
thread.start()
thread.join()
print(results)
executors = AsyncToSync.executors
async def in_threads():
    def look(): seen.append((executors.current, hasattr(executors, "other")))
    seen = []
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return executors.current is not None, seen
print(executors.current, async_to_sync(in_threads)(), executors.current)
print(name(), async_to_sync(back)(), name())
async def main():
    local.name = "loop"
    seen = [await sync_to_async(name)(), await sync_to_async(name, thread_sensitive=False)()]
    def write():
        local.name, local.other = "written", 1
        del local.other
    await sync_to_async(write)()
    return *seen, name(), await asyncio.to_thread(name)
print(asyncio.run(main()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("inherit", [0, 1])
@pytest.mark.skipif(sys.version_info < (3, 14), reason="the option is new in Python 3.14")
def test_plain_threads_start_empty_where_threads_inherit_contexts(inherit: int) -> None:
    """The bridge still passes values. asyncio.to_thread does not, because it then looks like a plain thread."""
    lines = output_of(THREADS_THAT_INHERIT, "-X", f"thread_inherit_context={inherit}")
    assert "[None, 'thread', ('thread', 'task')]" == lines[0]
    assert "None (True, [(None, False)]) None" == lines[1]
    assert "main ('main', 'task') task" == lines[2]
    assert f"('loop', 'loop', 'written', {None if inherit else 'written'!r})" == lines[3]


def test_threads_do_not_share_a_critical_value() -> None:
    local = Local(thread_critical=True)
    barrier = threading.Barrier(4)

    def use(number: int) -> int:
        local.number = number
        barrier.wait(30)
        return int(local.number)

    assert [0, 1, 2, 3] == [one.get() for one in [Thread(use, number) for number in range(4)]]
