"""The process in which ways are measured: it does what its standard input says, and prints how long it took."""

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

LIMIT = 120  # seconds; who takes longer than that hangs


def cpu_time() -> float:
    """Return the seconds of CPU time that this process, and those it has started and waited for, have used."""
    try:
        import resource
    except ImportError:  # Windows
        return time.process_time()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    # On two CPUs, a hop between threads costs two or three times more from one moment to the next.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows = cases.load()
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            name, way, count = json.loads(line)
            function = rows[name].ways[way]
            faulthandler.dump_traceback_later(LIMIT, exit=True)
            wall, cpu = time.perf_counter(), cpu_time()
            context = contextvars.copy_context()  # nothing that one function sets is there for the next
            if inspect.iscoroutinefunction(function):
                result = runner.run(function(count), context=context)
            else:
                result = context.run(function, count)
            taken = time.perf_counter() - wall, cpu_time() - cpu
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps([result, *taken]), flush=True)
