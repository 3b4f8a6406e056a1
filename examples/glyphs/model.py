"""Three small encoders, one for each modality, whose heads meet in one space of unit vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import mmcore.nn
from batches import PAIRS, Batch, Modalities
from data import IMAGE_SIZE, UNITS_PER_EM
from names import NAME_LENGTH, PADDING
from processes import BatchNorm, group, share

EMBEDDING_WIDTH = 256
INITIAL_SCALE = 1 / 0.07  # as CLIP starts
MAXIMUM_SCALE = 100.0  # as CLIP limits it: beyond that, training is unstable


def convolution(
    inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int]
) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU; keeps the size but for the stride."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
        # Faster than the default, so that a run of few steps forgets the initial statistics too.
        BatchNorm(outputs, momentum=0.2),
        nn.ReLU(),
    )


class ImageEncoder(nn.Module):
    """(N, 32, 32) uint8 → (N, 16·width): four convolutions.

    Nothing is pooled away, because where a stroke lies decides what it means.
    """

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convolution(1, 16, (5, 5), (2, 2)),
            convolution(16, width // 2, (3, 3), (2, 2)),
            convolution(width // 2, width, (3, 3), (2, 2)),
            convolution(width, width, (3, 3), (1, 1)),
        ).to(memory_format=torch.channels_last)
        self.output_width = width * (IMAGE_SIZE // 8) ** 2

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float().div(255).unsqueeze(1)
        return self.layers(pixels).permute(0, 2, 3, 1).flatten(1)


class OutlineEncoder(nn.Module):
    """(N, 64, 5) int16 → (N, 2·width): convolutions along the commands, their maximum and mean."""

    def __init__(self, width: int = 128, frequencies: int = 4) -> None:
        super().__init__()
        frequency = math.pi * 2.0 ** torch.arange(frequencies)
        self.register_buffer("frequency", frequency, persistent=False)
        inputs = 4 + 4 + 2 * 4 * frequencies
        self.layers = nn.Sequential(
            convolution(inputs, width // 2, (1, 5), (1, 2)),
            convolution(width // 2, width, (1, 5), (1, 2)),
        ).to(memory_format=torch.channels_last)
        self.output_width = 2 * width

    def features(self, outlines: Tensor) -> Tensor:
        """Kinds as one of four; coordinates with their sines and cosines: (N, 64, inputs)."""
        kind, coordinates = outlines[..., 0].long(), outlines[..., 1:].float() / UNITS_PER_EM
        angles = (coordinates.unsqueeze(-1) * self.frequency).flatten(-2)
        drawn = torch.cat([coordinates, angles.sin(), angles.cos()], -1) * (kind > 0).unsqueeze(-1)
        return torch.cat([F.one_hot(kind, 4), drawn], -1)

    def forward(self, outlines: Tensor) -> Tensor:
        # An image of one row, channels last: that is how the features lie in memory already.
        row = self.features(outlines).unsqueeze(1).permute(0, 3, 1, 2)
        commands = self.layers(row).permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat([commands.amax(1), commands.mean(1)], 1)


class Block(nn.Module):
    """A transformer block: attention, then a small network, each added to what it read."""

    def __init__(self, width: int, attention_heads: int = 4) -> None:
        super().__init__()
        self.attention_heads = attention_heads
        self.attention_norm, self.network_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, is_token: Tensor) -> Tensor:
        rows, length, width = x.shape
        projected = self.query_key_value(self.attention_norm(x))
        split = projected.view(rows, length, 3, self.attention_heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mask = is_token[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.network(self.network_norm(x))


class NameEncoder(nn.Module):
    """(N, 16) token numbers → (N, width): a transformer of two blocks, the mean over the tokens.

    A word that is left out is the negative of its number: it has a place, but is not read.
    """

    def __init__(self, vocabulary: int, width: int = 128, word_dropout: float = 0.1) -> None:
        super().__init__()
        self.word_dropout = word_dropout
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.empty(NAME_LENGTH, width))
        nn.init.normal_(self.token.weight, std=0.1)
        nn.init.normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.output_width = width

    def leave_out_words(self, tokens: Tensor) -> Tensor:
        """The tokens, some of them negated. Unseen names combine known words anew: no single word
        may be relied on. Random numbers are drawn for the rows of all processes, so that each
        draws the same.
        """
        order, kept = by_length(tokens), torch.ones_like(tokens, dtype=torch.bool)
        for rows in order.chunk(4):
            length = int((tokens[rows] != PADDING).sum(1).max())
            kept[rows, :length] = torch.rand(len(rows), length) >= self.word_dropout
        kept[:, 0] = True
        return torch.where(kept, tokens, -tokens)

    def encode(self, tokens: Tensor) -> Tensor:
        """Names of similar length, padded to the longest of them only."""
        length = int((tokens != PADDING).sum(1).max())
        tokens = tokens[:, :length]
        is_token = tokens > PADDING
        x = self.token(tokens.abs()) + self.position[:length]
        for block in self.blocks:
            x = block(x, is_token)
        return (x * is_token.unsqueeze(-1)).sum(1) / is_token.sum(1, keepdim=True)

    def forward(self, tokens: Tensor) -> Tensor:
        # Most names are short: sorted by length, they need half the padding.
        order = by_length(tokens)
        encoded = torch.cat([self.encode(part) for part in tokens[order].chunk(4)])
        return encoded[order.argsort()]


def by_length(tokens: Tensor) -> Tensor:
    """The rows in the order of their numbers of tokens."""
    return (tokens != PADDING).sum(1).argsort(stable=True)


def normalise_by_row(encoders: nn.Module) -> None:
    """Puts group normalisation, which no other row has a part in, in place of that by batch."""
    for module in list(encoders.modules()):
        for name, child in module.named_children():
            if isinstance(child, BatchNorm):
                setattr(module, name, nn.GroupNorm(8, child.num_features))


class Scales(nn.Module):
    """The scale (inverse temperature) of every pair in PAIRS, learned as its logarithm."""

    def __init__(self, log_scale: nn.Parameter) -> None:
        super().__init__()
        self.log_scale = log_scale

    def forward(self) -> Tensor:
        return self.log_scale.clamp(max=math.log(MAXIMUM_SCALE)).exp()


def exchanging(part: nn.Module) -> nn.Module:
    """The part; its gradients become the mean over the processes."""
    wrapped = DistributedDataParallel(part)
    wrapped.broadcast_buffers = False  # they agree; the argument of this name has a new one now
    return wrapped


class GlyphModel(nn.Module):
    """An encoder and a projection head for each modality; a scale for each pair of modalities.

    In training each process is given the whole batch and encodes its share of the rows,
    `cache_rows` of them at a time, or all at once where it is None.
    """

    def __init__(self, vocabulary: int, objective: str, cache_rows: int | None = None) -> None:
        super().__init__()
        self.objective, self.cache_rows = objective, cache_rows
        self.encoders = nn.ModuleDict(
            {"image": ImageEncoder(), "name": NameEncoder(vocabulary), "outline": OutlineEncoder()}
        )
        if cache_rows is not None:
            normalise_by_row(self.encoders)
        self.heads = nn.ModuleDict(
            {
                modality: mmcore.nn.ProjectionHead(encoder.output_width, EMBEDDING_WIDTH)
                for modality, encoder in self.encoders.items()
            }
        )
        self.log_scale = nn.Parameter(torch.full((len(PAIRS),), math.log(INITIAL_SCALE)))
        # In a dictionary they are no submodules, so that checkpoints do not depend on them.
        self.exchanging: dict[str, nn.Module] = {}

    def exchange_gradients(self, is_on: bool) -> None:
        """Whether a backward ends with the mean of all processes' gradients."""
        self.exchanging = (
            {name: exchanging(part) for name, part in self.parts().items()} if is_on else {}
        )

    def parts(self) -> dict[str, nn.Module]:
        """All that is trained: a tower for each modality, and the scales."""
        if self.training and self.exchanging:
            return self.exchanging
        towers = {m: nn.Sequential(self.encoders[m], self.heads[m]) for m in self.encoders}
        return {**towers, "scales": Scales(self.log_scale)}

    def own_rows(self, inputs: Modalities) -> Modalities:
        """In training the rows that this process encodes, with words left out at random."""
        name_encoder, tokens = self.encoders["name"], inputs.name
        if name_encoder.training:
            chunks = tokens.tensor_split(math.ceil(len(tokens) / (self.cache_rows or len(tokens))))
            tokens = torch.cat([name_encoder.leave_out_words(chunk) for chunk in chunks])
        own = share(len(tokens)) if self.training else slice(None)
        return Modalities(inputs.image[own], tokens[own], inputs.outline[own])

    def encode(self, inputs: Modalities) -> Modalities:
        """The encoders' outputs, each of its own width."""
        rows = self.own_rows(inputs)._asdict()
        return Modalities(*(self.run(self.encoders[m], x) for m, x in rows.items()))

    def project(self, encodings: Modalities) -> Modalities:
        """The embeddings: (N, EMBEDDING_WIDTH) with rows of unit length, for each modality."""
        return Modalities(*(self.heads[m](x) for m, x in encodings._asdict().items()))

    def forward(self, inputs: Modalities) -> Modalities:
        rows, parts = self.own_rows(inputs)._asdict(), self.parts()
        return Modalities(*(self.run(parts[m], x) for m, x in rows.items()))

    def run(self, tower: nn.Module, x: Tensor) -> Tensor:
        """The tower's output, by chunks if that was asked for."""
        rows = self.cache_rows
        return tower(x) if rows is None else mmcore.cached(tower, x, rows=rows)

    def scales(self) -> Tensor:
        """The scale of every pair in PAIRS."""
        return Scales(self.log_scale)()

    def losses(self, embeddings: Modalities, batch: Batch) -> Tensor:
        """The contrastive loss of every pair in PAIRS; its value is that of all processes."""
        rows = embeddings._asdict()
        pairs = zip(PAIRS, self.parts()["scales"](), strict=True)
        return torch.stack([self.loss(rows[x], rows[y], scale, batch) for (x, y), scale in pairs])

    def loss(self, x: Tensor, y: Tensor, scale: Tensor, batch: Batch) -> Tensor:
        """The objective for one pair of modalities."""
        if self.objective == "clip":
            return mmcore.functional.clip_loss(x, y, scale, process_group=group())
        # Every face of a character answers to its name. A look-alike answers to another name, so it
        # is no positive; but no encoder can tell it apart, so it is no negative either. The same
        # between images and outlines: look-alikes need not share the drawing of this very face.
        own = share(len(batch.character))
        character, look_alikes = batch.character[own], batch.look_alikes[own]
        return mmcore.functional.unicl_loss(
            x, y, character, character, scale,
            row_group=look_alikes, col_group=look_alikes, process_group=group(),
        )  # fmt: skip
