"""The parts of scripts/plot_run.py and scripts/tensorboard_bridge.py."""
