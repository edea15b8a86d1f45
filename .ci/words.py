"""Check the prose: its spelling, and words of ``words.txt``, which have a plainer equivalent.

``codespell`` does both. Its dictionaries have single words, so a regular expression lets it find our phrases.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

WORDS = Path(__file__).with_name("words.txt")
PROSE = ["README.rst", "CHANGELOG.txt", "docs", "asgiref", "benchmarks", "examples", "tests"]


def main() -> int:
    phrases = [re.escape(line.partition("->")[0]) for line in WORDS.read_text().splitlines()]
    codespell = [sys.executable, "-m", "codespell_lib"]
    found = [
        subprocess.run([*codespell, *PROSE, ".ci"]),
        subprocess.run([*codespell, "--dictionary", str(WORDS), "--regex", rf"\b(?:{'|'.join(phrases)})\b", *PROSE]),
    ]
    return max(each.returncode for each in found)


if __name__ == "__main__":
    sys.exit(main())
