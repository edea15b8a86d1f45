"""Random programs over the bridge: ``programs`` makes them, ``running`` runs them, ``reference`` says what must happen.

A program is a tree of functions, synchronous and asynchronous, that call one another in
every way the package offers. It is run once, really, and once by a sequential reference
interpreter that has no threads and no loops, but only the rules of the documentation.
Both write down, for each function, on which thread and loop it was, which values it saw
and how its calls ended, and ``checking`` compares the two.
"""
