"""Videos of one recording, found by their colours, to check groups and splits.

Videos that were cut from one recording share a background, a light and clothes, whatever happens in
them. So do their colours, of which this compares histograms: of the first and the last frame, in
each quarter of the picture.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from datasets.frame_files import list_frames, read_frame
from utils.errors import printable
from utils.terminal import progress

BINS = 6  # per colour channel
CELLS = 2  # rows and columns of the picture
SUSPICIOUS = 0.97  # similarity; on UT-Interaction half of the pairs of a recording, and no others
MOST_SUSPECTS = 20  # per video
MOST_SHOWN = 10  # suspects
CHUNK = 2**25  # similarities that are in memory at once


def describe_colours(root, names, workers=1):
    """Colour histograms of videos: (N, D) float32 of length 1, whose products are similarities.

    root: folder of frames. names: paths below it. The similarity of two videos is the Bhattacharyya
    coefficient of their histograms: 0 for no colour in common, 1 for the same colours.
    """

    def describe(name):
        paths = list_frames(root / name)
        return sum(colour_histogram(read_frame(path)) for path in (paths[0], paths[-1]))

    with ThreadPoolExecutor(workers) as pool:  # OpenCV and NumPy release Python's lock
        found = pool.map(describe, names)
        counts = np.stack(list(progress(found, "comparing colours", len(names), "video")))
    features = np.sqrt(counts / counts.sum(axis=1, keepdims=True))
    return features.astype(np.float32)


def colour_histogram(frame):
    """Numbers of pixels of each colour in each cell of a frame (H, W, 3) uint8: (D,)."""
    bins = frame.astype(np.int64) * BINS // 256 @ [BINS * BINS, BINS, 1]  # (H, W)
    rows, columns = (np.arange(size) * CELLS // size for size in bins.shape)
    cells = rows[:, None] * CELLS + columns[None, :]
    return np.bincount((cells * BINS**3 + bins).ravel(), minlength=CELLS**2 * BINS**3)


# ==== groups ====


def look_alike(features, groups):
    """Compare all videos: (how often the most similar video is of the same group, suspects).

    features: of `describe_colours`. groups: the group of each video. The first result is a fraction
    of the videos whose group has others, or None if there are none. Suspects are [(similarity,
    index, index)] of pairs of different groups with a similarity of at least SUSPICIOUS, most
    similar first; None if a video has more than MOST_SUSPECTS on average: if all look alike, as
    those of one fixed camera do, colours tell no recordings apart.
    """
    count, groups = len(features), np.unique(groups, return_inverse=True)[1]
    has_others = np.bincount(groups)[groups] > 1
    nearest, found = np.empty(count, np.int64), []
    for rows in np.array_split(np.arange(count), count**2 // CHUNK + 1):
        similarities = features[rows] @ features.T
        similarities[np.arange(len(rows)), rows] = -1
        nearest[rows] = similarities.argmax(axis=1)
        is_suspect = (similarities >= SUSPICIOUS) & (groups[rows, None] != groups)
        is_suspect &= rows[:, None] < np.arange(count)  # each pair once
        found += [(similarities[i, j], rows[i], j) for i, j in np.argwhere(is_suspect)]
        if len(found) > MOST_SUSPECTS * count:
            return None, None
    own = (groups[nearest] == groups)[has_others].mean() if has_others.any() else None
    return own, sorted(found, reverse=True)


def chance_of_own_group(groups):
    """How often the most similar video would be of the same group if videos were drawn by lot."""
    sizes = np.unique(groups, return_counts=True)[1]
    sizes = sizes[sizes > 1]
    return (sizes * (sizes - 1)).sum() / max(sizes.sum(), 1) / max(len(groups) - 1, 1)


def merge_groups(groups, pairs):
    """Groups in which the videos of each pair are together: list, named by the first of them.

    groups: the group of each video. pairs: (index, index).
    """
    parents = {group: group for group in groups}

    def root(group):
        while parents[group] != group:
            parents[group] = parents[parents[group]]
            group = parents[group]
        return group

    for first, second in pairs:
        first, second = sorted((root(groups[first]), root(groups[second])))
        parents[second] = first
    return [root(group) for group in groups]


def describe_leaks(leaks, videos):
    """Lines about pairs of `look_alike` that are in two lists. videos: (list, Video) of each."""
    suspicious = {videos[i][1].name for pair in leaks for i in pair[1:] if videos[i][0] == "test"}
    lines = [
        f"warning: {len(leaks)} pairs of videos in two lists look as if they were of one recording "
        f"(the colours of their first and last frames agree); {len(suspicious)} test videos:"
    ]
    for similarity, *pair in leaks[:MOST_SHOWN]:
        (split, video), (other_split, other) = (videos[i] for i in pair)
        lines.append(f"  {similarity:.3f}  {video.name} ({split}) and {other.name} ({other_split})")
    if len(leaks) > MOST_SHOWN:
        lines.append(f"  ... and {len(leaks) - MOST_SHOWN} more")
    return "\n".join(map(printable, lines))
