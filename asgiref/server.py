"""A server without connections: each message belongs to a scope, and each scope has an application instance.

Chat bots and queue workers are such servers: nothing tells when a conversation is over. An
application instance starts with the first message for its scope. When there are too many,
the least recently used one is cancelled.

Everything here runs on the thread of one event loop. ``arun`` owns all tasks that this
module starts: they have ended when it returns.
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
        input_queue: The messages for the application.
        future: The task that runs it.
        scope: The scope that it was called with.
        last_used: When its queue was last requested, in seconds of ``time.monotonic``.
    """

    input_queue: asyncio.Queue[Any]
    future: asyncio.Task[Any]
    scope: Any
    last_used: float


class StatelessServer:
    """Runs one application instance for each scope id, started by the first message for it.

    Subclasses implement ``handle``, which receives messages, and ``application_send``, which
    delivers answers.

    Args:
        application: An ASGI application, of ASGI 3 or of the older form that is called twice
            (``asgiref.compatibility`` detects it).
        max_applications: Maximum number of instances, at least 1. To start one more, the
            least recently used one is cancelled. Its task may still run its cleanup, but it
            is no longer among the instances.

    Attributes:
        application: The application, in the form of ASGI 3.
        max_applications: As given; it may be changed.
        application_instances: The running instances by scope id, the least recently used
            first. Each is a dict with the keys ``input_queue``, ``future`` (the task),
            ``scope`` and ``last_used`` (in seconds of ``time.monotonic``).
        application_checker_interval: Unused, because nothing is polled; for subclasses with
            an ``application_checker`` of their own.

    Raises:
        TypeError: if the application is not callable.
        ValueError: if ``max_applications`` is less than 1.

    Example: a server that ends after three lines of chat.

    >>> import asyncio
    >>> class Chat(StatelessServer):
    ...     async def handle(self):
    ...         lines = [("Ada", "hello"), ("Bob", "hi"), ("Ada", "bye")]
    ...         for person, line in lines:
    ...             scope = {"type": "chat", "person": person}
    ...             queue = self.get_or_create_application_instance(person, scope)
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
    ...         text = f"{message['text']!r} is your line {number}"
    ...         await send({"type": "chat.reply", "text": text})
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
            raise ValueError(f"StatelessServer needs max_applications of at least 1, not {max_applications}")
        if not callable(application):
            raise TypeError(f"StatelessServer needs an ASGI application, not {application!r}")
        self.application = guarantee_single_callable(application)
        self.max_applications = max_applications
        self.application_instances = OrderedDict()
        # All running tasks of applications, including those of deleted instances.
        self._tasks: set[asyncio.Task[Any]] = set()
        # While application_checker runs: the exceptions to report, with their instances.
        self._failed: asyncio.Queue[tuple[BaseException, ApplicationInstance]] | None = None
        self._running = False
        # From the end of handle to the next run, no application is started.
        self._closing = False

    # Subclasses implement these.

    async def handle(self) -> None:
        """Receive messages until the server ends; subclasses implement this.

        Put each message in the queue of its application:
        ``self.get_or_create_application_instance(scope_id, scope).put_nowait(message)``.

        Thread and loop:
            Runs in its own task on the event loop of ``arun``. When it returns, the server
            ends and the applications are cancelled. If they should finish first, wait for
            them here.

        Cancellation:
            Cancelled when ``arun`` is cancelled, and by SIGINT and SIGTERM under ``run``. The
            applications run until it has ended, so its cleanup can wait for them.

        Raises:
            NotImplementedError: in this class.
        """
        raise NotImplementedError("StatelessServer.handle() does nothing; override it to receive messages")

    async def application_send(self, scope: Any, message: Any) -> Any:
        """Deliver a message that an application has sent; subclasses implement this.

        Args:
            scope: The scope object that the application was started with.
            message: The event, a dict with a ``type``.

        Thread and loop:
            Runs in the application's task, inside ``await send(...)``.

        Cancellation:
            Cancelled with the application.

        Returns:
            The result of the application's ``await send(...)``; ASGI does not use it.

        Raises:
            NotImplementedError: in this class.
            Exception: an exception raised here is raised by the application's ``send``.
        """
        raise NotImplementedError("StatelessServer.application_send() does nothing; override it to send the message")

    # Running the server.

    def run(self) -> None:
        """Run the server until ``handle`` ends, or until SIGINT (Ctrl-C) or SIGTERM.

        Equivalent to ``asyncio.run(self.arun())``, except for the signals.

        Thread and loop:
            Runs a new event loop on the calling thread. Signals are handled only on the main
            thread, and only if they have no other handler.

        Cancellation:
            The first signal cancels ``arun``, and this method returns after all cleanup. A
            second SIGINT cuts every cleanup short; a second SIGTERM ends the process.

        Raises:
            RuntimeError: if this thread runs an event loop.
            BaseException: what ``arun`` raises.
        """
        __traceback_hide__ = True
        if running_loop() is not None:
            raise RuntimeError(
                "run() cannot be called from a thread with a running event loop, which it would block; "
                "use `await arun()`"
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

        # Handlers can be set on the main thread only; the user's own handler stays.
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

        Equivalent to ``await self.handle()``, with ``application_checker`` running
        concurrently. When ``handle`` has ended, in whatever way, the applications are cancelled
        and awaited without a timeout. What they raise is reported. No task of the server is
        left afterwards. The same server can be run again.

        Thread and loop:
            Runs on the running event loop. A server cannot run twice concurrently.

        Cancellation:
            The first cancellation cancels ``handle``, waits for it, and then cancels the
            applications. Each further one is passed on to the tasks that still run, and can
            cut a cleanup or a report short.

        Raises:
            BaseException: what ``handle`` raises, also in its cleanup after a cancellation. If
                ``application_exception`` raises, ``handle`` is cancelled and that exception is
                raised here. If ``handle`` raises as well, its exception is the context.
            RuntimeError: if the server is running already.
        """
        __traceback_hide__ = True
        if self._running:
            raise RuntimeError("arun() was called while the server is running; wait for its end, or make a new server")
        self._running, self._closing = True, False
        checker = asyncio.create_task(_call_later(self.application_checker))
        handle = asyncio.create_task(_call_later(self.handle))
        # A subclass may have a checker that returns at once.
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
                del checker, handle, reports  # the exception's traceback refers to this frame
        if cancelled:
            raise asyncio.CancelledError

    async def _wait_for_reports(self) -> None:
        if self._failed is not None:
            await self._failed.join()

    async def application_checker(self) -> None:
        """Report each application that fails, as soon as it has ended.

        Equivalent to calling ``application_exception`` for each, one at a time, in the order
        in which they ended. ``arun`` runs this method and cancels it when all is reported. A
        subclass may extend it, or replace it and check the ``future`` of each of
        ``application_instances``. Without this method, applications that have ended stay there
        until they are deleted, or replaced because of a new message.

        Thread and loop:
            Runs in its own task on the event loop of ``arun``.

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
                    del failure  # else the exception and this frame stay alive until the next one
                    failed.task_done()
        finally:
            self._failed = None
            # If a report has failed, or the event loop is being stopped.
            while not failed.empty():
                await StatelessServer.application_exception(self, *failed.get_nowait())
                failed.task_done()

    async def application_exception(self, exception: BaseException, application_details: ApplicationInstance) -> None:
        """Report an application that has failed; subclasses may override this.

        Equivalent to ``logger.error`` of the logger ``asgiref.server``, with the traceback.

        Args:
            exception: What the application raised. A cancellation is not reported.
            application_details: The instance, already removed from ``application_instances``.
                Messages that it did not receive are in ``application_details["input_queue"]``.

        Thread and loop:
            Runs in the task of ``application_checker``; further reports are queued.

        Raises:
            Exception: an exception that a subclass raises here ends the server.
        """
        logger.error("Exception inside application: %s", exception, exc_info=exception)

    # The instances.

    def get_or_create_application_instance(self, scope_id: Hashable, scope: Any) -> asyncio.Queue[Any]:
        """Return the input queue of the application for *scope_id*; start the application if needed.

        Equivalent to ``application_instances[scope_id]["input_queue"]`` for a running
        application, which then counts as the most recently used. Before starting one beyond
        ``max_applications``, ``delete_oldest_application_instance`` is called.

        Args:
            scope_id: Identifies the scope.
            scope: The scope to start the application with. Ignored if it is running already.

        Thread and loop:
            Call it on the thread of the running event loop. The application runs there, in a
            task that starts later, in a copy of the caller's context.

        Returns:
            An unbounded queue; use ``put_nowait``. Call this method again for each message:
            the application may have ended, and messages left in its queue are dropped.

        Raises:
            RuntimeError: if no event loop is running, or from the end of ``handle`` until the
                next run.
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
            raise RuntimeError(
                f"cannot start an application for {scope_id!r}, because handle() has ended; run the server again"
            )
        loop = asyncio.get_running_loop()
        instances = self.application_instances
        instances.pop(scope_id, None)  # if there is one, it has ended
        while (count := len(instances)) >= self.max_applications:
            self.delete_oldest_application_instance()
            if len(instances) >= count:
                raise RuntimeError("delete_oldest_application_instance() has deleted no instance; it must delete one")
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
            # An eager task: wait until it is registered, because the application may call this server.
            await asyncio.sleep(0)
        return await self.application(scope, receive, functools.partial(self.application_send, scope))

    def _application_ended(self, scope_id: Hashable, instance: ApplicationInstance, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if self._failed is None:  # the subclass's own checker looks at application_instances
            return
        if self.application_instances.get(scope_id) is instance:  # and not a successor
            del self.application_instances[scope_id]
        if (exception := _failure_of(task)) is not None:
            self._failed.put_nowait((exception, instance))

    def delete_application_instance(self, scope_id: Hashable) -> None:
        """Remove the instance for *scope_id* and cancel its application if it is running.

        Equivalent to ``application_instances.pop(scope_id)["future"].cancel()``. It does not
        wait for the application's cleanup; ``arun`` does at its end. Messages that the
        application did not receive are dropped.

        Raises:
            KeyError: if there is no such instance; nothing changes.
        """
        instance = self.application_instances.pop(scope_id, None)
        if instance is None:
            raise KeyError(
                f"delete_application_instance(): no application instance has the scope id {scope_id!r}; those that "
                "exist are in application_instances"
            )
        _cancel({instance["future"]})

    def delete_oldest_application_instance(self) -> None:
        """Remove the least recently used instance and cancel its application.

        Equivalent to ``delete_application_instance(next(iter(application_instances)))``.
        Called to make room for a new instance. A subclass may choose another instance, such
        as the oldest idle one; it must delete one.

        Raises:
            KeyError: if there is no instance.
        """
        if not self.application_instances:
            raise KeyError(
                "delete_oldest_application_instance(): there is no application instance to delete; check "
                "application_instances first"
            )
        self.delete_application_instance(next(iter(self.application_instances)))


async def _call_later(function: Callable[[], Awaitable[Any]]) -> Any:
    __traceback_hide__ = True
    # Sleep first: an eager task would raise SystemExit in the call that creates it.
    await asyncio.sleep(0)
    return await function()


def _failure_of(task: asyncio.Task[Any]) -> BaseException | None:
    exception = None if task.cancelled() else task.exception()
    # The event loop itself has raised the other two.
    return None if isinstance(exception, (KeyboardInterrupt, SystemExit)) else exception


def _raise_failure(task: asyncio.Task[Any]) -> None:
    __traceback_hide__ = True
    try:
        if _failure_of(task) is not None:
            task.result()
    finally:
        del task  # the exception's traceback refers to this frame


def _cancel(tasks: Iterable[asyncio.Task[Any]], *, again: bool = False) -> None:
    """Cancel *tasks* that are running and not cancelled yet; with *again*, also cut the cleanup of others short."""
    for task in tasks:
        # Cancelling an ended task would silence asyncio's "exception was never retrieved".
        if not task.done() and (again or not task.cancelling()):
            task.cancel()


def _cancel_unless_returned(other: asyncio.Task[Any], task: asyncio.Task[Any]) -> None:
    if task.cancelled() or _failure_of(task) is not None:
        _cancel({other})


async def _wait_for_end(tasks: Iterable[asyncio.Task[Any]], return_when: str = asyncio.ALL_COMPLETED) -> bool:
    """Wait for *tasks*, or the first of them, and their callbacks; return whether the caller was cancelled."""
    cancelled = False
    waiting = set(tasks)
    while waiting:
        # Also if all are done: their callbacks were added earlier and run before this returns.
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
