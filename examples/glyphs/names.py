"""Unicode names as tokens: words where training has seen them often enough, letters elsewhere."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

NAME_LENGTH = 16  # tokens; longer names are cut
MINIMUM_COUNT = 3  # a rarer word is spelled: too few examples to learn it as a whole
PADDING = 0


def words(name: str) -> list[str]:
    """The words of a name; digits stand alone: BRAILLE PATTERN DOTS-145 is read dot by dot."""
    return re.findall(r"[A-Z]+|[0-9]", name)


class Tokenizer:
    """Turns names into rows of token numbers, with the vocabulary of the training names."""

    def __init__(self, training_names: Iterable[str]) -> None:
        count = Counter(word for name in training_names for word in words(name))
        frequent = sorted(word for word in count if count[word] >= MINIMUM_COUNT)
        # A spelled letter is another token than the word of one letter in LATIN SMALL LETTER A.
        spelled = [f"#{letter}" for letter in string.ascii_uppercase]
        tokens = [
            *string.digits,
            *spelled,
            *(word for word in frequent if word not in string.digits),
        ]
        self.index = {token: number for number, token in enumerate(tokens, start=PADDING + 1)}

    def __len__(self) -> int:
        """The size of the vocabulary, padding included."""
        return len(self.index) + 1

    def tokens(self, name: str) -> list[str]:
        """The tokens of a name, as text."""
        pieces: list[str] = []
        for word in words(name):
            pieces += [word] if word in self.index else [f"#{letter}" for letter in word]
        return pieces

    def encode(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Token numbers of the names, (names, NAME_LENGTH), padded with PADDING."""
        rows = np.full((len(names), NAME_LENGTH), PADDING, np.int64)
        for row, name in zip(rows, names, strict=True):
            numbers = [self.index[token] for token in self.tokens(name)][:NAME_LENGTH]
            row[: len(numbers)] = numbers
        return rows
