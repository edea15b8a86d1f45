"""The tests. With ASGIREF_WITHOUT_INTERNALS, they run as on a Python without any of the private parts."""

import asyncio
import os
from types import SimpleNamespace

from asgiref import local
from asgiref._bridge import internals

WITHOUT_INTERNALS = bool(os.environ.get("ASGIREF_WITHOUT_INTERNALS"))

if WITHOUT_INTERNALS:  # before any other module of the package takes a function from there
    for name, part in internals.PARTS.items():
        if name != "mark_as_coroutine_function":  # only Python 3.11 needs it, and will not lose it
            setattr(internals, name, part.absent)
    local.__dict__["asyncio"] = SimpleNamespace(get_running_loop=asyncio.get_running_loop)
