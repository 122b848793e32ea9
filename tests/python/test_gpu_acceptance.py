"""scripts/gpu_acceptance.sh: the pack, what stages report, and how a run of them ends. scripts/test.sh rehearses it whole."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest
import zipfile
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from acceptance import __main__ as command_line  # noqa: E402
from acceptance import pack, report, session, stages, trials  # noqa: E402


def a_pack(folder):
    """One with nothing in it."""
    folder = pathlib.Path(folder, "pack")
    folder.mkdir()
    (folder / "manifest.json").write_text('{"commit": "abc", "contents": [{}]}')
    return folder


def a_session(folder, **changes):
    folder = pathlib.Path(folder)
    values = {"pack": pack.Pack(a_pack(folder)), "out": folder / "out", "build": folder / "build", "seconds": 60.0,
              "rehearsing": False, "python": pathlib.Path(sys.executable)}
    return session.Session(**{**values, **changes})


class Packing(unittest.TestCase):
    def test_versions(self):
        texts = {"CLI11": '#define CLI11_VERSION "2.1.2"', "nlohmann_json": "// |  |  version 3.11.2\n", "fmt": "#define FMT_VERSION 90100",
                 "Catch2": " *  Catch v2.13.10\n", "xxHash": "#define XXH_VERSION_MAJOR    0\n#define XXH_VERSION_MINOR    8\n"
                                                             "#define XXH_VERSION_RELEASE  1\n"}
        found = {library.name: pack.version_in(library, texts[library.name]) for library in pack.LIBRARIES}
        self.assertEqual(found, {"CLI11": "2.1.2", "nlohmann_json": "3.11.2", "fmt": "9.1.0", "Catch2": "2.13.10", "xxHash": "0.8.1"})
        with self.assertRaisesRegex(ValueError, "does not say which version of fmt"):
            pack.version_in(pack.LIBRARIES[2], "")

    def test_a_library_without_a_debian_package(self):
        library = pack.Library("Thing", "Thing::Thing", ("thing/thing.h", "thing"), r"THING (\d+\.\d+)", "libthing-dev", "THING_HERE=1")
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "include/thing").mkdir(parents=True)
            (folder / "include/thing/thing.h").write_text("// Licence of Thing\n// in two lines\n#define THING 1.2\n")
            entry = pack.copy_library(library, folder / "pack", [folder / "nowhere", folder / "include"], folder / "doc")
            self.assertEqual(entry["version"], "1.2")
            self.assertIn("in two lines", (folder / "pack" / entry["licence"]).read_text())
            self.assertTrue((folder / "pack/prefix/include/thing/thing.h").exists())
            self.assertIn("THING_HERE=1", (folder / "pack/prefix/lib/cmake/Thing/ThingConfig.cmake").read_text())
            with self.assertRaisesRegex(ValueError, "thing/thing.h of Thing is in none of .*libthing-dev"):
                pack.copy_library(library, folder / "pack", [folder / "nowhere"])

    def test_a_folder_of_others_is_not_replaced(self):
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "precious").write_text("")
            with self.assertRaisesRegex(ValueError, "holds other files"):
                pack.make_pack(pathlib.Path(folder), offline=True)
            self.assertTrue(pathlib.Path(folder, "precious").exists())

    def test_what_is_no_pack(self):
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(ValueError, "is no pack .* --pack"):
                pack.Pack(pathlib.Path(folder))
            pathlib.Path(folder, "manifest.json").write_text("{}")
            with self.assertRaisesRegex(ValueError, "is not complete"):
                pack.Pack(pathlib.Path(folder))

    def test_programs_come_out_of_their_wheels(self):
        with tempfile.TemporaryDirectory() as folder:
            made = pack.Pack(a_pack(folder))
            (made.folder / "tools").mkdir()
            with zipfile.ZipFile(made.folder / "tools/ninja-1.13.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr("ninja-1.13.0.data/scripts/ninja", "#!/bin/sh\necho 1.13.0\n")
            program = made.tool("ninja", pathlib.Path(folder, "tools"))
            self.assertEqual(subprocess.run([program], capture_output=True, text=True).stdout, "1.13.0\n")
            self.assertIsNone(made.tool("cmake", pathlib.Path(folder, "tools")))


class Running(unittest.TestCase):
    def test_an_old_tool_is_no_tool(self):
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder, "bin/cmake")
            program.parent.mkdir()
            program.write_text("#!/bin/sh\necho cmake version 3.18.4-rc1\n")
            program.chmod(0o755)
            with mock.patch.dict(os.environ, {"PATH": f"{program.parent}:{os.environ['PATH']}"}):
                here = a_session(folder)
                self.assertEqual(here.tool("cmake", (3, 18)), program)
                self.assertIsNone(here.tool("cmake", (3, 22)))

    def test_a_program_is_stopped_in_time_with_all_it_started(self):
        with tempfile.TemporaryDirectory() as folder:
            here = a_session(folder)
            with self.assertRaisesRegex(session.Unfinished, "sh was stopped after 2 s"):
                here.run(["/bin/sh", "-c", "sleep 60 & echo $!; wait"], "test", limit=2)
            child = int((here.out / "logs/test.log").read_text().splitlines()[1])
            status = pathlib.Path(f"/proc/{child}/stat")
            limit = time.monotonic() + 10  # a signal takes its time on a busy machine
            while status.exists() and status.read_text().split(") ")[1][0] != "Z" and time.monotonic() < limit:
                time.sleep(0.05)
            self.assertLess(time.monotonic(), limit)

    def test_no_time_is_told(self):
        with tempfile.TemporaryDirectory() as folder, self.assertRaisesRegex(session.Unfinished, "no time was left"):
            a_session(folder, seconds=1.0).run(["true"], "test")

    def test_a_failing_program_is_a_failure_with_its_last_words(self):
        with tempfile.TemporaryDirectory() as folder, self.assertRaisesRegex(session.Failure, "sh exited with 3: so it is"):
            a_session(folder).must_run(["/bin/sh", "-c", "echo so it is; exit 3"], "test")

    def test_a_failed_stage_does_not_end_the_run(self):
        def raising(error):
            def stage(_):
                raise error
            return stage
        table = {"device": lambda _: session.Outcome("a GPU", text="words"), "build": raising(session.Failure("a | b", {"n": 1}, "which ones")),
                 "ops": raising(session.Skip("no GPU")), "training": raising(session.Unfinished("late")),
                 "identity": raising(ValueError("unforeseen")), "bench": lambda _: session.Outcome("fine", {"x": 1})}
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(stages, "STAGES", table), \
                contextlib.redirect_stdout(io.StringIO()):
            here = a_session(folder)
            self.assertEqual(stages.run_stages(here, list(table)), 1)
            results = json.loads((here.out / "results.json").read_text())
            page = (here.out / "results.md").read_text()
        self.assertEqual([stage["status"] for stage in results["stages"]],
                         ["passed", "failed", "skipped", "unfinished", "failed", "passed"])
        self.assertIn("2 passed, 2 failed, 1 unfinished, 1 skipped", page)
        self.assertIn("a \\| b", page)
        self.assertIn("## device\n\nwords", page)
        self.assertIn("## build\n\nwhich ones", page)
        self.assertEqual(results["stages"][1]["details"], {"n": 1})

    def test_skipping_is_no_failure(self):
        def skipping(_):
            raise session.Skip("there is no GPU here")
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), \
                mock.patch.object(stages, "STAGES", {"ops": skipping, "bench": skipping}):
            here = a_session(folder)
            self.assertEqual(stages.run_stages(here, ["ops"]), 0)
            self.assertEqual([stage["name"] for stage in here.results["stages"]], ["ops"])

    def test_command_line(self):
        self.assertEqual(command_line.parse(["--run"]).only, list(stages.STAGES))
        self.assertEqual(command_line.parse(["--run", "--only", "ops,bench"]).only, ["ops", "bench"])
        for wrong in (["--run", "--only", "opps"], ["--run", "--minutes", "0"], [], ["--run", "--pack"]):
            with self.subTest(wrong), contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit) as end:
                command_line.parse(wrong)
            self.assertEqual(end.exception.code, 2)


class Reading(unittest.TestCase):
    def test_architectures(self):
        self.assertEqual([stages.architecture_of(c) for c in ("8.0", "8.9", "9.0", "10.0", "12.0")], ["80", "89", "90a", "100a", "120a"])
        with self.assertRaisesRegex(ValueError, r'"\[N/A\]"'):
            stages.architecture_of("[N/A]")

    def test_what_catch_says(self):
        self.assertEqual(stages.catch_counts("x\nAll tests passed (12 assertions in 1 test case)\n"), (1, 0))
        self.assertEqual(stages.catch_counts("All tests passed (3 assertions in 22 test cases)"), (22, 0))
        self.assertEqual(stages.catch_counts("test cases: 5 | 3 passed | 2 failed\nassertions: 9 | 7 passed | 2 failed"), (3, 2))
        self.assertEqual(stages.catch_counts("test cases: 2 | 2 failed\n"), (0, 2))
        self.assertEqual(stages.catch_counts("No tests ran"), (0, 0))

    def test_a_catch_program_that_runs_nothing_has_failed(self):
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder, "tests")
            program.write_text("#!/bin/sh\ncase $1 in good) echo 'All tests passed (1 assertion in 1 test case)';; "
                               "*) echo No tests ran;; esac\n")
            program.chmod(0o755)
            here = a_session(folder)
            self.assertEqual(stages.run_catch(here, program, {"a": ["good"]}, 2).summary, "1 test cases passed, 0 failed")
            with self.assertRaisesRegex(session.Failure, "1 test cases passed, 1 failed: b "):
                stages.run_catch(here, program, {"a": ["good"], "b": ["none"]}, 2)

    def test_every_file_of_op_tests_is_selected(self):
        for name in stages.NOT_OF_A_DEVICE:
            self.assertTrue((ROOT / f"tests/ops/{name}.cpp").exists(), name)
        tests = "".join(path.read_text() for path in (ROOT / "tests/ops").glob("*_test.cpp"))
        for name in stages.SANITIZED[0].split(","):
            self.assertIn(f'TEST_CASE("{name.rstrip("*")}', tests)
        for file in stages.SANITIZED[1:]:
            self.assertTrue((ROOT / f"tests/ops/{file[2:-1]}.cpp").exists(), file)

    def test_runs_that_differ_are_told(self):
        with tempfile.TemporaryDirectory() as name:
            for run, weights, loss in (("a", b"1", 2.0), ("b", b"1", 2.0), ("c", b"2", 2.5)):
                checkpoint = pathlib.Path(name, run, "checkpoints/step_00000012")
                checkpoint.mkdir(parents=True)
                (checkpoint / "model.safetensors").write_bytes(weights)
                (checkpoint / "optimizer.safetensors").write_bytes(b"")
                pathlib.Path(name, run, "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": loss}) + "\n")
            a, b, c = (pathlib.Path(name, run) for run in "abc")
            self.assertEqual(trials.differences(a, b), [])
            self.assertEqual(trials.differences(a, c), ["losses", "model.safetensors"])

    def test_figures_of_an_evaluation(self):
        self.assertEqual(trials.figures({"loss": 2.0, "perplexity": 7.389, "outliers": {"max_inf_norm": 10.0, "average_kurtosis": None}}),
                         ["2.0000", "7.3890", "10.0000", "-"])

    def test_report_of_nothing(self):
        self.assertIn("nothing in it is a measurement", report.markdown({"stages": [], "rehearsal": True}))


if __name__ == "__main__":
    unittest.main()
