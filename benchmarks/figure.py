"""Figures of the benchmarks, each in two versions: for light pages, and `NAME-dark` for dark ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Text and grid, then marks (Okabe and Ito's palette, told apart by the colour-blind); the first is `pad`.
_THEMES = {
    "": (
        "#24292f",
        "#d0d7de",
        ("#d55e00", "#0072b2", "#009e73", "#8a6d00", "#7b5ea7", "#56606a", "#b8407f", "#00829b"),
    ),
    "-dark": (
        "#e6edf3",
        "#30363d",
        ("#ff8c42", "#58a6ff", "#3fcf9b", "#e3c04b", "#c297ff", "#9aa4ae", "#ff8fc7", "#5cd6ea"),
    ),
}
_MARKERS = "osD^vPX*<>"


def draw_quality(
    summary: dict[str, dict[str, Any]], names: dict[int, str], titles: dict[str, str], path: Path
) -> None:
    """ROC AUC of every method per class, with deviations over seeds as bars: `path` and its dark twin."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "pad"  # the same file from the same numbers
    mpl.rcParams["svg.fonttype"] = "none"
    labels: list[int | None] = [*sorted(names), *([None] if len(names) > 1 else [])]
    for suffix, (ink, grid, colours) in _THEMES.items():
        with mpl.rc_context(
            {"text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink}
        ):
            _draw(summary, names, titles, labels, colours, grid, path.with_stem(path.stem + suffix))


def _draw(
    summary: dict[str, dict[str, Any]],
    names: dict[int, str],
    titles: dict[str, str],
    labels: list[int | None],
    colours: tuple[str, ...],
    grid: str,
    path: Path,
) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(max(5.0, 0.95 * len(labels)), 4.0), layout="constrained")
    for i, (method, found) in enumerate(summary.items()):
        spreads = [found["mean"] if k is None else found["classes"].get(str(k), {}) for k in labels]
        shift = (i - (len(summary) - 1) / 2) * 0.7 / max(1, len(summary))
        shown = [(x + shift, s) for x, s in enumerate(spreads) if s.get("value") is not None]
        axes.errorbar(
            [x for x, _ in shown],
            [s["value"] for _, s in shown],
            yerr=[s["deviation"] or 0.0 for _, s in shown],
            fmt=_MARKERS[i % len(_MARKERS)],
            color=colours[i % len(colours)],
            markersize=8 if method == "pad" else 5,
            label=titles[method],
            zorder=3 if method == "pad" else 2,
        )
    axes.set_xticks(range(len(labels)), ["mean" if k is None else names[k] for k in labels])
    if labels[-1] is None:
        axes.axvline(len(labels) - 1.5, color=grid, linewidth=1)
    axes.set_ylabel("ROC AUC")
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.grid(axis="y", color=grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_color(grid)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
