"""A Django site with asynchronous tests: ``python -m pytest`` in this directory.

The two lines in ``conftest.py`` are what the tests need: without them most of them fail.
"""
