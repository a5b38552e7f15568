"""Pictures of queries with what they found.

Right and wrong results differ in colour (blue and orange of Okabe and Ito, which colour-blind
readers can tell apart), in line style and in a sign.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from utils.errors import printable

RIGHT, WRONG, QUERY = "#0072B2", "#D55E00", "#57606A"
SIGNS = {True: "✓", False: "✗"}
CELL, WIDEST = 1.1, 1.4  # inches, the height of a frame; width over height of the room for it
GAP_X, GAP_Y = 0.12, 0.42  # inches between frames; the lower one holds the text
LETTERS_PER_INCH = 15  # of the text


def retrieval_figure(rows, title):
    """Draw each query and its nearest items in one row -> Figure.

    rows: list of rows. The first entry of a row is the query (frame, text), the others are its
    results (frame, text, is_right). A text has one or two lines. frame: (H, W, 3) uint8 RGB, shown
    in its own aspect ratio. One axes with all frames: an axes per frame takes seconds.
    """
    columns = max(map(len, rows))
    frames = [entry[0] for row in rows for entry in row]
    ratio = max(frame.shape[1] / frame.shape[0] for frame in frames)
    width, height = CELL * min(ratio, WIDEST) + GAP_X, CELL + GAP_Y
    size = columns * width + 3 * GAP_X, len(rows) * height + 0.4
    figure = Figure(figsize=size, dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    axes.set_axis_off()
    axes.text(GAP_X, 0.22, title, fontsize=9, va="center")
    for y, row in enumerate(rows):
        for x, (frame, text, *is_right) in enumerate(row):
            left = GAP_X + x * width + (2 * GAP_X if x else 0)  # a gap after the query
            verdict = is_right[0] if is_right else None
            draw_cell(axes, frame, text, verdict, (left, 0.4 + GAP_Y - 0.04 + y * height), width)
    return figure


def draw_cell(axes, frame, text, verdict, corner, width):
    """Show one frame with its text above. verdict: True, False, or None for a query."""
    room = width - GAP_X
    scale = min(CELL / frame.shape[0], room / frame.shape[1])
    shown = frame.shape[1] * scale, frame.shape[0] * scale
    left, top = corner[0] + (room - shown[0]) / 2, corner[1] + (CELL - shown[1]) / 2
    box = left, left + shown[0], top + shown[1], top
    axes.imshow(np.asarray(frame), extent=box, aspect="auto", interpolation="bilinear")
    colour = {None: QUERY, True: RIGHT, False: WRONG}[verdict]
    style = {"linewidth": 2.5, "linestyle": "--" if verdict is False else "-"}
    axes.add_patch(Rectangle((left, top), *shown, fill=False, edgecolor=colour, **style))
    sign = f"{SIGNS[verdict]} " if verdict is not None else ""
    lines = [cut(line, int(LETTERS_PER_INCH * room)) for line in (sign + text).split("\n")]
    text = "\n".join(map(printable, lines))
    axes.text(
        corner[0] + room / 2, corner[1] - 0.05, text, fontsize=7, color=colour, ha="center",
        va="bottom", parse_math=False, linespacing=1.1,
    )  # fmt: skip


def cut(text, letters):
    """The text with its end replaced by … if it has more letters."""
    return text if len(text) <= letters else text[: letters - 1] + "…"
