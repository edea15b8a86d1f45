"""Wrappers: the metadata that they copy, their own attributes, and their behaviour as methods."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import functools
import gc
import inspect
import pickle
import sys
import types
import typing
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from asgiref._bridge import workers
from asgiref.sync import (
    AsyncToSync,
    SyncToAsync,
    async_to_sync,
    iscoroutinefunction,
    markcoroutinefunction,
    sync_to_async,
)

Wrapper = Any
Wrap = Callable[[Any], Wrapper]

GENERIC = """
class Namespace:
    def plain[T](self, one: T, two: "int" = 2) -> dict[str, T]:
        "Docstring."

    async def plain_async[T](self, one: T, two: "int" = 2) -> dict[str, T]:
        "Docstring."
"""


class Functions:
    def plain(self, one: int, two: "list[int]" = ()) -> bytes:  # type: ignore[assignment]  # noqa: UP037
        """Docstring."""
        return b"%d" % (one + len(two))

    async def plain_async(self, one: int, two: "list[int]" = ()) -> bytes:  # type: ignore[assignment]  # noqa: UP037
        """Docstring."""
        return b"%d" % (one + len(two))

    def bare(self, one, two): ...  # type: ignore[no-untyped-def]

    async def bare_async(self, one, two): ...  # type: ignore[no-untyped-def]


def namespaces() -> list[Any]:
    if sys.version_info < (3, 12):
        return [Functions]
    namespace: dict[str, Any] = {"__name__": "somewhere"}
    exec(GENERIC, namespace)
    return [Functions, namespace["Namespace"]]


def function_of(wrap: Wrap, name: str = "plain", namespace: Any = Functions) -> Any:
    return namespace.__dict__[name if wrap is sync_to_async else f"{name}_async"]


def call(wrapped: Wrapper, *args: Any, **kwargs: Any) -> Any:
    """Call a wrapper of either kind, from a thread where it may be called."""
    result = wrapped(*args, **kwargs)
    return asyncio.run(result) if inspect.iscoroutine(result) else result


both_ways = pytest.mark.parametrize("wrap", [sync_to_async, async_to_sync])


class Reference:
    """An object with the metadata that ``functools.update_wrapper`` copies, and nothing else."""

    def __init__(self, wrapped: Any) -> None:
        functools.update_wrapper(self, wrapped)

    def __call__(self) -> None: ...


def callables(wrap: Wrap) -> list[Any]:
    """Return a callable of each kind that *wrap* accepts."""
    plain = function_of(wrap)
    bound = getattr(Functions(), plain.__name__)

    class Instance:
        """A class whose instances are callable."""

        def __call__(self, one: int) -> Any:
            return bound(one)

    @functools.wraps(plain)
    def decorated(self: Any, *args: Any) -> Any:
        return bound(*args)

    functions = Functions()
    other_wrapper = async_to_sync(functions.plain_async) if wrap is sync_to_async else sync_to_async(functions.plain)

    def mark(wrapped: Any) -> Any:
        return wrapped if wrap is sync_to_async else markcoroutinefunction(wrapped)

    return [
        *[function_of(wrap, "plain", namespace) for namespace in namespaces()],
        function_of(wrap, "bare"),
        bound,
        functools.partial(bound, 1),
        mark(decorated),
        mark(Instance()),
        other_wrapper,
    ]


@both_ways
def test_description_is_what_update_wrapper_gives(wrap: Wrap) -> None:
    for wrapped in callables(wrap):
        wrapper: Any = wrap(wrapped)
        reference = Reference(wrapped)
        for name in functools.WRAPPER_ASSIGNMENTS:
            assert getattr(reference, name, None) == getattr(wrapper, name, None), (wrapped, name)
        assert getattr(wrapped, "__annotations__", None) == getattr(wrapper, "__annotations__", None)
        assert wrapped is wrapper.__wrapped__
        assert inspect.signature(wrapped) == inspect.signature(wrapper)
        assert inspect.getdoc(wrapped) == inspect.getdoc(wrapper)
        assert getattr(wrapped, "__self__", None) is getattr(wrapper, "__self__", None)


@both_ways
def test_what_the_callable_has_not_the_wrapper_has_not_either(wrap: Wrap) -> None:
    partial = wrap(functools.partial(getattr(Functions(), function_of(wrap).__name__), 1))
    for name in ("__name__", "__qualname__", "__annotations__", "__type_params__", "__annotate__", "__self__"):
        assert not hasattr(partial, name), name
    assert not hasattr(wrap(function_of(wrap)), "__self__")


@both_ways
def test_description_can_be_set(wrap: Wrap) -> None:
    wrapper = wrap(function_of(wrap))
    for name in functools.WRAPPER_ASSIGNMENTS:
        setattr(wrapper, name, name)
        assert name == getattr(wrapper, name)
    assert function_of(wrap).__name__ != "__name__"


@both_ways
def test_description_and_marks_pass_through_an_outer_wraps(wrap: Wrap) -> None:
    for namespace in namespaces():
        function = types.FunctionType(function_of(wrap, "plain", namespace).__code__, {}, "renamed")
        functools.update_wrapper(function, function_of(wrap, "plain", namespace))
        del function.__wrapped__  # type: ignore[attr-defined]
        function.csrf_exempt = True  # type: ignore[attr-defined]
        inner = wrap(function)

        @functools.wraps(inner)
        def outer(*args: Any) -> Any: ...

        assert outer.csrf_exempt is inner.csrf_exempt is True  # type: ignore[attr-defined]
        for name in functools.WRAPPER_ASSIGNMENTS:
            assert getattr(function, name) == getattr(outer, name)
        assert function is inspect.unwrap(outer)
        assert inspect.signature(function) == inspect.signature(outer)
        assert (wrap is sync_to_async) is iscoroutinefunction(outer) is iscoroutinefunction(inner)


@both_ways
def test_marks_of_a_framework_stay_visible(wrap: Wrap) -> None:
    """Marks of a function, a bound method, a class and an object are in the wrapper's ``__dict__``."""

    class Views:
        def view(self) -> None: ...

        async def view_async(self) -> None: ...

        view.csrf_exempt = view_async.csrf_exempt = True  # type: ignore[attr-defined]

    class View(Views):
        def __init__(self) -> None:
            self.throttle = 5

        async def __call__(self) -> None: ...

        if wrap is sync_to_async:
            __call__ = Views.view  # type: ignore[assignment]

    name = "view" if wrap is sync_to_async else "view_async"
    assert vars(wrap(vars(Views)[name]))["csrf_exempt"] is vars(wrap(getattr(View(), name)))["csrf_exempt"] is True
    assert vars(wrap(View()))["throttle"] == 5
    assert not hasattr(wrap(function_of(wrap)), "csrf_exempt")
    assert vars(sync_to_async(Views))["view"] is Views.view


NAMES_OF_OURS = {
    *dir(SyncToAsync),
    *dir(AsyncToSync),
    *vars(sync_to_async(Functions.plain)),
    *vars(async_to_sync(Functions.plain_async)),
    *("__func__", "_is_coroutine", "_is_coroutine_marker", "__slots__", "__get__", "__set__", "__origin__"),
}


class Junk:
    """An unexpected value of an attribute: all code that uses it fails."""

    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise LookupError


class Decorated:
    """A callable object, on which any attribute may be set, and a view that is bridged both ways."""

    def __call__(self, depth: int = 2) -> tuple[Any, ...]:
        return (threads(), *(async_to_sync(sync_to_async(self))(depth - 1) if depth else ()))


class DecoratedAsync:
    async def __call__(self, depth: int = 2) -> tuple[Any, ...]:
        return (threads(), *(await sync_to_async(async_to_sync(self))(depth - 1) if depth else ()))


def threads() -> Any:
    return asyncio._get_running_loop() is None


@pytest.mark.parametrize(
    "value", [None, 5, Junk(), lambda *args, **kwargs: None], ids=["None", "5", "junk", "function"]
)
@both_ways
def test_no_attribute_of_the_callable_changes_how_the_wrapper_works(wrap: Wrap, value: Any) -> None:
    view: Any = Decorated() if wrap is sync_to_async else markcoroutinefunction(DecoratedAsync())
    wrapper = wrap(view)
    expected, before = call(wrapper), dict(vars(wrapper))
    assert 3 == len(expected)
    names = NAMES_OF_OURS - {"__class__", "__dict__", "__wrapped__"}
    if wrap is async_to_sync:  # which would warn
        names -= {"_is_coroutine", "_is_coroutine_marker"}
    vars(view).update(dict.fromkeys(names, value))
    try:
        wrapper = wrap(view)
        assert expected == call(wrapper)
    finally:
        for name in names:
            del vars(view)[name]
    after = vars(wrapper)
    described = {"__module__", "__qualname__"}
    assert all(after[name] is before[name] for name in before.keys() - described)
    assert set() == (after.keys() - before.keys()) & ({*dir(type(wrapper)), "__func__"} - described)


async def test_attribute_named_context_does_not_replace_that_of_the_wrapper() -> None:
    def view() -> str:
        return "view"

    view.context, view.func, view.executor = "theirs", "theirs", "theirs"  # type: ignore[attr-defined]
    wrapper: Any = sync_to_async(view)
    assert (None, view, "theirs") == (wrapper.context, wrapper.func, wrapper.executor)
    assert "view" == await wrapper()


def test_marking_a_wrapper_never_marks_the_users_function() -> None:
    """``inspect.markcoroutinefunction`` marks the ``__func__`` of an object, if there is one."""

    class View:
        def __init__(self) -> None:
            self.__func__ = function

        def method(self) -> None: ...

        def __call__(self) -> None: ...

    def function() -> None: ...

    for wrapped in (function, View().method, View(), functools.partial(function), staticmethod(function)):
        markcoroutinefunction(sync_to_async(wrapped))
    assert not any(iscoroutinefunction(each) for each in (function, View.method, View().method))

    async def asynchronous() -> None: ...

    assert not iscoroutinefunction(async_to_sync(asynchronous))
    assert iscoroutinefunction(markcoroutinefunction(async_to_sync(asynchronous)))
    assert {} == vars(asynchronous)


@both_ways
def test_what_a_subclass_says_of_itself_wins(wrap: Wrap) -> None:
    class Named(type(wrap(function_of(wrap)))):  # type: ignore[misc]
        __name__ = "named by the class"
        retries = 3

    class Computed(type(wrap(function_of(wrap)))):  # type: ignore[misc]
        @property
        def __name__(self) -> str:
            return "computed"

        @property
        def __doc__(self) -> str:  # type: ignore[override]
            return "computed too"

    function = functools.wraps(function_of(wrap))(lambda *args: None)
    if wrap is async_to_sync:
        markcoroutinefunction(function)
    function.retries = 5  # type: ignore[attr-defined]
    assert "named by the class" == Named(function).__name__
    assert 3 == Named(function).retries
    assert ("computed", "computed too") == (Computed(function).__name__, Computed(function).__doc__)
    assert (function.__qualname__, 5) == (Computed(function).__qualname__, Computed(function).retries)


@both_ways
def test_description_of_a_subclass_object_is_that_of_the_function(wrap: Wrap) -> None:
    class Documented(type(wrap(function_of(wrap)))):  # type: ignore[misc]
        """The docstring of the class."""

        attribute: int = 0

    class Bare(Documented): ...

    function = function_of(wrap)
    for kind in (Documented, Bare):
        wrapper = kind(function)
        assert (function.__doc__, function.__annotations__) == (wrapper.__doc__, wrapper.__annotations__)
        assert (function.__module__, function.__name__) == (wrapper.__module__, wrapper.__name__)
    assert ("The docstring of the class.", None) == (Documented.__doc__, Bare.__doc__)
    assert {"attribute": "int"} == inspect.get_annotations(Documented)
    assert {} == inspect.get_annotations(Bare)
    assert "Documented" == Documented.__name__
    assert typing.get_type_hints(Bare)["attribute"] is int


@pytest.mark.parametrize("kind", [SyncToAsync, AsyncToSync])
def test_description_of_the_classes_is_their_own(kind: Any) -> None:
    assert kind.__doc__.startswith("Wraps a ")
    assert ("asgiref.sync", kind.__qualname__) == (kind.__module__, kind.__name__)
    assert "__wrapped__" in inspect.get_annotations(kind)
    assert kind.__annotations__ == inspect.get_annotations(kind)
    assert kind is pickle.loads(pickle.dumps(kind))
    assert not hasattr(kind, "__self__")
    assert not hasattr(kind, "__wrapped__")
    assert () == getattr(kind, "__type_params__", ())
    assert "executor" in str(inspect.signature(kind)) or "force_new_loop" in str(inspect.signature(kind))


@both_ways
def test_wrappers_can_be_copied(wrap: Wrap) -> None:
    wrapper = wrap(function_of(wrap))
    for copied in (copy.copy(wrapper), copy.deepcopy(wrapper)):
        assert (wrapper.__name__, wrapper.__doc__) == (copied.__name__, copied.__doc__)
        assert call(wrapper, None, 5) == call(copied, None, 5)


def test_names_of_arguments_are_free() -> None:
    names = "self func fn loop args kwargs awaitable context exc_info task_context executor call_result job parent"
    expected = dict.fromkeys(names.split(), 1)

    def plain(**kwargs: Any) -> Any:
        return kwargs

    async def plain_async(**kwargs: Any) -> Any:
        return kwargs

    class Class:
        @sync_to_async
        def method(this, **kwargs: Any) -> Any:
            return kwargs

        @async_to_sync
        async def method_async(this, **kwargs: Any) -> Any:
            return kwargs

    for wrapped in (
        sync_to_async(plain),
        sync_to_async(plain, thread_sensitive=False),
        async_to_sync(plain_async),
        Class().method,
        Class().method_async,
    ):
        assert expected == call(wrapped, **expected)


# Bound methods


class Receiver:
    def __init__(self, name: str = "") -> None:
        self.name = name

    @sync_to_async
    def heard(self, sender: str, **kwargs: Any) -> str:
        """Docstring."""
        return f"{self.name} {sender}"

    @async_to_sync
    async def heard_here(self, sender: str, **kwargs: Any) -> str:
        """Docstring."""
        return f"{self.name} {sender}"

    @classmethod
    @sync_to_async
    def of_class(cls, sender: str) -> str:
        return f"{cls.__name__} {sender}"

    @staticmethod
    @sync_to_async
    def of_nobody(sender: str) -> str:
        return sender

    def plain(self, sender: str, **kwargs: Any) -> str:
        """Docstring."""
        raise NotImplementedError


methods = pytest.mark.parametrize("name", ["heard", "heard_here"])


@methods
def test_bound_methods_are_equal_if_object_and_function_are(name: str) -> None:
    one, two = Receiver("one"), Receiver("two")
    assert getattr(one, name) == getattr(one, name)
    assert hash(getattr(one, name)) == hash(getattr(one, name))
    assert getattr(one, name) != getattr(two, name)
    assert getattr(one, name) != one.plain
    assert {getattr(one, name): 1}[getattr(one, name)]


@methods
def test_bound_method_is_described_as_one_of_a_plain_function(name: str) -> None:
    receiver = Receiver()
    bound = getattr(receiver, name)
    assert inspect.ismethod(bound)
    assert inspect.signature(receiver.plain) == inspect.signature(bound)
    assert inspect.signature(Receiver.plain) == inspect.signature(getattr(Receiver, name))
    assert (receiver, vars(Receiver)[name]) == (bound.__self__, bound.__func__)
    assert (name, f"Receiver.{name}", "Docstring.") == (bound.__name__, bound.__qualname__, bound.__doc__)
    for tells in (iscoroutinefunction, inspect.iscoroutinefunction, asyncio.coroutines.iscoroutinefunction):
        if sys.version_info < (3, 14) or "asyncio" not in tells.__module__:
            assert (name == "heard") is tells(bound) is tells(getattr(Receiver, name))


@methods
def test_bound_method_is_called_with_the_object(name: str) -> None:
    assert (
        "one two"
        == call(getattr(Receiver("one"), name), "two")
        == call(getattr(Receiver, name), Receiver("one"), "two")
    )
    assert "Receiver two" == call(Receiver.of_class, "two") == call(Receiver().of_class, "two")
    assert "two" == call(Receiver.of_nobody, "two") == call(Receiver().of_nobody, "two")


@methods
def test_weak_method_lives_as_long_as_the_object(name: str) -> None:
    receiver: Receiver | None = Receiver("one")
    weak = weakref.WeakMethod(getattr(receiver, name))
    gc.collect()
    assert "one two" == call(weak(), "two")
    assert weak == weakref.WeakMethod(getattr(receiver, name))
    receiver = None
    gc.collect()
    assert weak() is None


@methods
def test_bound_method_of_an_object_that_can_be_pickled_can_be_pickled(name: str) -> None:
    for copied in (
        pickle.loads(pickle.dumps(getattr(Receiver("one"), name))),
        copy.copy(getattr(Receiver("one"), name)),
        copy.deepcopy(getattr(Receiver("one"), name)),
    ):
        assert "one two" == call(copied, "two")


@methods
def test_marking_a_bound_method_marks_the_wrapper_alone(name: str) -> None:
    class Class:
        heard, heard_here = (
            vars(Receiver)[each].__class__(vars(Receiver)[each].__wrapped__) for each in ("heard", "heard_here")
        )

    markcoroutinefunction(getattr(Class(), name))
    assert iscoroutinefunction(vars(Class)[name])
    assert {} == vars(vars(Class)[name].__wrapped__)


def test_signal_of_django_can_be_disconnected_and_does_not_lose_its_receivers() -> None:
    dispatch = pytest.importorskip("django.dispatch")
    signal, receiver = dispatch.Signal(), Receiver("one")
    signal.connect(receiver.heard)
    signal.connect(receiver.heard_here)
    signal.connect(receiver.heard)
    gc.collect()
    assert ["one two", "one two"] == [answer for _, answer in signal.send("two")]
    assert signal.disconnect(receiver.heard_here)
    assert signal.disconnect(receiver.heard)
    assert [] == signal.send("two")


# Exceptions that refuse assignments


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int = 0


class Refusing(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


if sys.implementation.name == "cpython":  # where asyncio, in C, does not read them either
    for name in ("__context__", "__traceback__"):
        setattr(Refusing, name, property(lambda self: None))


@pytest.mark.parametrize("kind", [Frozen, Refusing])
@both_ways
def test_exception_being_handled_may_refuse_assignments(wrap: Wrap, kind: Any) -> None:
    """The other side sees the exception; its traceback and context are unchanged afterwards."""
    context = BaseException.__dict__["__context__"].__get__
    traceback = BaseException.__dict__["__traceback__"].__get__

    def look() -> Any:
        return sys.exc_info()[1]

    async def look_async() -> Any:
        return sys.exc_info()[1]

    error = None
    cause = LookupError()
    try:
        try:
            raise cause
        except LookupError:
            raise kind  # noqa: B904
    except kind as caught:
        before = traceback(caught)
        error = call(wrap(look if wrap is sync_to_async else look_async))
        assert caught is error
        assert cause is context(caught)
        assert before is traceback(caught)
    assert isinstance(error, kind)


@pytest.mark.parametrize("kind", [Frozen, Refusing])
@both_ways
def test_exception_that_refuses_assignments_comes_back_as_it_is(wrap: Wrap, kind: Any) -> None:
    error = kind()

    def fail() -> None:
        raise error

    async def fail_async() -> None:
        raise error

    with pytest.raises(kind) as caught:
        call(wrap(fail if wrap is sync_to_async else fail_async))
    assert error is caught.value


@pytest.mark.needs_internals
@pytest.mark.parametrize("kind", [Frozen, Refusing])
async def test_exception_that_refuses_assignments_leaves_a_block_without_a_loop_as_it_is(kind: Any) -> None:
    error, loop = kind(), asyncio.get_running_loop()
    with pytest.raises(kind) as caught, workers.loop_suspended():
        assert asyncio._get_running_loop() is None
        raise error
    assert error is caught.value
    assert loop is asyncio.get_running_loop()
