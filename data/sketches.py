"""The twenty VOC classes as sketches: what one object of the synthetic devkit looks like.

Each class has a shape, a texture and a range of colours. Neighbours overlap on purpose: cat and dog share
their body, colours and half of their coats, bicycle and motorbike their wheels, sofa and chair their cloth.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
# How often an object has the usual colour of its class. The less often, the more the shapes have to carry, and
# these take a network from scratch far longer to learn.
_USUAL = 0.85
# Hue, saturation and value, each as (lowest, highest) in [0, 1].
Range = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]

_BLACK: Range = ((0.0, 1.0), (0.0, 0.2), (0.05, 0.22))
_GREY: Range = ((0.5, 0.7), (0.0, 0.15), (0.4, 0.75))
_WHITE: Range = ((0.05, 0.2), (0.0, 0.12), (0.8, 1.0))
_BROWN: Range = ((0.04, 0.1), (0.4, 0.75), (0.25, 0.6))
_GINGER: Range = ((0.05, 0.1), (0.5, 0.8), (0.65, 0.95))
_GREEN: Range = ((0.24, 0.4), (0.4, 0.85), (0.25, 0.75))
_BLUE: Range = ((0.55, 0.68), (0.4, 0.9), (0.3, 0.9))
_RED: Range = ((0.96, 1.04), (0.6, 0.95), (0.5, 0.95))
_YELLOW: Range = ((0.12, 0.17), (0.6, 0.95), (0.75, 1.0))
_ORANGE: Range = ((0.06, 0.1), (0.8, 1.0), (0.85, 1.0))
_TEAL: Range = ((0.47, 0.53), (0.6, 0.95), (0.45, 0.8))
_PURPLE: Range = ((0.74, 0.8), (0.4, 0.8), (0.4, 0.8))
_PINK: Range = ((0.88, 0.93), (0.4, 0.75), (0.7, 0.95))
_ANY: Range = ((0.0, 1.0), (0.4, 0.95), (0.35, 0.95))


class Pen:
    """Draws on an RGBA canvas in coordinates from 0 to 1, x to the right and y down."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGBA", (width, height))
        self._draw = ImageDraw.Draw(self.image)
        self._scale = np.array([width - 1, height - 1], dtype=np.float64)
        self._unit = float(min(width, height))

    def _points(self, numbers: tuple[float, ...]) -> list[tuple[float, float]]:
        return [(x, y) for x, y in (np.reshape(numbers, (-1, 2)) * self._scale).tolist()]

    def poly(self, colour: Colour, *numbers: float) -> None:
        """A filled polygon through x, y, x, y ..."""
        self._draw.polygon(self._points(numbers), fill=colour)

    def box(self, colour: Colour, left: float, top: float, right: float, bottom: float) -> None:
        self._draw.rectangle(self._points((left, top, right, bottom)), fill=colour)

    def round(self, colour: Colour, left: float, top: float, right: float, bottom: float) -> None:
        """A box with round corners."""
        corners = self._points((left, top, right, bottom))
        radius = 0.25 * min(corners[1][0] - corners[0][0], corners[1][1] - corners[0][1])
        self._draw.rounded_rectangle(corners, radius=radius, fill=colour)

    def oval(self, colour: Colour, left: float, top: float, right: float, bottom: float) -> None:
        self._draw.ellipse(self._points((left, top, right, bottom)), fill=colour)

    def disc(self, colour: Colour, x: float, y: float, radius: float) -> None:
        """A true circle; the radius is a share of the canvas's short side."""
        (cx, cy), r = self._points((x, y))[0], radius * self._unit
        self._draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=colour)

    def ring(self, colour: Colour, x: float, y: float, radius: float, width: float) -> None:
        (cx, cy), r = self._points((x, y))[0], radius * self._unit
        stroke = max(1, round(width * self._unit))
        self._draw.ellipse((cx - r, cy - r, cx + r, cy + r), outline=colour, width=stroke)

    def line(self, colour: Colour, width: float, *numbers: float) -> None:
        """A line through x, y, x, y ...; the width is a share of the canvas's short side."""
        stroke = max(1, round(width * self._unit))
        self._draw.line(self._points(numbers), fill=colour, width=stroke, joint="curve")


Sketch = Callable[[Pen, np.random.Generator, Colour, Colour], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """How objects of one class look.

    Attributes:
        sketch: draws one with a first and a second colour.
        aspect: width / height of its canvas.
        first, second: the colours to choose from, the usual one first.
        textures: the coats to choose from, each with the same chance.
        size: the usual largest side as a share of the picture's short side.
    """

    sketch: Sketch
    aspect: float
    first: tuple[Range, ...]
    second: tuple[Range, ...]
    textures: tuple[str, ...]
    size: float


def pick_colour(rng: np.random.Generator, ranges: tuple[Range, ...]) -> Colour:
    """A colour from the first range, the usual one, or else from any of them."""
    usual = rng.random() < _USUAL
    hue, saturation, value = (
        rng.uniform(*pair) for pair in ranges[0 if usual else rng.integers(len(ranges))]
    )
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def texture(rng: np.random.Generator, style: str, width: int, height: int) -> npt.NDArray[np.float32]:
    """float32[height, width] up to 1: what the colours of an object are multiplied by."""
    y, x = np.mgrid[0:height, 0:width] / min(width, height)
    depth, frequency, slant = rng.uniform(0.3, 0.6), rng.uniform(5, 8), rng.uniform(-0.25, 0.25)
    shade: npt.NDArray[np.float64]
    if style == "stripes":
        shade = depth * (np.sin(2 * np.pi * frequency * (x + slant * y)) > 0.2)
    elif style == "bands":
        shade = depth * (np.sin(2 * np.pi * frequency * (y + slant * x)) > 0.2)
    elif style == "checks":
        shade = depth * ((np.floor(frequency * x) + np.floor(frequency * y)) % 2)
    elif style == "dots":
        shade = depth * ((frequency * x % 1 - 0.5) ** 2 + (frequency * y % 1 - 0.5) ** 2 < 0.09)
    elif style == "patches":
        shade = np.where(_field(rng.random((5, 7)).round(), width, height) > 0.56, 0.75, 0.0)
    elif style == "grain":
        shade = depth * _field(rng.random((24, 24)), width, height)
    else:  # plain: darker downwards
        shade = 0.25 * y
    return (1 - shade).astype(np.float32)


def _field(coarse: npt.NDArray[np.float64], width: int, height: int) -> npt.NDArray[np.float64]:
    """A smooth float64[height, width] through a coarse grid of values from 0 to 1."""
    grid = Image.fromarray((coarse * 255).astype(np.uint8))
    field = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    return field / 255


def _dark(colour: Colour, share: float = 0.55) -> Colour:
    return round(colour[0] * share), round(colour[1] * share), round(colour[2] * share)


_TYRE: Colour = (28, 28, 32)
_GLASS: Colour = (170, 205, 225)


def _aeroplane(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    pen.poly(_dark(a), 0.45, 0.5, 0.62, 0.5, 0.3, 0.98, 0.2, 0.98)
    pen.poly(_dark(a, 0.8), 0.45, 0.48, 0.62, 0.48, 0.38, 0.08, 0.28, 0.08)
    pen.poly(b, 0.02, 0.15, 0.13, 0.15, 0.24, 0.48, 0.05, 0.48)
    pen.oval(a, 0.02, 0.38, 0.98, 0.62)
    for x in np.linspace(0.3, 0.78, 7):
        pen.disc(_dark(a, 0.4), x, 0.47, 0.025)


def _bicycle(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    for x in (0.22, 0.78):
        pen.ring(_TYRE, x, 0.66, 0.31, 0.045)
        pen.line(_GLASS, 0.012, x - 0.18, 0.66, x + 0.18, 0.66, x, 0.66, x, 0.38, x, 0.94)
    pen.line(a, 0.05, 0.22, 0.66, 0.38, 0.3, 0.7, 0.3, 0.48, 0.68, 0.22, 0.66)
    pen.line(a, 0.05, 0.48, 0.68, 0.34, 0.2)
    pen.line(a, 0.05, 0.78, 0.66, 0.68, 0.12, 0.82, 0.08)
    pen.line(b, 0.07, 0.26, 0.18, 0.42, 0.18)


def _bird(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    lift = rng.uniform(-0.1, 0.12)
    pen.poly(_dark(a, 0.7), 0.02, 0.42, 0.2, 0.62, 0.36, 0.52)
    pen.oval(a, 0.18, 0.38, 0.78, 0.76)
    pen.poly(b, 0.34, 0.52, 0.66, 0.5, 0.36, 0.12 + lift)
    pen.disc(a, 0.78, 0.36, 0.16)
    pen.poly((235, 170, 40), 0.88, 0.32, 1.0, 0.38, 0.88, 0.42)
    pen.disc((15, 15, 15), 0.81, 0.33, 0.03)
    pen.line((200, 140, 40), 0.03, 0.48, 0.74, 0.46, 0.98)
    pen.line((200, 140, 40), 0.03, 0.56, 0.74, 0.58, 0.98)


def _boat(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    pen.line((90, 70, 50), 0.03, 0.48, 0.72, 0.48, 0.02)
    pen.poly(b, 0.51, 0.04, 0.51, 0.64, 0.9, 0.64)
    pen.poly(_dark(b, 0.85), 0.45, 0.12, 0.45, 0.64, 0.16, 0.64)
    pen.poly(a, 0.02, 0.7, 0.98, 0.7, 0.82, 0.98, 0.18, 0.98)


def _bottle(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    pen.box(_dark(a, 0.8), 0.36, 0.04, 0.64, 0.3)
    pen.box(b, 0.32, 0.0, 0.68, 0.07)
    pen.poly(a, 0.36, 0.26, 0.64, 0.26, 0.95, 0.42, 0.05, 0.42)
    pen.round(a, 0.05, 0.38, 0.95, 1.0)
    pen.box(b, 0.05, 0.55, 0.95, 0.8)


def _bus(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    pen.round(a, 0.0, 0.02, 1.0, 0.86)
    for x in np.linspace(0.05, 0.8, 5):
        pen.box(_GLASS, x, 0.14, x + 0.13, 0.44)
    pen.box(b, 0.0, 0.55, 1.0, 0.64)
    for x in (0.22, 0.76):
        pen.disc(_TYRE, x, 0.86, 0.14)
        pen.disc(_GLASS, x, 0.86, 0.05)


def _car(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    pen.poly(a, 0.2, 0.46, 0.32, 0.08, 0.66, 0.08, 0.82, 0.46)
    pen.poly(_GLASS, 0.27, 0.42, 0.35, 0.16, 0.48, 0.16, 0.48, 0.42)
    pen.poly(_GLASS, 0.52, 0.42, 0.52, 0.16, 0.64, 0.16, 0.74, 0.42)
    pen.round(a, 0.0, 0.4, 1.0, 0.82)
    pen.disc((250, 240, 180), 0.96, 0.55, 0.06)
    for x in (0.22, 0.78):
        pen.disc(_TYRE, x, 0.8, 0.19)
        pen.disc((150, 150, 155), x, 0.8, 0.09)


def _legs(pen: Pen, colour: Colour, places: tuple[float, ...], top: float, width: float) -> None:
    for x in places:
        pen.box(colour, x, top, x + width, 1.0)


def _cat(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    pen.line(a, 0.07, 0.12, 0.6, 0.03, 0.4, 0.1, 0.12)
    _legs(pen, _dark(a, 0.85), (0.18, 0.3, 0.56, 0.67), 0.7, 0.08)
    pen.oval(a, 0.08, 0.44, 0.78, 0.84)
    pen.poly(a, 0.6, 0.34, 0.62, 0.02, 0.76, 0.2)
    pen.poly(a, 0.98, 0.34, 0.97, 0.02, 0.84, 0.2)
    pen.disc(a, 0.8, 0.36, 0.21)
    for x in (0.73, 0.88):
        pen.disc((190, 210, 60), x, 0.33, 0.045)
    pen.poly((230, 140, 140), 0.78, 0.42, 0.84, 0.42, 0.81, 0.47)


def _dog(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    pen.line(a, 0.07, 0.12, 0.5, 0.03, 0.3)
    _legs(pen, _dark(a, 0.85), (0.16, 0.28, 0.56, 0.67), 0.66, 0.09)
    pen.oval(a, 0.08, 0.38, 0.78, 0.8)
    pen.disc(a, 0.76, 0.3, 0.2)
    pen.round(b, 0.8, 0.28, 1.0, 0.46)
    pen.disc((20, 20, 20), 0.97, 0.31, 0.05)
    pen.oval(_dark(b, 0.6), 0.58, 0.14, 0.7, 0.54)
    pen.disc((20, 20, 20), 0.8, 0.24, 0.035)


def _chair(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    pen.box(b, 0.08, 0.0, 0.18, 1.0)
    pen.box(_dark(b, 0.7), 0.82, 0.55, 0.92, 1.0)
    pen.box(_dark(b, 0.7), 0.3, 0.6, 0.38, 0.92)
    pen.box(a, 0.08, 0.04, 0.62, 0.12)
    pen.box(a, 0.08, 0.2, 0.62, 0.3)
    pen.box(b, 0.54, 0.0, 0.62, 0.55)
    pen.poly(a, 0.08, 0.52, 0.7, 0.5, 0.98, 0.62, 0.2, 0.66)


def _cow(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    _legs(pen, _dark(a, 0.8), (0.12, 0.24, 0.54, 0.66), 0.66, 0.08)
    pen.round(a, 0.06, 0.24, 0.78, 0.74)
    pen.oval((230, 170, 165), 0.36, 0.66, 0.54, 0.82)
    pen.poly(a, 0.7, 0.26, 0.98, 0.16, 1.0, 0.5, 0.78, 0.56)
    pen.oval((225, 170, 160), 0.86, 0.38, 1.0, 0.54)
    pen.line((215, 205, 180), 0.04, 0.78, 0.2, 0.74, 0.04)
    pen.line((215, 205, 180), 0.04, 0.9, 0.18, 0.95, 0.02)


def _diningtable(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    _legs(pen, _dark(a, 0.6), (0.1, 0.82), 0.3, 0.08)
    _legs(pen, _dark(a, 0.45), (0.27, 0.66), 0.3, 0.05)
    pen.poly(a, 0.14, 0.08, 0.86, 0.08, 1.0, 0.36, 0.0, 0.36)
    for x in (0.3, 0.55):
        pen.oval(b, x, 0.14, x + 0.18, 0.26)


def _horse(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    pen.line(b, 0.07, 0.1, 0.42, 0.03, 0.55, 0.04, 0.75)
    _legs(pen, _dark(a, 0.8), (0.14, 0.24, 0.54, 0.64), 0.6, 0.06)
    pen.oval(a, 0.08, 0.34, 0.74, 0.68)
    pen.poly(a, 0.54, 0.42, 0.72, 0.04, 0.86, 0.1, 0.74, 0.56)
    pen.poly(a, 0.72, 0.04, 0.84, 0.02, 1.0, 0.24, 0.93, 0.32, 0.78, 0.22)
    pen.line(b, 0.07, 0.55, 0.38, 0.7, 0.04)


def _motorbike(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    for x in (0.2, 0.8):
        pen.ring(_TYRE, x, 0.68, 0.3, 0.11)
        pen.disc((150, 150, 155), x, 0.68, 0.1)
    pen.poly((95, 95, 100), 0.32, 0.5, 0.64, 0.5, 0.6, 0.8, 0.38, 0.8)
    pen.poly(a, 0.4, 0.26, 0.7, 0.22, 0.74, 0.5, 0.42, 0.52)
    pen.poly(b, 0.06, 0.34, 0.42, 0.34, 0.44, 0.48, 0.14, 0.46)
    pen.line((120, 120, 125), 0.06, 0.8, 0.68, 0.66, 0.1, 0.56, 0.08)


def _person(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    skin = pick_colour(rng, (((0.04, 0.09), (0.3, 0.6), (0.35, 0.95)),))
    spread, raised = rng.uniform(0.02, 0.16), rng.uniform(-0.25, 0.22)
    for side in (-1, 1):
        pen.line(b, 0.2, 0.5 + side * 0.1, 0.58, 0.5 + side * (0.12 + spread), 0.97)
        pen.line(skin, 0.13, 0.5 + side * 0.2, 0.26, 0.5 + side * 0.42, 0.42 + raised)
    pen.round(a, 0.26, 0.2, 0.74, 0.62)
    pen.disc(_dark(skin, 0.4), 0.5, 0.09, 0.22)
    pen.disc(skin, 0.5, 0.11, 0.2)


def _pottedplant(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    for angle in rng.permutation(np.linspace(-1.2, 1.2, 8)):
        x, y = 0.5 + 0.48 * np.sin(angle), 0.62 - 0.58 * np.cos(angle)
        leaf = _dark(a, rng.uniform(0.6, 1.0))
        pen.poly(leaf, 0.46, 0.64, x - 0.12, (y + 0.64) / 2, x, y, x + 0.12, (y + 0.6) / 2, 0.54, 0.64)
    pen.poly(b, 0.2, 0.62, 0.8, 0.62, 0.7, 1.0, 0.3, 1.0)
    pen.box(_dark(b, 0.8), 0.17, 0.6, 0.83, 0.68)


def _sheep(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    _legs(pen, b, (0.2, 0.32, 0.54, 0.64), 0.7, 0.07)
    for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False):
        wool = _dark(a, rng.uniform(0.85, 1.0))
        pen.disc(wool, 0.43 + 0.27 * np.cos(angle), 0.5 + 0.2 * np.sin(angle), 0.17)
    pen.oval(a, 0.18, 0.32, 0.68, 0.7)
    pen.oval(b, 0.72, 0.26, 0.98, 0.6)
    pen.oval(b, 0.66, 0.26, 0.78, 0.38)


def _sofa(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    pen.round(_dark(a, 0.85), 0.06, 0.02, 0.94, 0.7)
    pen.box(_dark(a, 0.7), 0.1, 0.5, 0.9, 0.88)
    for x in (0.14, 0.51):
        pen.round(a, x, 0.42, x + 0.35, 0.66)
    for x in (0.0, 0.84):
        pen.round(a, x, 0.34, x + 0.16, 0.92)
    pen.poly(b, 0.2, 0.2, 0.38, 0.16, 0.4, 0.42, 0.22, 0.44)
    _legs(pen, _TYRE, (0.06, 0.88), 0.9, 0.05)


def _train(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    pen.poly(a, 0.0, 0.08, 0.8, 0.08, 0.97, 0.5, 1.0, 0.8, 0.0, 0.8)
    pen.box(b, 0.0, 0.56, 0.98, 0.68)
    pen.poly(_GLASS, 0.78, 0.18, 0.85, 0.36, 0.7, 0.36, 0.7, 0.18)
    for x in np.linspace(0.04, 0.52, 4):
        pen.box(_GLASS, x, 0.2, x + 0.1, 0.42)
    for x in np.linspace(0.1, 0.88, 6):
        pen.disc(_TYRE, x, 0.84, 0.09)
    pen.box((110, 100, 95), 0.0, 0.94, 1.0, 1.0)


def _tvmonitor(pen: Pen, rng: np.random.Generator, a: Colour, b: Colour) -> None:
    pen.round(a, 0.0, 0.0, 1.0, 0.82)
    pen.box(b, 0.07, 0.09, 0.93, 0.72)
    pen.poly(_dark(b, 0.6), 0.07, 0.72, 0.45, 0.3, 0.7, 0.55, 0.93, 0.4, 0.93, 0.72)
    pen.box(_dark(a, 0.8), 0.44, 0.82, 0.56, 0.94)
    pen.box(_dark(a, 0.8), 0.26, 0.92, 0.74, 1.0)


_FUR = (_BROWN, _GINGER, _GREY, _BLACK, _WHITE)

KINDS: dict[str, Kind] = {
    "aeroplane": Kind(_aeroplane, 1.5, (_WHITE, _GREY), (_RED, _BLUE, _ANY), ("plain",), 0.7),
    "bicycle": Kind(_bicycle, 1.45, (_TEAL, _ANY), (_BLACK, _BROWN), ("plain",), 0.68),
    "bird": Kind(_bird, 1.15, (_BLUE, _BROWN, _RED, _BLACK), (_ORANGE, _ANY), ("plain", "bands"), 0.5),
    "boat": Kind(_boat, 1.0, (_BROWN, _BLUE, _RED), (_WHITE, _ANY), ("plain", "bands"), 0.65),
    "bottle": Kind(_bottle, 0.36, (_GREEN, _BROWN, _GREY), (_WHITE, _RED, _YELLOW), ("plain",), 0.72),
    "bus": Kind(_bus, 1.7, (_YELLOW, _RED, _BLUE, _WHITE), (_RED, _ANY), ("plain",), 0.8),
    "car": Kind(_car, 1.8, (_RED, _ANY, _WHITE, _GREY, _BLUE), (_GREY,), ("plain",), 0.65),
    "cat": Kind(_cat, 1.15, (_GINGER, *_FUR), _FUR, ("stripes", "bands", "plain"), 0.62),
    "chair": Kind(_chair, 0.75, (_ORANGE, _BROWN, _BLUE, _RED), (_BROWN, _BLACK), ("plain", "bands"), 0.6),
    "cow": Kind(_cow, 1.45, (_WHITE, _BROWN), (_BLACK,), ("patches", "patches", "patches", "plain"), 0.72),
    "diningtable": Kind(_diningtable, 1.6, (_BROWN, _GINGER), (_WHITE,), ("stripes", "grain"), 0.72),
    "dog": Kind(_dog, 1.15, (_BLACK, *_FUR), (_WHITE, *_FUR), ("dots", "patches", "plain"), 0.62),
    "horse": Kind(_horse, 1.25, (_BROWN, _BLACK, _WHITE), (_BLACK, _BROWN), ("plain", "grain"), 0.7),
    "motorbike": Kind(_motorbike, 1.5, (_PURPLE, _RED, _BLACK), (_BLACK, _BROWN), ("plain",), 0.66),
    "person": Kind(_person, 0.5, (_BLUE, _ANY, _RED, _WHITE), (_BLACK, _BLUE), ("plain", "checks"), 0.72),
    "pottedplant": Kind(_pottedplant, 0.85, (_GREEN,), (_ORANGE, _BROWN, _WHITE), ("plain", "grain"), 0.58),
    "sheep": Kind(_sheep, 1.25, (_WHITE,), (_BLACK, _BROWN), ("grain", "grain", "plain"), 0.64),
    "sofa": Kind(
        _sofa, 1.8, (_PINK, _RED, _BLUE, _GREEN), (_YELLOW, _ANY), ("checks", "stripes", "plain"), 0.74
    ),
    "train": Kind(_train, 2.2, (_GREEN, _BLUE, _RED, _GREY), (_YELLOW, _WHITE), ("plain",), 0.9),
    "tvmonitor": Kind(_tvmonitor, 1.25, (_BLACK, _GREY), (_BLUE, _ANY), ("plain",), 0.54),
}
