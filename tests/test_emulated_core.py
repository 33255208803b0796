"""emulated_core.py: what it counts is what the processor executes, what it measures is there, what fails is said."""

import importlib.util

import numpy as np
import pytest

import emulated_core
from emulated_core import FLASH, EmulatedCore, EmulationError, build, check_packages, get_cycles

installed = pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in ("ziglang", "unicorn")),
                               reason="ziglang and unicorn are not installed: requirements-microcontroller.txt")

# Thumb code whose instructions can be counted by hand.
SOURCE = r"""
#define ASSEMBLY __attribute__((naked))
ASSEMBLY int count_down(int n) { __asm__(".syntax unified\n 1: subs r0, #1\n bne 1b\n bx lr"); }
ASSEMBLY void push_and_store(void) {
    __asm__(".syntax unified\n push {r4-r6, lr}\n sub sp, #64\n str r4, [sp]\n add sp, #64\n pop {r4-r6, pc}"); }
ASSEMBLY int leave_the_stack_alone(int a) { __asm__(".syntax unified\n bx lr"); }
ASSEMBLY int call_twice(int n) {
    __asm__(".syntax unified\n push {r4, lr}\n bl count_down\n movs r0, #3\n bl count_down\n pop {r4, pc}"); }

static const float weights[5] = {1.5f, -2.0f, 0.25f, 1e10f, 7.0f};
void multiply(const float *x, float *y) { for (int i = 0; i < 5; i++) y[i] = x[i] * weights[i]; }
int add(int a, int b, int c, int d) { return a + b - c - d; }

int load(const int *p) { return *p; }
int store(int *p) { *p = 1; return 0; }
int loop(int n) { for (;;) __asm__ volatile ("nop"); return n; }
ASSEMBLY int grow(int n) { __asm__(".syntax unified\n 1: push {r4-r7}\n b 1b"); }
void jump(void (*to)(void)) { to(); }
void trap(void) { __builtin_trap(); }
"""
FUNCTIONS = ("count_down push_and_store leave_the_stack_alone call_twice multiply add load store loop grow jump trap"
             .split())
CONDITIONAL = r"""
__attribute__((naked)) int conditional(int n) {
    __asm__(".syntax unified\n cmp r0, #1\n ite eq\n moveq r0, #7\n addne.w r0, r0, #1\n vmov s0, r0\n bx lr"); }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of headers, and of the compiler's cache, so that its library is built once for a core."""
    return tmp_path_factory.mktemp("c")


@pytest.fixture(scope="module", params=["cortex-m4f", "cortex-m0plus"])
def core(request, folder):
    return EmulatedCore(build(SOURCE, FUNCTIONS, request.param, "-O2", folder))


def count_one_by_one(program, function, *arguments):
    """Instructions as the emulator reports them, one after the other."""
    import unicorn

    core, addresses = EmulatedCore(program), []
    core._uc.hook_add(unicorn.UC_HOOK_CODE, lambda uc, address, size, data: addresses.append(address))
    core.call(function, *arguments)
    return len(addresses)


@installed
@pytest.mark.parametrize("function, argument, instructions", [
    ("count_down", 1, 3), ("count_down", 1000, 2001), ("push_and_store", 0, 5), ("leave_the_stack_alone", 0, 1),
    ("call_twice", 5, 5 + 11 + 7)])
def test_every_executed_instruction_counts_once(core, function, argument, instructions):
    assert core.call(function, argument).instructions == instructions
    assert core.call(function, argument).instructions == instructions  # and not those of the call before
    assert count_one_by_one(core.program, function, argument) == instructions


@installed
def test_instructions_that_a_condition_skips_count_and_both_lengths_do(folder):
    core = EmulatedCore(build(CONDITIONAL, ["conditional"], "cortex-m4f", "-O2", folder))
    for argument, value in ((1, 7), (5, 6)):
        call = core.call("conditional", argument)
        assert (call.value, call.instructions, call.cycles) == (value, 6, 6 + 2)  # and the pipeline is filled anew


@installed
def test_compiled_code_counts_as_the_emulator_reports_it(core):
    x, y = np.linspace(-1, 1, 5, dtype=np.float32), np.zeros(5, np.float32)
    call = core.call("multiply", x, y)
    assert call.instructions == count_one_by_one(core.program, "multiply", x, y) > 10
    np.testing.assert_array_equal(y, x * np.array([1.5, -2, 0.25, 1e10, 7], np.float32))


@installed
def test_cycles_add_those_of_instructions_and_of_jumps(core):
    refill = {"cortex-m4f": 2, "cortex-m0plus": 1}[core.program.core]
    assert core.call("count_down", 10).cycles == 21 + 9 * refill + refill  # back nine times, and to the caller
    assert core.call("push_and_store").cycles == (1 + 4) + 1 + 2 + 1 + (1 + 4) + refill


@pytest.mark.parametrize("code, cycles", [
    (0xBF00, 1), (0x4348, 1), (0x6808, 2), (0x6008, 2), (0x9801, 2), (0x4801, 2), (0x5C88, 2),  # NOP MULS LDR STR LDR..
    (0xB530, 4), (0xBD30, 4), (0xB500, 2), (0xC90C, 3), (0xC003, 3), (0xD0FE, 1), (0x4770, 1),  # PUSH POP LDM STM B BX
    (0xED900A00, 2), (0xED810A01, 2), (0xED900B00, 3), (0xECB00A04, 5), (0xED2D0A02, 3),  # VLDR VSTR VLDR.64 VLDM VPUSH
    (0xEE200A20, 1), (0xEE300A20, 1), (0xEE300A60, 1), (0xEEA00A20, 3), (0xEE000A20, 3),  # VMUL VADD VSUB VFMA VMLA
    (0xEE800A20, 14), (0xEEB10AC0, 14), (0xEEB00AC0, 1), (0xEEF1FA10, 1), (0xEE000A10, 1),  # VDIV VSQRT VABS VMRS VMOV
    (0xEC410A10, 2), (0xF8D10004, 2), (0xE9D10100, 3), (0xE8B1000C, 3), (0xE92D41F0, 7),  # VMOV LDR.W LDRD LDM.W PUSH.W
    (0xE8DFF001, 2), (0xFB90F0F1, 12), (0xFBB0F0F1, 12), (0xFB00F001, 1), (0xF7FFFFFE, 1)])  # TBB SDIV UDIV MUL BL
def test_cycles_of_single_instructions_are_those_of_the_manual(code, cycles):
    assert get_cycles(code) == cycles


@installed
def test_painted_stack_shows_what_a_frame_takes(core):
    assert core.call("push_and_store").stack_bytes == 4 * 4 + 64
    assert core.call("leave_the_stack_alone").stack_bytes == 0
    assert core.call("call_twice", 2).stack_bytes == 8


@installed
def test_flash_is_split_into_code_and_constants_and_leaves_out_what_is_not_called(folder):
    program = build(SOURCE, ["multiply"], "cortex-m4f", "-Os", folder)
    assert program.constant_bytes == 5 * 4 and 10 < program.code_bytes < 60
    assert len(program.flash) >= program.constant_bytes + program.code_bytes
    program = build(SOURCE, ["count_down"], "cortex-m4f", "-Os", folder)
    assert program.code_bytes in (6, 8) and program.constant_bytes == 0  # three or four instructions of 2 bytes


@installed
def test_integers_and_negative_ones_go_in_and_out(core):
    assert core.call("add", 1, 2, 3, 4).value == -4
    assert core.call("add", -5, 2, -1, 0).value == -2


@installed
@pytest.mark.parametrize("core_name", ["cortex-m3", "riscv32imc"])
def test_other_cores_compute_and_count_as_well(folder, core_name):
    source = """static const int weights[4] = {3, -5, 70000, 11};
    int product(const int *x, int *y) {
        int s = 0; for (int i = 0; i < 4; i++) s += y[i] = x[i] * weights[i]; return s; }"""
    core = EmulatedCore(build(source, ["product"], core_name, "-Os", folder))
    x, y = np.array([2, 30, -1, 100], np.int32), np.zeros(4, np.int32)
    call = core.call("product", x, y)
    assert y.tolist() == [6, -150, -70000, 1100] and call.value == y.sum()
    assert call.instructions == count_one_by_one(core.program, "product", x, y) > 4 * 5


@installed
@pytest.mark.parametrize("function, argument, message", [
    ("load", 0x40, "reads 4 bytes at 0x40, where no memory is"),
    ("store", FLASH, f"writes 4 bytes at {FLASH:#x}, of flash"),
    ("grow", 0, "below the stack, which has 65536 bytes"),
    ("jump", 0x40000001, "at address 0x40000000: "),
    ("trap", 0, "Invalid instruction"),
    ("loop", 0, "has not ended after 20,000 instructions")])
def test_a_fault_of_the_program_is_an_error_that_says_what(core, monkeypatch, function, argument, message):
    monkeypatch.setattr(emulated_core, "MOST_INSTRUCTIONS", 20_000)
    with pytest.raises(EmulationError, match=f"^{function} on {core.program.core}") as error:
        core.call(function, argument)
    assert message in str(error.value)
    assert core.call("count_down", 2).instructions == 5  # the next call is not disturbed


@installed
def test_source_that_does_not_compile_and_variables_in_ram_are_refused_with_the_compilers_words(folder):
    with pytest.raises(RuntimeError, match="(?s)cortex-m4f, -O2.*undeclared identifier 'b'"):
        build("int f(void) { return b; }", ["f"], "cortex-m4f", "-O2", folder)
    with pytest.raises(RuntimeError, match="variables outside of the stack"):
        build("int count; int f(void) { return ++count; }", ["f"], "cortex-m4f", "-O2", folder)
    assert [path.name for path in folder.iterdir()] == ["zig-cache"]


@installed
def test_an_array_with_gaps_is_refused(core):
    with pytest.raises(ValueError, match="not contiguous"):
        core.call("multiply", np.zeros((5, 2), np.float32)[:, 0])


@installed
def test_nothing_is_written_outside_of_the_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    build("int f(int a) { return a; }", ["f"], "cortex-m4f", "-O2", folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["ziglang", "unicorn"])
def test_missing_packages_are_named_with_the_remedy(monkeypatch, missing):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else "found")
    with pytest.raises(ImportError, match=f"{missing}; pip install -r requirements-microcontroller.txt"):
        check_packages()
