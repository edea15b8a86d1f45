"""How fast is the bridge, and compared to what? ``python -m benchmarks --help`` tells how to ask."""
