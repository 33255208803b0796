"""A C function compiled for a microcontroller and run without one: its results, and what they take.

Zig's C compiler, which is clang (pip package ziglang), builds the program; QEMU's emulation as a library (pip package
unicorn) executes it. Code and constants lie in flash, which cannot be written, the stack lies in RAM.

    program = build("int twice(int a) { return 2 * a; }", ["twice"], "cortex-m4f", "-O2", folder)
    call = EmulatedCore(program).call("twice", 21)
    print(call.value, call.instructions, call.stack_bytes, program.code_bytes, program.constant_bytes)

Instructions are counted exactly, one that a condition skips as well. Cycles are an estimate: the sum of what the tables
of Arm's manuals give for each instruction alone (Cortex-M4 Technical Reference Manual r0p1, tables 3-1 and 7-1;
Cortex-M0+ r0p1, table 3-1), without wait states of the flash and without loads that overlap.
"""

import os
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import unicorn  # pip install -r microcontroller/requirements.txt
from unicorn import arm_const

FLASH, FLASH_SIZE = 0x0800_0000, 16 * 2 ** 20  # address, bytes; large, as nothing here depends on it
RAM, STACK_SIZE, ARGUMENTS_SIZE = 0x2000_0000, 2 ** 16, 2 ** 20  # the stack, above it the arrays of the caller
PAINT = 0xA5  # what unused bytes of the stack are filled with
MOST_INSTRUCTIONS = 500_000_000  # of a call, some seconds; a program that takes more is taken to be in a loop

# name: (target and model for the compiler, model for the emulator, cycles to refill the pipeline after a jump, for
# which the Cortex-M4's manual gives 1 to 3)
CORES = {
    # with a unit for floats; the fused multiply-add takes more cycles than the two instructions, so clang avoids it
    "cortex-m4f": ("thumb-freestanding-eabihf", "cortex_m4+vfp4d16sp", arm_const.UC_CPU_ARM_CORTEX_M4, 2),
    "cortex-m4f-fused": ("thumb-freestanding-eabihf", "cortex_m4+vfp4d16sp-slowfpvfmx-slowfpvmlx",
                         arm_const.UC_CPU_ARM_CORTEX_M4, 2),
    # floats by software
    "cortex-m3": ("thumb-freestanding-eabi", "cortex_m3", arm_const.UC_CPU_ARM_CORTEX_M3, 2),
    "cortex-m0plus": ("thumb-freestanding-eabi", "cortex_m0plus", arm_const.UC_CPU_ARM_CORTEX_M0, 1),
}

# The table at the start, of addresses, saves reading the ELF file's symbols.
LINKER_SCRIPT = """
PHDRS {{ flash PT_LOAD; }}
SECTIONS {{
  . = {flash};
  .table : {{ LONG(code_start) LONG(code_end) LONG(constants_start) LONG(constants_end) {functions} }} :flash
  .text : {{ code_start = .; *(.text .text.*) code_end = .; }}
  .rodata : {{ constants_start = .; *(.rodata .rodata.*) constants_end = .; }}
  /DISCARD/ : {{ *(.ARM.*) *(.eh_frame*) *(.comment) }}
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
    cycles: int  # estimate
    stack_bytes: int  # of the stack that were written


def build(source, functions, core, optimisation, folder):
    """Compile and link C99 source without a C library.

    :param source: str; its headers lie in `folder`
    :param functions: names of functions that will be called; what they do not use is left out
    :param core: one of CORES
    :param optimisation: "-O2", "-Os", ...
    :param folder: of headers and, below `zig-cache`, of what the compiler keeps for the next time: the first program
        for a core and an optimisation that needs the compiler's library takes seconds, others a fraction of one
    :return: Program
    :raises RuntimeError: the compiler or the linker refuses the program, with its message
    """
    folder, (target, cpu, _, _) = Path(folder).absolute(), CORES[core]
    cache_folder = str(folder / "zig-cache")  # not in the user's home, which may be read-only
    with tempfile.TemporaryDirectory(dir=folder) as build_folder:
        Path(build_folder, "program.c").write_text(source, encoding="utf-8")
        Path(build_folder, "flash.ld").write_text(LINKER_SCRIPT.format(flash=FLASH, functions=" ".join(
            f"LONG({function})" for function in functions)), encoding="utf-8")
        # Relative paths, for commas and per cent signs mean something to the linker.
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target, f"-mcpu={cpu}", optimisation, "-std=c99",
                   "-ffreestanding", "-fno-sanitize=all", "-fomit-frame-pointer", "-ffunction-sections",
                   "-fdata-sections", "-g0", "-I..", "program.c", "-Wl,--gc-sections", "-Wl,-s",
                   "-Wl,-T,flash.ld", f"-Wl,-e,{functions[0]}", "-o", "elf"]
        environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache_folder, "ZIG_LOCAL_CACHE_DIR": cache_folder}
        for without_library in (["-nostdlib"], []):  # which takes seconds to build and is not always needed
            done = subprocess.run(command + without_library, cwd=build_folder, env=environment, capture_output=True,
                                  text=True)
            if "undefined symbol" not in done.stderr:
                break
        if done.returncode:
            raise RuntimeError(f"no program for {core}, {optimisation}: {done.stderr.strip()}")
        elf = Path(build_folder, "elf").read_bytes()
    offset, _, _, size = struct.unpack_from("<4I", elf, 52 + 4)  # of the only segment, behind the header's 52 bytes
    flash, words = elf[offset:offset + size], f"<{4 + len(functions)}I"
    code_start, code_end, constants_start, constants_end, *addresses = struct.unpack_from(words, flash)
    return Program(core, flash, dict(zip(functions, addresses)), code_end - code_start, constants_end - constants_start)


def measure_calls(source, inputs, nb_outputs, core, optimisation, folder):
    """Build a program and call its function `int run(const float *x, float *y)` for each row x of the inputs.

    :param inputs: float32 array (N, entries of x)
    :param nb_outputs: entries of y
    :return: Program; list of N Calls; what the function wrote, float32 array (N, nb_outputs)
    """
    program = build(source, ["run"], core, optimisation, folder)
    emulated_core, outputs = EmulatedCore(program), np.zeros((len(inputs), nb_outputs), np.float32)
    return program, [emulated_core.call("run", x, y) for x, y in zip(inputs, outputs)], outputs


class EmulatedCore:
    """A core with a program (Program) in its flash."""

    def __init__(self, program):
        self.program, (_, cpu, model, self._refill_cycles) = program, CORES[program.core]
        self._uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        self._uc.ctl_set_cpu_model(model)
        if "vfp" in cpu:
            self._uc.reg_write(arm_const.UC_ARM_REG_FPEXC, 1 << 30)  # switches the unit for floats on
        self._uc.mem_map(FLASH, FLASH_SIZE, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
        # The stack at the lower end, so that one that grows too large meets no memory.
        self._uc.mem_map(RAM, STACK_SIZE + ARGUMENTS_SIZE, unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE)
        self._uc.mem_write(FLASH, program.flash)
        self._uc.hook_add(unicorn.UC_HOOK_BLOCK, self._on_block)
        self._uc.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_invalid_access)

    def call(self, function, *arguments):
        """Call a function of the program, which gives a Call.

        :param arguments: up to four, int, or arrays, whose address the function gets. The arrays are in RAM, not on the
            stack; what the function writes to them is there afterwards.
        :raises RuntimeError: naming what the program does that the core does not allow, or that it does not end
        """
        address, arrays = RAM + STACK_SIZE, []
        for register, argument in enumerate(arguments, arm_const.UC_ARM_REG_R0):
            if isinstance(argument, np.ndarray):
                arrays.append((address, argument))
                self._uc.mem_write(address, argument.tobytes())
                self._uc.reg_write(register, address)
                address += -(-argument.nbytes // 8) * 8
            else:
                self._uc.reg_write(register, argument)
        self._uc.mem_write(RAM, bytes([PAINT]) * STACK_SIZE)
        self._uc.reg_write(arm_const.UC_ARM_REG_SP, RAM + STACK_SIZE)
        self._uc.reg_write(arm_const.UC_ARM_REG_LR, FLASH | 1)  # the table, where no code is; 1 stands for Thumb code
        self._blocks, self._end_of_block, self._where = Counter(), None, ""
        self._nb_jumps = 0  # The one to the function will count, instead of the one back, behind which no block begins.
        try:
            self._uc.emu_start(self.program.functions[function] | 1, FLASH, count=MOST_INSTRUCTIONS)
        except unicorn.UcError as error:
            raise RuntimeError(f"{function} on {self.program.core}, at address "
                               f"{self._uc.reg_read(arm_const.UC_ARM_REG_PC):#x}: {error}{self._where}") from error
        if self._uc.reg_read(arm_const.UC_ARM_REG_PC) != FLASH:
            raise RuntimeError(f"{function} on {self.program.core} has not ended after {MOST_INSTRUCTIONS:,} "
                               f"instructions")
        for address, array in arrays:
            array[...] = np.frombuffer(self._uc.mem_read(address, array.nbytes), array.dtype).reshape(array.shape)
        nb_instructions, nb_cycles = 0, self._nb_jumps * self._refill_cycles
        for (address, size), count in self._blocks.items():
            instructions, cycles = count_instructions(self.program.flash[address - FLASH:address - FLASH + size])
            nb_instructions, nb_cycles = nb_instructions + count * instructions, nb_cycles + count * cycles
        written = np.flatnonzero(np.frombuffer(self._uc.mem_read(RAM, STACK_SIZE), np.uint8) != PAINT)
        value = self._uc.reg_read(arm_const.UC_ARM_REG_R0)
        return Call(value - ((value & 1 << 31) << 1), nb_instructions, nb_cycles,
                    STACK_SIZE - int(written[0]) if len(written) else 0)

    def _on_block(self, _uc, address, size, _user_data):
        self._blocks[address, size] += 1
        self._nb_jumps += address != self._end_of_block
        self._end_of_block = address + size

    def _on_invalid_access(self, _uc, _access, address, size, _value, _user_data):
        self._where = f", {size} bytes at {address:#x}; the stack of {STACK_SIZE} bytes begins at {RAM:#x}"
        return False


# By the Cortex-M4's tables, which those of the Cortex-M0+ equal where it has the instruction: an instruction that is
# `value` where `mask` has ones takes these cycles, of several rows those of the first.
CYCLES = [
    # mask, value, cycles; of 16 bits
    (0xFFFF_F600, 0x0000_B400, lambda code: 1 + (code & 0x1FF).bit_count()),  # PUSH, POP
    (0xFFFF_F000, 0x0000_C000, lambda code: 1 + (code & 0xFF).bit_count()),  # LDM, STM
    (0xFFFF_F800, 0x0000_4800, 2), (0xFFFF_F000, 0x0000_5000, 2),  # LDR, STR
    (0xFFFF_E000, 0x0000_6000, 2), (0xFFFF_E000, 0x0000_8000, 2),
    # floats between registers and memory
    (0xFFE0_0E00, 0xEC40_0A00, 2),  # VMOV of two
    (0xFF20_0F00, 0xED00_0A00, 2), (0xFF20_0F00, 0xED00_0B00, 3),  # VLDR, VSTR, of float and of double
    (0xFE00_0E00, 0xEC00_0A00, lambda code: 1 + (code & 0xFF)),  # VLDM, VSTM, VPUSH, VPOP
    # arithmetic of floats; what is not here, VADD, VMUL, ..., takes 1
    (0xFFB0_0E10, 0xEE80_0A00, 14), (0xFFBF_0ED0, 0xEEB1_0AC0, 14),  # VDIV, VSQRT
    (0xFFA0_0E10, 0xEE00_0A00, 3), (0xFFB0_0E10, 0xEE90_0A00, 3), (0xFFB0_0E10, 0xEEA0_0A00, 3),  # VMLA, VFMA, ...
    # others of 32 bits
    (0xFE00_0000, 0xF800_0000, 2),  # LDR, STR
    (0xFE40_0000, 0xE800_0000, lambda code: 1 + (code & 0xFFFF).bit_count()),  # LDM, STM
    (0xFFF0_FFE0, 0xE8D0_F000, 2), (0xFE40_0000, 0xE840_0000, 3),  # TBB, TBH; LDRD, STRD
    (0xFFD0_F0F0, 0xFB90_F0F0, 12),  # SDIV, UDIV take 2 to 12
    (0, 0, 1),
]


@cache
def count_instructions(code):
    """(number, sum of cycles without the refill of the pipeline after jumps) of the instructions in Thumb code."""
    halfwords = iter(struct.unpack(f"<{len(code) // 2}H", code))
    number, total = 0, 0
    for first in halfwords:
        instruction = first << 16 | next(halfwords) if first >> 11 >= 0b11101 else first
        cycles = next(cycles for mask, value, cycles in CYCLES if instruction & mask == value)
        number, total = number + 1, total + (cycles if isinstance(cycles, int) else cycles(instruction))
    return number, total
