#!/usr/bin/env python3
"""Prints "STEPS WARMUP" for a run of a configuration at another length: its warm-up scaled in proportion, never above its own.

    run_length.py configs/bert_mini.json --steps 200
    run_length.py configs/bert_mini.json --share 2/5        two fifths of its steps
"""

import argparse
import json
import pathlib
import re


def read_config(path):
    """A configuration as a user writes it: JSON with comments, which may hold quotes as strings may hold slashes."""
    text = pathlib.Path(path).read_text(encoding="utf-8")
    strings_or_comments = r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/'
    return json.loads(re.sub(strings_or_comments, lambda match: match.group(1) or " ", text, flags=re.S))


def length(config, steps=None, share=None):
    """The steps and warm-up of a run of `steps`, or of `share` of the configuration's own."""
    full = config.get("training", {}).get("steps", 1000)
    steps = max(1, round(full * share)) if steps is None else steps
    return steps, round(config.get("schedule", {}).get("warmup_steps", 0) * min(1.0, steps / full))


def positive_integer(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def positive_ratio(text):
    """A number above 0, also written as a quotient: 0.4 or 2/5."""
    above, _, below = text.partition("/")
    value = float(above) / float(below or 1)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--steps", type=positive_integer)
    which.add_argument("--share", type=positive_ratio)
    arguments = parser.parse_args()
    print(*length(read_config(arguments.config), arguments.steps, arguments.share))


if __name__ == "__main__":
    main()
