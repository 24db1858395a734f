# SPDX-License-Identifier: Apache-2.0
"""Growth curves: ns per pair over live ranges, both on logarithmic axes; light and dark.

matplotlib draws them (`pip install 'vmm-iova[bench]'`). A line has the points that were measured
and ends with the last of them, where its name stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_TITLE = "One allocation and one release, steady-state churn (W1), single Python calls"
_THEMES = {
    # background, ink, grid, and colours that stand out from it and from each other
    "light": ("#ffffff", "#1f2328", "#d8dee4", "tab10"),
    "dark": ("#0d1117", "#e6edf3", "#30363d", "Set3"),
}
_LEAST = 0.045  # of the height of the axes between two names


def draw(curves: dict[str, dict[int, float]], target: Path) -> list[Path]:
    """Draw one line for each name, as `target` and, for a dark page, as `target`-dark.

    Args:
        curves: for each name its points: live ranges, and ns.
        target: an .svg or .png file.

    Returns:
        The files that were written.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise SystemExit("the picture needs matplotlib: pip install 'vmm-iova[bench]'") from None
    mpl.use("agg")
    # The same curves give the same file.
    mpl.rcParams["svg.hashsalt"] = "vmm-iova"
    mpl.rcParams["svg.fonttype"] = "none"
    written = []
    for theme in _THEMES:
        name = target.stem if theme == "light" else f"{target.stem}-dark"
        written.append(target.with_name(f"{name}{target.suffix}"))
        _figure(curves, theme).savefig(written[-1], metadata={"Date": None}, bbox_inches="tight")
    return written


def _figure(curves: dict[str, dict[int, float]], theme: str) -> Any:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    ground, ink, grid, colours = _THEMES[theme]
    figure = Figure(figsize=(10, 5.6), facecolor=ground)
    axes = figure.add_subplot(facecolor=ground)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(_TITLE, color=ink, loc="left", fontsize=12)
    axes.set_xlabel("live ranges", color=ink)
    axes.tick_params(colors=ink, which="both")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _time(value)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(color=grid, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(grid)
    palette = mpl.colormaps[colours].colors
    ends = []
    drawn = [(name, sorted(points.items())) for name, points in curves.items() if points]
    for number, (name, points) in enumerate(drawn):
        colour = palette[number % len(palette)]
        width = 2.6 if name.startswith("fast") else 1.4
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=width, marker="o", ms=4)
        ends.append((points[-1], name, colour))
    _name(axes, ends)
    return figure


def _name(axes: Any, ends: list[tuple[tuple[int, float], str, Any]]) -> None:
    """Write names at the right, in the order of the lines' ends, none upon another."""
    axes.autoscale_view()  # the limits are those of the lines before a name is placed by them
    place = -1.0
    for (count, value), name, colour in sorted(ends, key=lambda end: end[0][1]):
        at = axes.transAxes.inverted().transform(axes.transData.transform((count, value)))
        place = max(place + _LEAST, at[1])
        axes.annotate(
            name,
            (count, value),
            (1.03, place),
            textcoords="axes fraction",
            color=colour,
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "linestyle": ":"},
        )


def _time(value: float) -> str:
    for unit in ("ns", "µs"):
        if value < 1000:
            return f"{value:g} {unit}"
        value /= 1000
    return f"{value:g} ms"
