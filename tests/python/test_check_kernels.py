"""scripts/check_kernels.py on what nvcc and cuobjdump said of tests/fixtures/kernels/faulty.cu: each fault is found, and the
sound kernel has none. Nothing is compiled here."""

import contextlib
import io
import json
import pathlib
import sys
import unittest
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures/kernels"
sys.path.insert(0, str(ROOT / "scripts"))
import check_kernels  # noqa: E402
import kernel_code  # noqa: E402

SOUND = "vector_kernel<4>"


def row(**changes):
    return {"threads": 256, "max_registers": 64, "min_occupancy": 0.5, **changes}


def measured(machine_code=True):
    """The kernels of faulty.cu, by name."""
    kernels = kernel_code.parse_ptxas((FIXTURES / "ptxas.txt").read_text(), "faulty.cu", "sm_90a")
    if machine_code:
        for mangled, counts in kernel_code.parse_sass((FIXTURES / "sass.txt").read_text()).items():
            kernels[mangled].sass = counts
    names = kernel_code.demangle(list(kernels))
    for mangled, kernel in kernels.items():
        kernel.name = names[mangled]
    return {kernel.name: kernel for kernel in kernels.values()}


def found(*names, machine_code=True, **changes):
    """The faults of these kernels, each with row(changes) as its budget."""
    kernels = [measured(machine_code)[name] for name in names]
    budget = {"kernels": {"faulty.cu": {name: row(**changes) for name in names}}}
    check_kernels.apply_launch(kernels, budget)
    return check_kernels.faults(kernels, budget) + check_kernels.excesses(kernels, budget)


class Parsing(unittest.TestCase):
    def test_names_of_kernels(self):
        self.assertEqual(sorted(measured()),
                         ["float_atomic_kernel", "integer_atomic_kernel", "scalar_kernel<float>", "spilling_kernel",
                          "stack_kernel", "static_shared_kernel", "tensor_core_kernel", "vector_kernel<4>"])
        for demangled, name in [
            ("void outeffhop::cuda::(anonymous namespace)::dropout_add_kernel<outeffhop::bf16>(outeffhop::bf16 const*, "
             "outeffhop::bf16*, outeffhop::Dropout, long, bool)", "dropout_add_kernel<bf16>"),
            ("outeffhop::cuda::(anonymous namespace)::step_kernel(void (*)(int), float*)", "step_kernel"),
            ("void outeffhop::cuda::sum_kernel<float, (int)4, (bool)1>(T1 const *)", "sum_kernel<float, 4, 1>")]:
            self.assertEqual(kernel_code.kernel_name(demangled), name)

    def test_ptxas(self):
        kernels = measured()
        spilling = kernels["spilling_kernel"]
        self.assertEqual((spilling.registers, spilling.stack), (64, 392))
        self.assertEqual((spilling.spill_stores, spilling.spill_loads), (412, 412))
        self.assertEqual(kernels["static_shared_kernel"].static_shared, 1024)
        sound = kernels[SOUND]
        self.assertEqual((sound.registers, sound.stack, sound.spill_stores, sound.static_shared), (14, 0, 0, 0))

    def test_functions_that_are_not_inlined_count_for_the_kernel(self):
        text = (FIXTURES / "ptxas.txt").read_text().split("ptxas info    : Compiling")[1]
        text = "ptxas info    : Compiling" + text + ("ptxas info    : Function properties for _Z6helperv\n"
                                                     "    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n")
        kernel, = kernel_code.parse_ptxas(text, "faulty.cu", "sm_90a").values()
        self.assertEqual((kernel.stack, kernel.spill_stores, kernel.spill_loads), (16, 8, 4))

    def test_machine_code(self):
        counts = {name: kernel.sass for name, kernel in measured().items()}
        self.assertEqual((counts[SOUND]["load_128"], counts[SOUND]["store_128"]), (1, 1))
        self.assertEqual(counts["scalar_kernel<float>"]["load_128"], 0)
        self.assertGreater(counts["tensor_core_kernel"]["tensor_core"], 0)
        self.assertGreater(counts["spilling_kernel"]["local_memory"], 0)
        self.assertEqual(counts["float_atomic_kernel"]["float_atomics"], 1)
        self.assertEqual((counts["integer_atomic_kernel"]["integer_atomics"],
                          counts["integer_atomic_kernel"]["float_atomics"]), (1, 0))
        other = kernel_code.parse_sass("\n".join([
            "Function : f", "/*0000*/ LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;",
            "/*0010*/ @!P1 LDG.E.EF.128.CONSTANT R4 ;", "/*0020*/ HGMMA.64x64x16.F32.BF16 R24 ;",
            "/*0030*/ ATOMG.E.ADD.F64.RN.STRONG.GPU PT, R2 ;",
            "/*0040*/ RED.E.ADD.BF16_V2.RN.STRONG.GPU R2 ;", "/*0050*/ @P2 STL.64 [R1], R4 ;"]))["f"]
        self.assertEqual(other, {"load_128": 2, "store_128": 0, "tensor_core": 1, "local_memory": 1, "float_atomics": 2,
                                 "integer_atomics": 0, "instructions": 6})


class Occupancy(unittest.TestCase):
    def test_each_limit(self):
        blocks = kernel_code.resident_blocks
        self.assertEqual(blocks("sm_90a", 256, 32, 0), 8)  # 2048 threads
        self.assertEqual(blocks("sm_80", 32, 16, 0), 32)  # 32 blocks
        self.assertEqual(blocks("sm_86", 256, 32, 0), 6)  # 1536 threads
        self.assertEqual(blocks("sm_90a", 256, 40, 0), 6)  # 51 warps have 40 registers each: 12 a scheduler
        self.assertEqual(blocks("sm_90a", 256, 33, 0), blocks("sm_90a", 256, 40, 0))  # they come in eights
        self.assertEqual(blocks("sm_80", 1024, 64, 0), 1)
        self.assertEqual(blocks("sm_80", 1024, 65, 0), 0)  # cannot be launched
        self.assertEqual(blocks("sm_80", 128, 32, 48 * 1024), 3)  # 3 x 49 of 164 KiB
        self.assertEqual(blocks("sm_90a", 128, 32, 48 * 1024), 4)
        self.assertEqual((blocks("sm_80", 128, 32, 163 * 1024), blocks("sm_80", 128, 32, 164 * 1024)), (1, 0))
        self.assertEqual((blocks("sm_90a", 128, 32, 227 * 1024), blocks("sm_86", 128, 32, 100 * 1024)), (1, 0))
        self.assertEqual(blocks("sm_80", 96, 168, 0), 4)  # 12 warps of 168 registers, three a block


class Faults(unittest.TestCase):
    def expect(self, faults, *words):
        self.assertEqual(len(faults), 1, faults)
        for word in words:
            self.assertIn(word, faults[0])

    def test_a_sound_kernel_has_none(self):
        self.assertEqual(found(SOUND, sass=["load_128", "store_128"]), [])
        self.assertEqual(found("tensor_core_kernel", sass=["tensor_core"]), [])

    def test_spill(self):
        self.expect(found("spilling_kernel"), "spilling_kernel for sm_90a", "spills 412 bytes")
        self.expect(found("spilling_kernel", machine_code=False), "spills 412 bytes")

    def test_stack_frame(self):
        self.expect(found("stack_kernel"), "stack frame of 128 bytes")

    def test_local_memory_that_only_the_machine_code_shows(self):
        kernel = measured()["stack_kernel"]
        kernel.stack, kernel.threads, kernel.blocks, kernel.occupancy = 0, 256, 8, 1.0
        self.expect(list(check_kernels.faults_of_kernel(kernel, row())), "accesses to local memory")

    def test_static_shared_memory(self):
        self.expect(found("static_shared_kernel"), "1024 bytes of static shared memory")

    def test_atomics(self):
        self.expect(found("float_atomic_kernel"), "floating-point")
        self.expect(found("integer_atomic_kernel"), "1 atomics")
        self.assertEqual(found("integer_atomic_kernel", integer_atomics=True), [])
        self.expect(found("float_atomic_kernel", integer_atomics=True), "floating-point")

    def test_demands_on_the_machine_code(self):
        self.expect(found("scalar_kernel<float>", sass=["load_128"]), "no 16-byte loads")
        self.expect(found("scalar_kernel<float>", sass=["store_128"]), "no 16-byte stores")
        self.expect(found(SOUND, sass=["tensor_core"]), "no tensor-core")

    def test_registers_and_occupancy(self):
        self.expect(found(SOUND, max_registers=13), "14 registers", "budget is 13")
        self.expect(found(SOUND, max_registers={"sm_80": 20, "sm_90a": 10}), "budget is 10")
        self.expect(found(SOUND, max_registers={"sm_80": 20}), "no max_registers")
        self.expect(found(SOUND, dynamic_shared=150 * 1024), "12% of a multiprocessor", "budget is 50%")
        self.expect(found(SOUND, dynamic_shared=228 * 1024), "cannot be launched")
        self.expect(found(SOUND, largest=[512, 228 * 1024]), "cannot be launched with 512 threads", "233472 bytes")
        self.assertEqual(found(SOUND, largest=[1024, 227 * 1024]), [])
        self.expect(found(SOUND, threads=0), "no threads a block")
        self.expect(found(SOUND, threads=2000), "no threads a block")

    def test_another_compiler_may_take_more_but_not_break_a_rule(self):
        kernels = [measured()[name] for name in (SOUND, "spilling_kernel")]
        budget = {"nvcc": "13.0", "kernels": {"faulty.cu": {"vector_kernel": row(max_registers=8), "spilling_kernel": row()}}}
        check_kernels.apply_launch(kernels, budget)
        wrong, notes = check_kernels.judge(kernels, budget, "13.0")
        self.assertEqual((len(wrong), notes), (2, []))
        wrong, notes = check_kernels.judge(kernels, budget, "12.8")
        self.expect(wrong, "spills")
        self.expect(notes, "14 registers", "nvcc 13.0; this is 12.8")

    def test_a_kernel_without_a_row_and_a_row_without_a_kernel(self):
        kernels = [measured()[SOUND]]
        self.expect(check_kernels.faults(kernels, {"kernels": {}}), SOUND, "is not in scripts/kernel_budget.json")
        budget = {"kernels": {"faulty.cu": {"vector_kernel": row(), "vanished_kernel": row()}}}
        check_kernels.apply_launch(kernels, budget)
        self.expect(check_kernels.faults(kernels, budget), "vanished_kernel", "no such kernel")
        budget = {"kernels": {"faulty.cu": {"vector_kernel": row(tensor_cores=True, sass=["load_256"])}}}
        self.assertEqual(len(check_kernels.faults(kernels, budget)), 3)

    def test_the_closest_row_counts(self):
        kernels = [measured()[SOUND]]
        sound, tight = row(), row(max_registers=1)
        for rows in ({"vector_kernel": tight, "vector_kernel<4>": sound},
                     {"vector_kernel<*>": sound, "vector_kernel": tight},
                     {"vector_kernel<*>": tight, "vector_kernel<4>": sound}):
            budget = {"kernels": {"faulty.cu": rows}}
            check_kernels.apply_launch(kernels, budget)
            self.assertEqual(check_kernels.excesses(kernels, budget), [])
        budget = {"kernels": {"faulty.cu": {"vector_kernel<4>": sound, "vector_kernel<5*": sound}}}
        self.expect(check_kernels.faults(kernels, budget), "vector_kernel<5*", "no such kernel")


class Files(unittest.TestCase):
    def test_update_sets_what_was_measured_and_is_then_kept(self):
        kernels = list(measured().values())
        sound = [k for k in kernels if k.name == SOUND]
        budget = {"kernels": {"faulty.cu": {"vector_kernel": {"threads": 128, "sass": ["load_128"]}},
                              "gone.cu": {"gone_kernel": row()}}}
        check_kernels.apply_launch(sound, budget)
        updated = check_kernels.updated_budget(budget, sound)
        self.assertEqual(updated, {"kernels": {"faulty.cu": {"vector_kernel": {
            "threads": 128, "sass": ["load_128"], "max_registers": 16, "min_occupancy": 1.0}}}})
        self.assertEqual(check_kernels.faults(sound, updated) + check_kernels.excesses(sound, updated), [])
        updated["nvcc"] = "13.0"
        self.assertEqual(json.loads(check_kernels.budget_text(updated)), updated)
        fresh = check_kernels.updated_budget({"kernels": {}}, sound)
        check_kernels.apply_launch(sound, fresh)
        self.assertIn("no threads a block", check_kernels.faults(sound, fresh)[0])

    def test_a_page_gets_its_tables(self):
        kernels = list(measured().values())
        page = "a\n<!-- resources: faulty.cu -->\nold\n<!-- end of resources -->\nb\n<!-- resources: other.cu -->\n" \
               "<!-- end of resources -->\n"
        written = check_kernels.page_with_resources(page, kernels)
        self.assertNotIn("old", written)
        self.assertIn("| `vector_kernel<4>` | 0 | 0 | 14 |", written)
        self.assertEqual(written.count("`vector_kernel<4>`"), 1)
        self.assertTrue(written.startswith("a\n") and "\nb\n" in written)
        self.assertEqual(check_kernels.page_with_resources(written, kernels), written)

    def test_without_nvcc_it_says_so(self):
        with mock.patch.object(check_kernels, "find_nvcc", return_value=None), mock.patch.object(sys, "argv", ["x"]), \
                contextlib.redirect_stderr(io.StringIO()) as said:
            self.assertEqual(check_kernels.main(), 77)
        self.assertIn("no nvcc", said.getvalue())

    def test_the_budget_is_in_its_own_format(self):
        text = (ROOT / check_kernels.BUDGET).read_text()
        self.assertEqual(check_kernels.budget_text(json.loads(text)), text)


if __name__ == "__main__":
    unittest.main()
