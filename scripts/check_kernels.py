#!/usr/bin/env python3
"""Compiles the CUDA kernels and holds what the compiler made of them against scripts/kernel_budget.json. Needs no GPU.

    scripts/check_kernels.py                          compile, compare, print one table
    scripts/check_kernels.py --update                 write what was measured into the budget, to be reviewed and committed
    scripts/check_kernels.py --write docs/kernels.md  fill in that page's tables of resources

From ptxas: registers, spills, stack, shared memory; computed from them: how many warps a multiprocessor holds. From the
machine code, where cuobjdump and nvdisasm are (the CUDA Toolkit, PATH, or .venv/: scripts/setup.sh --cuda-checks): 16-byte
accesses to global memory, tensor-core instructions, local memory, atomics. Compiled files are kept in .cache/kernels/.

The budget names the release of nvcc that it was measured with, "nvcc": with another one, more registers or fewer warps than it
allows are said, but are no fault. It has a row for each kernel of each file. A row for an instance ("name<bf16>") or several ("name<bf16, *>") counts
before its kernel's:
    threads          of a block, as it is launched for 768 channels
    dynamic_shared   bytes of shared memory that this launch asks for; default 0
    largest          [threads, dynamic_shared] of the largest launch, where sizes depend on the shape: it must fit
    max_registers    a number, or one for each architecture
    min_occupancy    resident warps over the most that the architecture has, likewise
    sass             what its machine code must have: "load_128", "store_128", "tensor_core"; for bf16 and fp32 instances
                     alike unless an instance has its own row
    integer_atomics  true where it may have atomics on integers. On floating-point numbers no kernel may.

Exit status: 0 all is well, 1 not (one line each), 2 wrong usage, 77 there is no nvcc.
"""

import argparse
import concurrent.futures
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from dataclasses import asdict

from kernel_code import SASS, demangle, multiprocessor, parse_ptxas, parse_sass, resident_blocks

ROOT = pathlib.Path(__file__).resolve().parents[1]
KERNELS = "kernels/cuda"
BUDGET = "scripts/kernel_budget.json"
# As CMake's release build compiles (kernels/cuda.cmake).
FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-lineinfo", "-Xptxas=-v"]
ROW_KEYS = {"threads", "dynamic_shared", "largest", "max_registers", "min_occupancy", "sass", "integer_atomics"}
NO_NVCC = 77
OLDEST_NVCC = (12, 4)  # as kernels/cuda.cmake


def row_is_for(name, kernel):
    return name in (kernel.name, kernel.base) or "<" in name and fnmatch.fnmatchcase(kernel.name, name)


def row_name(budget, kernel):
    """Of the row that counts: the closest; None where there is none."""
    names = [name for name in budget["kernels"].get(kernel.file, {}) if row_is_for(name, kernel)]
    return max(names, key=lambda name: (name == kernel.name, len(name)), default=None)


def budget_row(budget, kernel):
    name = row_name(budget, kernel)
    return None if name is None else budget["kernels"][kernel.file][name]


def for_architecture(value, arch):
    return value.get(arch) if isinstance(value, dict) else value


def apply_launch(kernels, budget):
    """Computes occupancies, where the budget says how a kernel is launched."""
    for kernel in kernels:
        if row := budget_row(budget, kernel):
            kernel.threads, kernel.dynamic_shared = row.get("threads", 0), row.get("dynamic_shared", 0)
            kernel.blocks = resident_blocks(kernel.arch, kernel.threads, kernel.registers,
                                            kernel.static_shared + kernel.dynamic_shared)
            kernel.occupancy = kernel.blocks * -(-kernel.threads // 32) * 32 / multiprocessor(kernel.arch).threads


def faults_of_kernel(kernel, row):
    if kernel.spill_stores or kernel.spill_loads:
        yield f"spills {kernel.spill_stores} bytes of registers to memory and loads {kernel.spill_loads}"
    elif kernel.stack:
        yield f"has a stack frame of {kernel.stack} bytes: an array indexed by what the compiler does not know, or a call"
    if kernel.static_shared:
        yield f"has {kernel.static_shared} bytes of static shared memory; shared_array() is the way to it"
    if kernel.sass:
        if kernel.sass["local_memory"] and not (kernel.stack or kernel.spill_stores or kernel.spill_loads):
            yield f"has {kernel.sass['local_memory']} accesses to local memory"
        if kernel.sass["float_atomics"]:
            yield (f"has {kernel.sass['float_atomics']} atomics on floating-point numbers, whose sums depend on the order "
                   "of arrival")
    if row is None:
        yield f"is not in {BUDGET}; add a row (its threads a block, then --update)"
        return
    if not isinstance(row.get("threads"), int) or not 0 < row["threads"] <= 1024:
        yield f"has no threads a block in {BUDGET}"
        return
    for threads, shared in [(kernel.threads, kernel.dynamic_shared), row.get("largest", (32, 0))]:
        if resident_blocks(kernel.arch, threads, kernel.registers, kernel.static_shared + shared) == 0:
            yield (f"cannot be launched with {threads} threads of {kernel.registers} registers and "
                   f"{kernel.static_shared + shared} bytes of shared memory a block")
    for key in ("max_registers", "min_occupancy"):
        if for_architecture(row.get(key), kernel.arch) is None:
            yield f"has no {key} in {BUDGET}"
    if kernel.sass:
        for demand in row.get("sass", []):
            if not kernel.sass.get(demand):
                yield f"has no {SASS.get(demand, demand)}"
        if kernel.sass["integer_atomics"] and not row.get("integer_atomics"):
            yield f"has {kernel.sass['integer_atomics']} atomics, and its budget does not allow for them"


def excesses_of_kernel(kernel, row):
    """Where the compiler took more than the budget: that differs from one release of it to the next."""
    if row is None:
        return
    most = for_architecture(row.get("max_registers"), kernel.arch)
    if most is not None and kernel.registers > most:
        yield f"takes {kernel.registers} registers a thread; its budget is {most}"
    least = for_architecture(row.get("min_occupancy"), kernel.arch)
    if least is not None and kernel.blocks and kernel.occupancy < least:
        yield f"fills {kernel.occupancy:.0%} of a multiprocessor's warps; its budget is {least:.0%}"


def excesses(kernels, budget):
    return [f"{kernel} {excess}" for kernel in kernels for excess in excesses_of_kernel(kernel, budget_row(budget, kernel))]


def faults(kernels, budget):
    """One sentence for each broken rule."""
    found = []
    for file, rows in budget["kernels"].items():
        for name, row in rows.items():
            if not any(kernel.file == file and row_is_for(name, kernel) for kernel in kernels):
                found.append(f"{BUDGET} has a row for {name} in {file}, where there is no such kernel")
            for key in row.keys() - ROW_KEYS:
                found.append(f"{BUDGET}: the row of {name} has \"{key}\", which means nothing")
            for demand in set(row.get("sass", [])) - SASS.keys():
                found.append(f"{BUDGET}: the row of {name} demands \"{demand}\"; known are {', '.join(SASS)}")
    for kernel in kernels:
        found += [f"{kernel} {fault}" for fault in faults_of_kernel(kernel, budget_row(budget, kernel))]
    return found


def judge(kernels, budget, release):
    """What is wrong, and what is only said: excesses with another nvcc than the budget's."""
    found, exceeded = faults(kernels, budget), excesses(kernels, budget)
    if budget.get("nvcc") == release:
        return found + exceeded, []
    return found, [f"{excess} as measured with nvcc {budget.get('nvcc')}; this is {release}" for excess in exceeded]


def find_program(name, *folders):
    candidates = [shutil.which(name), *(pathlib.Path(folder) / name for folder in folders)]
    return next((str(c) for c in candidates if c and os.access(c, os.X_OK)), None)


def find_nvcc():
    homes = [os.environ.get(name) for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH")]
    if homes[0] and os.access(homes[0], os.X_OK):
        return homes[0]
    return find_program("nvcc", *(f"{home}/bin" for home in homes[1:] if home), "/usr/local/cuda/bin")


def find_disassembler(nvcc):
    """cuobjdump, which needs nvdisasm beside it or on PATH; None where one of them is missing."""
    folders = [pathlib.Path(nvcc).resolve().parent, *ROOT.glob(".venv/lib/python3*/site-packages/nvidia/*/bin")]
    for folder in [None, *folders]:
        program = shutil.which("cuobjdump") if folder is None else find_program_in(folder, "cuobjdump")
        if program and (find_program_in(pathlib.Path(program).parent, "nvdisasm") or shutil.which("nvdisasm")):
            return program
    return None


def find_program_in(folder, name):
    path = pathlib.Path(folder) / name
    return str(path) if os.access(path, os.X_OK) else None


def compile_kernel_file(nvcc, version, file, arch, sources):
    """ptxas's words on one file and the path of the machine code; from .cache/kernels/ if nothing has changed."""
    name = pathlib.PurePath(file).name
    key = hashlib.sha256("\0".join([version, *FLAGS, file, arch, sources]).encode()).hexdigest()[:20]
    folder = ROOT / ".cache/kernels" / arch
    folder.mkdir(parents=True, exist_ok=True)
    cubin, log = folder / f"{name}.{key}.cubin", folder / f"{name}.{key}.log"
    if not (cubin.exists() and log.exists()):
        for old in [*folder.glob(f"{name}.*.cubin"), *folder.glob(f"{name}.*.log")]:
            old.unlink(missing_ok=True)
        done = subprocess.run([nvcc, *FLAGS, f"-arch={arch}", "-I.", "-cubin", "-o", cubin, file], cwd=ROOT,
                              capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"check_kernels.py: {file} does not compile for {arch}:\n{done.stderr.strip()}")
        log.write_text(done.stderr)
    return log.read_text(), cubin


def measure(nvcc, version, disassembler, files, architectures, jobs):
    """Every Kernel of the files, file by file."""
    headers = [path for pattern in ("kernels/*.h", "kernels/cuda/**/*.h", "kernels/cuda/**/*.cuh")
               for path in sorted(ROOT.glob(pattern))]
    common = "".join(path.read_text() for path in headers)

    def one(file, arch):
        log, cubin = compile_kernel_file(nvcc, version, file, arch, common + (ROOT / file).read_text())
        kernels = parse_ptxas(log, pathlib.PurePath(file).name, arch)
        if disassembler and kernels:
            text = subprocess.run([disassembler, "-sass", cubin], capture_output=True, text=True, check=True).stdout
            for mangled, counts in parse_sass(text).items():
                if mangled in kernels:
                    kernels[mangled].sass = counts
            unread = [mangled for mangled, kernel in kernels.items() if not kernel.sass]
            if unread:
                raise SystemExit(f"check_kernels.py: {disassembler} shows no machine code of {unread[0]} in {file} for {arch}")
        names = demangle(list(kernels))
        for mangled, kernel in kernels.items():
            kernel.name = names[mangled]
        return sorted(kernels.values(), key=lambda kernel: kernel.name)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        results = pool.map(one, *zip(*[(file, arch) for file in files for arch in architectures]))
        return [kernel for kernels in results for kernel in kernels]


def table(kernels):
    """Lines of the table for people."""
    rows = [("kernel", "arch", "registers", "shared", "blocks", "occupancy", "LDG.128", "STG.128", "HMMA")]
    for k in kernels:
        counts = [str(k.sass[name]) for name in SASS] if k.sass else ["?"] * len(SASS)
        rows.append((f"{k.file} {k.name}", k.arch, str(k.registers), str(k.static_shared + k.dynamic_shared),
                     str(k.blocks), f"{k.occupancy:.0%}", *counts))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
            for row in rows]


def updated_budget(budget, kernels):
    """The budget with registers and occupancies as measured; new kernels get rows, vanished ones lose theirs."""
    result = {}
    for kernel in kernels:
        rows = budget["kernels"].get(kernel.file, {})
        name = row_name(budget, kernel) or kernel.base
        row = result.setdefault(kernel.file, {}).setdefault(name, {**rows.get(name, {"threads": 0}),
                                                                   "max_registers": {}, "min_occupancy": {}})
        registers, occupancies = row["max_registers"], row["min_occupancy"]
        # Registers are allotted in eights: fewer within the same eight change nothing.
        registers[kernel.arch] = max(registers.get(kernel.arch, 0), -(-kernel.registers // 8) * 8)
        occupancies[kernel.arch] = min(occupancies.get(kernel.arch, 1.0), int(kernel.occupancy * 1000) / 1000)
    for rows in result.values():
        for row in rows.values():
            for key in ("max_registers", "min_occupancy"):
                if len(set(row[key].values())) == 1:
                    row[key] = next(iter(row[key].values()))
    return {**budget, "kernels": {file: dict(sorted(result[file].items())) for file in sorted(result)}}


def budget_text(budget):
    """One row a line."""
    files = [f'    {json.dumps(file)}: {{\n' + ",\n".join(f"      {json.dumps(name)}: {json.dumps(row)}"
                                                         for name, row in rows.items()) + "\n    }"
             for file, rows in budget["kernels"].items()]
    return f'{{\n  "nvcc": {json.dumps(budget.get("nvcc"))},\n  "kernels": {{\n' + ",\n".join(files) + "\n  }\n}\n"


MARKED = re.compile(r"(<!-- resources: (\S+) -->\n).*?(<!-- end of resources -->)", re.DOTALL)


def page_with_resources(page, kernels):
    """The page, with a table of its kernels between each pair of marks <!-- resources: FILE.cu --> and
    <!-- end of resources -->."""
    def fill(match):
        mine = {}
        for kernel in kernels:
            if kernel.file == match[2]:
                mine.setdefault(kernel.name, []).append(kernel)
        archs = " / ".join(dict.fromkeys(kernel.arch for kernel in kernels))
        rows = [f"| {archs} | threads | shared memory | registers | blocks | occupancy | 16-byte loads, stores | "
                "tensor core |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
        for name, variants in mine.items():
            def each(value):
                return " / ".join(str(value(kernel)) for kernel in variants)
            first = variants[0]
            occupancy = each(lambda kernel: f"{kernel.occupancy:.0%}")
            rows.append(f"| `{name}` | {first.threads} | {first.static_shared + first.dynamic_shared} | "
                        f"{each(lambda kernel: kernel.registers)} | {each(lambda kernel: kernel.blocks)} | {occupancy} | "
                        f"{first.sass['load_128']}, {first.sass['store_128']} | {first.sass['tensor_core'] or ''} |")
        return match[1] + "\n".join(rows) + "\n" + match[3]
    return MARKED.sub(fill, page)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help=f"only these (default: {KERNELS}/*.cu)")
    parser.add_argument("--architectures", default="sm_80,sm_90a", help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time")
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")
    parser.add_argument("--update", action="store_true", help=f"rewrite {BUDGET}")
    parser.add_argument("--write", metavar="PAGE", type=pathlib.Path, help="fill in the tables of a Markdown page")
    options = parser.parse_args()
    if options.files and options.update:
        parser.error("--update takes all files: rows of the others would go")
    nvcc = find_nvcc()
    if not nvcc:
        print("check_kernels.py: no nvcc was found, so no kernel was checked", file=sys.stderr)
        return NO_NVCC
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+\.\d+)", version)
    if not release or tuple(map(int, release[1].split("."))) < OLDEST_NVCC:
        print(f"check_kernels.py: {nvcc} is older than {OLDEST_NVCC[0]}.{OLDEST_NVCC[1]}, so no kernel was checked",
              file=sys.stderr)
        return NO_NVCC
    release = release[1]
    disassembler = find_disassembler(nvcc)
    if options.write and not (disassembler and not options.files):
        parser.error("--write needs cuobjdump with nvdisasm, and all files")
    files = [str(pathlib.Path(file).resolve().relative_to(ROOT)) for file in options.files] or \
        sorted(str(path.relative_to(ROOT)) for path in (ROOT / KERNELS).glob("*.cu"))
    budget = json.loads((ROOT / BUDGET).read_text())
    kernels = measure(nvcc, version, disassembler, files, options.architectures.split(","), options.jobs)
    apply_launch(kernels, budget)
    if options.update:
        budget = {**updated_budget(budget, kernels), "nvcc": release}
        (ROOT / BUDGET).write_text(budget_text(budget))
    if options.files:
        names = {pathlib.PurePath(file).name for file in files}
        budget = {**budget, "kernels": {file: rows for file, rows in budget["kernels"].items() if file in names}}
    found, notes = judge(kernels, budget, release)
    if options.json:
        print(json.dumps({"kernels": [asdict(kernel) for kernel in kernels], "faults": found}, indent=1))
    else:
        print("\n".join(table(kernels)))
    if not disassembler:
        print("check_kernels.py: no cuobjdump with nvdisasm was found, so the machine code was not read "
              "(scripts/setup.sh --cuda-checks installs them into .venv/)", file=sys.stderr)
    if options.write:
        options.write.write_text(page_with_resources(options.write.read_text(), kernels))
    for note in notes:
        print(f"check_kernels.py: note: {note}", file=sys.stderr)
    for fault in found:
        print(f"check_kernels.py: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
