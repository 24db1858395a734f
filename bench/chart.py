# SPDX-License-Identifier: Apache-2.0
"""Growth curves as SVG: ns per pair over live ranges, both on logarithmic axes."""

from __future__ import annotations

from html import escape
from math import ceil, floor, log10

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 900, 520, 70, 50, 230, 60
_COLOURS = (
    "#0b6e4f",
    "#5fad56",
    "#c0392b",
    "#d68910",
    "#7d3c98",
    "#2e86c1",
    "#616a6b",
    "#a04000",
    "#17202a",
)


def growth(curves: dict[str, dict[int, float]]) -> str:
    """Draw one line for each name; points are live ranges and ns."""
    curves = {name: points for name, points in curves.items() if points}
    counts = [count for points in curves.values() for count in points]
    times = [value for points in curves.values() for value in points.values()]
    low_x, high_x = floor(log10(min(counts))), ceil(log10(max(counts)))
    low_y, high_y = floor(log10(min(times))), ceil(log10(max(times)))

    def x(count: float) -> float:
        share = (log10(count) - low_x) / (high_x - low_x)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        share = (log10(value) - low_y) / (high_y - low_y)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="26" font-size="17">One allocation and one release, '
        "steady-state churn (W1), single Python calls</text>",
    ]
    for power in range(low_y, high_y + 1):
        at = y(10**power)
        label = f"{10**power:g} ns" if power < 3 else f"{10 ** (power - 3):g} µs"
        label = label if power < 6 else f"{10 ** (power - 6):g} ms"
        out.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" '
            f'stroke="#dddddd"/><text x="{_LEFT - 8}" y="{at + 4:.1f}" '
            f'text-anchor="end">{label}</text>'
        )
    for power in range(low_x, high_x + 1):
        at = x(10**power)
        out.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" '
            f'stroke="#eeeeee"/><text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 20}" '
            f'text-anchor="middle">{10**power:,}</text>'
        )
    out.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 14}" text-anchor="middle">'
        "live ranges</text>"
    )
    ends = []
    for number, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in sorted(points.items()))
        width = 3 if name.startswith("fast") else 1.6
        out.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
        )
        out.extend(
            f'<circle cx="{x(count):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>'
            for count, value in points.items()
        )
        last = max(points)
        ends.append((y(points[last]), x(last), colour, name))
    # Labels stand at the right, in the order of the lines' last points, none upon another.
    place = _TOP
    for at, across, colour, name in sorted(ends):
        place = max(place + 18, at)
        out.append(
            f'<line x1="{across + 5:.1f}" y1="{at:.1f}" x2="{_WIDTH - _RIGHT + 8}" '
            f'y2="{place - 4:.1f}" stroke="{colour}" stroke-width="0.6" stroke-dasharray="2 3"/>'
            f'<text x="{_WIDTH - _RIGHT + 12}" y="{place:.1f}" fill="{colour}">'
            f"{escape(name)}</text>"
        )
    out.append("</svg>\n")
    return "\n".join(out)
