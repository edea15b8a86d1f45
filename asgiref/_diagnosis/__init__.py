"""Diagnosis: which calls are in flight, where they wait, and for what.

What lives here: reading threads and tasks, describing what was found, and the watch of
debug mode. What must not: anything that a call needs, so nothing here is imported before
somebody asks.

These modules import one another and ``_bridge``. Only ``sync`` imports them.
"""
