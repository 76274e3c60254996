"""Small charts as plain SVG geometry; every function takes numbers and returns numbers, the template draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A curve in a box of `width` × `height`: SVG points, and the tick values of both axes with their positions."""

    width: int
    height: int
    points: str
    smooth: str
    window: int
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def line(xs: Sequence[float], ys: Sequence[float], *, width: int = 640, height: int = 220) -> Line:
    """A curve and its running mean over about a tenth of its length; at least two points are needed."""
    step = _round_step(max(ys) - min(ys))
    low, high = math.floor(min(ys) / step) * step, math.ceil(max(ys) / step) * step
    high = high if high > low else low + step

    def place(x: float, y: float) -> str:
        across = (x - xs[0]) / ((xs[-1] - xs[0]) or 1) * width
        return f"{across:.1f},{height - (y - low) / (high - low) * height:.1f}"

    window = max(1, len(ys) // 10)
    means = [sum(ys[max(0, i - window + 1) : i + 1]) / len(ys[max(0, i - window + 1) : i + 1]) for i in range(len(ys))]
    ticks = [low + step * i for i in range(round((high - low) / step) + 1)]
    marks = sorted({round(i / 4 * (len(xs) - 1)) for i in range(5)})
    return Line(
        width=width,
        height=height,
        points=" ".join(place(x, y) for x, y in zip(xs, ys, strict=True)),
        smooth=" ".join(place(x, y) for x, y in zip(xs, means, strict=True)),
        window=window,
        x_ticks=[((xs[i] - xs[0]) / ((xs[-1] - xs[0]) or 1) * width, f"{xs[i]:g}") for i in marks],
        y_ticks=[(height - (value - low) / (high - low) * height, f"{value:.6g}") for value in ticks],
    )


def _round_step(spread: float) -> float:
    """1, 2 or 5 times a power of ten, so that about four steps make the spread; 1 where there is none."""
    rough = spread / 4
    if rough < 1e-6:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(f for f in (1, 2, 5, 10) if f * power >= rough * 0.999) * power)


def shade(share: float, most: float) -> str:
    """A background colour from white to deep blue for a value between 0 and `most`."""
    part = 0.0 if most <= 0 else min(1.0, max(0.0, share / most))
    return f"rgb({round(255 - 214 * part)},{round(255 - 156 * part)},{round(255 - 92 * part)})"


def most_divided(share: Sequence[Sequence[Sequence[float]]], count: int) -> list[int]:
    """The modules whose use of experts differs most between languages, most first.

    `share[module][language][expert]` sums to 1 over experts; the measure is the mean total variation distance from the mean.
    """

    def spread(module: Sequence[Sequence[float]]) -> float:
        mean: list[float] = [sum(column) / len(module) for column in zip(*module, strict=True)]
        return sum(abs(value - m) for row in module for value, m in zip(row, mean, strict=True)) / (2 * len(module))

    order = sorted(range(len(share)), key=lambda i: (-spread(share[i]), i))
    return order[:count]
