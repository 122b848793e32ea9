"""The parts of scripts/bench_vs_pytorch.py."""
