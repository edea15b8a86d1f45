"""Random programs over the bridge: ``programs`` makes them, ``running`` runs them, ``reference`` says what must happen.

A program is a tree of synchronous and asynchronous functions that call one another in every way of the package. It is
run twice: with the package, and by a sequential reference interpreter without threads and loops, which follows the
rules of the documentation. Both record, for each function, its thread, its loop, the values that it sees, and the
outcomes of its calls. ``checking`` compares the two.
"""
