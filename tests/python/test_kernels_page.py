"""docs/kernels.md has every CUDA kernel, and its figures are what its formulas give."""

import json
import pathlib
import re
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import check_kernels  # noqa: E402
from kernel_code import Kernel  # noqa: E402

PAGE = (ROOT / "docs/kernels.md").read_text()
BYTES_A_SECOND, FLOPS_A_SECOND = 3.0e12, 798e12


def sections():
    """Heading -> text."""
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def symbols():
    """The letters of the formulas, for BERT-base and for OPT-125m."""
    rows = re.findall(r"^\| ([A-Z]) \| .*? \| ([\d,]+) \| ([\d,]+) \|$", PAGE, flags=re.MULTILINE)
    return [{row[0]: int(row[column].replace(",", "")) for row in rows} for column in (1, 2)]


def value(formula, letters):
    """Of "4 M C + 8 N": factors stand side by side."""
    assert re.fullmatch(r"[\dA-Z.+() /-]*", formula), formula
    product = re.sub(r"(?<=[\dA-Z)])\s+(?=[\dA-Z(])", " * ", formula)
    return eval(product, {"__builtins__": {}}, letters) if formula else 0


class KernelsPage(unittest.TestCase):
    def test_every_kernel_has_its_section(self):
        for file in sorted((ROOT / "kernels/cuda").glob("*.cu")):
            kernels = re.findall(r"__global__\s+(?:void\s+)?(?:__launch_bounds__\((?:[^()]|\(\))*\)\s+)?(?:void\s+)?(\w+)\s*\(",
                                 file.read_text())
            with self.subTest(file.name):
                self.assertEqual(len(kernels), file.read_text().count("__global__"))
                if kernels:
                    self.assertIn(file.name, sections())
                    self.assertIn(f"<!-- resources: {file.name} -->\n", sections()[file.name])
                for kernel in kernels:
                    self.assertRegex(sections()[file.name], rf"\| `{kernel}(<[^`]*>)?` \| \d+ \| \d+ \| \d+ / \d+ \|",
                                     "run scripts/check_kernels.py --write docs/kernels.md")
        for name in sections():
            if name.endswith(".cu"):
                self.assertTrue((ROOT / "kernels/cuda" / name).exists(), name)

    def test_resources_are_within_the_budget(self):
        """So that a page that was not written again after a kernel grew is noticed without nvcc too."""
        budget = json.loads((ROOT / "scripts/kernel_budget.json").read_text())
        for file in budget["kernels"]:
            found = re.findall(r"^\| `(.+)` \| \d+ \| \d+ \| (\d+) / (\d+) \|", sections().get(file, ""), flags=re.MULTILINE)
            self.assertTrue(found, file)
            for name, *registers in found:
                for architecture, count in zip(("sm_80", "sm_90a"), registers):
                    kernel = Kernel(file, name, architecture)
                    row = check_kernels.budget_row(budget, kernel)
                    self.assertIsNotNone(row, name)
                    most = check_kernels.for_architecture(row["max_registers"], architecture)
                    self.assertLessEqual(int(count), most, name)

    def test_figures_follow_from_the_formulas(self):
        shapes = symbols()
        self.assertEqual(sorted(shapes[0]), sorted("NCFVMTP"))
        checked = 0
        for line in PAGE.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) != 5 or not re.match(r"[\d(A-Z]", cells[1]):
                continue
            for letters, cell in zip(shapes, cells[3:]):
                moved, flops = value(cells[1], letters), value(re.sub(r" in fp\d+| bf16", "", cells[2]), letters)
                found = re.fullmatch(r"([\d.,]+) (MB|GB)(?:, ([\d.,]+) GFLOP)?, ([\d.,]+) us", cell)
                self.assertIsNotNone(found, cell)
                megabytes, gigaflops, floor = (float((text or "0").replace(",", "")) for text in found.group(1, 3, 4))
                self.assertEqual(found[2], "MB")
                self.assertAlmostEqual(megabytes, moved / 1e6, delta=0.051, msg=line)
                tensor_flops = flops if found[3] else 0
                if tensor_flops:
                    self.assertAlmostEqual(gigaflops, flops / 1e9, delta=0.051, msg=line)
                self.assertAlmostEqual(floor, 1e6 * max(moved / BYTES_A_SECOND, tensor_flops / FLOPS_A_SECOND), delta=0.051,
                                       msg=line)
                checked += 1
        self.assertGreater(checked, 10)

    def test_the_tests_that_the_design_page_names_are_there(self):
        rows = re.findall(r"^\| .* \| (`tests/.*) \|$", (ROOT / "docs/design.md").read_text(), flags=re.MULTILINE)
        self.assertGreater(len(rows), 5)
        for row in rows:
            for file, titles in re.findall(r"`(tests/[^`]+)`: ((?:\"[^\"]+\"(?: and )?)+)", row):
                for title in re.findall(r'"([^"]+)"', titles):
                    with self.subTest(title):
                        self.assertIn(f'TEST_CASE("{title}")', (ROOT / file).read_text())

    def test_links_lead_somewhere(self):
        for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
            self.assertTrue((ROOT / "docs" / target).exists(), target)


if __name__ == "__main__":
    unittest.main()
