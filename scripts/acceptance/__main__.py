"""The command line of scripts/gpu_acceptance.sh."""

from __future__ import annotations

import argparse
import pathlib
import sys

from . import ROOT
from .pack import Pack, make_pack
from .session import Session
from .stages import STAGES, run_stages


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_acceptance.sh", description=(
        "Packs what a bare machine lacks (--pack), and there builds, tests, measures and trains on its GPU (--run)."))
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--pack", nargs="?", const=ROOT / "gpu_pack", type=pathlib.Path, metavar="DIR",
                      help="collect headers, build tools, tokens and their licences; default: gpu_pack in the checkout")
    what.add_argument("--run", action="store_true", help="build and run every stage, with the pack in gpu_pack or --with-pack")
    parser.add_argument("--offline", action="store_true",
                        help="--pack without network: no build tools, and tokens of texts that are here")
    parser.add_argument("--with-pack", type=pathlib.Path, default=ROOT / "gpu_pack", metavar="DIR", help="what --pack wrote")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs/gpu_acceptance", metavar="DIR",
                        help="for results.json, results.md and logs; default: runs/gpu_acceptance")
    parser.add_argument("--build", type=pathlib.Path, metavar="DIR", help="build folder; default: build-gpu in the checkout")
    parser.add_argument("--minutes", type=float, help="for everything; default: 9, of a rehearsal 60")
    parser.add_argument("--only", metavar="STAGE,...", help=f"some stages and the build: {', '.join(STAGES)}")
    parser.add_argument("--rehearse", action="store_true",
                        help="on the CPU and in miniature, built without CUDA and without optimisation")
    parser.add_argument("--python", type=pathlib.Path, default=pathlib.Path(sys.executable),
                        help="a Python that has PyTorch, to compare with; default: this one")
    arguments = parser.parse_args(argv)
    if arguments.minutes is None:
        arguments.minutes = 60.0 if arguments.rehearse else 9.0
    if not 0 < arguments.minutes <= 600:
        parser.error(f"--minutes is {arguments.minutes:g}, but must be above 0 and at most 600")
    arguments.only = arguments.only.split(",") if arguments.only else list(STAGES)
    for name in arguments.only:
        if name not in STAGES:
            parser.error(f'--only: there is no stage "{name}"; there are {", ".join(STAGES)}')
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.pack is not None:
        make_pack(arguments.pack, arguments.offline)
        return 0
    build = arguments.build or ROOT / ("build-gpu-rehearsal" if arguments.rehearse else "build-gpu")
    session = Session(pack=Pack(arguments.with_pack), out=arguments.out.absolute(), build=build.absolute(),
                      seconds=60 * arguments.minutes, rehearsing=arguments.rehearse, python=arguments.python)
    return run_stages(session, arguments.only)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"gpu_acceptance.sh: error: {error}")
