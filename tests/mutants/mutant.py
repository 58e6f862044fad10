"""A planted bug, and the test that must kill it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One planted bug.

    Attributes:
        name: what is wrong.
        file: where, below the checkout.
        old: the text that is right; it stands in the file exactly once.
        new: the text that is wrong; in native code only where MUTANT is true.
        test: what pytest must find failing, with its `-k` expression if there is one.
    """

    name: str
    file: str
    old: str
    new: str
    test: tuple[str, ...]
