"""One picture of the synthetic devkit: a place, the objects in it, what hides what, and the camera."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from data.labels import VOC_CLASSES
from data.sketches import KINDS, Colour, Pen, pick_colour, texture

T = TypeVar("T")
Rng = np.random.Generator
Owner = npt.NDArray[np.uint8]

# Width and height of the pictures, with how often they come; VOC's are 500 pixels on the longer side.
_SIZES = (((500, 375), 0.55), ((375, 500), 0.2), ((500, 333), 0.15), ((334, 500), 0.05), ((500, 500), 0.05))
# An object is difficult where its box is below this share of the picture, or less of it than this is seen.
_TINY, _HIDDEN = 0.006, 0.4
_SHARE_TINY = 0.05  # of the objects are drawn very small: mostly below `_TINY`
_SHARE_TWICE = 0.15  # of the classes in a picture have a second object
_SHARE_STRANGER = 0.06  # of the pictures hold a class from elsewhere, so that the background is not enough
_SHARE_BAR = 0.25  # of the pictures have a post or a rail before everything


@dataclass(frozen=True, slots=True)
class Scene:
    """A kind of place: how often it comes, its colours above and below, how likely each class is there."""

    share: float
    above: Colour
    below: Colour
    likely: dict[str, float]


# Chosen for VOC's long tail: person in more than a third of the images, the rarest class in about 5 %.
SCENES: dict[str, Scene] = {
    "street": Scene(
        0.27,
        (170, 185, 205),
        (105, 105, 108),
        {
            "car": 0.42,
            "person": 0.5,
            "bus": 0.24,
            "bicycle": 0.24,
            "motorbike": 0.24,
            "dog": 0.08,
            "train": 0.04,
        },
    ),
    "farm": Scene(
        0.17,
        (165, 200, 230),
        (95, 140, 65),
        {"cow": 0.34, "sheep": 0.35, "horse": 0.36, "person": 0.32, "dog": 0.16, "bird": 0.1, "car": 0.05},
    ),
    "room": Scene(
        0.34,
        (205, 190, 165),
        (140, 105, 75),
        {
            "chair": 0.34,
            "diningtable": 0.2,
            "sofa": 0.2,
            "tvmonitor": 0.2,
            "pottedplant": 0.2,
            "bottle": 0.24,
            "cat": 0.24,
            "dog": 0.18,
            "person": 0.38,
        },
    ),
    "water": Scene(
        0.08, (190, 215, 235), (60, 105, 150), {"boat": 0.75, "bird": 0.36, "person": 0.3, "aeroplane": 0.06}
    ),
    "sky": Scene(0.08, (110, 160, 220), (200, 220, 235), {"aeroplane": 0.75, "bird": 0.4, "person": 0.08}),
    "station": Scene(
        0.06,
        (185, 185, 185),
        (125, 115, 110),
        {"train": 0.85, "person": 0.5, "bicycle": 0.06, "bottle": 0.06},
    ),
}


@dataclass(frozen=True, slots=True)
class Object:
    """One object as its annotation has it: the box (left, top, right, bottom) in pixels from 1, inclusive."""

    name: str
    box: tuple[int, int, int, int]
    difficult: bool
    truncated: bool


def compose(index: int, seed: int) -> tuple[Image.Image, list[Object]]:
    """Draw image `index` of a seed: RGB, and its objects from the farthest to the nearest."""
    rng = np.random.default_rng((seed, index))
    width, height = _choose(rng, _SIZES)
    scene = _choose(rng, [(scene, scene.share) for scene in SCENES.values()])
    canvas = _background(rng, scene, width, height)
    for _ in range(rng.integers(0, 4)):
        _clutter(rng, canvas)
    owner: Owner = np.zeros((height, width), dtype=np.uint8)  # the number of the object seen at each pixel
    drawn = [
        (name, *_place(rng, canvas, owner, name, number))
        for number, name in enumerate(_choose_names(rng, scene), start=1)
    ]
    if rng.random() < _SHARE_BAR:
        _bar(rng, canvas, owner)
    objects = []
    for number, (name, area, box, truncated) in enumerate(drawn, start=1):
        seen = int((owner == number).sum())
        if seen:
            extent = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
            difficult = seen < _HIDDEN * area or extent < _TINY * width * height
            objects.append(Object(name, box, difficult, truncated))
    return _develop(rng, canvas), objects


def _choose(rng: Rng, choices: Sequence[tuple[T, float]]) -> T:
    weights = np.array([weight for _, weight in choices])
    return choices[int(rng.choice(len(choices), p=weights / weights.sum()))][0]


def _choose_names(rng: Rng, scene: Scene) -> list[str]:
    """Which objects a picture of this scene holds, one to six, in drawing order."""
    names = [name for name, chance in scene.likely.items() if rng.random() < chance]
    if not names:
        names = [_choose(rng, list(scene.likely.items()))]
    if rng.random() < _SHARE_STRANGER:
        names.append(VOC_CLASSES[rng.integers(len(VOC_CLASSES))])
    names = [name for name in names for _ in range(1 + int(rng.random() < _SHARE_TWICE))]
    return [names[i] for i in rng.permutation(len(names))][:6]


def _place(
    rng: Rng, canvas: Image.Image, owner: Owner, name: str, number: int
) -> tuple[int, tuple[int, int, int, int], bool]:
    """Draw one object: the pixels it has, the box of those inside the picture, whether the border cuts it."""
    height, width = owner.shape
    patch = _object(rng, name, min(width, height))
    left = int(rng.uniform(-0.15 * patch.width, width - 0.85 * patch.width))
    middle = np.clip(rng.normal(0.55, 0.17), 0.15, 0.9) * height
    top = int(np.clip(middle - patch.height / 2, -0.15 * patch.height, height - 0.85 * patch.height))
    solid = np.asarray(patch.getchannel("A")) > 63  # a line of one pixel, halved, is at 127
    canvas.paste(patch, (left, top), patch)
    inner = solid[max(0, -top) : height - top, max(0, -left) : width - left]
    rows, columns = np.nonzero(inner)
    rows, columns = rows + max(0, top), columns + max(0, left)
    owner[rows, columns] = number
    box = (int(columns.min()) + 1, int(rows.min()) + 1, int(columns.max()) + 1, int(rows.max()) + 1)
    area = int(solid.sum())
    return area, box, len(rows) < area


def _object(rng: Rng, name: str, short_side: int) -> Image.Image:
    """RGBA: one object of a class with its coat, light, mirror side, tilt and size."""
    kind = KINDS[name]
    side = short_side * kind.size * rng.uniform(0.75, 1.15)
    if rng.random() < _SHARE_TINY:
        side = short_side * rng.uniform(0.05, 0.12)
    aspect = kind.aspect * np.exp(rng.uniform(-0.18, 0.18))
    width = side if aspect >= 1 else side * aspect
    height = side / aspect if aspect >= 1 else side
    # Drawn at twice its size: Pillow draws without antialiasing, the halving below brings it.
    pen = Pen(max(12, round(2 * width)), max(12, round(2 * height)))
    kind.sketch(pen, rng, pick_colour(rng, kind.first), pick_colour(rng, kind.second))
    drawing = pen.image
    if rng.random() < 0.5:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tilt = rng.normal(0.0, 6.0)
    drawing = drawing.rotate(tilt, Image.Resampling.NEAREST, expand=True).reduce(2)
    style = kind.textures[rng.integers(len(kind.textures))]
    coat = texture(rng, style, drawing.width, drawing.height) * np.float32(rng.uniform(0.75, 1.1))
    pixels = np.array(drawing)
    pixels[..., :3] = np.clip(pixels[..., :3] * coat[..., None], 0, 255)
    return Image.fromarray(pixels)


def _jitter(rng: Rng, colour: Colour, spread: float) -> Colour:
    red, green, blue = np.clip(np.array(colour) + rng.normal(0, spread, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def _background(rng: Rng, scene: Scene, width: int, height: int) -> Image.Image:
    """RGB: two fields of colour with a soft cloudiness; one picture in five has the colours of no place."""
    above, below = scene.above, scene.below
    if rng.random() < 0.2:
        above, below = _jitter(rng, (140, 140, 140), 60), _jitter(rng, (120, 120, 120), 60)
    above, below = _jitter(rng, above, 18), _jitter(rng, below, 18)
    canvas = Image.new("RGB", (width, height), above)
    pen = ImageDraw.Draw(canvas)
    left, right = rng.normal(0.55, 0.1) * height + np.array([-1, 1]) * rng.normal(0, 0.03) * height
    pen.polygon([(0, left), (width, right), (width, height), (0, height)], fill=below)
    for _ in range(rng.integers(0, 5)):  # hills, walls, houses: long shapes of a near colour
        x, y = rng.uniform(0, width), min(left, right)
        w, h = rng.uniform(0.1, 0.5) * width, rng.uniform(0.05, 0.35) * height
        colour = _jitter(rng, above if rng.random() < 0.5 else below, 30)
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x - w / 2, y - h, x + w / 2, y + h * 0.3), fill=colour)
    clouds = rng.normal(0, 7, (9, 12, 3)) + rng.normal(0, 12, (9, 12, 1))
    soft = Image.fromarray(np.clip(128 + clouds, 0, 255).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    mixed = np.asarray(canvas, dtype=np.int16) + np.asarray(soft, dtype=np.int16) - 128
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _clutter(rng: Rng, canvas: Image.Image) -> None:
    """Something that belongs to no class: a blob, a crate, a ring, a bundle of lines, a striped plate."""
    width, height = canvas.size
    pen = ImageDraw.Draw(canvas)
    side = rng.uniform(0.06, 0.26) * min(width, height)
    x, y = rng.uniform(0, width), rng.uniform(0.2, 1.0) * height
    colour, other = _jitter(rng, (128, 128, 128), 55), _jitter(rng, (128, 128, 128), 55)
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    match int(rng.integers(5)):
        case 0:
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
            reach = side * rng.uniform(0.3, 0.8, len(angles))
            corners = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], axis=1)
            pen.polygon([(px, py) for px, py in corners.tolist()], fill=colour)
        case 1:
            pen.rectangle(box, fill=colour, outline=other, width=4)
        case 2:
            pen.ellipse(box, outline=colour, width=max(3, int(side / 8)))
        case 3:
            for px in np.linspace(box[0], box[2], 4):
                pen.line((px, box[1], px + rng.normal(0, 6), box[3]), fill=colour, width=4)
        case _:
            pen.ellipse(box, fill=colour)
            pen.rectangle((box[0], y - side / 10, box[2], y + side / 10), fill=other)


def _bar(rng: Rng, canvas: Image.Image, owner: Owner) -> None:
    """A post or a rail in the foreground, over everything."""
    width, height = canvas.size
    thickness = rng.uniform(0.03, 0.09) * min(width, height)
    colour = _jitter(rng, (95, 90, 85), 30)
    if rng.random() < 0.5:
        at = rng.uniform(0, width - thickness)
        box = (at, 0.0, at + thickness, float(height))
    else:
        at = rng.uniform(0.4, 1.0) * (height - thickness)
        box = (0.0, at, float(width), at + thickness)
    ImageDraw.Draw(canvas).rectangle(box, fill=colour)
    owner[int(box[1]) : int(box[3]) + 1, int(box[0]) : int(box[2]) + 1] = 0


def _develop(rng: Rng, canvas: Image.Image) -> Image.Image:
    """The camera: some blur, light, contrast, a tint, and grain."""
    if rng.random() < 0.3:
        canvas = canvas.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 1.8)))
    gain = rng.uniform(0.75, 1.2) * rng.normal(1.0, 0.05, 3)
    levels = np.arange(256)[:, None] * gain + rng.uniform(-18, 18)
    table = np.clip(levels, 0, 255).astype(np.uint8).T.reshape(-1).tolist()
    grain = rng.integers(-6, 7, (canvas.height, canvas.width, 1), dtype=np.int16)
    pixels = np.asarray(canvas.point(table), dtype=np.int16) + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
