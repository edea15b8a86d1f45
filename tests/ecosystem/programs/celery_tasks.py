"""Tasks of a Celery worker, synchronous functions that use an asynchronous client."""

import os
import threading

import redis.asyncio
from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown, worker_shutdown

from asgiref.sync import AsyncSingleThreadContext, async_to_sync, sync_to_async

URL = os.environ["REDIS_URL"]
POOL = os.environ["CELERY_POOL"]

app = Celery("tasks", broker=URL, backend=URL)
# The client keeps a connection open, which belongs to the event loop of all tasks of this process.
client = redis.asyncio.from_url(URL)
block = AsyncSingleThreadContext()
entered = False


@worker_process_init.connect
def begin(**kwargs):
    global entered
    block.__enter__()
    entered = True


@worker_process_shutdown.connect
@worker_shutdown.connect
def end(**kwargs):
    global entered
    if entered:
        entered = False
        async_to_sync(client.aclose)()
        block.__exit__(None, None, None)


async def count(user, client):
    """From asynchronous code to synchronous code and back, on the thread of the task."""
    before = await client.incr(f"count of {user}")
    thread = await sync_to_async(threading.get_ident)()
    return before, thread


@app.task
def visit(user):
    """Count a visit of *user*; all calls share a loop, so they can share a client."""
    if POOL != "prefork" and not entered:
        # Such a worker's thread has a block for each task, and a client in it.
        with AsyncSingleThreadContext():
            own = redis.asyncio.from_url(URL)
            counted = [async_to_sync(count)(user, own) for _ in range(3)]
            async_to_sync(own.aclose)()
    else:
        counted = [async_to_sync(count)(user, client) for _ in range(3)]
    numbers, threads = zip(*counted, strict=True)
    return {"numbers": sorted(numbers), "on the task's thread": set(threads) == {threading.get_ident()}}


@app.task
def fails():
    async def coroutine():
        raise LookupError("in a coroutine")

    async_to_sync(coroutine)()
