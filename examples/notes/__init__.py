"""A Django site with asynchronous tests: ``python -m pytest`` in this directory.

The tests need the two lines in ``conftest.py``: without them, most tests fail.
"""
