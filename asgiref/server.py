"""A server without connections: its messages name a scope, and each scope has an application.

Chat bots and workers are such servers: what comes in says whom it belongs to, and nobody
tells when a conversation is over. So an application instance starts with the first message
for its scope, and the one that has been quiet the longest goes when there are too many.

Everything here happens on the thread of one event loop. ``arun`` owns all tasks that are
started on the way: when it has ended, so have they.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterable
from types import FrameType
from typing import Any, TypedDict

from ._bridge.internals import running_loop
from .compatibility import guarantee_single_callable

__all__ = ["StatelessServer"]

logger = logging.getLogger(__name__)


class ApplicationInstance(TypedDict):
    """One running application.

    Attributes:
        input_queue: What the application receives.
        future: The task in which it runs.
        scope: The scope that it was called with.
        last_used: When its queue was last asked for, in seconds of ``time.monotonic``.
    """

    input_queue: asyncio.Queue[Any]
    future: asyncio.Task[Any]
    scope: Any
    last_used: float


class StatelessServer:
    """Runs one application instance for each scope id, started when the first message for it arrives.

    Subclasses are the server: they say in ``handle`` how messages come in, and in
    ``application_send`` how answers go out.

    Args:
        application: An ASGI application, of ASGI 3 or of the older form that is called
            twice (``asgiref.compatibility`` tells them apart).
        max_applications: How many instances there may be at once, at least 1. For one more,
            the least recently used is cancelled; while it cleans up, its task still runs, but
            it is no longer among the instances.

    Attributes:
        application: The application, in the form of ASGI 3.
        max_applications: As given; it may be changed.
        application_instances: The instances that run, by scope id, the least recently used
            first. Each is a dict with the keys ``input_queue``, ``future`` (the task), ``scope`` and
            ``last_used`` (in seconds of ``time.monotonic``).
        application_checker_interval: Has no effect here, as nothing is polled; it is for
            subclasses with an ``application_checker`` of their own.

    Raises:
        TypeError: if the application is not callable.
        ValueError: if ``max_applications`` is less than 1.

    Example: a server for three lines of chat, which ends with them.

    >>> import asyncio
    >>> class Chat(StatelessServer):
    ...     async def handle(self):
    ...         for person, line in [("Ada", "hello"), ("Bob", "hi"), ("Ada", "bye")]:
    ...             queue = self.get_or_create_application_instance(person, {"type": "chat", "person": person})
    ...             queue.put_nowait({"type": "chat.message", "text": line})
    ...             await self.answered.acquire()
    ...     async def application_send(self, scope, message):
    ...         print(f"to {scope['person']}: {message['text']}")
    ...         self.answered.release()
    >>> async def count(scope, receive, send):
    ...     number = 0
    ...     while True:
    ...         message = await receive()
    ...         number += 1
    ...         await send({"type": "chat.reply", "text": f"{message['text']!r} is your line {number}"})
    >>> chat = Chat(count)
    >>> chat.answered = asyncio.Semaphore(0)
    >>> chat.run()
    to Ada: 'hello' is your line 1
    to Bob: 'hi' is your line 1
    to Ada: 'bye' is your line 2
    """

    application_checker_interval: float = 0.1

    application: Callable[..., Awaitable[Any]]
    application_instances: OrderedDict[Hashable, ApplicationInstance]

    def __init__(self, application: Callable[..., Any], max_applications: int = 1000) -> None:
        if max_applications < 1:
            raise ValueError(f"max_applications is {max_applications}; a server needs at least one")
        if not callable(application):
            raise TypeError(f"StatelessServer needs an ASGI application, not {application!r}")
        self.application = guarantee_single_callable(application)
        self.max_applications = max_applications
        self.application_instances = OrderedDict()
        # All tasks of applications, those of deleted instances too, until each has ended.
        self._tasks: set[asyncio.Task[Any]] = set()
        # While application_checker runs: the instances that have failed, and with what.
        self._failed: asyncio.Queue[tuple[BaseException, ApplicationInstance]] | None = None
        self._running = False
        # From the end of handle to the next run: no application is started.
        self._closing = False

    # What a subclass writes.

    async def handle(self) -> None:
        """Receive messages for as long as the server is to live; to be written by the subclass.

        For each message: ``self.get_or_create_application_instance(scope_id, scope)`` gives the
        queue to put it in.

        Thread and loop:
            Runs in a task of its own on the loop of ``arun``. When it returns, the server ends,
            and the applications are cancelled; so it waits for what they shall finish.

        Cancellation:
            It is cancelled when ``arun`` is, and by SIGINT and SIGTERM under ``run``. The
            applications run until it has ended, so its cleanup can still wait for them.

        Raises:
            NotImplementedError: in this class.
        """
        raise NotImplementedError("a subclass of StatelessServer needs handle(): receive messages until it is to end")

    async def application_send(self, scope: Any, message: Any) -> Any:
        """Take a message that an application has sent; to be written by the subclass.

        Args:
            scope: That of the application, the very object that it was created with.
            message: The event, a dict with a ``type``.

        Thread and loop:
            Runs in the task of the application, which waits for it.

        Cancellation:
            It is cancelled with the application.

        Returns:
            What the application's ``await send(...)`` gives; ASGI has no use for it.

        Raises:
            NotImplementedError: in this class.
            Exception: what it raises comes out of the application's ``send``.
        """
        raise NotImplementedError("a subclass of StatelessServer needs application_send(scope, message): send it")

    # Running it.

    def run(self) -> None:
        """Run the server until ``handle`` ends, or SIGINT (Ctrl-C) or SIGTERM asks it to stop.

        Equivalent to ``asyncio.run(self.arun())``, but for the signals.

        Thread and loop:
            On the calling thread, in a new loop. Signals are taken only on the main thread, and
            only where nobody else handles them already.

        Cancellation:
            The first signal cancels ``arun``, and this method returns when all has ended in
            order. A second SIGINT cuts every cleanup short; a second SIGTERM ends the process.

        Raises:
            RuntimeError: where an event loop runs in this thread.
            BaseException: what ``arun`` raises.
        """
        __traceback_hide__ = True
        if running_loop() is not None:
            raise RuntimeError(
                "run() was called in a thread that runs an event loop, which it would block; await arun()"
            )
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C, after asyncio has cancelled arun and seen it end
            asyncio.run(self._arun_until_terminated())

    async def _arun_until_terminated(self) -> None:
        __traceback_hide__ = True
        terminated = False
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()

        def terminate(number: int, frame: FrameType | None) -> None:
            nonlocal terminated
            terminated = True
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            loop.call_soon_threadsafe(task.cancel)  # type: ignore[union-attr]  # also wakes the loop

        # Where it may, and nobody else does.
        mine = (
            threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        )
        if mine:
            signal.signal(signal.SIGTERM, terminate)
        try:
            await self.arun()
        except asyncio.CancelledError:
            if not terminated:
                raise
        finally:
            if mine:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    async def arun(self) -> None:
        """Run the server until ``handle`` ends.

        Equivalent to ``await self.handle()``, with ``application_checker`` running beside it.
        When ``handle`` has ended in any way, the applications are cancelled, and awaited however
        long their cleanup takes; what they raise then is reported, too. After that, no task that
        the server has made is left. The same server can be run again.

        Thread and loop:
            On the running loop. A server runs once at a time.

        Cancellation:
            The first one cancels ``handle``, lets that end, and then the applications. Each
            further one is passed on to what still runs, so that it can cut a cleanup or a report
            short.

        Raises:
            BaseException: what ``handle`` raises, also in its cleanup after a cancellation. If
                ``application_exception`` raises, ``handle`` is cancelled, and that exception comes
                out here; one that ``handle`` raises as well is its context.
            RuntimeError: if the server runs already.
        """
        __traceback_hide__ = True
        if self._running:
            raise RuntimeError("this server runs already; make another one, or wait for its end")
        self._running, self._closing = True, False
        checker = asyncio.create_task(_call_later(self.application_checker))
        handle = asyncio.create_task(_call_later(self.handle))
        # One that just returns is a subclass's way to have none.
        checker.add_done_callback(functools.partial(_cancel_unless_returned, handle))
        try:
            await asyncio.wait({handle})
        finally:
            _cancel({handle})
            cancelled = await _wait_for_end({handle})
            self._closing = True
            _cancel(self._tasks)
            cancelled |= await _wait_for_end(self._tasks)
            reports = asyncio.create_task(self._wait_for_reports())
            cancelled |= await _wait_for_end({reports, checker}, asyncio.FIRST_COMPLETED)
            _cancel({reports, checker})
            cancelled |= await _wait_for_end({reports, checker}) or handle.cancelled()
            self.application_instances.clear()
            self._running = False
            try:
                try:
                    _raise_failure(handle)
                finally:
                    _raise_failure(checker)
            finally:
                del checker, handle, reports  # the exception has this frame in its traceback
        if cancelled:
            raise asyncio.CancelledError

    async def _wait_for_reports(self) -> None:
        if self._failed is not None:
            await self._failed.join()

    async def application_checker(self) -> None:
        """Report the applications that fail, each as soon as it has ended.

        Equivalent to calling ``application_exception`` for each, one after the other, in the
        order in which they ended. ``arun`` runs it, and cancels it when all is reported. A
        subclass may do more, and await this; or have one of its own, which looks at the
        ``future`` of each of ``application_instances``: without this one, applications that have
        ended stay there until they are deleted, or replaced when a message for them comes.

        Thread and loop:
            In a task of its own on the loop of ``arun``.

        Raises:
            Exception: what ``application_exception`` raises.
        """
        __traceback_hide__ = True
        failed: asyncio.Queue[tuple[BaseException, ApplicationInstance]] = asyncio.Queue()
        self._failed = failed
        try:
            while True:
                failure = await failed.get()
                try:
                    await self.application_exception(*failure)
                finally:
                    del failure  # the next one may be long in coming, and an exception has this frame
                    failed.task_done()
        finally:
            self._failed = None
            # Where a report itself has failed, or the loop ends under our feet.
            while not failed.empty():
                await StatelessServer.application_exception(self, *failed.get_nowait())
                failed.task_done()

    async def application_exception(self, exception: BaseException, application_details: ApplicationInstance) -> None:
        """Report an application that has failed; subclasses may do it in their way.

        Equivalent to ``logger.error`` of the logger ``asgiref.server``, with the traceback.

        Args:
            exception: What the application has raised. Its being cancelled is no failure.
            application_details: The instance, which is no longer among
                ``application_instances``. The messages that it has not received are still in
                ``application_details["input_queue"]``.

        Thread and loop:
            In the task of ``application_checker``; further reports wait meanwhile.

        Raises:
            Exception: one that a subclass raises here ends the server.
        """
        logger.error("Exception inside application: %s", exception, exc_info=exception)

    # The instances.

    def get_or_create_application_instance(self, scope_id: Hashable, scope: Any) -> asyncio.Queue[Any]:
        """Return the queue from which the application for *scope_id* receives.

        Equivalent to ``application_instances[scope_id]["input_queue"]``, for an instance that
        is started if there is none. It counts as used now. If there are ``max_applications``
        others, ``delete_oldest_application_instance`` is called first.

        Args:
            scope_id: What tells the scope from others.
            scope: The scope to start the application with. It is not used where there is an
                instance already.

        Thread and loop:
            Called on the thread of the running loop. The application runs there, in a task
            that begins later, in a copy of the caller's context.

        Returns:
            The queue, without a bound; ``put_nowait`` what the application shall receive. Ask
            for it anew for each message, for the application may have ended meanwhile, and what
            it leaves in its queue is dropped.

        Raises:
            RuntimeError: where no loop runs; when ``handle`` has ended, and until the next run.
        """
        instances = self.application_instances
        instance = instances.get(scope_id)
        if instance is None or instance["future"].done():
            return self._start_application(scope_id, scope)
        instances.move_to_end(scope_id)
        instance["last_used"] = time.monotonic()
        return instance["input_queue"]

    def _start_application(self, scope_id: Hashable, scope: Any) -> asyncio.Queue[Any]:
        if self._closing:
            raise RuntimeError(f"the server ends, or has ended, and starts no application for {scope_id!r}")
        loop = asyncio.get_running_loop()
        instances = self.application_instances
        instances.pop(scope_id, None)  # one that has ended
        while (count := len(instances)) >= self.max_applications:
            self.delete_oldest_application_instance()
            if len(instances) >= count:
                raise RuntimeError("delete_oldest_application_instance() has deleted none; it has to")
        queue: asyncio.Queue[Any] = asyncio.Queue()
        task = loop.create_task(self._run_application(scope_id, scope, queue.get))
        self._tasks.add(task)
        instance: ApplicationInstance = {
            "input_queue": queue,
            "future": task,
            "scope": scope,
            "last_used": time.monotonic(),
        }
        instances[scope_id] = instance
        task.add_done_callback(functools.partial(self._application_ended, scope_id, instance))
        return queue

    async def _run_application(self, scope_id: Hashable, scope: Any, receive: Any) -> Any:
        __traceback_hide__ = True
        if scope_id not in self.application_instances:
            # Begun eagerly, by the task factory: it could call this server before it is registered.
            await asyncio.sleep(0)
        return await self.application(scope, receive, functools.partial(self.application_send, scope))

    def _application_ended(self, scope_id: Hashable, instance: ApplicationInstance, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if self._failed is None:  # somebody else has to see it, in application_instances
            return
        if self.application_instances.get(scope_id) is instance:  # and not a successor
            del self.application_instances[scope_id]
        if (exception := _failure_of(task)) is not None:
            self._failed.put_nowait((exception, instance))

    def delete_application_instance(self, scope_id: Hashable) -> None:
        """Forget the instance for *scope_id*, and cancel its application if it runs.

        Equivalent to ``application_instances.pop(scope_id)["future"].cancel()``. It does not
        wait for the application's cleanup; ``arun`` does so at its end. Messages that the
        application has not received are dropped with its queue.

        Raises:
            KeyError: if there is none; nothing else changes.
        """
        instance = self.application_instances.pop(scope_id, None)
        if instance is None:
            raise KeyError(f"no application instance has the scope id {scope_id!r}")
        _cancel({instance["future"]})

    def delete_oldest_application_instance(self) -> None:
        """Forget the least recently used instance, and cancel its application.

        Equivalent to ``delete_application_instance(next(iter(application_instances)))``. It is
        called to make room for a new instance. A subclass may choose another one, such as the
        oldest that has nothing to do; it has to delete one.

        Raises:
            KeyError: if there is none.
        """
        if not self.application_instances:
            raise KeyError("there is no application instance to delete")
        self.delete_application_instance(next(iter(self.application_instances)))


async def _call_later(function: Callable[[], Awaitable[Any]]) -> Any:
    __traceback_hide__ = True
    # In the task, and there not at once: of an eager task, SystemExit would come out where it is made.
    await asyncio.sleep(0)
    return await function()


def _failure_of(task: asyncio.Task[Any]) -> BaseException | None:
    exception = None if task.cancelled() else task.exception()
    # The other two have come out of the event loop itself.
    return None if isinstance(exception, (KeyboardInterrupt, SystemExit)) else exception


def _raise_failure(task: asyncio.Task[Any]) -> None:
    __traceback_hide__ = True
    try:
        if _failure_of(task) is not None:
            task.result()
    finally:
        del task  # the exception has this frame in its traceback


def _cancel(tasks: Iterable[asyncio.Task[Any]], *, again: bool = False) -> None:
    """Cancel those of *tasks* that run and are not being cancelled yet, or *again*: that cuts a cleanup short."""
    for task in tasks:
        # For one that has ended, asyncio would no longer tell that nobody has asked for its exception.
        if not task.done() and (again or not task.cancelling()):
            task.cancel()


def _cancel_unless_returned(other: asyncio.Task[Any], task: asyncio.Task[Any]) -> None:
    if task.cancelled() or _failure_of(task) is not None:
        _cancel({other})


async def _wait_for_end(tasks: Iterable[asyncio.Task[Any]], return_when: str = asyncio.ALL_COMPLETED) -> bool:
    """Wait until all of *tasks*, or one, have ended and told so; return whether the caller was cancelled meanwhile."""
    cancelled = False
    waiting = set(tasks)
    while waiting:
        # Also for those that are done: their callbacks, which registered earlier, run before this returns.
        try:
            await asyncio.wait(waiting, return_when=return_when)
            break
        except asyncio.CancelledError:
            cancelled = True
            if _is_cancelled_again():
                _cancel(waiting, again=True)
    return cancelled


def _is_cancelled_again() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 1
