"""What all figures share: the styles of the families, panels and legend, and the files."""
import io
import math
import re
import textwrap
from itertools import product
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from result_tables import shorten

# All pairs stay apart under simulated protanopia, deuteranopia and tritanopia; the markers serve greyscale.
FAMILY_STYLES = {
    "standard_nn": {"color": "#000000", "marker": "o"},
    "ss_1_dim": {"color": "#9dae5a", "marker": "^"},
    "ss_2_dim": {"color": "#12b0a8", "marker": "s"},
    "ss_3_dim": {"color": "#0a6b5a", "marker": "D"},
    "ss_4_dim": {"color": "#3a63d8", "marker": "v"},
    "ss_5_dim": {"color": "#5c1278", "marker": "P"},
    "rank_1": {"color": "#d55e00", "marker": "X"},
}
# Of more state dimensions, from 6 on to the lighter; the steps shrink, as the difference that a dimension makes does.
FIRST_LARGE_COLOR, LAST_LARGE_COLOR = (163, 24, 156), (255, 201, 236)  # red, green, blue
OTHER_COLORS = ("#e69f00", "#cc79a7", "#7f7f7f", "#56b4e9")
OTHER_MARKERS = ("p", "h", "<", ">", "*")


class ResultFigure(Figure):
    """A matplotlib Figure that a notebook displays when it ends a cell.

    pyplot's figures live until somebody closes them, and a notebook may show them twice. A figure made without pyplot,
    like this one, touches no global state and no backend, but of a plain Figure a notebook only prints the name.
    """

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def get_family_style(model_name):
    """{"color": ..., "marker": ...} of a family: fixed for the paper's seven, else derived from the name."""
    if model_name in FAMILY_STYLES:
        return dict(FAMILY_STYLES[model_name])
    if parsed := re.fullmatch(r"ss_([1-9]\d*)_dim", model_name):
        d = int(parsed[1])
        color = [round(last + (first - last) * 6 / d) for first, last in zip(FIRST_LARGE_COLOR, LAST_LARGE_COLOR)]
        return {"color": "#{:02x}{:02x}{:02x}".format(*color), "marker": OTHER_MARKERS[d % len(OTHER_MARKERS)]}
    n = sum(model_name.encode()) + len(model_name)  # unlike hash(), the same in every process
    return {"color": OTHER_COLORS[n % len(OTHER_COLORS)], "marker": OTHER_MARKERS[n % len(OTHER_MARKERS)]}


def save_figure(figure, path):
    """Write a figure to a .png file and, for papers, to a .pdf file beside it; the same figure gives the same bytes.

    :param path: of one of the two
    """
    path = Path(path)
    with rc_context({"pdf.fonttype": 42}):  # TrueType, text that can be searched and edited
        figure.savefig(path.with_suffix(".png"), dpi=100, metadata={"Software": None})
        figure.savefig(path.with_suffix(".pdf"), metadata={"Creator": None, "Producer": None, "CreationDate": None})


# ---- panels and legend ------------------------------------------------------------------------------------

def new_panels(results):
    """A figure with one panel per dataset and share, and {(dataset, share): ax}.

    A share that has no place in the results of a dataset, as several sweeps taken together may have, gets no panel.
    """
    keys = [(dataset, share) for dataset, share in dict.fromkeys(product(
        results["dataset_names"], results["training_set_shares"])) if share in (results.get(dataset) or [share])]
    nb_shares = len(set(results["training_set_shares"]))
    # One row per dataset, unless that is too wide, or there is one share only, or not the same ones everywhere.
    nb_columns = max(1, min(4, len(keys)))
    if 1 < nb_shares <= 5 and len(keys) == nb_shares * len(set(results["dataset_names"])):
        nb_columns = nb_shares
    panel_size = {1: (6.4, 4.2), 2: (4.8, 3.4)}.get(nb_columns, (3.2, 2.7))
    figure = new_figure(max(1, len(keys)), nb_columns, panel_size)
    for ax, (dataset, share) in zip(figure.axes, keys):
        ax.set_title(f"{shorten(dataset, 32)}\ntraining share {share:g}", parse_math=False)
        ax.margins(x=0.08)
    return figure, dict(zip(keys, figure.axes))


def new_figure(nb_panels, nb_columns, panel_size, sharex=False):
    """Panels of this size (inches); those of a row share the vertical axis."""
    nb_rows = math.ceil(nb_panels / nb_columns)
    figure = ResultFigure(figsize=(max(6.4, panel_size[0] * nb_columns), panel_size[1] * nb_rows + 0.8),
                          dpi=100, layout="constrained")
    axes = figure.subplots(nb_rows, nb_columns, squeeze=False, sharex=sharex, sharey="row").ravel()
    for ax in axes[nb_panels:]:
        ax.remove()
    return figure


def get_rows(figure):
    """[[ax, ...], ...]"""
    nb_columns = figure.axes[0].get_gridspec().ncols
    return [figure.axes[start:start + nb_columns] for start in range(0, len(figure.axes), nb_columns)]


def set_y_range(axes, values, margin=0.08):
    """Room for the values on the axis that these panels share, with a margin as a fraction of their range."""
    values = [value for value in values if math.isfinite(value)]
    if values:
        height = margin * (max(values) - min(values)) or 0.01
        axes[0].set_ylim(min(values) - height, max(values) + height)


def set_parameter_axis(ax, sizes, formatter):
    """A logarithmic axis for sizes (numbers above 0) that span more than a factor of four."""
    span = max(sizes) / min(sizes) if sizes else 1
    if span > 4:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if span < 10 else (1, 2, 5) if span < 100 else (1,)))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(formatter)


def label_axes(figure, x_label, y_label):
    """Name the axes along the left and lower edges, in a size for small panels; mark panels without runs."""
    nb_columns = len(get_rows(figure)[0])
    for index, ax in enumerate(figure.axes):
        if index % nb_columns == 0:
            ax.set_ylabel(y_label, fontsize=8)
        if index + nb_columns >= len(figure.axes):
            ax.set_xlabel(x_label, fontsize=8)
        ax.title.set_fontsize(8)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.25)
        if not ax.lines:
            ax.text(0.5, 0.5, "no runs", transform=ax.transAxes, ha="center", va="center", color="#7f7f7f")
            ax.tick_params(bottom=False, labelbottom=False)


def add_legend(figure, title, handles):
    """Beneath all panels, where it covers no data."""
    if handles:
        nb_rows = math.ceil(len(handles) / int(figure.get_figwidth() / 1.5))
        nb_lines = math.ceil(len(title) / (13.5 * figure.get_figwidth()))
        title = "\n".join(textwrap.wrap(title, len(title) // nb_lines + 10))  # of about the same length
        legend = figure.legend(handles=handles, title=title, loc="outside lower center", fontsize=8, title_fontsize=8,
                               ncols=math.ceil(len(handles) / nb_rows))
        legend.get_title().set_multialignment("center")
