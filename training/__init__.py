"""PG-SB: distils a multi-step text-to-image teacher into a one-step student, from prompts alone.

Standalone: nothing here imports ComfyUI or the nodes. Start with `python -m training --help`; the algorithm is
`distill.py`, read top to bottom.
"""

import logging

# peft imports bitsandbytes wherever it is installed, which tells at every start of a kernel that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
