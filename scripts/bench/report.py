"""The results as Markdown tables."""

import re

from .shapes import SHAPES

BEGIN, END = "<!-- bench_vs_pytorch: begin -->", "<!-- bench_vs_pytorch: end -->"
PRODUCTS_TARGET = 0.70
SOFTMAX_TARGET = 0.01


def verdict(met):
    return "met" if met else "missed"


def table(head, rows):
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def speed_rows(cells):
    rows = []
    for key, cell in cells.items():
        if cell["kind"] != "speed":
            continue
        shape = SHAPES[cell["shape"]]
        ratio = cell["ours"] / cell["theirs"]
        rows.append([f"{shape.name}, {shape.B} x {shape.T}", cell["dtype"], f"{cell['ours']:,.0f}", f"{cell['theirs']:,.0f}",
                     cell["variant"], f"{ratio:.2f}x", f"{shape.target:g}x: {verdict(ratio >= shape.target)}"])
    return rows


def product_rows(cells):
    rows = []
    for cell in cells.values():
        if cell["kind"] != "speed" or not cell.get("products"):
            continue
        share = cell["step_gflops"] / cell["products"]["gflops_per_second"]
        is_base = cell["shape"] in ("bert-base", "opt-125m")
        rows.append([cell["shape"], cell["dtype"], f"{cell['step_gflops']:,.0f}",
                     f"{cell['products']['gflops_per_second']:,.0f}", f"{share:.0%}",
                     f"{PRODUCTS_TARGET:.0%}: {verdict(share >= PRODUCTS_TARGET)}" if is_base else "-"])
    return rows


def softmax_rows(cells):
    return [[cell["shape"], cell["dtype"], f"{cell['softmax1']:,.0f}", f"{cell['vanilla']:,.0f}", f"{cell['cost']:+.2%}",
             f"{cell['low']:+.2%} to {cell['high']:+.2%}", f"< {SOFTMAX_TARGET:.0%}: {verdict(cell['cost'] < SOFTMAX_TARGET)}"]
            for cell in cells.values() if cell["kind"] == "softmax"]


def markdown(results):
    cells, machine = results["cells"], results["machine"]
    parts = [f"{machine['processor']}, {machine['threads']} threads; PyTorch {machine['torch']}, transformers "
             f"{machine['transformers']}; {machine['program']}; {results['date']}."]
    if results["quick"]:
        parts.append("**A trial (`--quick`): a step or two of each, no measurement.**")
    if rows := speed_rows(cells):
        parts += ["Tokens per second, median over steps:",
                  table(["model, batch", "dtype", "ours", "PyTorch", "its best variant", "ratio", "target"], rows)]
    if rows := product_rows(cells):
        parts += ["Useful GFLOP/s of our whole step beside the bare matrix products of its linear layers:",
                  table(["model", "dtype", "step", "bare products", "share", "target"], rows)]
    if rows := softmax_rows(cells):
        parts += ["What softmax1 costs over the ordinary softmax, tokens per second and the median difference of paired blocks "
                  "(with its quartiles):",
                  table(["model", "dtype", "softmax1", "vanilla", "cost", "quartiles", "target"], rows)]
    return "\n\n".join(parts)


def replace_between_markers(text, tables):
    """`text` with what stands between the two marker comments replaced; ValueError where they are not there."""
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    if not re.search(pattern, text, re.S):
        raise ValueError(f"it has no line {BEGIN} with a line {END} after it")
    return re.sub(pattern, lambda _: f"{BEGIN}\n\n{tables}\n\n{END}", text, count=1, flags=re.S)
