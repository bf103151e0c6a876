/* Selects the kernels: DSP extension, AVX2 (with VNNI), or portable. All of them give the same bits. Cores without Thumb-2,
 * and other cores in ARM state, report the extension but lack instructions that are used here. */
#if !defined(THAW_PORTABLE) && defined(__GNUC__) && defined(__ARM_FEATURE_DSP) && defined(__thumb2__) && \
    !defined(__ARM_BIG_ENDIAN)
#define THAW_DSP 1
#elif !defined(THAW_PORTABLE) && defined(__GNUC__) && defined(__AVX2__)
#define THAW_AVX2 1
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define THAW_VNNI 1
#endif
#endif

#if defined(__GNUC__)
#define THAW_INLINE static inline __attribute__((always_inline, unused))
#define THAW_NOINLINE __attribute__((noinline))
#define THAW_WORDS __attribute__((aligned(4))) /* read as words; unaligned words may trap or be slow */
#else
#define THAW_INLINE static inline
#define THAW_NOINLINE
#define THAW_WORDS
#endif

/* value / 2^exponent, rounded to nearest, halves away from zero; exponent 0 to 31. Shifts of negative numbers are
 * arithmetic in all tested compilers. */
THAW_INLINE int32_t thaw_divide_by_power(int32_t value, int32_t exponent)
{
    const int32_t mask = (int32_t)(((uint32_t)1 << exponent) - 1);
    return (value >> exponent) + ((value & mask) > (mask >> 1) + (value < 0));
}

/* The same for |value| below 2^30, in fewer instructions. */
THAW_INLINE int32_t thaw_divide_small_by_power(int32_t value, int32_t exponent)
{
    const int32_t half = (int32_t)(((uint32_t)1 << exponent) >> 1);
    return exponent ? (value + (value >> 31) + half) >> exponent : value;
}

/* The high half of 2 a b, rounded to nearest. With THAW_DSP, |a| is below 2^30. */
THAW_INLINE int32_t thaw_multiply_high(int32_t a, int32_t b)
{
    return (int32_t)(((int64_t)a * b + ((int64_t)1 << 30)) >> 31);
}

/* sum * multiplier * 2^(shift - 31). The generator has checked that |sum| * 2^max(shift, 0) is below 2^30. */
THAW_INLINE int32_t thaw_scale(int32_t sum, int32_t multiplier, int32_t shift)
{
    int32_t high;
    if (shift > 0) {
        sum *= (int32_t)1 << shift;
        shift = 0;
    }
#if defined(THAW_DSP)
    __asm__("smmulr %0, %1, %2" : "=r"(high) : "r"(sum * 2), "r"(multiplier));
#else
    high = thaw_multiply_high(sum, multiplier);
#endif
    return thaw_divide_small_by_power(high, -shift);
}

/* A number as int8, not below `least`. */
THAW_INLINE int8_t thaw_clamp(int32_t number, int32_t least)
{
#if defined(THAW_DSP)
    __asm__("ssat %0, #8, %1" : "=r"(number) : "r"(number));
    return (int8_t)(number < least ? least : number);
#else
    if (number < least) {
        return (int8_t)least;
    }
    return (int8_t)(number > 127 ? 127 : number);
#endif
}
