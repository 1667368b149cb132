"""Small plots of manipulation models: robustness, terms of layer selection, reliability. As in :mod:`..plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..plots import ACCENT, MARKERS, MUTED, SERIES, SETTINGS, Points, _columns, _decorate, _figure, _short, _svg

DASHES = ("-", "--", ":", "-.")
WIDTH, HEIGHT, ROW = 310, 210, 15


def robustness(
    lines: Mapping[tuple[str, str], Sequence[tuple[float, float] | None]], levels: Sequence[str], title: str
) -> str:
    """Plot metrics against the level of a degradation: colours are metrics, dashes and markers are test sets.

    Args:
        lines: (metric, test set) -> (mean, std) at every level, fractions; None where it is unknown.
        levels: what is written under the levels, the clean picture first.
        title: written above the plot.
    """
    metrics, sets = (list(dict.fromkeys(key[part] for key in lines)) for part in (0, 1))
    with mpl.rc_context(SETTINGS):
        room = 44 + ROW * (1 + -(-len(lines) // 2))
        figure, axes = _figure(WIDTH, HEIGHT + room - 34, (44, 8, 30, room))
        for (metric, name), points in lines.items():
            place, mean, std = np.array([(x, *p) for x, p in enumerate(points) if p is not None]).reshape(-1, 3).T
            color, number = SERIES[metrics.index(metric) % len(SERIES)], sets.index(name)
            axes.fill_between(place, mean - std, mean + std, color=color, alpha=0.14, lw=0)
            axes.plot(
                place, mean, lw=2, ms=4, color=color, ls=DASHES[number % 4], marker=MARKERS[number % 8],
                label=f"{metric}, {_short(name, 18)}",
            )  # fmt: skip
        axes.set_xticks(range(len(levels)), levels)
        axes.set_xlim(-0.15, len(levels) - 0.85)
        _decorate(axes, title, "level, from none to strong", percent=True)
        _legend(axes, columns=2)
        return _svg(figure, title)


def layer_terms(lines: Mapping[str, Points], chosen: int, title: str, *, percent: bool = False) -> str:
    """Plot quantities of every layer; the last line is thick, the chosen layer is marked.

    Args:
        lines: name -> (layer, value) pairs in the order of layers.
        chosen: the layer that a dotted line marks.
        title: written above the plot.
        percent: values are fractions, shown as percent.
    """
    with mpl.rc_context(SETTINGS):
        room = 44 + (ROW * (1 + -(-len(lines) // 2)) if len(lines) > 1 else 0)
        figure, axes = _figure(WIDTH, HEIGHT + room - 34, (44, 8, 30, room))
        for index, (name, points) in enumerate(lines.items()):
            last = index == len(lines) - 1
            color = ACCENT if last else SERIES[1 + index % (len(SERIES) - 1)]
            dashes = "-" if last else DASHES[1 + index % 3]
            axes.plot(*_columns(points), label=name, lw=2.4 if last else 1.4, ms=4, ls=dashes, color=color, marker="o")
        axes.axvline(chosen, color=MUTED, lw=1.2, ls=":")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        _decorate(axes, title, f"layer; {chosen} was chosen", percent)
        if len(lines) > 1:
            _legend(axes, columns=2)
        return _svg(figure, title)


def reliability(bins: Sequence[tuple[float, float, float]], title: str) -> str:
    """Plot the share of edited pictures against their probability; on the diagonal the two are equal.

    Args:
        bins: (mean probability, share that was edited, share of all pictures) of every bin that holds pictures.
        title: written above the plot.
    """
    mean, share, mass = np.array(bins, dtype=float).reshape(-1, 3).T
    with mpl.rc_context(SETTINGS):
        figure, axes = _figure(WIDTH, 254, (44, 20, 30, 48))
        axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=":")
        axes.plot(mean, share, color=ACCENT, lw=1.2)
        axes.scatter(mean, share, s=14 + 300 * mass, color=ACCENT, alpha=0.75, lw=0, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.tick_params(axis="x", pad=7)
        _decorate(axes, title, "probability that it was edited", percent=True)
        axes.xaxis.set_major_formatter(axes.yaxis.get_major_formatter())
        return _svg(figure, title)


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="upper left", bbox_to_anchor=(-0.14, -0.2), frameon=False, fontsize=9, ncols=columns, columnspacing=1.2
    )
