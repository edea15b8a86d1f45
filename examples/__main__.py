"""Run the examples: ``python -m examples``, from the root of the project."""

from examples.bridge import driver as bridge
from examples.wsgi import driver as wsgi

bridge.main()
wsgi.main()
