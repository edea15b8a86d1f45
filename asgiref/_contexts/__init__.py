"""``ThreadSensitiveContext`` blocks around each call of a function, or around each connection.

These modules enter and leave the blocks. ``_bridge.routing`` chooses threads inside of them.
"""
