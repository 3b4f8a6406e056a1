"""Batches of characters in their three modalities.

A batch holds a character once, drawn by one face: its other faces would be further right answers to
the same name, and the loss of CLIP knows one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data import IMAGE_SIZE, Glyphs, split
from names import Tokenizer

LARGEST_SHIFT = 1  # pixels by which training moves an image, in each direction


class Modalities(NamedTuple):
    """One tensor for each modality: a batch of inputs, of encodings or of embeddings."""

    image: Tensor
    name: Tensor
    outline: Tensor


PAIRS = (("image", "name"), ("outline", "name"), ("image", "outline"))


class Batches:
    """What training and evaluation read. Every batch is a function of the seed and the step alone.

    So a resumed run sees what the uninterrupted run would have seen, with nothing to save.
    """

    def __init__(self, glyphs: Glyphs, batch_size: int, seed: int) -> None:
        self.glyphs, self.batch_size, self.seed = glyphs, batch_size, seed
        self.training_characters, self.test_characters = split(glyphs)
        if not 2 <= batch_size <= len(self.training_characters):
            limit = len(self.training_characters)
            raise ValueError(f"the batch size must be from 2 to {limit}, got {batch_size}")
        names = glyphs.names()
        self.tokenizer = Tokenizer(names[index] for index in self.training_characters)
        self.tokens = self.tokenizer.encode(names)
        self.test_names = [names[index] for index in self.test_characters]

    def training(self, step: int) -> Modalities:
        """The batch of a step: distinct characters, a face for each and a shift of its image."""
        characters = self._characters(step)
        random = np.random.default_rng([self.seed, step, 1])
        first = self.glyphs.first_glyph
        drawn = random.integers(first[characters], first[characters + 1])
        images = shifted(self.glyphs.images[drawn], random)
        return self._tensors(images, characters, drawn)

    def test(self) -> Modalities:
        """The test characters, each drawn by the first of FACES that has it."""
        drawn = self.test_glyphs()
        return self._tensors(self.glyphs.images[drawn], self.test_characters, drawn)

    def test_glyphs(self) -> NDArray[np.int64]:
        """The glyphs that stand for the test characters."""
        return self.glyphs.first_glyph[self.test_characters]

    def _characters(self, step: int) -> NDArray[np.int64]:
        """The characters of a step: each epoch deals all of them out in a new order."""
        epoch, position = divmod(step, len(self.training_characters) // self.batch_size)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.training_characters)
        return order[position * self.batch_size : (position + 1) * self.batch_size]

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
