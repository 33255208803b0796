"""microcontroller/emulated_core.py: what it counts is what the processor executes, what fails is said."""

import numpy as np
import pytest

unicorn = pytest.importorskip("unicorn", reason="pip install -r microcontroller/requirements.txt")
from microcontroller import emulated_core
from microcontroller.emulated_core import RAM, EmulatedCore, build

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
int count_calls(void) { static int nb_calls; return ++nb_calls; }
int loop(int n) { for (;;) __asm__ volatile ("nop"); return n; }
ASSEMBLY int grow(int n) { __asm__(".syntax unified\n 1: push {r4-r7}\n b 1b"); }
"""
FUNCTIONS = "count_down push_and_store leave_the_stack_alone call_twice multiply add load count_calls loop grow".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("c")  # with the compiler's cache, so that its library is built once for a core


@pytest.fixture(scope="module", params=["cortex-m4f", "cortex-m0plus"])
def core(request, folder):
    return EmulatedCore(build(SOURCE, FUNCTIONS, request.param, "-O2", folder))


def test_every_executed_instruction_counts_once(core):
    for function, argument, instructions in [("count_down", 1, 3), ("count_down", 1000, 2001), ("push_and_store", 0, 5),
                                             ("leave_the_stack_alone", 0, 1), ("call_twice", 5, 5 + 11 + 7)]:
        assert core.call(function, argument).instructions == instructions, function


def test_compiled_code_computes_and_counts_as_the_emulator_reports_it(core):
    x, y = np.linspace(-1, 1, 5, dtype=np.float32), np.zeros(5, np.float32)
    call, addresses = core.call("multiply", x, y), []
    np.testing.assert_array_equal(y, x * np.array([1.5, -2, 0.25, 1e10, 7], np.float32))
    assert core.call("add", -5, 2, -1, 0).value == -2
    slow_core = EmulatedCore(core.program)
    slow_core._uc.hook_add(unicorn.UC_HOOK_CODE, lambda uc, address, size, data: addresses.append(address))
    slow_core.call("multiply", x, y)
    assert call.instructions == len(addresses) > 10


def test_cycles_add_those_of_instructions_and_of_jumps(core):
    refill = {"cortex-m4f": 2, "cortex-m0plus": 1}[core.program.core]
    assert core.call("count_down", 10).cycles == 21 + 9 * refill + refill  # back nine times, and to the caller
    assert core.call("push_and_store").cycles == (1 + 4) + 1 + 2 + 1 + (1 + 4) + refill


def test_painted_stack_shows_what_a_frame_takes(core):
    assert core.call("push_and_store").stack_bytes == 4 * 4 + 64
    assert core.call("leave_the_stack_alone").stack_bytes == 0
    assert core.call("call_twice", 2).stack_bytes == 8


def test_flash_is_split_into_code_and_constants_and_leaves_out_what_is_not_called(folder):
    program = build(SOURCE, ["multiply"], "cortex-m4f", "-Os", folder)
    assert program.constant_bytes == 5 * 4 and 10 < program.code_bytes < 60
    program = build(SOURCE, ["count_down"], "cortex-m3", "-Os", folder)
    assert program.code_bytes in (6, 8) and program.constant_bytes == 0  # three or four instructions of 2 bytes


@pytest.mark.parametrize("function, argument, message", [
    ("load", 0x40, "Invalid memory read .*, 4 bytes at 0x40;"),
    ("count_calls", 0, "Write to write-protected memory .*, 4 bytes at 0x8000"),
    ("grow", 0, f"the stack of 65536 bytes begins at {RAM:#x}"),
    ("loop", 0, "has not ended after 20,000 instructions")])
def test_a_fault_of_the_program_is_an_error_that_says_what(core, monkeypatch, function, argument, message):
    monkeypatch.setattr(emulated_core, "MOST_INSTRUCTIONS", 20_000)
    with pytest.raises(RuntimeError, match=f"^{function} on {core.program.core}.*{message}"):
        core.call(function, argument)
    assert core.call("count_down", 2).instructions == 5  # the next call is not disturbed


def test_the_name_of_the_folder_means_nothing_to_compiler_and_linker(tmp_path):
    folder = tmp_path / "a,b 50%\\c"
    folder.mkdir()
    (folder / "seven.h").write_text("#define SEVEN 7")
    source = '#include "seven.h"\nint seven(void) { return SEVEN; }'
    assert EmulatedCore(build(source, ["seven"], "cortex-m4f", "-O2", folder)).call("seven").value == 7


def test_source_that_does_not_compile_is_refused_with_the_compilers_words_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    with pytest.raises(RuntimeError, match="(?s)cortex-m4f, -O2.*undeclared identifier 'b'"):
        build("int f(void) { return b; }", ["f"], "cortex-m4f", "-O2", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["zig-cache"]
