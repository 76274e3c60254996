"""Small charts as plain SVG geometry; every function takes numbers and returns numbers, the template draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A curve in a box of `width` × `height`: SVG points, and the tick values of both axes with their positions."""

    width: int
    height: int
    points: str
    smooth: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def line(xs: Sequence[float], ys: Sequence[float], *, width: int = 640, height: int = 220) -> Line:
    """A curve and its running mean over about a tenth of its length; at least two points are needed."""
    low, high = min(ys), max(ys)
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)

    def place(x: float, y: float) -> str:
        across = (x - xs[0]) / ((xs[-1] - xs[0]) or 1) * width
        return f"{across:.1f},{height - (y - low) / (high - low) * height:.1f}"

    window = max(1, len(ys) // 10)
    means = [sum(ys[max(0, i - window + 1) : i + 1]) / len(ys[max(0, i - window + 1) : i + 1]) for i in range(len(ys))]
    steps = [low + (high - low) * i / 4 for i in range(5)]
    return Line(
        width=width,
        height=height,
        points=" ".join(place(x, y) for x, y in zip(xs, ys, strict=True)),
        smooth=" ".join(place(x, y) for x, y in zip(xs, means, strict=True)),
        x_ticks=[(i / 4 * width, f"{xs[0] + (xs[-1] - xs[0]) * i / 4:.0f}") for i in range(5)],
        y_ticks=[(height - (value - low) / (high - low) * height, f"{value:.2f}") for value in steps],
    )


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
