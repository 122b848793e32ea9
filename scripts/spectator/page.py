"""A page of its own: data, style and script in one HTML file that asks the network for nothing."""

import html
import json
import pathlib

from .panels import MARK_COLOURS, panels

TEMPLATE = pathlib.Path(__file__).with_name("page.html")


def embedded(value):
    """JSON that can stand inside a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def page(runs, refresh_seconds=0):
    marks = [{"step": step, "kind": kind, "text": text, "run": run.name, "colour": MARK_COLOURS[kind]}
             for run in runs for step, kind, text in run.marks]
    refresh = f'<meta http-equiv="refresh" content="{refresh_seconds:g}">' if refresh_seconds else ""
    text = TEMPLATE.read_text(encoding="utf-8")
    # The data last: it may hold anything, the other places' names included.
    for place, value in (("@REFRESH@", refresh), ("@TITLE@", html.escape(", ".join(run.name for run in runs))),
                         ("@DATA@", embedded({"panels": panels(runs), "marks": marks, "several": len(runs) > 1}))):
        before, _, after = text.partition(place)
        text = before + value + after
    return text
