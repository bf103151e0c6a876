/* Feature maps in memory, and blocks of their channels in vectors.
 *
 * Values in memory are float32, or bfloat16 with -DTHAW_BFLOAT16. Arithmetic is always float32. */
#include <math.h>

#include "vectors.h"

typedef uint32_t vec_bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t half_vec __attribute__((vector_size(2 * LANES)));

#ifdef THAW_BFLOAT16
typedef uint16_t value;

INLINE float widen(value stored)
{
    uint32_t bits = (uint32_t)stored << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* Round to nearest, ties to even; NaN stays NaN. */
INLINE value narrow(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return (value)(number == number ? rounded : 0x7FC0u);
}

INLINE vec load_vec(const value *from)
{
    half_vec stored;
    memcpy(&stored, from, sizeof stored);
    return (vec)(__builtin_convertvector(stored, vec_bits) << 16);
}

INLINE void store_vec(value *to, vec numbers)
{
    vec_bits bits = (vec_bits)numbers, number = (vec_bits)(numbers == numbers);
    vec_bits rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    half_vec stored = __builtin_convertvector((rounded & number) | (~number & 0x7FC0u), half_vec);
    memcpy(to, &stored, sizeof stored);
}
#else
typedef float value;

INLINE float widen(value stored) { return stored; }
INLINE value narrow(float number) { return number; }
INLINE vec load_vec(const value *from) { return load(from); }
INLINE void store_vec(value *to, vec numbers) { store(to, numbers); }
#endif

INLINE vec zeros(void) { return (vec){0.0f}; }

/* Keep a vector in a register. Compilers may otherwise load it again in each instruction that uses it, and loads, not
 * arithmetic, then limit the speed. */
#if defined(__AVX512F__) && THAW_LANES == 16
#define IN_REGISTER(vector) __asm__("" : "+v"(vector))
#elif (defined(__AVX__) && THAW_LANES == 8) || (defined(__SSE2__) && THAW_LANES == 4)
#define IN_REGISTER(vector) __asm__("" : "+x"(vector))
#else
#define IN_REGISTER(vector) ((void)0)
#endif

/* `numbers` where `condition` is above 0, else 0. */
INLINE vec where_positive(vec condition, vec numbers)
{
    return (vec)((vec_bits)(condition > zeros()) & (vec_bits)numbers);
}

/* ReLU; NaN stays NaN. */
INLINE vec relu_vec(vec numbers) { return (vec)(~(vec_bits)(numbers < zeros()) & (vec_bits)numbers); }

/* The cases of maps with fewer than LANES channels are functions of their own, so that they are compiled only once. */
static __attribute__((noinline)) vec load_part(const value *from, size_t count)
{
    float numbers[LANES] = {0.0f};
    for (size_t i = 0; i < count; i++) {
        numbers[i] = widen(from[i]);
    }
    return load(numbers);
}

static __attribute__((noinline)) void store_part(value *to, vec numbers, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        to[i] = narrow(numbers[i]);
    }
}

/* The first `count` lanes; the others are 0. */
INLINE vec load_some(const value *from, size_t count)
{
    return count == LANES ? load_vec(from) : load_part(from, count);
}

INLINE void store_some(value *to, vec numbers, size_t count)
{
    if (count == LANES) {
        store_vec(to, numbers);
    } else {
        store_part(to, numbers, count);
    }
}

/* Ask for `count` values that will be read or written soon, so that the first store to a line need not wait for it. Addresses
 * beyond the end of a map do no harm. */
INLINE void prefetch_write(const value *from, size_t count)
{
    for (size_t i = 0; i < count; i += 64 / sizeof(value)) {
        __builtin_prefetch(from + i, 1);
    }
}

INLINE void prefetch_read(const value *from, size_t count)
{
    for (size_t i = 0; i < count; i += 64 / sizeof(value)) {
        __builtin_prefetch(from + i);
    }
}

/* Values that will be read or written soon. They are asked for a few lines at a time during arithmetic that does not read memory: a
 * processor can wait for few lines at once. */
typedef struct {
    const value *from;
    size_t count;
    int written;
} soon;

INLINE void prefetch_some(soon *next, size_t count)
{
    count = count < next->count ? count : next->count;
    if (next->written) {
        prefetch_write(next->from, count);
    } else {
        prefetch_read(next->from, count);
    }
    next->from += count;
    next->count -= count;
}

/* Values to ask for in each of `times` calls. */
INLINE size_t share_of(soon next, size_t times)
{
    const size_t line = 64 / sizeof(value);
    return (next.count / times / line + 1) * line;
}

/* Channels are processed in blocks of LANES. The last block overlaps the one before it, so that every block is whole, unless
 * there are fewer than LANES channels. Both compute the same values for the channels that they share. */
INLINE size_t blocks_of(size_t channels) { return (channels + LANES - 1) / LANES; }

INLINE size_t first_of(size_t block, size_t channels)
{
    size_t first = block * LANES;
    return first + LANES <= channels ? first : channels > LANES ? channels - LANES : 0;
}

INLINE size_t count_of(size_t channels) { return channels < LANES ? channels : LANES; }

/* Aligned scratch memory, cut from the caller's. */
INLINE void *cut(float **work, size_t bytes)
{
    uintptr_t start = ((uintptr_t)*work + 63) / 64 * 64;
    *work = (float *)(start + bytes);
    return (void *)start;
}

/* Arrays [kinds, channels] as vectors [kinds, blocks]. */
static vec *by_block(float **work, const float *by_channel, size_t kinds, size_t channels)
{
    const size_t blocks = blocks_of(channels);
    vec *made = cut(work, kinds * blocks * sizeof(vec));
    for (size_t i = 0; i < kinds * blocks; i++) {
        float numbers[LANES] = {0.0f};
        const float *from = by_channel + i / blocks * channels + first_of(i % blocks, channels);
        memcpy(numbers, from, count_of(channels) * sizeof(float));
        made[i] = load(numbers);
    }
    return made;
}

/* Sums of differences from an origin, and of their squares, in one block of channels. Differences keep precision where the
 * variance is small compared with the mean. float32 sums are moved to float64 totals from time to time. */
typedef struct {
    vec origin, sums, squares;
    double totals[LANES], total_squares[LANES];
} moments;

INLINE void moments_begin(moments *block, vec origin)
{
    memset(block, 0, sizeof *block);
    block->origin = origin;
}

/* Add `count` vectors. Two partial sums shorten the chain of dependent additions. */
INLINE void moments_add(moments *block, const vec *numbers, size_t count)
{
    vec sums[2] = {zeros(), zeros()}, squares[2] = {zeros(), zeros()};
#pragma GCC unroll 8
    for (size_t i = 0; i < count; i++) {
        const vec distance = numbers[i] - block->origin;
        sums[i % 2] += distance;
        squares[i % 2] += distance * distance;
    }
    block->sums += sums[0] + sums[1];
    block->squares += squares[0] + squares[1];
}

static void moments_carry(moments *block)
{
    for (size_t i = 0; i < LANES; i++) {
        block->totals[i] += (double)block->sums[i];
        block->total_squares[i] += (double)block->squares[i];
    }
    block->sums = block->squares = zeros();
}

/* Mean and variance of each channel over `rows` values: statistics [2, channels]. */
INLINE void moments_end(const moments *blocks, size_t rows, size_t channels, double *statistics)
{
    for (size_t b = 0; b < blocks_of(channels); b++) {
        for (size_t i = 0; i < count_of(channels); i++) {
            const size_t c = first_of(b, channels) + i;
            double distance = blocks[b].totals[i] / (double)rows;
            double variance = blocks[b].total_squares[i] / (double)rows - distance * distance;
            statistics[c] = (double)blocks[b].origin[i] + distance;
            statistics[channels + c] = variance < 0.0 ? 0.0 : variance;
        }
    }
}
