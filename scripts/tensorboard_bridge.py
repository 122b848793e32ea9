#!/usr/bin/env python3
"""Shows a run in TensorBoard: writes its metrics.jsonl as event files.

    tensorboard_bridge.py runs/mine --follow       and, elsewhere: .venv/bin/tensorboard --logdir runs/mine/tensorboard

Started again, or when the run was resumed and its metrics cut back, it writes its own event files anew; others in the folder
stay. It uses the package tensorboard, which is installed into .venv/ where it is missing.
"""

import argparse
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from spectator import packages  # noqa: E402
from spectator.run_metrics import complete_lines, mark, metrics_path, number, scalars, split_site  # noqa: E402

SUFFIX = ".outeffhop"  # ends the names of our event files


def tag(name):
    """A curve's name in TensorBoard, which groups by what stands before the first slash."""
    if name.startswith("outliers/"):
        what, layer = split_site(name.removeprefix("outliers/"))
        return f"inf_norm {what}" + (f"/layer_{layer:02d}" if layer is not None else "")
    if name in ("max_inf_norm", "average_kurtosis"):
        return f"outliers/{name}"
    return f"validation/{name.removeprefix('validation_')}" if name.startswith("validation_") else f"training/{name}"


class Bridge:
    """Carries what was added to a metrics file over into event files."""

    def __init__(self, metrics, folder):
        self._metrics, self._folder = pathlib.Path(metrics), pathlib.Path(folder)
        self._writer, self._file, self._done, self._last = None, None, 0, b""

    def update(self):
        """Returns how many objects were new; begins anew where the file is not the one read so far, or no longer begins so."""
        with open(self._metrics, "rb") as file:
            data = file.read()
        if self._writer is None or not data[: self._done].endswith(self._last) or len(data) < self._done:
            self._begin_anew()
        entries, size = complete_lines(data[self._done:])
        ends = self._metrics.stat().st_mtime
        seconds = [s for s in (number(entry.get("seconds")) for entry in entries) if s is not None]
        started = ends - (seconds[-1] if seconds else 0.0)
        at = ends if not seconds else started
        for entry in entries:
            own = number(entry.get("seconds"))
            at = at if own is None else started + own
            self._write(entry, at)
        self._done += size
        self._last = data[: self._done][-4096:]
        self._writer.flush()
        return len(entries)

    def _begin_anew(self):
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.close()
        for old in self._folder.glob(f"events.out.tfevents.*{SUFFIX}"):
            old.unlink()
        self._writer = EventFileWriter(str(self._folder), filename_suffix=SUFFIX)
        # Tells a TensorBoard that already shows the run to forget it from step 0 on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(event_pb2.Event(wall_time=time.time(), step=0, session_log=start))
        self._done, self._last = 0, b""

    def _write(self, entry, wall_time):
        from tensorboard.compat.proto import event_pb2, summary_pb2

        values = [summary_pb2.Summary.Value(tag=tag(name), simple_value=value) for name, value in scalars(entry)]
        if incident := mark(entry):
            values.append(summary_pb2.Summary.Value(tag=f"incidents/{incident[0]}", simple_value=1.0))
        if values:
            self._writer.add_event(event_pb2.Event(wall_time=wall_time, step=entry["step"],
                                                   summary=summary_pb2.Summary(value=values)))

    def close(self):
        if self._writer:
            self._writer.close()
            self._writer = None


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--logdir", type=pathlib.Path, help="default: RUN/tensorboard")
    parser.add_argument("--follow", action="store_true", help="go on until interrupted")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="how often --follow looks (default 5)")
    arguments = parser.parse_args(argv)
    if not arguments.every > 0:
        parser.error(f"--every is {arguments.every:g}, but must be above 0")
    packages.ensure("tensorboard")
    metrics = metrics_path(arguments.run)
    folder = arguments.logdir or metrics.parent / "tensorboard"
    bridge = Bridge(metrics, folder)
    try:
        print(f"{bridge.update()} objects of {metrics} are in {folder}", flush=True)
        while arguments.follow:
            time.sleep(arguments.every)
            bridge.update()
    finally:
        bridge.close()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"tensorboard_bridge.py: {error}")
    except KeyboardInterrupt:
        pass
