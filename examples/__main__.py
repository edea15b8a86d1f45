"""Run the examples: ``python -m examples``, from the root of the project."""

from examples.bridge import driver

driver.main()
