"""What the comparison of strategies prints."""

from collections.abc import Callable, Sequence
from statistics import fmean, median

from common import format_table

AT_10 = "text_to_image_recall_at_10"


def panel_table(rows: Sequence[dict], full_recall: float) -> str:
    """The strategies, best first. full_recall: R@10 on test of the full model, mean of both directions."""
    columns = {  # heading: (format, values)
        "strategy": ("", [row["strategy"] for row in rows]),
        "dropped layers": ("", [row["segments"] for row in rows]),
        "task loss": ("", [_mean_of_runs(row, "task_loss", ".4f") for row in rows]),
        "rank": ("", [_mean_of_runs(row, "rank", "") for row in rows]),
        "proposals": ("", [row["proposals_evaluated"] for row in rows]),
        "layer calls": ("", [_mean_of_runs(row, "layer_calls", "") for row in rows]),
        "unshared": ("", [row["layer_calls_unshared"] for row in rows]),
        "test R@10, % of full": (".1f", [100 * row["test_recall_at_10"] / full_recall for row in rows]),
        "points to ours": ("", [_difference(row) for row in rows]),
    }
    if any("left_out" in row for row in rows):
        without = [row.get("left_out") for row in rows]
        columns["left out: task loss"] = (".4f", [None if w is None else w["task_loss"] for w in without])
        shares = [None if w is None else 100 * w["test_recall_at_10"] / full_recall for w in without]
        columns["left out: R@10, % of full"] = (".1f", shares)
    formats, values = zip(*columns.values(), strict=True)
    return format_table(list(zip(*values, strict=True)), list(columns), formats)


def _mean_of_runs(row: dict, name: str, number_format: str) -> str | None:
    """The value of a row; of one that is a draw the mean of its runs and their standard deviation."""
    if "runs" in row and row[name] is not None:
        mean, deviation = row["runs"][name]
        return f"{mean:{number_format or '.1f'}} ± {deviation:{number_format or '.1f'}}"
    return None if row[name] is None else f"{row[name]:{number_format}}"


def _difference(row: dict) -> str | None:
    """In points of R@10 on test, with the 95 % interval; `none` where it is within it."""
    if row["to_ours"] is None:
        return None
    points, interval = (100 * row["to_ours"][name] for name in ("difference", "interval"))
    return f"none (± {interval:.1f})" if abs(points) <= interval else f"{points:+.1f} ± {interval:.1f}"


def scores_table(judged: Sequence[dict]) -> str:
    """How well each coarse score foretells the objective of all subsets, over the draws."""
    headers = ("measure", "score", "Spearman", "layer 1 kept", "best 100", "best of 10", "regret at 10")
    names = {"spearman": ".2f", "spearman_layer_1_kept": ".2f", "spearman_best": ".2f"}
    lines = [
        (row["measure"], row["score"], *(spread(row[name], style) for name, style in names.items()))
        + (spread(row["rank_of_best_within"][10], ".0f"), spread(row["regret_at_10"], ".4f"))
        for row in judged
    ]
    return _text_table(lines, headers, 2)


def searches_table(found: Sequence[dict]) -> str:
    """The default search from every matrix, over the draws; the last line is over all of them, with medians."""
    headers = ("default search from", "finds the best", "rank", "regret", "proposals", "layer calls")
    costs = ("proposals_evaluated", "layer_calls")
    figures = {"rank": ".0f", "regret": ".4f"} | dict.fromkeys(costs, ".0f")
    every = {name: [value for row in found for value in row[name]] for name in figures}
    lines = [
        (row["measure"], f"{row['rank'].count(1)} of {len(row['rank'])}")
        + tuple(spread(row[name], style, middle) for name, style in figures.items())
        for row, middle in (*((row, fmean) for row in found), ({"measure": "all, median", **every}, median))
    ]
    return _text_table(lines, headers, 1)


def _text_table(lines: Sequence[Sequence[str | None]], headers: Sequence[str], num_names: int) -> str:
    """Cells as they are, numbers to the right of the first columns."""
    sides = [*["left"] * num_names, *["right"] * (len(headers) - num_names)]
    return format_table(lines, headers, disable_numparse=True, colalign=sides)


def spread(
    values: Sequence[float | None], number_format: str, middle: Callable[[Sequence[float]], float] = fmean
) -> str | None:
    """`0.73`, or of several draws the mean and the range: `0.73 [0.70, 0.76]`."""
    if None in values:
        return None
    shown = [f"{value:{number_format}}" for value in (middle(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def sizes_table(sizes: Sequence[dict]) -> str:
    """The best proposal of every number of layers."""
    lines = [
        (s["layers_kept"], s["segments"], s["task_loss"], 100 * s["recall"][AT_10], 100 * s["test_recall"][AT_10])
        + ("yes" if s["nested"] else "no",)
        for s in sizes
    ]
    headers = ("layers kept", "dropped layers", "task loss", "R@10", "test R@10", "nested")
    return format_table(lines, headers, ("", "", ".4f", ".1f", ".1f", ""))
