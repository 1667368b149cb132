"""Small plots as SVG text: learning curves, confusion matrices, accuracy against shots and sessions, spectra.

The text is deterministic, stands alone as an ``.svg`` file and can be put straight into a page. Every colour that must
change with the page's theme is written as a CSS variable with its light-theme value as the default, such as
``var(--plot-ink, #24292f)``; text stays text, in the page's font. One unit is one CSS pixel.

The series colours are those of Okabe and Ito (2008), which stay apart under every common colour blindness; series also
differ in marker and are labelled at their lines, so that colour is never the only cue.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

Points = Sequence[tuple[float, float]]

INK, MUTED, RULE, ACCENT = "#24292f", "#6a737d", "#d9dee3", "#0072b2"
THEMED = {INK: "ink", MUTED: "muted", RULE: "rule", ACCENT: "accent"}
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)
SERIES = (ACCENT, "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a7b00", MUTED)
MARKERS = "osD^vPXh"
UNTRAINED = "prototype only"
CLEANING = tuple(
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        (r"<defs>\s*<style.*?</style>\s*</defs>\s*", ""),  # its selector `*` would reach the whole page
        (r' id="[\w.]+_\d+"', ""),  # counted ids repeat from figure to figure; references go by hashed ids
        (r"\s*<g/>", ""),
        (r' transform="rotate\(-0 [^"]*"', ""),
        (r'(style="[^"]*font-family: )[^;"<]*', r"\1system-ui, sans-serif"),
        (r'(width|height)="([\d.]+)pt"', r'\1="\2"'),
    )
)
DPI = 72  # matplotlib's SVG unit is the point: at 72 dpi figure sizes below are in units
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
}


def learning_curves(
    runs: Mapping[str, Points], title: str, *, percent: bool = False, boundaries: Iterable[float] = ()
) -> str:
    """Plot one quantity against the step: a thin line per run and, with several runs, their mean as a thick one.

    Args:
        runs: name of a run -> (step, value) pairs in the order of steps. The mean covers the steps that all runs have.
        title: written above the plot.
        percent: values are fractions, shown as percent.
        boundaries: steps at which a new stage starts, marked by a dotted line.
    """
    with mpl.rc_context(SETTINGS):
        figure, axes = _figure(310, 210, (44, 8, 30, 34))
        for points in runs.values():
            style = {"lw": 1, "color": MUTED, "alpha": 0.55} if len(runs) > 1 else {"lw": 2, "color": ACCENT}
            axes.plot(*_columns(points), marker="o" if len(points) == 1 else "", **style)
        if len(runs) > 1:
            mean = _mean(runs.values())
            axes.plot(*_columns(mean), lw=2, color=ACCENT, marker="o" if len(mean) == 1 else "")
        for step in boundaries:
            axes.axvline(step, color=MUTED, lw=1, ls=":")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        _decorate(axes, title, "step", percent)
        return _svg(figure, title)


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], title: str = "confusion matrix") -> str:
    """Plot a confusion matrix: row = true class, column = predicted class.

    The strength of a cell is its share of the row (square root, so that rare mistakes stay visible); the diagonal is
    blue, mistakes are orange. Up to 20 classes the counts are written in.

    Args:
        counts: (C, C) numbers of pictures.
        classes: C names.
        title: label for screen readers.
    """
    matrix = np.asarray(counts, dtype=float)
    size, names = len(classes), [_short(name) for name in classes]
    cell = 30 if size <= 12 else 22 if size <= 20 else 17 if size <= 40 else 13.5
    font = min(11.0, cell - 4.5)
    margin = 34 + 0.58 * font * max(map(len, names))
    with mpl.rc_context(SETTINGS):
        figure, axes = _figure(margin + size * cell + 8, margin + size * cell + 8, (margin, 8, margin, 8))
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        pixels = np.empty((size, size, 4))
        pixels[..., :3] = np.where(np.eye(size, dtype=bool)[..., None], RIGHT, WRONG)
        pixels[..., :3] /= 255
        pixels[..., 3] = np.sqrt(share)
        axes.imshow(pixels, interpolation="none", aspect="auto")
        if size <= 20:
            for row, column in zip(*np.nonzero(matrix), strict=True):
                strong = share[row, column] > 0.5
                axes.text(
                    column, row, f"{matrix[row, column]:.0f}", ha="center", va="center_baseline", fontsize=font - 1.5,
                    color="white" if strong else INK,
                )  # fmt: skip
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xticks(range(size), names, rotation=90, fontsize=font, color=INK)
        axes.set_yticks(range(size), names, fontsize=font, color=INK)
        axes.set_xticks(np.arange(-0.5, size), minor=True)
        axes.set_yticks(np.arange(-0.5, size), minor=True)
        axes.grid(which="minor", color=RULE, lw=0.5)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        figure.text(0.01, 0.99, "true ↓   predicted →", color=MUTED, fontsize=font, va="top")
        return _svg(figure, title)


def accuracy_by_shots(rows: Iterable[Mapping[str, object]], title: str = "accuracy by shots") -> str:
    """Plot accuracy against training pictures per class, a line per method with a band of ± one std.

    Args:
        rows: mappings with ``method`` (str), ``shots`` (int), ``mean`` and ``std`` (fractions in [0, 1]).
        title: written above the plot.
    """
    methods: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        values = [float(str(row[key])) for key in ("shots", "mean", "std")]
        methods.setdefault(str(row["method"]), []).append((values[0], values[1], values[2]))
    with mpl.rc_context(SETTINGS):
        room = 22 + 6.6 * max((len(_short(name)) for name in methods), default=0)
        figure, axes = _figure(460 + room, 340, (48, room, 30, 36))
        ends = _bands(axes, methods)
        ticks = sorted({point[0] for points in methods.values() for point in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        _decorate(axes, title, "training pictures per class", percent=True)
        _label_ends(axes, ends)
        return _svg(figure, title)


def session_curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    baseline: Sequence[tuple[float, float]] | None = None,
    title: str = "accuracy after every session",
) -> str:
    """Plot accuracy against the session of class-incremental learning, a line per method with a band of ± one std.

    Args:
        series: method -> (mean, std) after the sessions 0, 1, …, T, fractions in [0, 1].
        baseline: the same of the model without training, as a dashed line; only its means are drawn.
        title: written above the plot.
    """
    lines = {name: [(t, *point) for t, point in enumerate(points)] for name, points in series.items() if points}
    with mpl.rc_context(SETTINGS):
        room = 22 + 6.6 * max(len(_short(name)) for name in (*lines, UNTRAINED))
        figure, axes = _figure(460 + room, 320, (48, room, 30, 36))
        ends = _bands(axes, lines)
        if baseline:
            means = [(t, mean) for t, (mean, _) in enumerate(baseline)]
            axes.plot(*_columns(means), color=MUTED, lw=1.5, ls="--", marker=".")
            ends[UNTRAINED] = (*means[-1], MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(11, integer=True, min_n_ticks=1))
        _decorate(axes, title, "session", percent=True)
        _label_ends(axes, ends)
        return _svg(figure, title)


def pareto(points: Iterable[tuple[str, float, float, float]], title: str, baseline: float | None = None) -> str:
    """Plot accuracy against trained parameters, a labelled point per method; a line joins the best for their size.

    Args:
        points: (method, parameters > 0, mean accuracy, std), accuracies as fractions.
        title: written above the plot.
        baseline: accuracy of the untrained model, as a dotted line.
    """
    rows = sorted(points, key=lambda row: (row[1], -row[2]))
    with mpl.rc_context(SETTINGS):
        figure, axes = _figure(680, 420, (48, 170, 30, 36))
        best = [row for index, row in enumerate(rows) if all(row[2] > other[2] for other in rows[:index])]
        axes.plot([row[1] for row in best], [row[2] for row in best], color=ACCENT, lw=1.5)
        for name, size, mean, std in rows:
            leads = any(name == row[0] for row in best)
            axes.errorbar(size, mean, std, color=ACCENT if leads else MUTED, marker="o", ms=5, lw=0.8)
            axes.annotate(
                _short(name), (size, mean), (6, 3), textcoords="offset points", fontsize=8.5,
                color=INK if leads else MUTED,
            )  # fmt: skip
        if baseline is not None:
            axes.axhline(baseline, color=MUTED, lw=1, ls=":")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        _decorate(axes, title, "trained parameters", percent=True)
        return _svg(figure, title)


def intruder_counts(kinds: Mapping[str, Points], title: str = "intruders against the threshold") -> str:
    """Plot numbers of intruders against the similarity threshold, a line per kind of layer.

    Args:
        kinds: kind of layer -> (threshold, count) pairs, thresholds ascending.
        title: written above the plot.
    """
    with mpl.rc_context(SETTINGS):
        names = [_short(name) for name in kinds]
        room = 60 + 6.6 * max(map(len, names), default=0)
        figure, axes = _figure(400 + room, 280, (44, room, 30, 36))
        for index, (name, points) in enumerate(zip(names, kinds.values(), strict=True)):
            axes.plot(*_columns(points), label=name, lw=2, ms=4, **_style(index))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        _decorate(axes, title, "similarity below which a vector counts", percent=False)
        if names:  # where all vectors count, the lines meet: labels at their ends would not tell them apart
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9.5)
        return _svg(figure, title)


def spectrum(base: Sequence[float], tuned: Sequence[float], marked: Iterable[int], title: str) -> str:
    """Plot a layer's singular values before and after, largest first, on a logarithmic scale; zeros are left out.

    Args:
        base: singular values of the frozen weight.
        tuned: those of the tuned one.
        marked: indices of tuned values to mark, the intruders.
        title: written above the plot.
    """
    with mpl.rc_context(SETTINGS):
        figure, axes = _figure(400, 280, (52, 66, 30, 36))
        lines = {"frozen": (base, MUTED, "--"), "tuned": (tuned, ACCENT, "-")}
        ends = {}
        for name, (values, color, dashes) in lines.items():
            points = [(index + 1, value) for index, value in enumerate(values) if value > 0]
            axes.plot(*_columns(points), lw=2, color=color, ls=dashes)
            if points:
                ends[name] = (*points[-1], color)
        shown = [(index + 1, tuned[index]) for index in marked]
        axes.plot(*_columns(shown), ls="", marker="X", ms=6, color=SERIES[1])
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _decorate(axes, title, "number of the singular value", percent=False)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        _label_ends(axes, ends)
        return _svg(figure, title)


def similarity(matrix: Sequence[Sequence[float]], title: str) -> str:
    """Plot cosines in [0, 1] between vectors of the tuned weight (rows) and of the frozen one (columns) as a heat map.

    Args:
        matrix: (m, m).
        title: written above the plot.
    """
    cosines = np.asarray(matrix, dtype=float)
    with mpl.rc_context(SETTINGS):
        figure, axes = _figure(320, 330, (40, 20, 34, 36))
        pixels = np.empty((*cosines.shape, 4))
        pixels[..., :3] = np.array(RIGHT) / 255
        pixels[..., 3] = cosines
        edge = (0.5, cosines.shape[1] + 0.5, cosines.shape[0] + 0.5, 0.5)
        axes.imshow(pixels, interpolation="none", aspect="auto", extent=edge)
        for axis, label in ((axes.xaxis, "vector of the frozen weight"), (axes.yaxis, "vector of the tuned weight")):
            axis.set_major_locator(MaxNLocator(5, integer=True))
            axis.set_label_text(label)
        axes.set_title(title, loc="left", fontsize=12, pad=10)
        axes.tick_params(length=0)
        return _svg(figure, title)


def accuracy_along(lines: Mapping[str, Points], title: str, *, baseline: float | None = None) -> str:
    """Plot accuracy against λ, the fraction that is kept: a line per scaled quantity, named below the plot.

    Args:
        lines: name -> (λ, accuracy) pairs, λ ascending, accuracies as fractions.
        title: written above the plot.
        baseline: accuracy of the frozen model, as a dotted line.
    """
    with mpl.rc_context(SETTINGS):
        figure, axes = _figure(310, 270, (44, 8, 30, 96))
        for index, (name, points) in enumerate(lines.items()):
            style = {"color": SERIES[index], "ls": ("-", "--", ":")[index % 3], "marker": MARKERS[index]}
            axes.plot(*_columns(points), label=_short(name), lw=2, ms=4, **style)
        if baseline is not None:
            axes.axhline(baseline, color=MUTED, lw=1, ls=":", label="frozen model")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        _decorate(axes, title, "λ, the fraction that is kept", percent=True)
        # all lines meet at λ = 1: labels at their ends would not tell them apart
        axes.legend(loc="upper left", bbox_to_anchor=(-0.04, -0.24), frameon=False, fontsize=9, ncols=2)
        return _svg(figure, title)


def _style(index: int) -> dict[str, str]:
    """Return colour, dashes and marker of the line number `index`: 32 of them differ."""
    dashes = ("-", "--", ":", "-.")[index // len(SERIES) % 4]
    return {"color": SERIES[index % len(SERIES)], "ls": dashes, "marker": MARKERS[index % len(MARKERS)]}


def _bands(
    axes: Axes, lines: Mapping[str, Iterable[tuple[float, float, float]]]
) -> dict[str, tuple[float, float, str]]:
    """Draw a line with a band per name -> (x, mean, std) triples; returns the lines' ends for :func:`_label_ends`."""
    ends = {}
    for index, (name, points) in enumerate(lines.items()):
        x, mean, std = np.array(sorted(points)).T
        style = _style(index)
        axes.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.14, lw=0)
        axes.plot(x, mean, lw=2, ms=5, **style)
        ends[name] = (x[-1], mean[-1], style["color"])
    return ends


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]], gap: float = 13) -> None:
    """Write names at the right edge, at the height of their lines' ends, pushed at least `gap` units apart."""
    if not ends:
        return
    to_units, from_units = axes.transData, axes.transData.inverted()
    previous = -np.inf
    for name, (x, y, color) in sorted(ends.items(), key=lambda item: item[1][1]):
        height = max(to_units.transform((x, y))[1], previous + gap)
        previous = height
        shown = from_units.transform((0, height))[1]
        axes.text(
            1.02, shown, _short(name), color=color, va="center", transform=axes.get_yaxis_transform(), clip_on=False
        )


def _figure(width: float, height: float, margins: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    """Make a figure of the given size and its axes inside `margins` (left, right, top, bottom), all in units."""
    left, right, top, bottom = margins
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    return figure, axes


def _decorate(axes: Axes, title: str, x_label: str, percent: bool) -> None:
    axes.set_title(title, loc="left", fontsize=12, pad=10)
    axes.set_xlabel(x_label)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=RULE, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
    elif axes.get_ylim()[1] < 0.01:
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:.1e}".replace("e-0", "e-") if value else "0")
        )


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _mean(runs: Iterable[Points]) -> list[tuple[float, float]]:
    """Compute the mean of the runs at the steps that all of them have."""
    tables = [dict(points) for points in runs]
    shared = set.intersection(*(set(table) for table in tables))
    return [(step, sum(table[step] for table in tables) / len(tables)) for step in sorted(shared)]


def _short(name: str, limit: int = 26) -> str:
    """Return `name` on one line, printable, at most `limit` characters."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(name.split()))
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _svg(figure: Figure, label: str) -> str:
    """Return the figure as a themed ``<svg>`` element; `label` is for screen readers and keeps ids apart."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": label}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # only measured here: the browser's fonts draw it
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for pattern, replacement in CLEANING:
        text = pattern.sub(replacement, text)
    for color, name in THEMED.items():
        text = text.replace(f": {color}", f": var(--plot-{name}, {color})")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}" stroke-linejoin="round"', 1)
