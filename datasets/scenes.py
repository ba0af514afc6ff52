"""Procedural outdoor scenes with exact labels, the data of the `demo` command.

Axes: H W with H = W = side; colour comes first while painting and last in the result. Lengths are
fractions of the side and textures are counted in cells per side, so neither depends on the size.
The classes come close in colour on purpose (water and sky, road and wall, grass and leaves) and
differ in texture; layout, light and tint are drawn anew for every scene.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densesiam_seg.errors import OutputError

CLASSES: tuple[str, ...] = ("sky", "water", "grass", "trees", "buildings", "road")
COLOURS: tuple[tuple[int, int, int], ...] = (
    (142, 202, 240),
    (33, 92, 168),
    (164, 206, 84),
    (30, 110, 62),
    (214, 106, 78),
    (120, 112, 124),
)
SKY, WATER, GRASS, TREES, BUILDINGS, ROAD = range(len(CLASSES))

Floats = NDArray[np.float32]


def scene(seed: int, index: int, side: int = 192) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (H, W, 3) and label (H, W), both uint8; a pure function of its arguments.

    Scenes of another side are other scenes, with the same mixture of layouts and textures.
    """
    assert seed >= 0 and index >= 0 and side >= 16, (seed, index, side)
    canvas = Canvas(np.random.Generator(np.random.Philox(key=[seed, index])), side)
    compose(canvas)
    image = (photograph(canvas) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0)), canvas.label


def write_scenes(
    folder: Path, count: int, *, seed: int, side: int, split: str, first: int = 0
) -> None:
    """Write scenes `first` to `first + count - 1` as images/<split>/0001.jpg, labels/<split>/0001.png.

    Splits of one seed are disjoint when their ranges of indices are. Raises OutputError.
    """
    images, labels = folder / "images" / split, folder / "labels" / split
    try:
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, label = scene(seed, first + number, side)
            Image.fromarray(image).save(images / f"{number + 1:04d}.jpg", quality=92, subsampling=0)
            indexed = Image.fromarray(label)
            indexed.putpalette([value for colour in COLOURS for value in colour])
            indexed.save(labels / f"{number + 1:04d}.png")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{folder}: scenes cannot be written ({reason}); choose another folder or free some space"
        ) from error


class Canvas:
    """A scene being painted: its draws, its grid, and the arrays that grow layer by layer."""

    def __init__(self, rng: np.random.Generator, side: int) -> None:
        self.rng = rng
        self.x: Floats = ((np.arange(side) + 0.5) / side).astype(np.float32)
        self.y: Floats = self.x[:, None]
        self.image = np.zeros((3, side, side), np.float32)
        self.label = np.zeros((side, side), np.uint8)
        self.horizon = self.uniform(0.2, 0.58)
        self.near: Floats = np.maximum(self.y - self.horizon, 0) / (1 - self.horizon)  # 1 = bottom

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def mix(self, *colours: tuple[float, float, float]) -> Floats:
        """(3, 1, 1): a random mean of colours, slightly varied in tint and brightness."""
        mean: NDArray[np.float64] = self.rng.dirichlet(np.ones(len(colours))) @ np.array(colours)
        varied = mean * (1 + 0.03 * self.rng.standard_normal(3)) * self.uniform(0.88, 1.12)
        return varied.astype(np.float32).reshape(3, 1, 1)

    def noise(self, rows: float | Floats, columns: float, octaves: int = 1) -> Floats:
        """(H, W): smooth noise; `rows` is cells per side, or where each row lies in cells."""
        v = self.x * rows if isinstance(rows, float) else rows[:, 0] - rows.min()
        total: Floats = np.zeros_like(self.image[0])
        for scale, weight in ((1, 1.0), (2, 0.65), (4, 0.42))[:octaves]:
            high, wide = int(v.max() * scale) + 4, int(columns * scale) + 4
            cells = self.rng.standard_normal((wide, high), np.float32)
            across = blend(cells, self.x * columns * scale + 1)
            total += weight * blend(across.T, v * scale + 1)
        return total

    def paint(self, where: NDArray[np.bool_], kind: int, texture: Floats) -> None:
        np.copyto(self.image, texture, where=where)
        np.copyto(self.label, np.uint8(kind), where=where)


def blend(cells: Floats, places: Floats) -> Floats:
    """(N, M): the rows of `cells` (C, M) blended at each of N places, by four Gaussian weights.

    The weights have unit length, so independent cells keep their variance. Four plain sums take
    less time than a matrix product and start no threads.
    """
    first = np.floor(places) - 1
    taps = [np.exp(-2 * (places - first - tap) ** 2) for tap in range(4)]
    length = np.sqrt(sum(tap * tap for tap in taps))
    rows, start = np.ascontiguousarray(cells), first.astype(np.intp)
    total: Floats = np.zeros((len(places), cells.shape[1]), np.float32)
    for k, tap in enumerate(taps):
        total += (tap / length)[:, None] * rows[start + k]
    return total


# Materials: one texture (3, H, W) each.


def air(c: Canvas) -> Floats:
    zenith = c.mix((0.42, 0.62, 0.90), (0.54, 0.70, 0.88), (0.68, 0.74, 0.82))
    low = c.mix((0.80, 0.88, 0.95), (0.78, 0.83, 0.88), (0.92, 0.86, 0.78))
    blue: Floats = zenith + (low - zenith) * np.minimum(c.y / np.float32(c.horizon), 1)
    clouds: Floats = np.clip(0.5 * c.noise(4.0, 2.0, 2) + c.uniform(-0.8, 0.4), 0, 1)
    return blue + 0.7 * clouds * (0.95 - blue)


def water(c: Canvas) -> Floats:
    colour = c.mix((0.12, 0.36, 0.60), (0.22, 0.46, 0.64), (0.14, 0.42, 0.52))
    rows = c.uniform(14, 20) * np.log(c.near + 0.2)
    ripples = c.noise(rows, c.uniform(3, 5)) + 0.6 * c.noise(2 * rows, 8.0)
    return colour * (1.1 + c.uniform(0.24, 0.32) * ripples - 0.2 * c.near)


def grass(c: Canvas) -> Floats:
    colour = c.mix((0.48, 0.62, 0.24), (0.56, 0.63, 0.27), (0.64, 0.60, 0.33))
    blades = c.noise(c.uniform(40, 46), c.uniform(62, 72))
    return colour * (1 + c.uniform(0.15, 0.22) * blades + 0.06 * c.noise(5.0, 4.0, 2))


def leaves(c: Canvas) -> Floats:
    shadow = c.mix((0.07, 0.14, 0.08), (0.10, 0.15, 0.08), (0.07, 0.13, 0.11))
    sunlit = c.mix((0.24, 0.44, 0.18), (0.32, 0.46, 0.21), (0.43, 0.43, 0.20))
    cells = c.uniform(17, 21)
    sun: Floats = np.tanh(c.noise(cells, cells, 2))
    return shadow + (sunlit - shadow) * (0.55 + 0.45 * sun)


def tarmac(c: Canvas) -> Floats:
    colour = c.mix((0.38, 0.38, 0.40), (0.50, 0.49, 0.49), (0.44, 0.42, 0.40))
    return colour * (1 + c.uniform(0.02, 0.04) * c.noise(68.0, 68.0) + 0.04 * c.noise(6.0, 3.0))


def facade(c: Canvas, left: float, top: float) -> Floats:
    wall = c.mix((0.82, 0.72, 0.58), (0.74, 0.42, 0.32), (0.66, 0.64, 0.62), (0.82, 0.64, 0.44))
    pane = c.mix((0.16, 0.20, 0.26), (0.26, 0.31, 0.36))
    columns, rows = (c.x - left) * c.uniform(13, 18), (c.y - top) * c.uniform(12, 16)
    inside = (np.abs(columns % 1 - 0.5) < 0.27) & (np.abs(rows % 1 - 0.55) < 0.3)
    lamps = 1 + 0.3 * c.rng.standard_normal((32, 32), np.float32)
    glass = pane * lamps[rows.astype(int) % 32, columns.astype(int) % 32]
    return np.where(inside, glass, wall)


# Layout: each element chooses its place and paints itself.


def lake(c: Canvas) -> None:
    """A band behind the meadow, a foreground, or one lower corner."""
    shore = c.near + 0.03 * c.noise(1.0, 5.0, 2)
    shape, start = c.rng.integers(4), c.uniform(0.05, 0.5)
    tilt = c.uniform(0.5, 1.3) * (c.x - 0.5) * (1, -1, 0, 0)[shape]
    end = 0.3 * start + c.uniform(0.3, 0.6) if shape == 3 else 2.0
    begin = (0.1 + start, 0.1 + start, start, 0.3 * start)[shape]
    c.paint((shore + tilt > begin) & (shore < end) & (c.near > 0), WATER, water(c))


def road(c: Canvas) -> None:
    """A road to the vanishing point, straight or bent, with lines."""
    vanish, foot, bend = c.uniform(-0.1, 1.1), c.uniform(-0.1, 1.1), c.uniform(-0.8, 0.8)
    centre = vanish + (foot - vanish + bend * (1 - c.near)) * c.near
    across = np.abs(c.x - centre) / (0.015 + c.uniform(0.28, 0.6) * c.near)
    dashes = np.sin(c.uniform(8, 14) * np.log(c.near + 0.08)) > 0
    lines = ((across < 0.03) & dashes) | (np.abs(across - 0.88) < 0.025)
    texture = np.where(lines, c.mix((0.9, 0.9, 0.88), (0.9, 0.78, 0.4)), tarmac(c))
    c.paint((across < 1) & (c.near > 0), ROAD, texture)


def street(c: Canvas) -> None:
    """A road that crosses the picture."""
    slope, half = c.uniform(-0.25, 0.25), c.uniform(0.06, 0.16)
    middle = c.horizon + (1 - c.horizon) * c.uniform(0.2, 0.9) + slope * (c.x - 0.5)
    across = np.abs(c.y - middle) / half
    lines = (across < 0.06) & (c.x * c.uniform(5, 9) % 1 < 0.6)
    c.paint((across < 1) & (c.near > 0), ROAD, np.where(lines, np.float32(0.85), tarmac(c)))


def house(c: Canvas, base: float) -> None:
    """A block with a lit and a shaded side, under a flat or pointed roof."""
    scale = 0.5 + 1.3 * (base - c.horizon)
    left, width = c.uniform(-0.15, 0.95), scale * c.uniform(0.45, 0.9)
    top, rise = base - scale * c.uniform(0.35, 0.95), scale * c.uniform(0.02, 0.12)
    tiles = c.mix((0.58, 0.34, 0.26), (0.42, 0.42, 0.46)) * (1 + 0.1 * np.sign(np.sin(300 * c.y)))
    texture = np.where(c.y < top, tiles, facade(c, left, top))
    texture *= np.where(c.x > left + c.uniform(0.3, 1.2) * width, np.float32(0.74), np.float32(1))
    along = (c.x - left) / width
    crest = top - rise * (1 - c.uniform(0, 1) * np.abs(2 * along - 1))
    c.paint((along > 0) & (along < 1) & (c.y > crest) & (c.y < base), BUILDINGS, texture)


def grove(c: Canvas, base: float) -> None:
    """A few crowns side by side, on trunks."""
    scale = 0.1 + 0.35 * (base - c.horizon)
    middle, count = c.uniform(-0.05, 1.05), int(c.rng.integers(1, 7))
    solid = np.full_like(c.image[0], -1)
    for place in middle + scale * 0.8 * (np.arange(count, dtype=np.float32) - count / 2):
        radius = scale * c.uniform(0.6, 1.1)
        height = base - radius * c.uniform(1.1, 1.6)
        crown = 1 - ((c.x - place) / radius) ** 2 - ((c.y - height) / (1.15 * radius)) ** 2
        trunk = 1 - np.abs(c.x - place) / (0.1 * radius) - 9 * (c.y < height)
        solid = np.maximum(solid, np.maximum(crown, trunk))
    where = (solid + 0.2 * c.noise(14.0, 14.0, 2) > 0.1) & (c.y < base)
    c.paint(where, TREES, leaves(c))


def wood(c: Canvas, base: float) -> None:
    """A strip of forest across the picture, or a part of it."""
    crest = base - c.uniform(0.06, 0.22) + 0.025 * c.noise(1.0, 9.0, 2)
    part = np.abs(c.x - c.uniform(0, 1)) < c.uniform(0.3, 1.0) + 0.03 * c.noise(9.0, 9.0)
    c.paint((c.y > crest) & (c.y < base) & part, TREES, leaves(c))


def compose(c: Canvas) -> None:
    """Sky and ground, then what stands on the ground, from far to near."""
    everywhere = np.ones_like(c.label, np.bool_)
    c.paint(everywhere, SKY, air(c))
    c.paint(everywhere & (c.near > 0), GRASS, grass(c))
    wet = c.rng.random() < 0.55
    if wet:
        lake(c)
    if not wet or c.rng.random() < 0.5:  # one of the two, so that the ground has two classes
        (road if c.rng.random() < 0.7 else street)(c)
    elements = ((wood, 0.1), (house, 0.35), (grove, 0.6))
    standing = []
    for choice in c.rng.choice(3, size=c.rng.integers(1, 8), p=(0.15, 0.47, 0.38)):
        paint, reach = elements[choice]
        standing.append((c.horizon + reach * c.uniform(0, 1 - c.horizon) + 0.01, paint))
    for base, paint in sorted(standing, key=lambda pair: pair[0]):
        paint(c, base)


def photograph(c: Canvas) -> Floats:
    """(3, H, W) in 0…1: haze, light, lens and sensor applied to the painted scene."""
    haze = c.uniform(0, 0.35) * np.exp(-8 * np.abs(c.y - c.horizon))
    image = c.image + haze * (c.mix((0.75, 0.79, 0.84)) - c.image)
    shadow = 1 + c.uniform(0, 0.14) * np.clip(c.noise(2.5, 2.5), -1.5, 1.5)
    vignette = 1 - c.uniform(0, 0.5) * ((c.x - 0.5) ** 2 + (c.y - 0.5) ** 2)
    warmth, green = c.uniform(-0.07, 0.07), c.uniform(-0.03, 0.03)
    tint = np.exp(np.array([[[warmth]], [[green]], [[-warmth]]], np.float32))
    image *= shadow * vignette * (tint * c.rng.triangular(0.6, 1.05, 1.35))
    image = 0.45 + np.float32(c.uniform(0.85, 1.15)) * (image - 0.45)
    image[:, 1:-1] = 0.7 * image[:, 1:-1] + 0.15 * (image[:, 2:] + image[:, :-2])
    image[..., 1:-1] = 0.7 * image[..., 1:-1] + 0.15 * (image[..., 2:] + image[..., :-2])
    image += c.uniform(0.003, 0.01) * c.rng.standard_normal(image.shape, np.float32)
    clipped: Floats = np.clip(image, 0, 1)
    return clipped
