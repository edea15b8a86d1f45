"""The process that measures ways: it reads commands from standard input and prints the times."""

from __future__ import annotations

import asyncio
import contextvars
import faulthandler
import inspect
import json
import os
import sys
import time

from . import cases

LIMIT = 120  # seconds; a way that takes longer hangs


def cpu_time() -> float:
    """Return the CPU time of this process and of its waited-for children, in seconds."""
    try:
        import resource
    except ImportError:  # Windows
        return time.process_time()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    # One CPU: with two, the cost of a thread switch varies by a factor of two or three.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = cases.load()
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            name, way, count = json.loads(line)
            function = rows[name].ways[way]
            faulthandler.dump_traceback_later(LIMIT, exit=True)
            wall, cpu = time.perf_counter(), cpu_time()
            context = contextvars.copy_context()  # an empty context, so that no function sees the variables of another
            if inspect.iscoroutinefunction(function):
                result = runner.run(function(count), context=context)
            else:
                result = context.run(function, count)
            taken = time.perf_counter() - wall, cpu_time() - cpu
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps([result, *taken]), flush=True)
