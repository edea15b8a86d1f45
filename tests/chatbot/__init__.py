"""The chat bot among the examples: its pieces, and the whole of it."""

import sys

from ..helpers import ROOT

sys.path.append(str(ROOT))  # where the suite runs against the installed package, the tree is not on the path
