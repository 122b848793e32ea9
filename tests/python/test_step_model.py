"""docs/performance.md is what scripts/step_model.py writes, and the model's launches are those of a real step."""

import collections
import dataclasses
import json
import pathlib
import re
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import step_model  # noqa: E402

PAGE = (ROOT / "docs/performance.md").read_text()
KERNELS_PAGE = (ROOT / "docs/kernels.md").read_text()


def counted(launches):
    counts = collections.Counter()
    for launch in launches:
        counts[launch.kernel] += launch.count
    return counts


class StepModel(unittest.TestCase):
    def test_the_page_is_what_the_script_writes(self):
        self.assertEqual(PAGE, step_model.written(PAGE), "run scripts/step_model.py --write docs/performance.md")

    def test_launches_are_those_of_a_step_on_the_executor(self):
        steps = json.loads((ROOT / "scripts/step_launches.json").read_text())
        self.assertEqual([(step["model"], step["T"]) for step in steps], [("bert", 128), ("opt", 512), ("opt", 640)])
        for step in steps:
            fields = {field.name for field in dataclasses.fields(step_model.Shape)}
            shape = step_model.Shape(positions=step["T"], types=2 if step["model"] == "bert" else 0,
                                     attention_dropout=0.1 if step["model"] == "bert" else 0.0,
                                     **{key: value for key, value in step.items() if key in fields})
            with self.subTest(step["model"], T=step["T"]):
                self.assertEqual(dict(counted(step_model.launches(shape))), step["launches"])

    def test_the_letters_are_those_of_the_page_of_kernels(self):
        rows = re.findall(r"^\| ([A-Z]) \| .*? \| ([\d,]+) \| ([\d,]+) \|$", KERNELS_PAGE, flags=re.MULTILINE)
        self.assertEqual(len(rows), 7)
        for letter, *values in rows:
            for name, value in zip(("BERT-base, 128 x 128", "OPT-125m, 16 x 1024"), values):
                self.assertEqual(step_model.SHAPES[name].letters[letter], int(value.replace(",", "")), f"{letter} of {name}")

    def test_parameters_are_those_of_the_planned_gradients(self):
        for name, plan in json.loads((ROOT / "scripts/step_memory.json").read_text()).items():
            self.assertAlmostEqual(plan["gradients"] / 4 / step_model.SHAPES[name].parameters, 1, delta=1e-3, msg=name)

    def test_products_have_their_bytes_and_flops(self):
        for shape in step_model.SHAPES.values():
            for launch in step_model.launches(shape):
                if launch.kind != "product":
                    continue
                M, N, K = launch.shape
                self.assertEqual(launch.flops, 2 * M * N * K)
                self.assertGreaterEqual(launch.bytes, 2 * (M * K + K * N + M * N))

    def test_no_step_is_faster_than_its_floor_and_worse_rates_make_it_slower(self):
        for shape in step_model.SHAPES.values():
            time = step_model.step_seconds(shape)
            launches = step_model.launches(shape)
            self.assertGreater(time, sum(launch.count * launch.flops for launch in launches) / 798e12)
            self.assertGreater(time, sum(launch.count * launch.bytes for launch in launches) / 3.0e12)
            for field in ("memory", "product", "attention_forward", "attention_backward"):
                half = dataclasses.replace(step_model.Rates(), **{field: getattr(step_model.Rates(), field) / 2})
                self.assertGreater(step_model.step_seconds(shape, half), time, field)

    def test_what_is_needed_is_within_what_is_done(self):
        for shape in step_model.SHAPES.values():
            done = sum(launch.count * launch.flops for launch in step_model.launches(shape))
            self.assertLess(step_model.needed_flops(shape), done)
            self.assertGreater(step_model.needed_flops(shape), 0.9 * done)

    def test_groups_have_every_launch_once(self):
        for line in step_model.where_time_goes().splitlines()[-1:]:
            together = [float(cell) for cell in line.strip("| ").split(" | ")[1:]]
        columns = [[float(re.match(r"[\d.]+", cell)[0]) for cell in line.strip("| ").split(" | ")[1:]]
                   for line in step_model.where_time_goes().splitlines()[2:-1]]
        for total, parts in zip(together, zip(*columns)):
            self.assertAlmostEqual(total, sum(parts), delta=0.06)

    def test_a_wave_of_tiles(self):
        self.assertEqual(step_model.utilisation(128 * 132, 256, 132), 1)
        self.assertAlmostEqual(step_model.utilisation(128, 256, 132), 16 / 132)  # one tile, its sum cut into 16
        self.assertGreater(step_model.utilisation(768, 768, 132), 0.9)

    def test_links_lead_somewhere(self):
        headings = re.findall(r"^## (.+)$", KERNELS_PAGE, flags=re.MULTILINE)
        for target, anchor in re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", PAGE):
            self.assertTrue((ROOT / "docs" / target).exists(), target)
            if anchor:
                self.assertIn(anchor, [heading.lower().replace(".", "").replace(" ", "-") for heading in headings])


if __name__ == "__main__":
    unittest.main()
