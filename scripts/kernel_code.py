"""What a compiled CUDA kernel is made of: registers, memory and machine code, from the words of ptxas and cuobjdump; and how
many of its blocks a multiprocessor holds. scripts/check_kernels.py judges it."""

import re
import shutil
import subprocess
from dataclasses import dataclass, field

SASS = {"load_128": "16-byte loads from global memory", "store_128": "16-byte stores to global memory",
        "tensor_core": "tensor-core instructions"}


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on one multiprocessor share: CUDA C++ Programming Guide, "Compute Capabilities"."""
    threads: int
    blocks: int
    shared: int  # bytes for all blocks; one block may have 1 KiB less, and each costs 1 KiB more than it asks for
    registers: int = 65536


KIB = 1024
MULTIPROCESSORS = {"80": Multiprocessor(2048, 32, 164 * KIB), "86": Multiprocessor(1536, 16, 100 * KIB),
                   "89": Multiprocessor(1536, 24, 100 * KIB), "90": Multiprocessor(2048, 32, 228 * KIB),
                   "100": Multiprocessor(2048, 32, 228 * KIB), "120": Multiprocessor(1536, 24, 100 * KIB)}


@dataclass
class Kernel:
    """One instance of a kernel as compiled for one architecture."""
    file: str
    name: str  # as in layernorm_forward_kernel<bf16>
    arch: str  # as in sm_90a
    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    static_shared: int = 0
    threads: int = 0  # from the budget, as the next one
    dynamic_shared: int = 0
    blocks: int = 0  # resident on a multiprocessor
    occupancy: float = 0.0
    sass: dict = field(default_factory=dict)  # counts; empty where the machine code was not read

    @property
    def base(self):
        return self.name.split("<")[0]

    def __str__(self):
        return f"{self.file}: {self.name} for {self.arch}"


def multiprocessor(arch):
    return MULTIPROCESSORS[re.fullmatch(r"sm_(\d+)[af]?", arch)[1]]


def resident_blocks(arch, threads, registers, shared):
    """Blocks that one multiprocessor holds at a time; 0 where not even one fits."""
    unit = multiprocessor(arch)
    warps = -(-threads // 32)
    if not 0 < threads <= 1024 or shared > unit.shared - KIB:
        return 0
    # A warp's registers come in 256s, out of the quarter of the file that its scheduler has.
    of_a_warp = -(-max(registers, 1) * 32 // 256) * 256
    by_registers = unit.registers // 4 // of_a_warp * 4 // warps
    by_shared = unit.shared // (-(-shared // 128) * 128 + KIB)
    return min(unit.blocks, unit.threads // 32 // warps, by_registers, by_shared)


def kernel_name(demangled):
    """dropout_add_kernel<bf16> of the demangled signature."""
    text = re.sub(r"\(anonymous namespace\)::|outeffhop::|cuda::", "", demangled)
    text = re.sub(r"\((int|unsigned int|bool|long|unsigned long)\)", "", text)  # cu++filt's way with template values
    depth = 0
    for end, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            text = text[:end]
            break
    return re.sub(r"^(void|auto) ", "", text).strip().replace("> >", ">>")


def demangle(names):
    """Mangled name -> kernel_name()."""
    program = shutil.which("c++filt") or shutil.which("cu++filt")
    if not program:
        raise SystemExit("check_kernels.py: there is no c++filt (Debian: binutils)")
    text = subprocess.run([program], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return {name: kernel_name(line) for name, line in zip(names, text.splitlines())}


def parse_ptxas(text, file, arch):
    """Mangled name -> Kernel, of what `ptxas -v` prints."""
    kernels, current = {}, None
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            current = kernels[found[1]] = Kernel(file, found[1], arch)
        elif current is None:
            continue
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            # Functions that were not inlined are listed as well: what they take is the kernel's.
            current.stack += int(found[1])
            current.spill_stores += int(found[2])
            current.spill_loads += int(found[3])
        elif found := re.search(r"Used (\d+) registers", line):
            current.registers = int(found[1])
            if shared := re.search(r"(\d+) bytes smem", line):
                current.static_shared = int(shared[1])
    return kernels


INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


def parse_sass(text):
    """Mangled name -> counts, of what `cuobjdump -sass` prints."""
    functions, counts = {}, None
    for line in text.splitlines():
        if found := re.match(r"\s*Function : (\S+)", line):
            counts = functions[found[1]] = dict.fromkeys(
                [*SASS, "local_memory", "float_atomics", "integer_atomics", "instructions"], 0)
        elif counts is not None and (found := INSTRUCTION.match(line)):
            operation, *modifiers = found[1].split(".")
            counts["instructions"] += 1
            if operation in ("LDG", "LDGSTS") and "128" in modifiers:
                counts["load_128"] += 1
            elif operation == "STG" and "128" in modifiers:
                counts["store_128"] += 1
            elif operation in ("HMMA", "HGMMA"):
                counts["tensor_core"] += 1
            elif operation in ("LDL", "STL"):
                counts["local_memory"] += 1
            elif re.fullmatch(r"RED[GS]?|ATOM[GS]?", operation):
                floating = any(re.match(r"B?F(16|32|64)", modifier) for modifier in modifiers)
                counts["float_atomics" if floating else "integer_atomics"] += 1
    return functions
