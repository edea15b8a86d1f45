"""What a free-threaded environment with the test packages is worth: is the lock off, and what is missing?

Prints which test packages could not be installed, and which extension modules switch the lock on; fails if this
package does.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys


def is_lock_on(*modules: str) -> bool:
    """Import *modules*, those that can be, in a process of its own, and tell whether the lock is on then."""
    code = "import sys, importlib\nfor name in sys.argv[1:]:\n    try: importlib.import_module(name)\n"
    code += "    except Exception: pass\nprint(sys._is_gil_enabled())"
    command = [sys.executable, "-W", "ignore", "-c", code, *modules]
    return subprocess.check_output(command, text=True).split()[-1] == "True"


def extension_modules() -> list[str]:
    names = set()
    for distribution in importlib.metadata.distributions():
        for path in distribution.files or ():
            if path.suffix in (".so", ".pyd"):
                names.add(".".join([*path.parent.parts, path.name.partition(".")[0]]))
    return sorted(names)


def missing() -> list[str]:
    found = {re.sub(r"[-_.]+", "-", each.name).lower() for each in importlib.metadata.distributions()}
    wanted = [each for each in importlib.metadata.requires("asgiref") or () if re.search(r"extra == .tests.", each)]
    names = {re.split(r"[^\w.-]", each)[0].lower() for each in wanted}
    return sorted(names - found)


assert not is_lock_on(), "the lock is on without any import: unset PYTHON_GIL, and take a free-threaded build"
print("test packages that are not installed:", *missing() or ["none"])
print("modules that switch the lock on:", *[name for name in extension_modules() if is_lock_on(name)] or ["none"])
assert not is_lock_on("asgiref.sync", "asgiref.local", "asgiref.server", "asgiref.wsgi", "asgiref.testing")
print("the lock is off with this package imported")
