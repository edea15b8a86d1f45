"""One of the processes that are measured: does what its standard input says, and reports how long it took.

Run as a script, so that ``asgiref`` is the one installed for its interpreter.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import resource
import sys
import time

from cases import CASES  # beside this file


def cpu_time() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            name, count = json.loads(line)
            case = CASES[name]
            wall, cpu = time.perf_counter(), cpu_time()
            if inspect.iscoroutinefunction(case):
                runner.run(case(count))
            else:
                case(count)
            print(json.dumps([time.perf_counter() - wall, cpu_time() - cpu]), flush=True)


main()
