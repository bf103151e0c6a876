/* Runs thaw_predict on images from a file of the machine that emulates this one, counts, and writes what it found.
 *
 * images.bin holds THAW_INPUT_BYTES bytes an image; scores.bin gets THAW_SCORES scores each, and
 * counts.bin eight words: images, SysTick ticks in all of thaw_predict, ticks and instructions of the loop that
 * calibrates, stack bytes, and the most ticks of one image. */
#include "model.h"

#include <stddef.h>

#define PAINT 0xA5C3A5C3u
#define CALIBRATION_LOOPS 2000000u

#define SYSTICK_CONTROL (*(volatile uint32_t *)0xE000E010u)
#define SYSTICK_RELOAD (*(volatile uint32_t *)0xE000E014u)
#define SYSTICK_VALUE (*(volatile uint32_t *)0xE000E018u)
#define SYSTICK_MASK 0xFFFFFFu

extern uint32_t stack_bottom[], stack_top[], data_load[], data_begin[], data_end[], bss_begin[], bss_end[];
int main(void);
void reset(void);
void fault(void);

enum { SYS_OPEN = 1, SYS_CLOSE = 2, SYS_WRITE = 5, SYS_READ = 6, SYS_EXIT_EXTENDED = 0x20 };

static uint32_t host(uint32_t operation, const void *arguments)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static uint32_t host_open(const char *name, uint32_t length, uint32_t mode)
{
    const uint32_t arguments[3] = {(uint32_t)name, mode, length};
    return host(SYS_OPEN, arguments);
}

/* Bytes that could not be read or written. */
static uint32_t host_transfer(uint32_t operation, uint32_t handle, const void *data, uint32_t bytes)
{
    const uint32_t arguments[3] = {handle, (uint32_t)data, bytes};
    return host(operation, arguments);
}

static void host_exit(uint32_t code)
{
    const uint32_t arguments[2] = {0x20026u, code}; /* ADP_Stopped_ApplicationExit */
    host(SYS_EXIT_EXTENDED, arguments);
    for (;;) {
    }
}

static uint8_t pixels[THAW_INPUT_BYTES];
static thaw_score scores[THAW_SCORES];

/* A loop of two instructions, which tells how many of them one tick is. */
static uint32_t calibrate(void)
{
    uint32_t loops = CALIBRATION_LOOPS;
    const uint32_t before = SYSTICK_VALUE;
    __asm__ volatile("1: subs %0, %0, #1\n bne 1b" : "+r"(loops) : : "cc");
    return (before - SYSTICK_VALUE) & SYSTICK_MASK;
}

/* Nothing is on the stack between this frame and that of thaw_predict, which is called from here. */
static __attribute__((noinline)) uint32_t predict(void)
{
    const uint32_t before = SYSTICK_VALUE;
    thaw_predict(pixels, scores);
    return (before - SYSTICK_VALUE) & SYSTICK_MASK;
}

static uint32_t *stack_pointer(void)
{
    uint32_t *pointer;
    __asm__ volatile("mov %0, sp" : "=r"(pointer));
    return pointer;
}

int main(void)
{
    uint32_t counts[8] = {0, 0, 0, 2 * CALIBRATION_LOOPS, 0, 0, 0, 0};
    uint32_t *deepest, *here;
    const uint32_t images = host_open("images.bin", 10, 1);
    const uint32_t results = host_open("scores.bin", 10, 5);
    uint32_t file;
    SYSTICK_RELOAD = SYSTICK_MASK;
    SYSTICK_VALUE = 0;
    SYSTICK_CONTROL = 5;
    counts[2] = calibrate();
    here = stack_pointer();
    for (deepest = stack_bottom; deepest < here - 1; deepest++) {
        *(volatile uint32_t *)deepest = PAINT;
    }
    while (host_transfer(SYS_READ, images, pixels, THAW_INPUT_BYTES) == 0) {
        const uint32_t ticks = predict();
        counts[0]++;
        counts[1] += ticks;
        counts[5] = ticks > counts[5] ? ticks : counts[5];
        if (host_transfer(SYS_WRITE, results, scores, sizeof scores) != 0) {
            host_exit(3);
        }
    }
    for (deepest = stack_bottom; deepest < here && *(volatile uint32_t *)deepest == PAINT; deepest++) {
    }
    counts[4] = (uint32_t)((uint8_t *)here - (uint8_t *)deepest);
    file = host_open("counts.bin", 10, 5);
    if (host_transfer(SYS_WRITE, file, counts, sizeof counts) != 0) {
        host_exit(4);
    }
    host(SYS_CLOSE, &results);
    host(SYS_CLOSE, &file);
    host_exit(0);
    return 0;
}

void fault(void)
{
    host_exit(70);
}

void reset(void)
{
    uint32_t *to, *from = data_load;
    for (to = data_begin; to < data_end;) {
        *to++ = *from++;
    }
    for (to = bss_begin; to < bss_end;) {
        *to++ = 0;
    }
    (void)main();
    host_exit(0);
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    stack_top, (const void *)reset, (const void *)fault, (const void *)fault, (const void *)fault, (const void *)fault,
    (const void *)fault,
};
