"""Example queries with what they found, as a picture, a page, and points for TensorBoard.

queries, database: `datasets.frames.FrameDataset`. classes: list of class names. examples: list of
(query index, [(database index, distance in bits), ...]).
"""

from reports.figures import save_retrieval_picture
from reports.page import preview, write_page
from reports.projector import write_projector
from utils.terminal import progress

PREVIEW_FRAMES = 8


def draw_examples(path, examples, queries, database, classes):
    """A PNG with one row per query; right results have a green frame, wrong ones a red one."""
    rows = []
    for query, found in examples:
        label = queries.labels[query]
        row = [(middle_frame(queries, query), classes[label])]
        for index, distance in found:
            title = f"{distance}  {classes[database.labels[index]]}"
            is_right = database.labels[index] == label
            row.append((middle_frame(database, index), title, is_right))
        rows.append(row)
    save_retrieval_picture(rows, path)


def write_examples_page(path, examples, queries, database, classes, scores):
    """A page with the same results as animated previews, and `scores`: rows (class, mAP)."""
    searches = []
    for query, found in examples:
        results = []
        for index, distance in found:
            is_right = database.labels[index] == queries.labels[query]
            result = describe_video(database, index, classes)
            results.append({**result, "distance": distance, "is_right": is_right})
        searches.append({**describe_video(queries, query, classes), "results": results})
    write_page(path, f"{len(searches)} of {len(queries)} test queries", searches, scores)


def write_embeddings(folder, codes, queries, database, classes):
    """A folder for TensorBoard's projector: the codes (Q + N, K) of all videos, with thumbnails."""
    videos = [(queries, "query", index) for index in range(len(queries))]
    videos += [(database, "database", index) for index in range(len(database))]
    columns = {
        "class": [classes[dataset.labels[index]] for dataset, _, index in videos],
        "set": [side for _, side, _ in videos],
        "video": [dataset.names[index] for dataset, _, index in videos],
    }
    bar = progress(videos, "thumbnails", leave=False)
    write_projector(folder, codes, columns, (middle_frame(data, i) for data, _, i in bar))


def describe_video(dataset, index, classes):
    """A video as `write_page` takes it."""
    label, frames = classes[dataset.labels[index]], dataset.read(index, PREVIEW_FRAMES)
    return {"path": dataset.names[index], "class": label, "preview": preview(frames)}


def middle_frame(dataset, index):
    """One frame (H, W, 3) uint8 RGB."""
    return dataset.read(index, 1)[0]
