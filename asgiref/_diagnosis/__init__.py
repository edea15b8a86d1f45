"""Diagnosis: the bridge calls in flight, where they wait, and for what.

These modules read threads and tasks, describe the calls, and log slow calls in debug mode.
Calls themselves need nothing from here, so it is only imported on request.

These modules import one another and ``_bridge``. Only ``sync`` imports them.
"""
