"""Cells in IPython and in Jupyter's kernel, whose thread runs an event loop, with nest_asyncio and without."""

import sys
from pathlib import Path

import pytest
from driving import LIMIT, started
from jupyter_client.manager import start_new_kernel

DEFINITIONS = """
import asyncio, threading
from asgiref.local import Local
from asgiref.sync import async_to_sync, sync_to_async

local = Local()

async def fetch(number):
    await asyncio.sleep(0)
    return number * 2

def report():
    return async_to_sync(fetch)(21)

async def program():
    local.value = "of the program"
    seen = await sync_to_async(lambda: local.value)()
    return seen, await asyncio.gather(*(sync_to_async(report)() for _ in range(3)))
"""
PROGRAM = "('of the program', [42, 42, 42])"

# A cell, and its output: a result, or the name of an exception.
CELLS = [
    (DEFINITIONS, ""),
    ("await fetch(1)", "2"),
    ("await sync_to_async(report)()", "42"),
    ("report()", "RuntimeError"),
    ("await program()", PROGRAM),
    ("asyncio.run(program())", "RuntimeError"),
    ("await asyncio.to_thread(asyncio.run, program())", PROGRAM),
    # The next cells see the values of this one.
    ("local.name = 'of a cell'", ""),
    ("local.name, await sync_to_async(lambda: local.name)()", "('of a cell', 'of a cell')"),
]
NESTED = [
    (DEFINITIONS, ""),
    ("import nest_asyncio; nest_asyncio.apply()", ""),
    ("asyncio.run(program())", PROGRAM),
    ("asyncio.get_event_loop().run_until_complete(program())", PROGRAM),
    ("await program()", PROGRAM),
    ("await sync_to_async(report)()", "42"),
    ("report()", "RuntimeError"),
]


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=LIMIT)
    try:
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def shown_by(client, cell):
    """Run *cell* in the kernel."""
    shown = []

    def output(message):
        content = message["content"]
        if message["msg_type"] == "execute_result":
            shown.append(content["data"]["text/plain"])
        elif message["msg_type"] == "error":
            shown.append(content["ename"])

    client.execute_interactive(cell, output_hook=output, timeout=LIMIT)
    return "".join(shown)


@pytest.mark.parametrize("cells", [CELLS, NESTED], ids=["plain", "nest_asyncio"])
def test_kernel(cells, kernel):
    for cell, expected in cells:
        assert expected == shown_by(kernel, cell), cell


IPYTHON = """
import nest_asyncio
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for cell in {cells!r}:
    result = shell.run_cell(cell)
    error = result.error_before_exec or result.error_in_exec
    shown = "" if result.result is None else repr(result.result)
    print("SHOWN", repr(type(error).__name__ if error else shown))
"""
# Its own loop runs only while a cell awaits, so these differ from the kernel's.
OF_IPYTHON = {"report()": "42", "asyncio.run(program())": PROGRAM}


@pytest.mark.parametrize("cells", [CELLS, NESTED], ids=["plain", "nest_asyncio"])
def test_ipython(cells, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(IPYTHON.format(cells=[cell for cell, _ in cells]))
    with started(f"{Path(sys.executable).name} {script}", tmp_path, IPYTHONDIR=str(tmp_path)) as program:
        assert 0 == program.process.wait(LIMIT), program.log
        shown = [eval(line.removeprefix("SHOWN ")) for line in program.log.splitlines() if line.startswith("SHOWN")]
    assert [OF_IPYTHON.get(cell, expected) for cell, expected in cells] == shown
