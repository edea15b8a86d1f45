"""The two sites of the tutorial: docs/start.rst shows these files, and what the running servers answer."""
