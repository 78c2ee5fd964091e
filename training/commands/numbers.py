"""Numbers as arguments."""

import re
from argparse import ArgumentTypeError

from ..errors import quoted


def positive(text: str) -> int:
    if not (number := natural(text)):
        raise ArgumentTypeError(f"{quoted(text)} is not a whole number above 0")
    return number


def natural(text: str) -> int:
    if not re.fullmatch("[0-9]{1,19}", text) or int(text) >= 2**63:
        raise ArgumentTypeError(f"{quoted(text)} is not a whole number from 0 to {2**63 - 1}")
    return int(text)


def scale(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]*)?|\.[0-9]+", text) or float(text) > 100:
        raise ArgumentTypeError(f"{quoted(text)} is not a number from 0 to 100")
    return float(text)


def share(text: str) -> float:
    if not re.fullmatch(r"0|1|1\.0*|0?\.[0-9]+", text):
        raise ArgumentTypeError(f"{quoted(text)} is not a number from 0 to 1")
    return float(text)
