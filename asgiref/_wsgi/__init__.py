"""The parts of one request to a WSGI application under an ASGI server.

The environ, the connection to the server, and the response are here. The adapter itself is
in ``wsgi``. Nothing here is about anything but HTTP.

These modules import one another, ``_bridge`` and ``sync``. Only ``wsgi`` imports them.
"""
