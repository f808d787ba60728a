"""Prints what pyproject.toml asks for, one requirement a line, with the extras named on the command line.

The Dockerfiles install from it in a layer of its own, so that a change of our code does not fetch packages again.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
names = list(project["dependencies"])
for extra in sys.argv[1:]:
    names += project["optional-dependencies"][extra]
print("\n".join(names))
