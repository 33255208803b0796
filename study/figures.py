"""The three figures of docs/results.md, of the numbers in results.json."""

import re

import numpy as np

from plot_results import DENSE, format_family, get_family_style, make_figure, save_figure

PAPER, TUNED = "as in the paper", "tuned"


def draw_figures(numbers, folder):
    """study_widths.png, study_initial_matrix.png and study_differences.png"""
    for name, draw in (("widths", draw_widths), ("initial_matrix", draw_initial_matrix),
                       ("differences", draw_differences)):
        save_figure(draw(numbers), folder / f"study_{name}.png", dpi=200)


def make_panels(size, nb_panels, x_label, y_label, **arguments):
    figure = make_figure(*size)
    axes = figure.subplots(1, nb_panels, squeeze=False, **arguments)[0]
    for ax in axes:
        ax.grid(alpha=0.25)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlabel(x_label, fontsize=9)
    axes[0].set_ylabel(y_label, fontsize=9)
    return figure, axes


def write_labels(ax, x, labels, gap):
    """Write texts {text: (x, y, colour)} in a column at x, as near to the height of their points as `gap` between two
    of them allows, each with a thin line to its point."""
    entries = sorted(labels.items(), key=lambda entry: entry[1][1])
    heights = np.array([y for _, (_, y, _) in entries], dtype=float)
    for _ in range(1000):  # neighbours that are too near push each other apart
        overlap = np.clip(gap - np.diff(heights), 0, None) / 2
        heights[:-1] -= overlap
        heights[1:] += overlap
    for (text, (x_point, y_point, color)), height in zip(entries, heights):
        ax.annotate(text, (x_point, y_point), (x, height), fontsize=8, color=color, va="center", ha="left",
                    arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.5, "shrinkA": 1, "shrinkB": 3})


def draw_widths(numbers):
    """Test accuracy against number of parameters, pendigits, share 0.1: a line per structure over numbers of neurons,
    a panel per protocol; bars are 95 % intervals."""
    figure, axes = make_panels((10, 4.6), 2, "parameters of the net", "test accuracy")
    from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

    for ax, protocol in zip(axes, (PAPER, TUNED)):
        lines, labels = {}, {}
        for row in select(numbers["nets"], protocol):
            if not re.match("standard_.*_|rank_[135]$", row["model_name"]):
                lines.setdefault(format_structure(row["model_name"]), []).append(row)
        for structure, rows in lines.items():
            rows.sort(key=lambda row: row["nb_model_parameters"])
            x, y, bars = ([row[key] for row in rows] for key in (
                "nb_model_parameters", "test_accuracy_mean", "interval_half_width"))
            color = get_family_style(rows[0]["model_name"])["color"]
            ax.errorbar(x, y, bars, color=color, linewidth=2 if structure == "dense" else 1.2, elinewidth=0.6,
                        marker="o", markersize=3)
            labels[structure] = x[-1], y[-1], color
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator([1e3, 2e3, 5e3, 1e4, 2e4, 5e4]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.set_title(protocol, fontsize=10)
        low, high = ax.get_ylim()
        write_labels(ax, 6e4, labels, 0.05 * (high - low))
        ax.set_xlim(None, 1.6e5)
    return figure


def draw_initial_matrix(numbers):
    """Test accuracy of nets of 200 neurons against the scale of their initial matrix, in the paper's protocol."""
    figure, (ax,) = make_panels((7, 4.6), 1, "root mean square of the initial hidden matrix, in % of Glorot's",
                                "test accuracy")
    nets = {row["model_name"]: row for row in select(numbers["nets"], PAPER) if row["nb_neurons"] == 200}
    scaled = {100: nets[DENSE], **{int(name.split("_")[-1]): row for name, row in nets.items()
                                   if name.startswith("standard_scaled")}}
    plot_points(ax, sorted(scaled), [scaled[scale] for scale in sorted(scaled)], "#000000", "-o", "dense, scaled", (8, 8))
    for d in (1, 2, 5):
        scale, color = 100 * numbers["initial_scales"][str(d)], get_family_style(f"ss_{d}_dim")["color"]
        plot_points(ax, [scale - 0.4], [nets[f"ss_{d}_dim"]], color, "s", f"SSS-{d}", (-8, 0))
        plot_points(ax, [scale + 0.4], [nets[f"standard_as_ss_{d}"]], color, "o", f"dense as SSS-{d}", (8, 0))
    return figure


def plot_points(ax, x, rows, color, style, label, offset):
    y, bars = ([row[key] for row in rows] for key in ("test_accuracy_mean", "interval_half_width"))
    ax.errorbar(x, y, bars, color=color, fmt=style, markersize=5, elinewidth=0.8, capsize=2)
    ax.annotate(label, (x[-1], y[-1]), offset, textcoords="offset points", color=color, fontsize=8,
                ha="left" if offset[0] > 0 else "right", va="center")


def draw_differences(numbers):
    """Difference to the dense net of as many neurons against the ratio of parameters, pendigits, share 0.1, tuned; bars
    are 95 % intervals, filled points have a verdict."""
    figure, axes = make_panels((10, 4.6), 2, "parameters, in % of the dense net's",
                               "test accuracy minus the dense net's", sharey=True)
    sizes = {(row["nb_neurons"], row["model_name"]): row["nb_model_parameters"] for row in select(numbers["nets"], TUNED)}
    for ax, nb_neurons in zip(axes, (50, 200)):
        ax.axhline(0, color="#000000", linewidth=1)
        for row in select(numbers["comparisons"], TUNED):
            if row["question"] == "structure" and row["nb_neurons"] == nb_neurons and row["model_name"] != "rank_1":
                color = get_family_style(row["model_name"])["color"]
                x = 100 * sizes[nb_neurons, row["model_name"]] / sizes[nb_neurons, DENSE]
                ax.errorbar(x, row["difference_mean"], (row["interval_high"] - row["interval_low"]) / 2, color=color,
                            fmt="o", markerfacecolor="white" if row["verdict"] == "undecided" else color)
                ax.annotate(format_structure(row["model_name"]), (x, row["difference_mean"]), (5, 4),
                            textcoords="offset points", fontsize=8, color=color)
        ax.set_title(f"{nb_neurons} neurons", fontsize=10)
    return figure


def select(rows, protocol):
    """Those of pendigits at share 0.1."""
    return [row for row in rows if (row["protocol"], row["dataset"], row["share"]) == (protocol, "pendigits", 0.1)]


def format_structure(model_name):
    return re.sub("Monarch.*", "Monarch", format_family(model_name))
