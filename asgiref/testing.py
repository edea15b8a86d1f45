"""A stand-in for an ASGI server, for tests of an application.

The application runs in its own task; two queues connect it with the test. Messages that it
has sent can always be received, even after it has raised an exception. The next call that
finds no output raises that exception.

A ``CancelledError`` can concern the test or the application. A cancellation of the test is
raised by the call that it waits in, and changes nothing here. A cancellation of the
application is raised with a text that names the reason.
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
    """Runs one application with one scope and exchanges messages with it.

    Equivalent to a server with one connection. The application starts with the first use of
    ``future`` or of a method other than ``stop``, on the running event loop, in a task with
    an empty context: it does not see the context variables of the test. A communicator
    belongs to the event loop of its first use.

    Args:
        application: An ASGI application, of ASGI 3 or of the older form that is called twice
            (``asgiref.compatibility`` detects it).
        scope: The scope to call it with. The attribute ``scope`` may be changed or replaced
            until the application starts.

    Cancellation:
        Cancelling a test that waits here does not affect the application. Deleting a
        communicator cancels its application.

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
        # Set when a message has been sent or the application has ended.
        self._news = asyncio.Event()
        self._inputs: asyncio.Queue[Any] = asyncio.Queue()
        self._outputs = _Outputs(self._news)
        # The reason, if this object has cancelled the application.
        self._reason: str | None = None
        self.application = guarantee_single_callable(application)
        self.scope = scope

    def __del__(self) -> None:
        task = self.__dict__.get("_task")  # a subclass may have failed before our __init__
        if task is not None and not task.done():
            # The garbage collector runs on any thread. A closed loop has nothing left to cancel.
            with contextlib.suppress(RuntimeError):
                task.get_loop().call_soon_threadsafe(task.cancel)

    @property
    def future(self) -> asyncio.Task[Any]:
        """The task that runs the application; reading this starts it if needed."""
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
            # Not bound to this object: else the task would keep it alive, and __del__ would never be called.
            application = _run(self.application, self.scope, self._inputs.get, self._outputs.put)
            self._task = asyncio.create_task(application, context=contextvars.Context())
            self._task.add_done_callback(lambda task: news.set())
        return self._task

    async def send_input(self, message: Any) -> None:
        """Queue *message* for the application.

        Equivalent to ``input_queue.put_nowait(message)``, except that it starts the
        application and raises its exception. The application does not run before the test
        awaits something else.

        Args:
            message: The event, a dict with a ``type``.

        Raises:
            BaseException: what the application has raised; if it was cancelled, a
                ``CancelledError`` with the reason.
        """
        __traceback_hide__ = True
        self._start()
        self._raise_failure()
        self._inputs.put_nowait(message)

    async def receive_output(self, timeout: float | None = 1) -> Message:
        """Return the next message that the application sends.

        Equivalent to ``await output_queue.get()``, except that it starts the application and
        raises its exception.

        Args:
            timeout: How long to wait, in seconds; None means forever. This also applies if
                the application has returned, because a task that it started may still send.

        Cancellation:
            At the timeout, the application is cancelled and then awaited without a limit.
            Later, ``send_input``, ``receive_output``, ``receive_nothing`` and ``stop`` raise
            ``CancelledError`` (this type, because existing suites expect it of Channels'
            ``WebsocketCommunicator.disconnect``), and ``wait`` returns. To look without
            cancelling anything, use ``receive_nothing``.

        Returns:
            The message object that was sent. Messages that were sent before an exception or a
            cancellation come first.

        Raises:
            BaseException: what the application raises, without waiting for the timeout, or
                when it is cancelled at the timeout. If it was cancelled before, a
                ``CancelledError`` with the reason.
            TimeoutError: if nothing was sent in time. The text says whether the application
                had returned or was cancelled.
        """
        __traceback_hide__ = True
        task = self._start()
        if await self._wait_output(timeout):
            return self._outputs.get_nowait()
        self._raise_failure()
        if task.done():
            raise TimeoutError(
                f"receive_output(): the application sent nothing within {timeout} s; it has returned"
                + (f", having been cancelled because {self._reason}" if self._reason else "")
                + "; if it should send nothing, use receive_nothing()"
            )
        await self._cancel(task, f"receive_output() found no output within {timeout} s")
        raise TimeoutError(
            f"receive_output(): the application sent nothing within {timeout} s and was cancelled; if it is slow, pass "
            "a longer timeout"
        )

    async def receive_nothing(self, timeout: float | None = 0.1, interval: float = 0.01) -> bool:
        """Return whether the application sends nothing for *timeout* seconds. Does not change anything.

        Equivalent to ``output_queue.empty()`` after that time, except that it starts the
        application and raises its exception.

        Args:
            timeout: How long to wait, in seconds.
            interval: Unused: nothing is polled, the first message ends the wait.

        Returns:
            False as soon as there is a message to receive; True after the timeout.

        Raises:
            BaseException: what the application raises, without waiting for the timeout; if it
                was cancelled, a ``CancelledError`` with the reason.
        """
        __traceback_hide__ = True
        self._start()
        if await self._wait_output(timeout):
            return False
        self._raise_failure()
        return True

    async def wait(self, timeout: float | None = 1) -> None:
        """Wait until the application has ended.

        Equivalent to ``await future`` with a timeout. If the application was cancelled
        before, this returns without an exception: existing suites call it after a timeout of
        ``receive_output``.

        Args:
            timeout: How long to wait, in seconds; None means forever.

        Cancellation:
            At the timeout, the application is cancelled and then awaited without a limit.

        Raises:
            BaseException: what the application has raised, or raises when it is cancelled at
                the timeout.
            TimeoutError: if the application was cancelled at the timeout.
        """
        __traceback_hide__ = True
        task = self._start()
        # Not "await task": a CancelledError could concern the test or the application.
        await asyncio.wait({task}, timeout=timeout)
        if not task.done():
            await self._cancel(task, f"wait() found it running after {timeout} s")
            raise TimeoutError(
                f"wait(): the application had not ended after {timeout} s and was cancelled; if it is slow, pass a "
                "longer timeout"
            )
        if not task.cancelled():
            task.result()

    def stop(self, exceptions: bool = True) -> None:
        """Cancel the application if it is running; else raise its exception.

        Equivalent to ``future.cancel()``. It does not wait for the end; use ``wait`` for that.
        It does not start the application, and a second call does nothing.

        Args:
            exceptions: False: raise nothing.

        Raises:
            BaseException: what the application has raised; if it was cancelled by anything
                but this method, a ``CancelledError`` with the reason.
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
            task.exception()  # else asyncio logs "exception was never retrieved"

    async def _wait_output(self, timeout: float | None) -> bool:
        """Wait for output, a failure of the application, or the timeout; return whether there is output."""
        test = asyncio.current_task()
        if test is not None and test.cancelling():
            # Let a pending cancellation be raised here: below, it would look like the end of the timeout.
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
        """Cancel the application, wait for its end, and raise its exception, if any."""
        __traceback_hide__ = True
        self._reason = reason
        task.cancel(reason)
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()


class _Outputs(asyncio.Queue[Message]):
    """Sets *news* for each message, including messages that a test puts here itself."""

    def __init__(self, news: asyncio.Event) -> None:
        super().__init__()
        self._news = news

    def _put(self, item: Message) -> None:  # documented for subclasses; every way to put an item calls it
        super()._put(item)
        self._news.set()


async def _run(application: Callable[..., Awaitable[Any]], scope: Any, receive: Any, send: Any) -> Any:
    # A coroutine of our own: an application may be any callable that returns an awaitable, and it
    # must be called inside the task's context.
    __traceback_hide__ = True
    return await application(scope, receive, send)
