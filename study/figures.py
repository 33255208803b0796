"""The three figures of docs/results.md, of the numbers in results.json: pendigits at share 0.1, 95 % intervals."""

import re

import pandas as pd

from plot_results import DENSE, format_family, get_family_style, make_figure, save_figure, write_labels


def draw_figures(numbers, folder):
    """study_widths.png, study_initial_matrix.png, study_differences.png"""
    nets, comparisons = (pd.DataFrame(numbers[key]).query("dataset == 'pendigits' and share == 0.1")
                         for key in ("nets", "comparisons"))
    save_figure(draw_widths(nets), folder / "study_widths.png", dpi=200)
    save_figure(draw_initial_matrix(nets, numbers["initial_scales"]), folder / "study_initial_matrix.png", dpi=200)
    save_figure(draw_differences(nets, comparisons), folder / "study_differences.png", dpi=200)


def make_panels(titles, x_label, y_label):
    figure = make_figure(10 if len(titles) > 1 else 7, 4.5)
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    for ax, title in zip(axes, titles):
        ax.set_title(title)
        ax.set_xlabel(x_label)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(y_label)
    return figure, axes


def plot(ax, x, y, half_widths, model_name, line_style, name=None, **style):
    """Points with bars; the last one, for write_labels: name, x, y, colour."""
    color = get_family_style(re.sub(r"standard_as_ss_(\d+)", r"ss_\1_dim", model_name))["color"]
    ax.errorbar(x, y, half_widths, fmt=line_style, color=color, ecolor=(color, 0.5), elinewidth=0.8, **style)
    return name or format_family(model_name), max(x), y[-1], color


def draw_widths(nets):
    """Test accuracy against number of parameters, a line per structure, a panel per protocol."""
    protocols = ["as in the paper", "tuned"]
    figure, axes = make_panels(protocols, "parameters", "test accuracy")
    nets = nets[nets["model_name"].str.fullmatch(r"standard_nn|ss_\d_dim|rank_8|monarch_\d+")]
    nets = nets.sort_values("nb_model_parameters").set_index("protocol")
    for protocol, ax in zip(protocols, axes):
        names = nets.loc[protocol, "model_name"].map(format_family).str.replace(r"Monarch \d+", "Monarch", regex=True)
        ends = [plot(ax, *line[["nb_model_parameters", "test_accuracy_mean", "interval_half_width"]].to_numpy().T,
                     line["model_name"].iloc[0], ".-", name, linewidth=2 if name == "dense" else 1.2)
                for name, line in nets.loc[protocol].groupby(names.to_numpy())]
        ax.set_xscale("log")
        ax.set_xticks([1e3, 2e3, 5e3, 1e4, 2e4, 5e4], ["1k", "2k", "5k", "10k", "20k", "50k"])
        write_labels(ax, ax.get_xlim()[1], ends)
    return figure


def draw_initial_matrix(nets, initial_scales):
    """Test accuracy of nets of 200 neurons, in the paper's protocol, against the scale of their initial matrix."""
    figure, (ax,) = make_panels(["as in the paper, 200 neurons"], "root mean square of the initial hidden matrix, in % "
                                "of the Glorot-uniform one's", "test accuracy")
    nets = nets.query("protocol == 'as in the paper' and nb_neurons == 200").set_index("model_name")
    nets = nets[["test_accuracy_mean", "interval_half_width"]]
    scaled = nets.loc[[*(f"standard_scaled_{p}" for p in (0, 10, 25, 58)), DENSE]]
    plot(ax, [0, 10, 25, 58, 100], *scaled.to_numpy().T, DENSE, "o-")
    ax.annotate("dense, scaled", (79, scaled.iloc[-1, 0]), fontsize=8, va="top", ha="center")
    write_labels(ax, 42, [
        plot(ax, [100 * scale + shift], *nets.loc[[name]].to_numpy().T, name, style, mfc=fill)
        for d, scale in initial_scales.items() for name, shift, style, fill in (  # those that start alike side by side
            (f"ss_{d}_dim", -0.4, "s", None), (f"standard_as_ss_{d}", 0.4, "D", "white"))])
    return figure


def draw_differences(nets, comparisons):
    """Difference to the dense net of as many neurons against the ratio of parameters, tuned, of 50 and 200 neurons."""
    figure, axes = make_panels(["tuned, 50 neurons", "tuned, 200 neurons"], "parameters, in % of the dense net's",
                               "test accuracy minus the dense net's")
    rows = comparisons.query("question == 'structure' and protocol == 'tuned' and model_name != 'rank_1'")  # far below
    for nb_neurons, ax in zip((50, 200), axes):
        sizes = nets[nets["nb_neurons"] == nb_neurons].groupby("model_name")["nb_model_parameters"].first()
        points = [plot(ax, [100 * sizes[row.model_name] / sizes[DENSE]], [row.difference_mean],
                       [row.interval_high - row.difference_mean], row.model_name, "o",
                       mfc="white" if row.verdict == "undecided" else None)
                  for row in rows[rows["nb_neurons"] == nb_neurons].itertuples()]
        ax.axhline(0, color="#000000", linewidth=1)
        write_labels(ax, ax.get_xlim()[1], points)
    return figure
