"""What is drawn: panels of lines, the same for the PNG and the page."""

from .run_metrics import split_site

# Okabe and Ito's colours, which the colour-blind can tell apart; the yellow is too light for a white page.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARK_COLOURS = {"skipped": "#d62728", "checkpoint": "#9467bd", "resumed": "#7f7f7f"}
MOST_POINTS = 4000


def thinned(points, most=MOST_POINTS):
    """At most about `most` points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return points
    stretch = -(-2 * len(points) // most)
    kept = []
    for begin in range(0, len(points), stretch):
        part = points[begin:begin + stretch]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def layer_colour(layer, layers):
    """From blue at the first layer to red at the last."""
    share = layer / max(1, layers - 1)
    return "#%02x%02x%02x" % (round(40 + 190 * share), round(90 + 40 * (1 - abs(2 * share - 1))), round(220 - 180 * share))


def panels(runs):
    """[{"title", "log", "lines": [{"label", "colour", "dashed", "points"}]}], without those that no run has."""
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(runs))]
    several = len(runs) > 1

    def line(run, colour, curve, label, dashed=False):
        label = f"{run.name}: {label}" if several and label else label or run.name
        return {"label": label, "colour": colour, "dashed": dashed, "points": thinned(run.curves[curve])}

    drawn = []

    def add(title, curves, log=False):
        """A panel of the curves (name, label, dashed), for each run that has them."""
        lines = [line(run, colour, name, label, dashed) for run, colour in zip(runs, colours)
                 for name, label, dashed in curves if name in run.curves]
        if lines:
            drawn.append({"title": title, "log": log, "lines": lines})

    add("loss", [("loss", "training", False), ("validation_loss", "validation", True)])
    add("learning rate", [("learning_rate", "", False)])
    add("gradient norm", [("gradient_norm", "", False)], log=True)
    add("tokens per second", [("tokens_per_second", "", False)])
    add("max inf norm", [("max_inf_norm", "", False)])
    add("average kurtosis", [("average_kurtosis", "", False)])

    sites = {name: split_site(name.removeprefix("outliers/"))
             for run in runs for name in run.curves if name.startswith("outliers/")}
    for what in dict.fromkeys(what for what, _ in sites.values()):
        names = sorted((layer if layer is not None else -1, name) for name, (w, layer) in sites.items() if w == what)
        lines = []
        for run, colour in zip(runs, colours):
            for layer, name in names:
                if name in run.curves:
                    by_layer = colour if several else layer_colour(max(layer, 0), names[-1][0] + 1)
                    lines.append(line(run, by_layer, name, f"layer {layer}" if layer >= 0 else what))
        drawn.append({"title": f"inf norm by layer: {what}", "log": False, "lines": lines})
    return drawn
