"""Packages that only the spectator scripts need, installed when they are first asked for."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def ensure(module):
    """Returns where `module` can be imported. Elsewhere installs scripts/requirements_spectator.txt into .venv/ and begins the
    script again there."""
    if importlib.util.find_spec(module):
        return
    venv, requirements = ROOT / ".venv", ROOT / "scripts/requirements_spectator.txt"
    python, stamp = venv / "bin/python", venv / "requirements_spectator.installed"
    name = pathlib.Path(sys.argv[0]).name
    installed = stamp.exists() and stamp.read_bytes() == requirements.read_bytes()
    if pathlib.Path(sys.prefix) == venv and installed:
        sys.exit(f"{name}: {module} cannot be imported although {requirements.name} is installed in .venv/: remove .venv/")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    if not installed:
        print(f"{name}: installing the packages of scripts/{requirements.name} into .venv/", file=sys.stderr)
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements])
        if done.returncode:
            sys.exit(f"{name}: {module} is missing and could not be installed; install it, or see --help for what needs it")
        shutil.copyfile(requirements, stamp)
    os.execv(python, [str(python), *sys.argv])
