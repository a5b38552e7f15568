"""Answers to queries as text for the terminal."""

from utils.errors import printable


def format_search(found):
    """An answer of `retrieval.answers.answer_query` as a table, with notes about ties below it."""
    results = found["results"]
    names = [printable(result["class"] or "-") for result in results]
    times = [format_times(result["start"], result["end"]) for result in results]
    columns = list(map(len, names)), list(map(len, times))
    name_width, time_width = (
        max([len(head), *lengths]) for head, lengths in zip(("class", "time"), columns, strict=True)
    )
    has_parts = len({(result["query_start"], result["query_end"]) for result in results}) > 1
    head = ["rank  bits   share", "class".ljust(name_width), "time".ljust(time_width), "path"]
    lines = ["", printable(found["path"]), "  ".join(head)]
    for result, name, shown in zip(results, names, times, strict=True):
        cells = [
            f"{result['rank']:>4}  {result['distance']:>4}  {format_share(result['share']):>6}",
            name.ljust(name_width),
            shown.ljust(time_width),
            printable(result["path"]),
        ]
        if has_parts:
            cells.append(f"(query {format_times(result['query_start'], result['query_end'])})")
        lines.append("  ".join(cells))
    return "\n".join([*lines, *map(describe_tie, found["ties"]), *describe_unlike(found)]) + "\n"


def describe_tie(tie):
    """A line for results at one distance that more moments have: rank 4-5: 96 moments tie."""
    ranks = f"{tie['first']}-{tie['last']}" if tie["first"] < tie["last"] else str(tie["first"])
    bits = "1 bit" if tie["distance"] == 1 else f"{tie['distance']} bits"
    return f"rank {ranks}: {tie['windows']} moments tie at {bits}"


def describe_unlike(found):
    """A line for a query that is unlike all that is indexed."""
    if not found["results"]:
        return ["nothing matches"]
    if found["unlike"] is None:
        return []
    nearest = min(result["distance"] for result in found["results"])
    return [
        f"nothing indexed is like this query: the nearest is at {nearest} bits, and nearly all "
        f"validation clips have a neighbour within {found['unlike']}"
    ]


def format_times(start, end):
    """Two times, as a player shows them: 1:02:03.5-1:02:06."""
    return f"{format_time(start)}-{format_time(end)}"


def format_time(seconds):
    """Seconds as h:mm:ss or m:ss, with tenths unless they are zero."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    shown = f"{rest // 10:02}" + (f".{rest % 10}" if rest % 10 else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{shown}" if hours else f"{minutes}:{shown}"


def format_share(share):
    """A share of the index in per cent, such as 12 %, 0.3 % or <0.01 %."""
    percent = 100 * share
    if percent < 0.01:
        return "<0.01%"
    return f"{percent:.2g}%" if percent < 99.5 else "100%"
