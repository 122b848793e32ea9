"""scripts/plot_run.py and scripts/tensorboard_bridge.py."""

import contextlib
import importlib.util
import io
import json
import pathlib
import re
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import plot_run  # noqa: E402
import tensorboard_bridge  # noqa: E402
from spectator import run_metrics  # noqa: E402
from spectator.page import page  # noqa: E402
from spectator.panels import panels, thinned  # noqa: E402

LINES = [
    {"step": 10, "loss": 5.0, "learning_rate": 1e-3, "gradient_norm": 2.0, "tokens_per_second": 100.0, "seconds": 1.0,
     "skipped": False},
    {"step": 11, "loss": None, "gradient_norm": None, "tokens_per_second": 100.0, "skipped": True, "samples": [80, 87]},
    {"step": 20, "loss": 4.0, "learning_rate": 5e-4, "gradient_norm": 1.0, "tokens_per_second": 110.0, "seconds": 2.0,
     "skipped": False},
    {"step": 20, "validation_loss": 4.5, "max_inf_norm": 7.0, "average_kurtosis": 3.5,
     "outliers": {"bert.encoder.layer.0.output.dense": 6.0, "bert.encoder.layer.1.output.dense": 7.0,
                  "bert.encoder.layer.1.output (residual sum)": None}},
    {"step": 20, "checkpoint_step": 20, "checkpoint_error": "disk </script> full"},
    {"step": 20, "resumed": True},
]


def text(lines):
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


class Reading(unittest.TestCase):
    def test_curves_and_marks(self):
        run = run_metrics.parse("run", text(LINES))
        self.assertEqual(run.curves["loss"], [(10, 5.0), (20, 4.0)])
        self.assertEqual(run.curves["validation_loss"], [(20, 4.5)])
        self.assertEqual(run.curves["outliers/bert.encoder.layer.1.output.dense"], [(20, 7.0)])
        self.assertNotIn("outliers/bert.encoder.layer.1.output (residual sum)", run.curves)
        self.assertEqual([(step, kind) for step, kind, _ in run.marks], [(11, "skipped"), (20, "checkpoint"), (20, "resumed")])
        self.assertIn("80 to 87", run.marks[0][2])

    def test_what_is_cut_or_strange_is_passed_over(self):
        whole = text(LINES)
        for cut in range(len(whole) + 1):
            run_metrics.parse("run", whole[:cut])
        objects, size = run_metrics.complete_lines(whole + b'{"step": 30, "lo')
        self.assertEqual((len(objects), size), (len(LINES), len(whole)))
        odd = b'nonsense\n[1]\n{"loss": 1}\n{"step": "x"}\n\xff\xfe\n{"step": 1, "loss": NaN, "outliers": 3}\n{"step": 2, "loss": true}\n'
        self.assertEqual(run_metrics.parse("run", odd).curves, {})
        self.assertEqual(run_metrics.parse("run", b"").curves, {})

    def test_sites(self):
        self.assertEqual(run_metrics.split_site("bert.encoder.layer.11.output.dense"), ("output.dense", 11))
        self.assertEqual(run_metrics.split_site("model.decoder.layers.3"), ("layer output", 3))
        self.assertEqual(run_metrics.split_site("bert.encoder.layer.0.output (residual sum)"), ("output (residual sum)", 0))
        self.assertEqual(run_metrics.split_site("elsewhere"), ("elsewhere", None))


class Drawing(unittest.TestCase):
    def test_panels(self):
        run = run_metrics.parse("a", text(LINES))
        drawn = {panel["title"]: panel for panel in panels([run])}
        self.assertEqual([line["label"] for line in drawn["loss"]["lines"]], ["training", "validation"])
        self.assertEqual([line["label"] for line in drawn["inf norm by layer: output.dense"]["lines"]], ["layer 0", "layer 1"])
        other = run_metrics.parse("b", text(LINES[:1]))
        drawn = {panel["title"]: panel for panel in panels([run, other])}
        self.assertEqual([line["label"] for line in drawn["loss"]["lines"]], ["a: training", "a: validation", "b: training"])
        self.assertEqual([line["label"] for line in drawn["learning rate"]["lines"]], ["a", "b"])
        self.assertEqual(panels([run_metrics.parse("empty", b"")]), [])

    def test_thinning_keeps_spikes_and_order(self):
        points = [(step, 1.0) for step in range(100000)]
        points[54321] = (54321, 99.0)
        kept = thinned(points, 1000)
        self.assertLessEqual(len(kept), 1100)
        self.assertIn((54321, 99.0), kept)
        self.assertEqual(kept, sorted(kept))

    def test_page_is_whole_and_alone(self):
        text_of_page = page([run_metrics.parse("<b>&@DATA@", text(LINES))])
        self.assertNotRegex(text_of_page, r"@(TITLE|REFRESH)@")
        self.assertNotRegex(text_of_page, r'(src|href)="|url\("?http|@import')
        self.assertEqual(text_of_page.count("</script>"), 1)
        data = json.loads(re.search(r"^const data = (.*);$", page([run_metrics.parse("a", text(LINES))]), re.M).group(1))
        self.assertEqual(data["panels"][0]["lines"][0]["points"], [[10, 5.0], [20, 4.0]])
        self.assertEqual(data["marks"][1]["text"], "step 20 was not saved: disk </script> full")
        self.assertNotIn("http-equiv", text_of_page)
        self.assertIn("http-equiv", page([], 5))

    def test_command_line(self):
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "metrics.jsonl").write_bytes(text(LINES))
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                plot_run.main([folder])
            self.assertEqual(printed.getvalue().strip(), str(pathlib.Path(folder, "plot.html")))
            self.assertEqual(sorted(p.name for p in pathlib.Path(folder).iterdir()), ["metrics.jsonl", "plot.html"])
            with self.assertRaises(OSError):
                plot_run.main([folder + "/nowhere"])

    @unittest.skipUnless(importlib.util.find_spec("matplotlib"), "matplotlib (scripts/requirements_spectator.txt) is missing")
    def test_png(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "plot.png")
            for content in (text(LINES), b""):
                plot_run.draw_png([run_metrics.parse("a", content)], path)
                self.assertTrue(path.read_bytes().startswith(b"\x89PNG"))


@unittest.skipUnless(importlib.util.find_spec("tensorboard"), "tensorboard (scripts/requirements_spectator.txt) is missing")
class TensorBoard(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        self.metrics, self.events = self.folder / "metrics.jsonl", self.folder / "events"

    def shown(self):
        """{tag: {step: value}} as TensorBoard reads it."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        accumulator = EventAccumulator(str(self.events), size_guidance={"scalars": 0}).Reload()
        return {tag: {e.step: e.value for e in accumulator.Scalars(tag)} for tag in accumulator.Tags()["scalars"]}

    def bridge(self):
        bridge = tensorboard_bridge.Bridge(self.metrics, self.events)
        self.addCleanup(bridge.close)
        return bridge

    def test_follows_and_begins_anew(self):
        whole = text(LINES)
        self.metrics.write_bytes(whole[:-5])
        bridge = self.bridge()
        self.assertEqual(bridge.update(), len(LINES) - 1)
        self.assertEqual(bridge.update(), 0)
        self.metrics.write_bytes(whole)
        self.assertEqual(bridge.update(), 1)
        shown = self.shown()
        self.assertEqual(shown["training/loss"], {10: 5.0, 20: 4.0})
        self.assertEqual(shown["validation/loss"], {20: 4.5})
        self.assertEqual(shown["inf_norm output.dense/layer_01"], {20: 7.0})
        self.assertEqual(shown["incidents/skipped"], {11: 1.0})
        self.assertEqual(shown["incidents/resumed"], {20: 1.0})

        # Cut back by a resume, and another course from there; longer than it was.
        again = text(LINES[:1] + [{"step": step, "loss": 3.0} for step in range(11, 60)])
        self.metrics.write_bytes(again)
        bridge.update()
        self.assertEqual(self.shown()["training/loss"], {10: 5.0} | {step: 3.0 for step in range(11, 60)})
        self.assertNotIn("validation/loss", self.shown())
        self.assertEqual(len(list(self.events.iterdir())), 1)

    def test_a_second_start_changes_nothing_and_spares_others_files(self):
        self.metrics.write_bytes(text(LINES))
        self.events.mkdir()
        (self.events / "notes.txt").write_text("mine")
        first = self.bridge()
        first.update()
        first.close()
        before = self.shown()
        second = self.bridge()
        second.update()
        self.assertEqual(self.shown(), before)
        self.assertEqual(len(list(self.events.iterdir())), 2)


if __name__ == "__main__":
    unittest.main()
