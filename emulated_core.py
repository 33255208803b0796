"""A C function compiled for a microcontroller and run without one: its results, and what they take.

Zig's C compiler, which is clang (pip package ziglang), builds the program; QEMU's emulation as a library (pip package
unicorn) executes it. Code and constants lie in flash, which cannot be written, the stack in RAM, and there are no other
variables.

    program = build("int twice(int a) { return 2 * a; }", ["twice"], "cortex-m4f", "-O2", folder)
    call = EmulatedCore(program).call("twice", 21)
    print(call.value, call.instructions, call.stack_bytes, program.code_bytes, program.constant_bytes)

Instructions are counted exactly, one that a condition skips as well. Cycles are an estimate: the sum of what the tables
of Arm's manuals give for each instruction alone (Cortex-M4 Technical Reference Manual r0p1, tables 3-1 and 7-1;
Cortex-M0+ r0p1, table 3-1), without wait states of the flash and without loads that overlap.
"""

import importlib.util
import math
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

FLASH, FLASH_SIZE = 0x0800_0000, 16 * 2 ** 20  # address, bytes; large, as nothing here depends on it
RAM, STACK_SIZE, ARGUMENTS_SIZE = 0x2000_0000, 2 ** 16, 2 ** 20  # the stack, above it the arrays of the caller
PAINT = 0xA5  # what unused bytes of the stack are filled with
MOST_INSTRUCTIONS = 500_000_000  # of a call, some seconds; a program that takes more is taken to be in a loop


class Core(NamedTuple):
    """A processor core, for the compiler and for the emulator."""
    target: str  # of the compiler
    cpu: str  # of the compiler: the model, and what it has beside it
    model: str  # of the emulator
    refill_cycles: float  # of a branch that is taken, beyond the cycle of one that is not


# The Cortex-M4's manual gives 1 to 3 cycles for refilling the pipeline.
CORES = {
    # with a unit for floats; the fused multiply-add takes more cycles than the two instructions, so clang avoids it
    "cortex-m4f": Core("thumb-freestanding-eabihf", "cortex_m4+vfp4d16sp", "CORTEX_M4", 2),
    "cortex-m4f-fused": Core("thumb-freestanding-eabihf", "cortex_m4+vfp4d16sp-slowfpvfmx-slowfpvmlx", "CORTEX_M4", 2),
    # floats by software
    "cortex-m3": Core("thumb-freestanding-eabi", "cortex_m3", "CORTEX_M3", 2),
    "cortex-m0plus": Core("thumb-freestanding-eabi", "cortex_m0plus", "CORTEX_M0", 1),
    "riscv32imc": Core("riscv32-freestanding-none", "generic_rv32+m+c", "RISCV32_BASE32", math.nan),
}

# The table at the start, of addresses, saves reading the ELF file's symbols.
LINKER_SCRIPT = """
MEMORY {{ FLASH (rx) : ORIGIN = {flash}, LENGTH = {flash_size} }}
SECTIONS {{
  .table : {{ LONG(code_start) LONG(code_end) LONG(constants_start) LONG(constants_end) {functions} }} > FLASH
  .text : {{ code_start = .; *(.text .text.*) code_end = .; }} > FLASH
  .rodata : {{ constants_start = .; *(.rodata .rodata.* .srodata .srodata.*) constants_end = .; }} > FLASH
  .variables : {{ *(.data .data.* .sdata .sdata.* .bss .bss.* .sbss .sbss.* COMMON) }} > FLASH
  ASSERT(SIZEOF(.variables) == 0, "the program has variables outside of the stack")
  /DISCARD/ : {{ *(.ARM.*) *(.eh_frame*) *(.comment) *(.riscv.attributes) }}
}}
"""


class Program(NamedTuple):
    """A program for the flash of a core."""
    core: str
    flash: bytes
    functions: dict  # name -> address
    code_bytes: int  # with the compiler's library, as far as it is used
    constant_bytes: int


class Call(NamedTuple):
    """What a call of a function gave and took."""
    value: int  # what it returned; of no meaning unless that is an int
    instructions: int
    cycles: float  # estimate; NaN for cores without a table
    stack_bytes: int  # of the stack that were written


class EmulationError(RuntimeError):
    """The emulated program did what the core does not allow, or did not end."""


def check_packages():
    """Raise ImportError if ziglang or unicorn is not installed."""
    missing = [package for package in ("ziglang", "unicorn") if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"the emulated core needs the packages ziglang and unicorn, missing: {', '.join(missing)}; "
                          f"pip install -r requirements-microcontroller.txt")


def build(source, functions, core, optimisation, folder):
    """Compile and link C99 source without a C library.

    :param source: str; its headers lie in `folder`
    :param functions: names of functions that will be called; what they do not use is left out
    :param core: one of CORES
    :param optimisation: "-O2", "-Os", ...
    :param folder: of headers and, below `zig-cache`, of what the compiler keeps for the next time: the first program
        for a core and an optimisation that needs the compiler's library takes seconds, others a fraction of one
    :return: Program
    :raises ImportError: ziglang or unicorn is not installed
    :raises RuntimeError: the compiler or the linker refuses the program, with its message
    """
    check_packages()
    cache = Path(folder).absolute() / "zig-cache"  # not in the user's home, which may be read-only
    with tempfile.TemporaryDirectory(dir=folder) as build_folder:
        source_file, script_file, elf_file = (Path(build_folder, name) for name in ("program.c", "flash.ld", "elf"))
        source_file.write_text(source, encoding="utf-8")
        script_file.write_text(LINKER_SCRIPT.format(flash=FLASH, flash_size=FLASH_SIZE, functions=" ".join(
            f"LONG({function})" for function in functions)), encoding="utf-8")
        command = [sys.executable, "-m", "ziglang", "cc", "-target", CORES[core].target, f"-mcpu={CORES[core].cpu}",
                   optimisation, "-std=c99", "-ffreestanding", "-fno-sanitize=all", "-fomit-frame-pointer",
                   "-ffunction-sections", "-fdata-sections", "-g0", f"-I{Path(folder).absolute()}", str(source_file),
                   "-Wl,--gc-sections", "-Wl,-s", f"-Wl,-T,{script_file}", f"-Wl,-e,{functions[0]}", "-o",
                   str(elf_file)]
        environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(cache)}
        for without_library in (["-nostdlib"], []):  # which takes seconds to build and is not always needed
            done = subprocess.run(command + without_library, env=environment, capture_output=True, text=True)
            if "undefined symbol" not in done.stderr:
                break
        if done.returncode:
            raise RuntimeError(f"no program for {core}, {optimisation}: {done.stderr.strip()}")
        flash = _read_flash(elf_file.read_bytes())
    code_start, code_end, constants_start, constants_end, *addresses = struct.unpack_from(f"<{4 + len(functions)}I",
                                                                                          flash)
    return Program(core, flash, dict(zip(functions, addresses)), code_end - code_start,
                   constants_end - constants_start)


def _read_flash(elf):
    """What an ELF file (32 bits, little-endian) wants in flash, from its first byte on."""
    flash = bytearray()
    table, = struct.unpack_from("<I", elf, 28)
    entry_size, nb_entries = struct.unpack_from("<2H", elf, 42)
    for entry in range(table, table + nb_entries * entry_size, entry_size):
        kind, offset, address, _, size = struct.unpack_from("<5I", elf, entry)
        if kind == 1 and size:  # to be loaded
            start = address - FLASH
            flash.extend(bytes(max(0, start + size - len(flash))))
            flash[start:start + size] = elf[offset:offset + size]
    return bytes(flash)


def measure_calls(source, inputs, nb_outputs, core, optimisation, folder):
    """Build a program and call its function `int run(const float *x, float *y)` for each row x of the inputs.

    :param inputs: float32 array (N, entries of x)
    :param nb_outputs: entries of y
    :return: Program; list of N Calls; what the function wrote, float32 array (N, nb_outputs)
    :raises ImportError, RuntimeError, EmulationError: see build and EmulatedCore.call
    """
    program = build(source, ["run"], core, optimisation, folder)
    emulated_core, outputs = EmulatedCore(program), np.zeros((len(inputs), nb_outputs), np.float32)
    return program, [emulated_core.call("run", x, y) for x, y in zip(inputs, outputs)], outputs


class EmulatedCore:
    """A core with a program in its flash.

    :param program: Program
    :raises ImportError: ziglang or unicorn is not installed
    """

    def __init__(self, program):
        check_packages()
        import unicorn
        from unicorn import arm_const, riscv_const

        self.program, self.core = program, CORES[program.core]
        self.is_arm = self.core.target.startswith("thumb")
        if self.is_arm:
            self._uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
            constants, prefix, arguments = arm_const, "UC_ARM_REG", ("R0", "R1", "R2", "R3")
            self._uc.ctl_set_cpu_model(getattr(arm_const, f"UC_CPU_ARM_{self.core.model}"))
        else:
            self._uc = unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV32)
            constants, prefix, arguments = riscv_const, "UC_RISCV_REG", ("A0", "A1", "A2", "A3")
            self._uc.ctl_set_cpu_model(getattr(riscv_const, f"UC_CPU_{self.core.model}"))
        self._arguments = [getattr(constants, f"{prefix}_{name}") for name in arguments]
        self._sp, self._pc = getattr(constants, f"{prefix}_SP"), getattr(constants, f"{prefix}_PC")
        self._return = getattr(constants, f"{prefix}_{'LR' if self.is_arm else 'RA'}")
        if "vfp" in self.core.cpu:
            self._uc.reg_write(arm_const.UC_ARM_REG_FPEXC, 1 << 30)  # switches the unit for floats on
        self._uc.mem_map(FLASH, FLASH_SIZE, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
        # The stack at the lower end, so that one that grows too large meets no memory.
        self._uc.mem_map(RAM, STACK_SIZE + ARGUMENTS_SIZE, unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE)
        self._uc.mem_write(FLASH, program.flash)
        self._instructions_of_blocks = {}  # (address, size) -> (instructions, cycles)
        self._uc.hook_add(unicorn.UC_HOOK_BLOCK, self._on_block)
        self._uc.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_invalid_access)

    def call(self, function, *arguments):
        """Call a function.

        :param arguments: up to four, int, or contiguous arrays, whose address the function gets. The arrays are in RAM,
            not on the stack; what the function writes to them is there afterwards.
        :return: Call
        :raises EmulationError: naming what the program does that it must not, or that it does not end
        """
        import unicorn

        address = RAM + STACK_SIZE
        arrays = []
        for register, argument in zip(self._arguments, arguments):
            if isinstance(argument, np.ndarray):
                if not argument.flags.c_contiguous:
                    raise ValueError(f"an array of shape {argument.shape} is not contiguous, pass a copy")
                arrays.append((address, argument))
                self._uc.mem_write(address, argument.tobytes())
                self._uc.reg_write(register, address)
                address += -(-argument.nbytes // 8) * 8
            else:
                self._uc.reg_write(register, argument)
        self._uc.mem_write(RAM, bytes([PAINT]) * STACK_SIZE)
        self._uc.reg_write(self._sp, RAM + STACK_SIZE)
        self._uc.reg_write(self._return, FLASH + self.is_arm)  # the table, where no code is; 1 stands for Thumb code
        self._blocks, self._end_of_block, self._invalid_access = {}, None, ""
        self._nb_jumps = 0  # The one to the function will count, instead of the one back, behind which no block begins.
        try:
            self._uc.emu_start(self.program.functions[function] | self.is_arm, FLASH, count=MOST_INSTRUCTIONS)
        except unicorn.UcError as error:
            raise EmulationError(f"{function} on {self.program.core}, at address {self._uc.reg_read(self._pc):#x}: "
                                 f"{self._invalid_access or error}") from error
        if self._uc.reg_read(self._pc) & ~1 != FLASH:
            raise EmulationError(f"{function} on {self.program.core} has not ended after {MOST_INSTRUCTIONS:,} "
                                 f"instructions")
        for address, array in arrays:
            if array.flags.writeable:
                array[...] = np.frombuffer(self._uc.mem_read(address, array.nbytes), array.dtype).reshape(array.shape)
        counts = [(count, *self._get_instructions(*block)) for block, count in self._blocks.items()]
        stack = np.frombuffer(self._uc.mem_read(RAM, STACK_SIZE), np.uint8)
        value = self._uc.reg_read(self._arguments[0])
        return Call(value - ((value & 1 << 31) << 1), sum(count * instructions for count, instructions, _ in counts),
                    sum(count * cycles for count, _, cycles in counts) + self._nb_jumps * self.core.refill_cycles,
                    STACK_SIZE - int(np.argmax(stack != PAINT)) if (stack != PAINT).any() else 0)

    def _on_block(self, _uc, address, size, _user_data):
        block = address, size
        self._blocks[block] = self._blocks.get(block, 0) + 1
        if address != self._end_of_block:
            self._nb_jumps += 1
        self._end_of_block = address + size

    def _on_invalid_access(self, _uc, access, address, size, _value, _user_data):
        import unicorn

        verb = {unicorn.UC_MEM_WRITE_UNMAPPED: "writes", unicorn.UC_MEM_WRITE_PROT: "writes",
                unicorn.UC_MEM_FETCH_UNMAPPED: "executes", unicorn.UC_MEM_FETCH_PROT: "executes"}.get(access, "reads")
        where = "of flash" if FLASH <= address < FLASH + FLASH_SIZE else "where no memory is"
        if RAM - STACK_SIZE <= address < RAM:
            where = f"below the stack, which has {STACK_SIZE} bytes"
        self._invalid_access = f"it {verb} {size} bytes at {address:#x}, {where}"
        return False

    def _get_instructions(self, address, size):
        """(number, sum of cycles without those of jumps) of the instructions in a block of the program."""
        if (address, size) not in self._instructions_of_blocks:
            code = struct.unpack(f"<{size // 2}H", self.program.flash[address - FLASH:address - FLASH + size])
            number, cycles, position = 0, 0, 0
            while position < len(code):
                first = code[position]
                is_long = first >> 11 >= 0b11101 if self.is_arm else first & 3 == 3
                cycles += (get_cycles(first << 16 | code[position + 1]) if is_long else get_cycles(first)
                           ) if self.is_arm else math.nan
                number, position = number + 1, position + 1 + is_long
            self._instructions_of_blocks[address, size] = number, cycles
        return self._instructions_of_blocks[address, size]


def get_cycles(code):
    """Cycles of a Thumb instruction by the Cortex-M4's tables, which those of the Cortex-M0+ equal where it has the
    instruction; without the refill of the pipeline after a jump.

    :param code: int of 16 bits, or of 32 bits with the first halfword in the upper ones
    """
    if code < 1 << 16:
        if code & 0xF600 == 0xB400:  # PUSH, POP
            return 1 + (code & 0x1FF).bit_count()
        if code & 0xF000 == 0xC000:  # LDM, STM
            return 1 + (code & 0xFF).bit_count()
        is_load_or_store = code & 0xF800 == 0x4800 or 0x5 <= code >> 12 <= 0x9
        return 2 if is_load_or_store else 1
    if code & 0xFE000E00 == 0xEC000A00:  # floats between registers and memory
        if code & 0xFFE00000 == 0xEC400000:  # VMOV of two
            return 2
        if code & 0x01200000 == 0x01000000:  # VLDR, VSTR, of float and of double
            return 3 if code & 0x100 else 2
        return 1 + (code & 0xFF)  # VLDM, VSTM, VPUSH, VPOP
    if code & 0xFF000E10 == 0xEE000A00:  # arithmetic of floats
        operation = code >> 20 & 0b1011
        if operation == 0b1000 or operation == 0b1011 and code & 0xF00C0 == 0x100C0:  # VDIV, VSQRT
            return 14
        return 3 if operation in (0b0000, 0b0001, 0b1001, 0b1010) else 1  # VMLA, VFMA, ...; VMUL, VADD, ...
    if code & 0xFE000000 == 0xF8000000:  # LDR, STR
        return 2
    if code & 0xFE400000 == 0xE8000000:  # LDM, STM
        return 1 + (code & 0xFFFF).bit_count()
    if code & 0xFE400000 == 0xE8400000:  # LDRD, STRD; TBB, TBH
        return 2 if code & 0xFFF0FFE0 == 0xE8D0F000 else 3
    return 12 if code & 0xFFD0F0F0 == 0xFB90F0F0 else 1  # SDIV, UDIV take 2 to 12
