"""``ThreadSensitiveContext`` blocks that somebody else enters: one for each call of a function, or for each connection.

What lives here is when such a block begins and ends. How a thread is chosen inside it is in ``_bridge.routing``.
"""
