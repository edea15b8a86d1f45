"""An interrupt at each point of an iteration or a block in synchronous code: no hang, no lasting damage."""

from __future__ import annotations

import sys

import pytest

from ..bridge.test_interrupts import SWEEP
from ..helpers import output_of

# Whether the generator is closed when the interrupt is raised is uncertain: it may come before the call of close(), or
# during it. Then the iterator is dropped.
STEPS = """
import contextlib
async def lines():
    yield "re"
    yield await sync_to_async(str)("su")
    yield "lt"
def iterate(read_ahead=0):
    with contextlib.closing(async_to_sync_iterator(lines(), read_ahead=read_ahead)) as each:
        return "".join(each)
def read_ahead():
    return iterate(2)
@async_to_sync_context_manager
@contextlib.asynccontextmanager
async def manager():
    yield await sync_to_async(str)("re")
    await sync_to_async(str)("")
def use_manager():
    with manager() as text:
        return text + "sult"
list(async_to_sync_iterator(lines()))
with manager():
    pass
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.implementation.name == "pypy", reason="its own locks and queues cannot be interrupted safely")
@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("scenario", ["iterate", "read_ahead", "use_manager"])
def test_interrupt_at_each_point(scenario: str, block: bool) -> None:
    """The interrupt is raised; nothing hangs or is broken, then or later."""
    code = f"class Interrupt(KeyboardInterrupt): pass\n{STEPS}"
    code += f"sweep({f'in_block({scenario})' if block else scenario}, 100)"
    assert ["True"] == output_of(SWEEP + code)
