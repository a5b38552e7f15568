"""A picture of what was retrieved."""

from matplotlib.figure import Figure

from utils.files import write_aside

RIGHT, WRONG, QUERY = "#1a7f37", "#cf222e", "#57606a"


def save_retrieval_picture(rows, path):
    """Draw each query and its nearest items in one row and write a PNG to `path`.

    rows: list of rows; the first entry of a row is the query as (frame, title), the others its
    results as (frame, title, is_right), framed green or red. frame: (H, W, 3) uint8 RGB.
    """
    columns = max(map(len, rows))
    figure = Figure(figsize=(1.25 * columns, 1.55 * len(rows) + 0.4), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for axis, cell in zip(line, row, strict=False):
            colour = QUERY if len(cell) == 2 else (RIGHT if cell[2] else WRONG)
            axis.imshow(cell[0])
            axis.set_title(cell[1], fontsize=7, color=colour, parse_math=False)
            for spine in axis.spines.values():
                spine.set(edgecolor=colour, linewidth=3)
        for axis in line:
            axis.set(xticks=[], yticks=[])
        for axis in line[len(row) :]:
            axis.set_axis_off()
    figure.suptitle("query, then its nearest by Hamming distance (bits)", fontsize=9)
    with write_aside(path) as temporary:
        figure.savefig(temporary, format="png")
