"""The chat bot of the examples: its parts, and the whole program."""

import sys

from ..helpers import ROOT

sys.path.append(str(ROOT))  # if the suite tests the installed package, the tree is not on the path
