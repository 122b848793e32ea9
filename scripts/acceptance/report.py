"""The results as Markdown."""

from __future__ import annotations


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


def markdown(results: dict) -> str:
    stages = results["stages"]
    device = results.get("device", {})
    heading = "# GPU acceptance"
    if results.get("rehearsal"):
        heading += ", a rehearsal on the CPU: nothing in it is a measurement"
    counts = {status: sum(stage["status"] == status for stage in stages)
              for status in ("passed", "failed", "unfinished", "skipped")}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    parts = [heading, f"{told}; {results.get('minutes', 0):.1f} minutes."]
    if device:
        parts.append(table(["", ""], [[name, value] for name, value in device.items()]))
    parts.append(table(["stage", "", "seconds", "what"],
                       [[stage["name"], stage["status"], f"{stage['seconds']:.1f}", stage["summary"]] for stage in stages]))
    for stage in stages:
        if stage.get("text"):
            parts += [f"## {stage['name']}", stage["text"]]
    return "\n\n".join(parts) + "\n"
