"""The data: all glyphs of the DejaVu and STIX fonts inside matplotlib, in three modalities.

A *glyph* is one character drawn by one face. Each glyph has

    image     (32, 32) uint8   rendered in grey, ink centred left to right, baseline on a fixed row
    outline   (64, 5) int16    drawing commands: kind, control x, control y, end x, end y
    name      str              of the character, from Unicode: CYRILLIC SMALL LETTER YU

The split is by character, never by face: a test character is absent from training in every face.
"""

from __future__ import annotations

import json
import os
import unicodedata
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np
from fontTools.pens.basePen import BasePen
from fontTools.ttLib import TTFont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

# In order of preference: a character is evaluated on the first face that has it.
FACES = (
    "DejaVuSans",
    "DejaVuSerif",
    "DejaVuSansMono",
    "STIXGeneral",
    "DejaVuSansDisplay",
    "DejaVuSerifDisplay",
    "DejaVuSans-Bold",
    "DejaVuSerif-Bold",
    "DejaVuSansMono-Bold",
    "STIXGeneralBol",
    "DejaVuSans-Oblique",
    "DejaVuSerif-Italic",
    "DejaVuSansMono-Oblique",
    "STIXGeneralItalic",
    "DejaVuSans-BoldOblique",
    "DejaVuSerif-BoldItalic",
    "DejaVuSansMono-BoldOblique",
    "STIXGeneralBolIta",
)
IMAGE_SIZE = 32  # pixels a side
FONT_SIZE = 22  # pixels per em: capitals are half the image high, accents and descenders still fit
BASELINE = 24  # pixel rows above the baseline
OUTLINE_LENGTH = 64  # commands; 97% of the glyphs need no more, the others are cut
UNITS_PER_EM = 1024  # of the stored coordinates, whatever the font uses
MOVE, LINE, CURVE = 1, 2, 3  # kinds of commands; 0 is padding
TEST_CHARACTERS = 500
SPLIT_SEED = 0  # not the seed of the run: all runs are measured on the same characters


@dataclass(frozen=True)
class Glyphs:
    """All glyphs, ordered by character and then by preference of face."""

    code_points: NDArray[np.int64]  # (characters,)
    first_glyph: NDArray[
        np.int64
    ]  # (characters + 1,): those of character c are first_glyph[c] : first_glyph[c + 1]
    face: NDArray[np.int64]  # (glyphs,), an index into FACES
    images: NDArray[np.uint8]  # (glyphs, IMAGE_SIZE, IMAGE_SIZE)
    outlines: NDArray[np.int16]  # (glyphs, OUTLINE_LENGTH, 5)

    def names(self) -> list[str]:
        """The Unicode name of every character."""
        return [unicodedata.name(chr(code_point)) for code_point in self.code_points]


class OutlinePen(BasePen):
    """Records an outline as rows of (kind, control x, control y, end x, end y).

    Every contour of a glyph is closed: the next MOVE, or the end, says so, not a command.
    """

    def __init__(self, glyph_set: object) -> None:
        super().__init__(glyph_set)
        self.commands: list[tuple[float, ...]] = []

    def _moveTo(self, end: tuple[float, float]) -> None:
        self.commands.append((MOVE, *end, *end))

    def _lineTo(self, end: tuple[float, float]) -> None:
        self.commands.append((LINE, *end, *end))

    def _qCurveToOne(self, control: tuple[float, float], end: tuple[float, float]) -> None:
        self.commands.append((CURVE, *control, *end))


def draw_outlines(path: Path) -> dict[int, NDArray[np.int16]]:
    """The outline of every named character that has ink in the font file, by code point."""
    font = TTFont(path)
    glyph_set = font.getGlyphSet()
    scale = UNITS_PER_EM / font["head"].unitsPerEm
    outlines = {}
    for code_point, glyph_name in font.getBestCmap().items():
        pen = OutlinePen(glyph_set)
        glyph_set[glyph_name].draw(pen)
        if not pen.commands or not unicodedata.name(chr(code_point), ""):
            continue
        commands = np.array(pen.commands, float)
        commands[:, 1:] *= scale
        commands[:, [1, 3]] -= (commands[:, 3].min() + commands[:, 3].max()) / 2
        outline = np.zeros((OUTLINE_LENGTH, 5), np.int16)
        outline[: len(commands)] = commands[:OUTLINE_LENGTH].round()
        outlines[code_point] = outline
    return outlines


def load_face(path: Path, size: float) -> ImageFont.FreeTypeFont:
    """The face for rendering, in the layout that needs no system library."""
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def render(character: str, face: ImageFont.FreeTypeFont) -> NDArray[np.uint8]:
    """The character in grey; one that is wider than the image is drawn smaller."""
    left, _, right, _ = face.getbbox(character, anchor="ls")
    if right - left > IMAGE_SIZE:
        face = face.font_variant(size=face.size * IMAGE_SIZE / (right - left + 1))
        left, _, right, _ = face.getbbox(character, anchor="ls")
    image = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    start = ((IMAGE_SIZE - left - right) // 2, BASELINE)
    ImageDraw.Draw(image).text(start, character, fill=255, font=face, anchor="ls")
    return np.asarray(image)


def build_glyphs() -> Glyphs:
    """Draw everything; takes some 20 seconds."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    rows = []
    for face_index, face_name in enumerate(tqdm(FACES, desc="drawing glyphs", unit="face")):
        path = folder / f"{face_name}.ttf"
        face = load_face(path, FONT_SIZE)
        for code_point, outline in draw_outlines(path).items():
            image = render(chr(code_point), face)
            if image.any():
                rows.append((code_point, face_index, image, outline))
    rows.sort(key=lambda row: row[:2])
    code_points, face, images, outlines = (np.array(column) for column in zip(*rows, strict=True))
    characters, first_glyph = np.unique(code_points, return_index=True)
    return Glyphs(characters, np.append(first_glyph, len(rows)), face, images, outlines)


def cache_key() -> str:
    """What the drawn glyphs depend on: a cache with another key is drawn anew."""
    versions = {package: version(package) for package in ("matplotlib", "pillow", "fonttools")}
    shape = [IMAGE_SIZE, FONT_SIZE, BASELINE, OUTLINE_LENGTH, UNITS_PER_EM, len(FACES)]
    return json.dumps(
        {"format": 1, "unicode": unicodedata.unidata_version, "shape": shape, **versions}
    )


def load_glyphs(folder: Path) -> Glyphs:
    """The glyphs from the cache in `folder`; drawn and cached when there is none that fits."""
    path = folder / "glyphs.npz"
    try:
        with np.load(path) as arrays:
            if arrays["key"] == cache_key():
                return Glyphs(**{field: arrays[field] for field in Glyphs.__dataclass_fields__})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # absent or damaged: it is only a cache
    glyphs = build_glyphs()
    try:
        save_glyphs(glyphs, path)
    except OSError as error:
        print(f"the glyphs are not cached: {error}")
    return glyphs


def save_glyphs(glyphs: Glyphs, path: Path) -> None:
    """Write under another name first, so that an interruption leaves no half of a cache behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"glyphs.{os.getpid()}.partial.npz")
    try:
        np.savez_compressed(partial, key=np.array(cache_key()), **vars(glyphs))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def look_alikes(glyphs: Glyphs) -> NDArray[np.int64]:
    """A number for each character, the same for all that share an image or an outline in any face.

    LATIN CAPITAL LETTER A and GREEK CAPITAL LETTER ALPHA are one drawing under two names. Sharing
    passes on: a character may look like another only by way of a third.
    """
    character = np.repeat(np.arange(len(glyphs.code_points)), np.diff(glyphs.first_glyph))
    group = np.arange(len(glyphs.code_points))
    for drawings in (glyphs.images, glyphs.outlines):
        owner: dict[bytes, int] = {}
        for index, drawing in zip(character.tolist(), drawings, strict=True):
            first = owner.setdefault(drawing.tobytes(), index)
            if group[first] != group[index]:
                group[group == group[index]] = group[first]
    return group


def split(group: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The characters for training and the TEST_CHARACTERS for evaluation, from their look-alikes.

    Only characters with a shape of their own are evaluated: otherwise training would show the
    drawing under another name, or two answers would be right. All the others are trained on.
    """
    candidates = np.flatnonzero(np.bincount(group)[group] == 1)
    test = np.random.default_rng(SPLIT_SEED).choice(candidates, TEST_CHARACTERS, replace=False)
    test.sort()
    return np.setdiff1d(np.arange(len(group)), test), test
