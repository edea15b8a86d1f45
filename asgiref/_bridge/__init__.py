"""The bridge: how one call gets to a thread or a loop, and its outcome back.

What lives here: the choice of a thread, jobs on their way, threads and loops that the
library owns, what is carried along, forks, and what is known of Python's private parts.
What must not: anything that a user imports, and anything about HTTP.

These modules import one another, ``local`` and ``current_thread_executor``, and no other
module of the package. The public modules, ``_diagnosis`` and ``_wsgi`` may import them.
"""
