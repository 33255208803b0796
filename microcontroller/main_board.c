/* Cycles of a classification on a real board with a Cortex-M3 or M4, by the core's own counter.

   1. Write net.h beside this file: export_to_c(net, "net.h", sample_inputs=X_test[:10]).
   2. Compile this file, with -O2, as main.c of a project of the board's vendor, whose start-up code sets the clock and
      switches the unit for floats on. With -DBOARD_PUTCHAR=name the results also go to your void name(char).
   3. Run it and read board_cycles, board_difference and board_class in the debugger, or on the serial port. */

#include <stdint.h>
#define NET_TEST
#include "net.h"

volatile uint32_t board_cycles;   /* of net_classify: the fewest of ten runs, the first of which fill the flash's cache */
volatile float board_difference;  /* the largest between scores of the sample inputs and those of PyTorch */
volatile int board_class;         /* so that the compiler cannot leave the classification out */

/* From Arm's ARMv7-M Architecture Reference Manual. A Cortex-M0+ has no such counter. */
#define DEMCR (*(volatile uint32_t *)0xE000EDFCu)
#define DWT_CTRL (*(volatile uint32_t *)0xE0001000u)
#define DWT_CYCCNT (*(volatile uint32_t *)0xE0001004u)

#ifdef BOARD_PUTCHAR
void BOARD_PUTCHAR(char character);

static void print(const char *text, uint32_t number)
{
    char digits[10];
    int nb_digits = 0;
    while (*text)
        BOARD_PUTCHAR(*text++);
    do {
        digits[nb_digits++] = (char)('0' + number % 10u);
        number /= 10u;
    } while (number);
    while (nb_digits)
        BOARD_PUTCHAR(digits[--nb_digits]);
}
#endif

int main(void)
{
    static float x[NET_INPUT_SIZE]; /* any numbers; without a unit for floats the time depends on them a little */
    const float *volatile input = x; /* read after the counter is, so that nothing is computed before */
    for (int i = 0; i < NET_INPUT_SIZE; i++)
        x[i] = (float)(i % 17);
    board_difference = net_test();
    DEMCR |= 1u << 24; /* TRCENA: the counter's unit is on */
    DWT_CYCCNT = 0;
    DWT_CTRL |= 1u; /* CYCCNTENA: it counts */
    board_cycles = UINT32_MAX;
    for (int run = 0; run < 10; run++) {
        uint32_t start = DWT_CYCCNT;
        board_class = net_classify(input);
        uint32_t cycles = DWT_CYCCNT - start;
        if (cycles < board_cycles)
            board_cycles = cycles;
    }
#ifdef BOARD_PUTCHAR
    print("cycles ", board_cycles);
    print(", difference from PyTorch in millionths ", (uint32_t)(board_difference * 1e6f));
    print(", class ", (uint32_t)board_class);
    BOARD_PUTCHAR('\n');
#endif
    for (;;) {
    }
}
