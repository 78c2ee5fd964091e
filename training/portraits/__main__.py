"""Make the portraits model, or put its checkpoint together."""

import sys

from ..recipe.shipped import DEMO_FOLDER
from ..shapes.command import main

if __name__ == "__main__":
    sys.exit(main(__package__, __doc__, f"{DEMO_FOLDER}/portraits"))
