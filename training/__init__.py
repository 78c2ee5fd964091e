"""PG-SB: distils a multi-step text-to-image teacher into a one-step student, from prompts alone.

Standalone: nothing here imports ComfyUI or the nodes. Start with `python -m training --help` in a checkout, with
`snoopi-train --help` where it is installed (as the package snoopi_training: all imports in here are relative); the
algorithm is `distill.py`, read top to bottom.
"""

import logging

#: What a user types to start it, for sentences that name a command.
COMMAND = "snoopi-train" if __name__ == "snoopi_training" else "python -m training"

# peft imports bitsandbytes wherever it is installed, which tells at every start of a kernel that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
