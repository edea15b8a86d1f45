"""Other projects on this package and on upstream's: their own tests, and programs of ours that use them.

``python -m tests.ecosystem`` is the runner. A project is described by a file in ``projects/``.
"""
