#!/usr/bin/env python3
"""Prints training runs side by side, from their config.json, metrics.jsonl and evaluation.json (`outeffhop eval --json`).

    print_comparison.py RUN...
"""

import argparse
import json
import pathlib
import statistics
import sys


def figures(run):
    """The rows of a run's column, in order."""
    run = pathlib.Path(run)
    config = json.loads((run / "config.json").read_text())
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in logged if entry.get("loss") is not None]
    if not steps:
        sys.exit(f"print_comparison.py: {run}/metrics.jsonl has no logged step")
    last = steps[-max(1, len(steps) // 10):]
    # The first logged steps hold the warm-up of caches; a median does not mind a machine that was busy for a moment.
    speeds = [entry["tokens_per_second"] for entry in steps][min(2, len(steps) - 1):]
    evaluation = json.loads((run / "evaluation.json").read_text())
    outliers = evaluation.get("outliers", {})
    return {
        "attn_softmax": config["model"]["attn_softmax"],
        "steps": steps[-1]["step"],
        "seed": config["training"]["seed"],
        f"training loss (mean of the last {len(last)} logged)": statistics.fmean(entry["loss"] for entry in last),
        "validation loss": evaluation["loss"],
        "validation perplexity": evaluation["perplexity"],
        "unigram perplexity": evaluation.get("unigram_perplexity"),
        "max inf norm": outliers.get("max_inf_norm"),
        "average kurtosis": outliers.get("average_kurtosis"),
        "max kurtosis": outliers.get("max_kurtosis"),
        "tokens per second (median)": statistics.median(speeds),
    }


def text(value):
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4f}"
    return str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    arguments = parser.parse_args()
    columns = [figures(run) for run in arguments.runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    # A run's last name is enough of a heading where no two share it.
    headings = [pathlib.Path(run).resolve().name for run in arguments.runs]
    if len(set(headings)) < len(headings):
        headings = arguments.runs
    table = [["", *headings]] + [[name, *(text(column.get(name)) for column in columns)] for name in names]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for number, row in enumerate(table):
        print("  ".join(cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row)))
        if number == 0:
            print("  ".join("-" * width for width in widths))


if __name__ == "__main__":
    main()
