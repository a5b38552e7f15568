"""metrics.json, and the folders of results."""

import json

from utils.files import write_text

PROTOCOL = ("queries", "database", "bits", "top_r", "queries_without_relevant")


def write_metrics(path, metrics, run, others=None, comparison=None):
    """Write the metrics of one network or file of codes as JSON.

    metrics: as `retrieval.metrics.evaluate` returns them. run: dict of what was tested, and by
    what. others: {name: metrics} of baselines that were measured on the same data. comparison: of
    `retrieval.baselines.compare`, for the key of this name.

    The file has "run", with the protocol; "metrics": numbers, and the mAP of each class;
    "curves": lists; and for each of `others` its name with "metrics" and "curves".
    """
    content = {"run": {**run, **{key: metrics[key] for key in PROTOCOL}}, **split(metrics)}
    content |= {name: split(other) for name, other in (others or {}).items()}
    content |= {"comparison": comparison} if comparison else {}
    write_text(path, json.dumps(content, indent=2) + "\n")


def split(metrics):
    """{"metrics": the numbers, "curves": the lists}, without the protocol."""
    measured = {key: value for key, value in metrics.items() if key not in PROTOCOL}
    curves = {key: value for key, value in measured.items() if isinstance(value, list)}
    numbers = {key: value for key, value in measured.items() if key not in curves}
    return {"metrics": numbers, "curves": curves}


def short_names(paths):
    """The last folder and the name of each file without suffix; whole paths if those are equal."""
    names = ["/".join(path.absolute().with_suffix("").parts[-2:]) for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def result_folders(output, names):
    """The folder for the results of each name: `output` for one, else different ones below it."""
    if len(names) == 1:
        return [output]
    folders = []
    for name in names:
        folder = output / name.strip("/").replace("/", "_")
        while folder in folders:  # such as those of x/y_z and x_y/z
            folder = folder.with_name(f"{folder.name}_")
        folders.append(folder)
    return folders
