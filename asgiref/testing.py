"""A stand-in for an ASGI server: tests talk to an application through it.

The application runs in a task of its own, two queues connect it with the test. What it has
sent can always be received, also after it has crashed; a crash is raised from the next
call that finds nothing else to give.

A ``CancelledError`` may mean the test or the application. That of the test comes out of
whatever call it was waiting in, and changes nothing here. That of the application is
raised with a text which tells who cancelled it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

from .compatibility import guarantee_single_callable

__all__ = ["ApplicationCommunicator"]

Message = dict[str, Any]

_STOPPED = "stop() was called"


class ApplicationCommunicator:
    """Runs one application for one scope, and exchanges messages with it from a test.

    Equivalent to a server that has one connection. The application starts with the first
    use of ``future`` or of a method other than ``stop``, on the running event loop, in a
    task with an empty context: context variables of the test are not visible to it, as
    those of a server would not be. A communicator belongs to the loop of its first use.

    Args:
        application: An ASGI application, of ASGI 3 or of the older form that is called
            twice (``asgiref.compatibility`` tells them apart).
        scope: The scope to call it with. It is kept as the attribute ``scope``, which may be
            changed or replaced until the application starts.

    Cancellation:
        Cancelling a test that waits here leaves the application as it is. A communicator
        that is deleted cancels its application.

    >>> import asyncio
    >>> async def application(scope, receive, send):
    ...     message = await receive()
    ...     await send({"type": "echo", "text": message["text"]})
    >>> async def test():
    ...     communicator = ApplicationCommunicator(application, {"type": "chat"})
    ...     await communicator.send_input({"type": "say", "text": "hello"})
    ...     print(await communicator.receive_output())
    ...     await communicator.wait()
    >>> asyncio.run(test())
    {'type': 'echo', 'text': 'hello'}
    """

    application: Callable[..., Awaitable[Any]]
    # Not a dict[str, Any] to type checkers: the scopes of asgiref.typing are TypedDicts.
    scope: Any

    def __init__(self, application: Callable[..., Any], scope: Any) -> None:
        self._task: asyncio.Task[Any] | None = None
        # Set when a message has been sent, or the application has ended.
        self._news = asyncio.Event()
        self._inputs: asyncio.Queue[Any] = asyncio.Queue()
        self._outputs = _Outputs(self._news)
        # Why this object has cancelled the application.
        self._reason: str | None = None
        self.application = guarantee_single_callable(application)
        self.scope = scope

    def __del__(self) -> None:
        task = self.__dict__.get("_task")  # a subclass may have failed before our __init__
        if task is not None and not task.done():
            # The collector may run in any thread; a closed loop has nothing left to cancel.
            with contextlib.suppress(RuntimeError):
                task.get_loop().call_soon_threadsafe(task.cancel)

    @property
    def future(self) -> asyncio.Task[Any]:
        """The task in which the application runs; it is started if need be."""
        return self._start()

    @property
    def input_queue(self) -> asyncio.Queue[Any]:
        """The messages that the application has not received yet."""
        return self._inputs

    @property
    def output_queue(self) -> asyncio.Queue[Message]:
        """The messages that the test has not received yet."""
        return self._outputs

    def _start(self) -> asyncio.Task[Any]:
        if self._task is None:
            news = self._news
            # No methods of this object: the running application would keep it, and __del__ would not be called.
            application = _run(self.application, self.scope, self._inputs.get, self._outputs.put)
            self._task = asyncio.create_task(application, context=contextvars.Context())
            self._task.add_done_callback(lambda task: news.set())
        return self._task

    async def send_input(self, message: Any) -> None:
        """Put *message* where the application receives it.

        Equivalent to ``input_queue.put_nowait(message)``, but for the start and the errors.
        The application does not run before the test awaits something else.

        Args:
            message: The event, a dict with a ``type``.

        Raises:
            BaseException: what the application has raised; if it was cancelled, a
                ``CancelledError`` whose text tells by whom.
        """
        __traceback_hide__ = True
        self._start()
        self._raise_failure()
        self._inputs.put_nowait(message)

    async def receive_output(self, timeout: float | None = 1) -> Message:
        """Return the next message that the application sends.

        Equivalent to ``await output_queue.get()``, but for the start and the errors.

        Args:
            timeout: How long to wait, in seconds; None is without end. An application that
                has returned is waited for just as long, since a task that it left behind
                may still send.

        Cancellation:
            At the timeout, the application is cancelled, and awaited however long its
            cleanup takes. Later calls say so: ``send_input``, ``receive_output``,
            ``receive_nothing`` and ``stop`` raise ``CancelledError`` (that type, because
            existing suites expect it of Channels' ``WebsocketCommunicator.disconnect``), and
            only ``wait`` returns. Use ``receive_nothing`` for a look that harms nobody.

        Returns:
            The message, the very object that was sent. What was sent before a crash or a
            cancellation comes first.

        Raises:
            BaseException: what the application has raised; at once, when it does, but also
                what it raises when it is cancelled at the timeout. If it was cancelled before,
                a ``CancelledError`` whose text tells by whom.
            TimeoutError: if nothing was sent in time; the text tells what became of the
                application.
        """
        __traceback_hide__ = True
        task = self._start()
        if await self._wait_output(timeout):
            return self._outputs.get_nowait()
        self._raise_failure()
        if task.done():
            raise TimeoutError(
                f"the application sent nothing within {timeout} s; it has returned"
                + (f", having been cancelled because {self._reason}" if self._reason else "")
            )
        await self._cancel(task, f"receive_output() found no output within {timeout} s")
        raise TimeoutError(f"the application sent nothing within {timeout} s, and was cancelled therefore")

    async def receive_nothing(self, timeout: float | None = 0.1, interval: float = 0.01) -> bool:
        """Tell whether the application sends nothing for a while. Neither it nor its output is touched.

        Equivalent to ``output_queue.empty()`` after that while, but for the start and the
        errors.

        Args:
            timeout: How long to wait, in seconds.
            interval: Has no effect: the first message ends the wait, and nothing is polled.

        Returns:
            False as soon as there is a message to receive, True if there is none at the end.

        Raises:
            BaseException: what the application has raised, at once, when it does; if it was
                cancelled, a ``CancelledError`` whose text tells by whom.
        """
        __traceback_hide__ = True
        self._start()
        if await self._wait_output(timeout):
            return False
        self._raise_failure()
        return True

    async def wait(self, timeout: float | None = 1) -> None:
        """Wait until the application has ended.

        Equivalent to ``await future`` with a timeout. Existing suites call this after a missed
        output; so it returns quietly from an application that was cancelled before,
        whoever did it.

        Args:
            timeout: How long to wait, in seconds; None is without end.

        Cancellation:
            At the timeout, the application is cancelled, and awaited however long its cleanup
            takes.

        Raises:
            BaseException: what the application has raised, or raises when it is cancelled at
                the timeout.
            TimeoutError: if it had to be cancelled.
        """
        __traceback_hide__ = True
        task = self._start()
        # Not "await task": its CancelledError could be that of the test, or that of the application.
        await asyncio.wait({task}, timeout=timeout)
        if not task.done():
            await self._cancel(task, f"wait() found it running after {timeout} s")
            raise TimeoutError(f"the application had not ended after {timeout} s, and was cancelled therefore")
        if not task.cancelled():
            task.result()

    def stop(self, exceptions: bool = True) -> None:
        """Cancel the application if it runs; else raise what it has raised.

        Equivalent to ``future.cancel()``. It does not wait; ``wait`` does so. It neither starts
        an application nor minds one that it has stopped before.

        Args:
            exceptions: Whether to raise anything at all.

        Raises:
            BaseException: what the application has raised; if it was cancelled in another way
                than by this method, a ``CancelledError`` whose text tells by whom.
        """
        __traceback_hide__ = True
        task = self._task
        if task is None:
            return
        if not task.done():
            self._reason = _STOPPED
            task.cancel(_STOPPED)
        elif exceptions:
            if not (task.cancelled() and self._reason is _STOPPED):
                self._raise_failure()
        elif not task.cancelled():
            task.exception()  # or asyncio would log that nobody has seen it

    async def _wait_output(self, timeout: float | None) -> bool:
        """Wait until there is output or will be none, because the application has failed; tell whether there is."""
        test = asyncio.current_task()
        if test is not None and test.cancelling():
            # That cancellation may not be delivered yet, and could not be told from the end of the timeout below.
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(timeout):
                while self._outputs.empty() and not self._has_failed():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        return not self._outputs.empty()

    def _has_failed(self) -> bool:
        task = self._task
        return task is not None and task.done() and (task.cancelled() or task.exception() is not None)

    def _raise_failure(self) -> None:
        __traceback_hide__ = True
        if self._task is None or not self._task.done():
            return
        try:
            self._task.result()
        except asyncio.CancelledError as error:
            reason = self._reason or "it cancelled itself, or something other than this communicator did"
            raise asyncio.CancelledError(f"the application was cancelled: {reason}") from error

    async def _cancel(self, task: asyncio.Task[Any], reason: str) -> None:
        """Cancel the application, wait for its end, and raise its exception if it has one."""
        __traceback_hide__ = True
        self._reason = reason
        task.cancel(reason)
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()


class _Outputs(asyncio.Queue[Message]):
    """Tells the news of each message, also of one that a test puts here itself."""

    def __init__(self, news: asyncio.Event) -> None:
        super().__init__()
        self._news = news

    def _put(self, item: Message) -> None:  # that asyncio has for subclasses; all ways to put lead here
        super()._put(item)
        self._news.set()


async def _run(application: Callable[..., Awaitable[Any]], scope: Any, receive: Any, send: Any) -> Any:
    # A coroutine of our own, because an application may be any callable that returns an
    # awaitable, and is to be called in its own context.
    __traceback_hide__ = True
    return await application(scope, receive, send)
