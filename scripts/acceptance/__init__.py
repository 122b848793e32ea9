"""The parts of scripts/gpu_acceptance.sh. Needs nothing but Python's own library."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
