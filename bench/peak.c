/* Products and sums in registers only: the most floating-point operations that a core can do. */
#include <stddef.h>

#if defined(__AVX512F__)
enum { LANES = 16, SUMS = 24 };
#elif defined(__AVX__)
enum { LANES = 8, SUMS = 12 };
#else
enum { LANES = 4, SUMS = 12 };
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));

/* Returns the number of operations; a product and a sum are two. */
size_t bench_peak(float *values, size_t rounds)
{
    vec sums[SUMS], factor = values[0] - (vec){0}, term = values[1] - (vec){0};
    for (size_t i = 0; i < SUMS; i++) {
        sums[i] = values[i] - (vec){0};
    }
    for (size_t round = 0; round < rounds; round++) {
#pragma GCC unroll 24
        for (size_t i = 0; i < SUMS; i++) {
            sums[i] = sums[i] * factor + term;
        }
    }
    for (size_t i = 0; i < SUMS; i++) {
        values[i] = sums[i][0];
    }
    return 2 * SUMS * LANES * rounds;
}
