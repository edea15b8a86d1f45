"""Tests of other projects, and programs that use them, with this package and with upstream's.

``python -m tests.ecosystem`` is the runner. A project is described by a file in ``projects/``.
"""
