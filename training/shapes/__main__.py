"""Make the demo model, put its checkpoint together, or measure its world."""

import sys

from ..recipe.shipped import DEMO_FOLDER
from .command import main

if __name__ == "__main__":
    sys.exit(main(__package__, __doc__, DEMO_FOLDER))
