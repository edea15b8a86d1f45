"""The time to start Python and import the bridge.

Without ``site``, whose work depends on the installed packages.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

import asgiref

from .cases import case

IMPORT = "import asgiref.sync"
ASYNCIO = "import asyncio"
BEYOND_ASYNCIO = "import asgiref.sync, beyond what asyncio imports"

PYTHON = getattr(sys, "_base_executable", sys.executable)  # the one outside of virtual environments


def start(statement: str, n: int) -> None:
    code = f"import sys; sys.path.append({str(Path(asgiref.__file__).parent.parent)!r}); {statement}"
    for _ in range(n):
        subprocess.run([PYTHON, "-I", "-S", "-c", code], check=True)


@case(BEYOND_ASYNCIO, unit="ms CPU")
def import_beyond_asyncio(n: int) -> float:
    code = (
        f"import sys; sys.path.append({str(Path(asgiref.__file__).parent.parent)!r}); import asyncio, time; "
        "start = time.process_time(); import asgiref.sync; print((time.process_time() - start) * 1000)"
    )
    command = [PYTHON, "-I", "-S", "-c", code]
    return statistics.mean(float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) for _ in range(n))


@case(IMPORT)
def import_bridge(n: int) -> None:
    start("import asgiref.sync", n)


@case(IMPORT, ASYNCIO)
def import_asyncio(n: int) -> None:
    start("import asyncio", n)
