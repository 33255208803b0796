"""The three figures of docs/results.md, of the numbers in results.json at share 0.1; bars are 95 % intervals."""

import pandas as pd

from plot_results import DENSE, format_family, get_family_style, make_figure, save_figure, write_labels


def draw_figures(numbers, folder):
    """study_widths.png, study_initial_matrix.png, study_differences.png"""
    nets, comparisons = (pd.DataFrame(numbers[key]).query("share == 0.1") for key in ("nets", "comparisons"))
    nets = nets.query("dataset == 'pendigits'")
    save_figure(draw_widths(nets), folder / "study_widths.png", dpi=200)
    save_figure(draw_initial_matrix(nets, numbers["initial_scales"]), folder / "study_initial_matrix.png", dpi=200)
    save_figure(draw_differences(comparisons), folder / "study_differences.png", dpi=200)


def make_panels(titles, x_label, y_label):
    figure = make_figure(7 if len(titles) == 1 else 5 * len(titles), 4.5)
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
    color = get_family_style(model_name)["color"]
    ax.errorbar(x, y, half_widths, fmt=line_style, color=color, ecolor=(color, 0.5), elinewidth=0.8, **style)
    return name or format_family(model_name), x[-1], y[-1], color


def draw_widths(nets):
    """Test accuracy against number of parameters, a line per structure, a panel per protocol."""
    protocols = ["as in the paper", "tuned"]
    figure, axes = make_panels([f"pendigits, {name}" for name in protocols], "parameters", "test accuracy")
    nets = nets[nets["model_name"].str.fullmatch(r"standard_nn|ss_\d_dim|rank_8|monarch_\d+")]
    nets = nets.sort_values("nb_model_parameters").set_index("protocol")
    for protocol, ax in zip(protocols, axes):
        names = nets.loc[protocol, "model_name"].map(format_family).str.replace(r"Monarch \d+", "Monarch", regex=True)
        ends = []
        for name, line in nets.loc[protocol].groupby(names.to_numpy()):
            x, y, half_widths = line[["nb_model_parameters", "test_accuracy_mean", "interval_half_width"]].to_numpy().T
            ends.append(plot(ax, x, y, None, line["model_name"].iloc[0], ".-", name))
            if name == "dense":
                ax.fill_between(x, y - half_widths, y + half_widths, color="#000000", alpha=0.12, linewidth=0)
        ax.set_xscale("log")
        ax.set_xticks([1e3, 2e3, 5e3, 1e4, 2e4, 5e4], ["1k", "2k", "5k", "10k", "20k", "50k"])
        write_labels(ax, ax.get_xlim()[1], ends)
    return figure


def draw_initial_matrix(nets, initial_scales):
    """Test accuracy of nets of 200 neurons, in the paper's protocol, against the scale of their initial matrix."""
    figure, (ax,) = make_panels(["pendigits, as in the paper, 200 neurons"], "root mean square of the initial matrix, "
                                "in % of the Glorot-uniform one's", "test accuracy")
    nets = nets.query("protocol == 'as in the paper' and nb_neurons == 200").set_index("model_name")
    nets = nets[["test_accuracy_mean", "interval_half_width"]]
    scaled = nets.loc[[*(f"standard_scaled_{p}" for p in (0, 10, 25, 58)), DENSE]]
    plot(ax, [0, 10, 25, 58, 100], *scaled.to_numpy().T, DENSE, "o-")
    ax.annotate("dense, scaled", (79, scaled.iloc[-1, 0]), fontsize=8, va="top", ha="center")
    write_labels(ax, 42, [
        plot(ax, [100 * scale], *nets.loc[[name]].to_numpy().T, f"ss_{d}_dim", style, format_family(name), mfc=fill)
        for d, scale in initial_scales.items()
        for name, style, fill in ((f"ss_{d}_dim", "s", None), (f"standard_as_ss_{d}", "D", "white"))])
    return figure


def draw_differences(comparisons):
    """Difference to the dense net of as many neurons against the ratio of parameters, tuned."""
    panels = ("pendigits", 50), ("pendigits", 200), ("digits", 50)
    figure, axes = make_panels([f"{dataset}, tuned, {n} neurons" for dataset, n in panels],
                               "parameters, in % of the dense net's", "test accuracy minus the dense net's")
    rows = comparisons.query("question == 'structure' and protocol == 'tuned' and model_name != 'rank_1'")  # far below
    for panel, ax in zip(panels, axes):
        points = [plot(ax, [100 * row.parameter_ratio], [y], [row.interval_high - y], row.model_name, "o",
                       mfc="white" if row.verdict == "undecided" else None)
                  for row in rows.itertuples() if (row.dataset, row.nb_neurons) == panel for y in [row.difference_mean]]
        ax.axhline(0, color="#000000", linewidth=1)
        write_labels(ax, ax.get_xlim()[1], points)
    return figure
