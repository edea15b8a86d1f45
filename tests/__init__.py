"""The tests. With ASGIREF_WITHOUT_INTERNALS, they run as on a Python that shows none of its private parts."""

import os

from asgiref._bridge import internals

WITHOUT_INTERNALS = bool(os.environ.get("ASGIREF_WITHOUT_INTERNALS"))

if WITHOUT_INTERNALS:  # before any other module of the package takes a function from there
    for name, part in internals.PARTS.items():
        setattr(internals, name, part.absent)
