/* Vectors of floats: as many as a register of the target holds. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* LANES: floats in a vector; tests set THAW_LANES. */
#if !defined(THAW_LANES) && defined(__AVX512F__)
#define THAW_LANES 16
#elif !defined(THAW_LANES) && defined(__AVX__)
#define THAW_LANES 8
#elif !defined(THAW_LANES)
#define THAW_LANES 4
#endif
enum { LANES = THAW_LANES };

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* x - 0 is x for every float, and compilers make it one broadcast. */
INLINE vec splat(float number) { return number - (vec){0}; }

INLINE vec load(const float *at)
{
    vec values;
    memcpy(&values, at, sizeof values);
    return values;
}

INLINE void store(float *at, vec values) { memcpy(at, &values, sizeof values); }
