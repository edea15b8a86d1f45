"""WSGI: the parts of one request to a WSGI application that is served by an ASGI server.

What lives here: the environ, the server's end of the connection, and the response. What
must not: the adapter itself, which is ``wsgi``, and anything that is not about HTTP.

These modules import one another, ``_bridge`` and ``sync``. Only ``wsgi`` imports them.
"""
