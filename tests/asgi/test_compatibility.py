"""``asgiref.compatibility``: the form of an application, and applications of the old form called in the new one."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from asgiref.compatibility import double_to_single_callable, guarantee_single_callable, is_double_callable
from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async

if TYPE_CHECKING:
    from nowhere import Nothing  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]


async def single(scope: Any, receive: Any, send: Any) -> Any:
    return scope, receive, send


def double(scope: Any) -> Any:
    async def instance(receive: Any, send: Any) -> Any:
        return scope, receive, send

    return instance


class SingleInstance:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        return scope, receive, send


class StaticInstance:
    @staticmethod
    async def __call__(scope: Any, receive: Any, send: Any) -> Any:
        return scope, receive, send


class PartialInstance:
    __call__ = staticmethod(functools.partial(single))


class SynchronousInstance:
    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        return single(scope, receive, send)


class DoubleInstance:
    def __call__(self, scope: Any) -> Any:
        return double(scope)

    async def method(self, scope: Any, receive: Any, send: Any) -> Any:
        return scope, receive, send


class DoubleClass:
    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> Any:
        return self.scope, receive, send


class AwaitableClass:
    """Like Starlette's endpoints: the class is the application, and its instances are awaited."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.arguments = scope, receive, send

    def __await__(self) -> Any:
        return single(*self.arguments).__await__()


class Meta(type):
    async def __call__(cls, scope: Any, receive: Any, send: Any) -> Any:
        return scope, receive, send


class ClassOfMeta(metaclass=Meta):
    pass


class AnnotatedForCheckers:
    def __call__(self, scope: Nothing, receive: Nothing, send: Nothing) -> Any:
        return single(scope, receive, send)


def configured(settings: Any, scope: Any, receive: Any, send: Any) -> Any:
    return single(scope, receive, send)


@functools.wraps(single)
def wrapper_of_single(*args: Any, **kwargs: Any) -> Any:
    return single(*args, **kwargs)


@functools.wraps(double)
def wrapper_of_double(*args: Any) -> Any:
    return double(*args)


def passing_on(application: Any) -> Callable[..., Any]:
    @functools.wraps(application)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return application(*args, **kwargs)

    return wrapper


def made_single(application: Any) -> Callable[..., Any]:
    @functools.wraps(application)
    def wrapper(scope: Any, receive: Any, send: Any) -> Any:
        return application(scope)(receive, send)

    return wrapper


def made_double(application: Any) -> Callable[..., Any]:
    @functools.wraps(application)
    def wrapper(scope: Any) -> Any:
        return functools.partial(application, scope)

    return wrapper


class DecoratedMethods:
    @passing_on
    def single(self, scope: Any, receive: Any, send: Any) -> Any:
        return single(scope, receive, send)

    @passing_on
    def double(self, scope: Any) -> Any:
        return double(scope)

    @passing_on
    async def asynchronous(self, scope: Any, receive: Any, send: Any) -> Any:
        return scope, receive, send


class DecoratedInstance:
    @passing_on
    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        return single(scope, receive, send)


class PartialMethodInstance:
    async def method(self, settings: Any, scope: Any, receive: Any, send: Any) -> Any:
        return scope, receive, send

    __call__ = functools.partialmethod(method, {})


class HintedInstance:
    _asgi_single_callable = True

    def __call__(self, *args: Any) -> Any:
        return single(*args)


class ClassMethods:
    @classmethod
    async def single(cls, scope: Any, receive: Any, send: Any) -> Any:
        return scope, receive, send

    @staticmethod
    def static(scope: Any, receive: Any, send: Any) -> Any:
        return single(scope, receive, send)

    @classmethod
    def double(cls, scope: Any) -> Any:
        return double(scope)


class Forward:
    """A fake proxy that shows all attributes of the wrapped object."""

    def __init__(self, application: Any) -> None:
        self._application = application

    def __getattr__(self, name: str) -> Any:
        return getattr(self._application, name)

    def __call__(self, *args: Any) -> Any:
        return self._application(*args)


def anything(*args: Any) -> Any:
    return single(*args) if len(args) == 3 else double(*args)


def hinted(hint: str) -> Callable[..., Any]:
    def application(*args: Any) -> Any:
        return anything(*args)

    setattr(application, hint, True)
    return application


def twice_hinted(**hints: bool) -> Callable[..., Any]:
    application = hinted("_asgi_single_callable")
    application.__dict__.update(hints)
    return application


def partial_with_hint(function: Callable[..., Any], hint: str) -> Any:
    partial = functools.partial(function)
    setattr(partial, hint, True)
    return partial


SINGLE: dict[str, Any] = {
    "coroutine function": single,
    "instance": SingleInstance(),
    "instance, static": StaticInstance(),
    "instance, partial": PartialInstance(),
    "instance, synchronous": SynchronousInstance(),
    "method": DoubleInstance().method,
    "partial": functools.partial(single),
    "partial of an instance": functools.partial(SingleInstance()),
    "partial, configured": functools.partial(configured, {}),
    "partial, configured by name": functools.partial(lambda s, r, w, *, x: single(s, r, w), x=1),
    "lambda": lambda scope, receive, send: single(scope, receive, send),
    "lambda with a fourth": lambda scope, receive, send, more=None: single(scope, receive, send),
    "marked": markcoroutinefunction(lambda *args: single(*args)),
    "wrapped": wrapper_of_single,
    "wrapped, synchronous": passing_on(SynchronousInstance()),
    "wrapped twice": passing_on(passing_on(single)),
    "wrapped partial": passing_on(functools.partial(configured, {})),
    "wrapped method": passing_on(DoubleInstance().method),
    "wrapped hint": passing_on(HintedInstance()),
    "wrapped, cached": functools.lru_cache(0)(lambda scope, receive, send: single(scope, receive, send)),
    "partial of a wrapped one": functools.partial(passing_on(configured), {}),
    "made from the old form": made_single(double),
    "made from a class of the old form": made_single(DoubleClass),
    "made from the old form, wrapped": passing_on(made_single(double)),
    "decorated method": DecoratedMethods().single,
    "decorated method, asynchronous": DecoratedMethods().asynchronous,
    "decorated instance": DecoratedInstance(),
    "instance, partial method": PartialMethodInstance(),
    "class method": ClassMethods.single,
    "static method": ClassMethods.static,
    "SyncToAsync": sync_to_async(lambda *args: args, thread_sensitive=False),
    "partial of a SyncToAsync": functools.partial(sync_to_async(lambda *args: args, thread_sensitive=False)),
    "AsyncMock": mock.AsyncMock(return_value=(1, 2, 3)),
    "partial of an AsyncMock": functools.partial(mock.AsyncMock(return_value=(1, 2, 3))),
    "MagicMock": mock.MagicMock(side_effect=single),
    "autospec": mock.create_autospec(SynchronousInstance(), side_effect=single),
    "proxy": Forward(single),
    "awaitable class": AwaitableClass,
    "class of an async metaclass": ClassOfMeta,
    "annotated for checkers": AnnotatedForCheckers(),
    "hint": hinted("_asgi_single_callable"),
    "both hints": twice_hinted(_asgi_double_callable=True),
}
if sys.implementation.name == "cpython":  # other interpreters merge the two partials, and drop the hint
    SINGLE["partial of a hinted partial"] = functools.partial(partial_with_hint(anything, "_asgi_single_callable"))
DOUBLE: dict[str, Any] = {
    "function": double,
    "lambda": lambda scope: double(scope),
    "class": DoubleClass,
    "instance": DoubleInstance(),
    "partial": functools.partial(double),
    "partial of a class": functools.partial(DoubleClass),
    "partial of an instance": functools.partial(DoubleInstance()),
    "partial, configured by name": functools.partial(lambda scope, x: double(scope), x=1),
    "wrapped": wrapper_of_double,
    "wrapped class": passing_on(DoubleClass),  # its dict has the __call__ of the class
    "wrapped class, cached": functools.lru_cache(0)(DoubleClass),
    "wrapped method": passing_on(ClassMethods.double),
    "made from the new form": made_double(single),
    "made from the new form, wrapped": passing_on(made_double(single)),
    "decorated method": DecoratedMethods().double,
    "class method": ClassMethods.double,
    "proxy": Forward(double),
    "any arguments": anything,
    "one argument will do": lambda scope, receive=None, send=None: double(scope),
    "hint": hinted("_asgi_double_callable"),
    "false hint": twice_hinted(_asgi_single_callable=False),
    "partial of a hint": functools.partial(hinted("_asgi_double_callable")),
    "hint against a kind": partial_with_hint(double, "_asgi_double_callable"),
}


@pytest.mark.parametrize("application", SINGLE.values(), ids=SINGLE)
async def test_new_form_stays_as_it_is(application: Any) -> None:
    assert not is_double_callable(application)
    assert guarantee_single_callable(application) is application
    assert (1, 2, 3) == await application(1, 2, 3)


@pytest.mark.parametrize("application", DOUBLE.values(), ids=DOUBLE)
async def test_old_form_becomes_the_new_one(application: Any) -> None:
    assert is_double_callable(application)
    converted = guarantee_single_callable(application)
    assert iscoroutinefunction(converted)
    assert not is_double_callable(converted)
    assert (1, 2, 3) == await converted(1, 2, 3)


@pytest.mark.parametrize("application", [single, double], ids=["single", "double"])
async def test_result_takes_keywords(application: Any) -> None:
    """OpenTelemetry calls it with keyword arguments."""
    assert (1, 2, 3) == await guarantee_single_callable(application)(scope=1, receive=2, send=3)


def test_hint_goes_before_the_kind() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None: ...

    assert not is_double_callable(application)
    application._asgi_double_callable = True  # type: ignore[attr-defined]
    assert is_double_callable(application)


def test_class_with_async_instances_is_not_async_itself() -> None:
    """Its ``__call__`` is a coroutine function, but calling the class creates an instance."""
    assert is_double_callable(SingleInstance)
    assert not is_double_callable(SingleInstance())


def test_what_shows_no_signature_has_the_old_form() -> None:
    with pytest.raises(ValueError):
        inspect.signature(dict)
    assert is_double_callable(dict)


@pytest.mark.parametrize("value", [None, "", object(), int, print, lambda: None, lambda scope, receive: None])
def test_what_is_no_application_has_the_old_form(value: Any) -> None:
    """As in upstream: the error appears when the object is called."""
    assert is_double_callable(value)


def test_nothing_is_called_to_find_out() -> None:
    def never(scope: Any) -> Any:
        raise AssertionError

    assert is_double_callable(never)
    guarantee_single_callable(never)


def test_metadata_of_the_old_form_is_left_behind() -> None:
    """Its signature and hints would be wrong for the result."""
    converted = double_to_single_callable(hinted("_asgi_double_callable"))
    assert ["scope", "receive", "send"] == list(inspect.signature(converted).parameters)
    assert {} == vars(converted)


@pytest.mark.parametrize("where", ["first call", "second call"])
async def test_exceptions_of_both_calls_come_out(where: str) -> None:
    def application(scope: Any) -> Callable[[Any, Any], Awaitable[None]]:
        if scope == "first call":
            raise LookupError(scope)

        async def instance(receive: Any, send: Any) -> None:
            raise LookupError(scope)

        return instance

    with pytest.raises(LookupError, match=where):
        await double_to_single_callable(application)(where, None, None)
