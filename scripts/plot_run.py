#!/usr/bin/env python3
"""Draws runs: loss, learning rate, gradient norm, tokens per second and, where they were logged, outliers by layer.

    plot_run.py runs/mine                       runs/mine/plot.html
    plot_run.py runs/a runs/b --html ab.html --png ab.png --follow

The page is one file that needs no network: hover for values, drag to zoom. Several runs are laid over each other. Skipped
steps, checkpoints that could not be written and resumes are marked. --png needs matplotlib, which is installed into .venv/
where it is missing. evaluation.outliers (a configuration key) is what logs outliers.
"""

import argparse
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from spectator import packages  # noqa: E402
from spectator.page import page  # noqa: E402
from spectator.panels import MARK_COLOURS, panels  # noqa: E402
from spectator.run_metrics import metrics_path, read_runs  # noqa: E402


def replace(path, content):
    """Whoever looks at the file sees the old one or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def draw_png(runs, path):
    import io

    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = panels(runs)
    columns = 2
    rows = max(1, -(-len(drawn) // columns))
    figure, axes = pyplot.subplots(rows, columns, figsize=(14, 3.6 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(drawn):]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, drawn):
        for line in panel["lines"]:
            steps, values = zip(*line["points"])
            axis.plot(steps, values, label=line["label"], color=line["colour"], linewidth=1.2,
                      linestyle="--" if line["dashed"] else "-", marker="o" if len(steps) == 1 else None, markersize=4)
        if panel["log"] and any(value > 0 for line in panel["lines"] for _, value in line["points"]):
            axis.set_yscale("log")
        for run in runs:
            for step, kind, _ in run.marks:
                axis.axvline(step, color=MARK_COLOURS[kind], linestyle=":", linewidth=1)
        axis.set_title(panel["title"])
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(panel["lines"]) > 1:
            axis.legend(fontsize="x-small", ncols=-(-len(panel["lines"]) // 8))
    if not drawn:
        figure.text(0.5, 0.5, "nothing is logged yet", ha="center")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    pyplot.close(figure)
    replace(path, content.getvalue())


def draw(arguments):
    runs = read_runs(arguments.runs)
    if arguments.html:
        replace(arguments.html, page(runs, arguments.every if arguments.follow else 0).encode())
    if arguments.png:
        draw_png(runs, arguments.png)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, or a metrics.jsonl")
    parser.add_argument("--html", type=pathlib.Path, help="default: plot.html in the first run, where there is no --png either")
    parser.add_argument("--png", type=pathlib.Path)
    parser.add_argument("--follow", action="store_true", help="draw again whenever a run has logged more, until interrupted")
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help="how often --follow looks (default 10)")
    arguments = parser.parse_args(argv)
    if not arguments.every > 0:
        parser.error(f"--every is {arguments.every:g}, but must be above 0")
    if not arguments.html and not arguments.png:
        arguments.html = metrics_path(arguments.runs[0]).parent / "plot.html"
    if arguments.png:
        packages.ensure("matplotlib")

    draw(arguments)
    print("\n".join(str(path) for path in (arguments.html, arguments.png) if path), flush=True)
    seen = None
    while arguments.follow:
        time.sleep(arguments.every)
        # A resume replaces the file: its number changes though it may have grown to the same size.
        state = [(s.st_ino, s.st_size) for s in (metrics_path(run).stat() for run in arguments.runs)]
        if state != seen:
            draw(arguments)
        seen = state


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"plot_run.py: {error}")
    except KeyboardInterrupt:
        pass
