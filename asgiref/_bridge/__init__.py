"""The bridge: passes one call to a thread or a loop, and its outcome back.

Here are the choice of a thread, jobs, the threads and loops of the library, contexts,
forks, and the uses of undocumented parts of Python. Users import nothing from here, and
nothing here is about HTTP.

These modules import one another, ``local`` and ``current_thread_executor``, and no other
module of the package. The public modules, ``_diagnosis`` and ``_wsgi`` may import them.
"""
