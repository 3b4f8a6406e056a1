"""Batches of characters in their three modalities.

For the loss of CLIP a batch holds a character once, drawn by one face: its other faces would be
further right answers to the same name, and that loss knows one. UniCL knows several, and a batch of
as many rows holds half the characters, each in two faces where it has them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data import IMAGE_SIZE, Glyphs, look_alikes, split
from names import Tokenizer

ROWS_PER_CHARACTER = {"clip": 1, "unicl": 2}  # by objective
LARGEST_SHIFT = 1  # pixels by which training moves an image, in each direction


class Modalities(NamedTuple):
    """One tensor for each modality: a batch of inputs, of encodings or of embeddings."""

    image: Tensor
    name: Tensor
    outline: Tensor


PAIRS = (("image", "name"), ("outline", "name"), ("image", "outline"))


class Batch(NamedTuple):
    """What a step trains on; row i is the same glyph in every modality."""

    inputs: Modalities
    character: Tensor  # (N,) int64: rows of one character belong together
    look_alikes: Tensor  # (N,) int64, as `look_alikes` numbers them: rows not to be told apart


class Batches:
    """What training and evaluation read. Every batch is a function of the seed and the step alone.

    So a resumed run sees what the uninterrupted run would have seen, with nothing to save.
    """

    def __init__(self, glyphs: Glyphs, batch_size: int, seed: int, objective: str) -> None:
        self.glyphs, self.batch_size, self.seed = glyphs, batch_size, seed
        self.objective, self.rows_per_character = objective, ROWS_PER_CHARACTER[objective]
        self.look_alikes = look_alikes(glyphs)
        self.training_characters, self.test_characters = split(self.look_alikes)
        rows = self.rows_per_character
        self.largest_batch = rows * len(self.training_characters)
        if not 2 * rows <= batch_size <= self.largest_batch:
            limits = f"from {2 * rows} to {self.largest_batch}"
            raise ValueError(f"the batch size must be {limits}, got {batch_size}")
        if batch_size % rows:
            raise ValueError(
                f"the batch size must be a multiple of {rows} for {objective}, got {batch_size}"
            )
        names = glyphs.names()
        self.tokenizer = Tokenizer(names[index] for index in self.training_characters)
        self.tokens = self.tokenizer.encode(names)
        self.test_names = [names[index] for index in self.test_characters]

    def training(self, step: int) -> Batch:
        """The batch of a step: its characters, faces for each and a shift of every image."""
        characters = self._characters(step)
        random = np.random.default_rng([self.seed, step, 1])
        first = self.glyphs.first_glyph
        drawn = random.integers(first[characters], first[characters + 1])
        if self.rows_per_character == 2:
            drawn = np.concatenate([drawn, self._other_faces(characters, drawn, random)])
            characters = np.tile(characters, 2)
        inputs = self._tensors(shifted(self.glyphs.images[drawn], random), characters, drawn)
        look_alikes = torch.from_numpy(self.look_alikes[characters])
        return Batch(inputs, torch.from_numpy(characters), look_alikes)

    def test(self) -> Modalities:
        """The test characters, each drawn by the first of FACES that has it."""
        drawn = self.test_glyphs()
        return self._tensors(self.glyphs.images[drawn], self.test_characters, drawn)

    def test_glyphs(self) -> NDArray[np.int64]:
        """The glyphs that stand for the test characters."""
        return self.glyphs.first_glyph[self.test_characters]

    def _characters(self, step: int) -> NDArray[np.int64]:
        """The characters of a step: each epoch deals all of them out in a new order."""
        count = self.batch_size // self.rows_per_character
        epoch, position = divmod(step, len(self.training_characters) // count)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.training_characters)
        return order[position * count : (position + 1) * count]

    def _other_faces(
        self, characters: NDArray[np.int64], drawn: NDArray[np.int64], random: np.random.Generator
    ) -> NDArray[np.int64]:
        """A second glyph of each character; the same one again where it has no other."""
        first = self.glyphs.first_glyph[characters]
        count = self.glyphs.first_glyph[characters + 1] - first
        return first + (drawn - first + random.integers(1, np.maximum(count, 2))) % count

    def _tensors(
        self, images: NDArray[np.uint8], characters: NDArray[np.int64], drawn: NDArray[np.int64]
    ) -> Modalities:
        arrays = (images, self.tokens[characters], self.glyphs.outlines[drawn])
        return Modalities(*(torch.from_numpy(array) for array in arrays))


def shifted(images: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Every image moved by its own random number of pixels, down or up, right or left."""
    margin = LARGEST_SHIFT
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin)))
    down, right = random.integers(0, 2 * margin + 1, (2, len(images), 1, 1))
    pixel = np.arange(IMAGE_SIZE)
    return padded[np.arange(len(images))[:, None, None], down + pixel[:, None], right + pixel]
