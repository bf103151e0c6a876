#if defined(THAW_DSP)
THAW_INLINE uint32_t thaw_pair(const void *from)
{
    uint32_t word;
    memcpy(&word, from, 4);
    return word;
}

/* Two filters on one column. */
THAW_INLINE void thaw_dot_one(const int16_t *column, const int8_t *weights, int32_t pairs, int32_t sums[2])
{
    int32_t s = 0, t = 0;
    const int8_t *const end = weights + 4 * pairs;
    do {
        const uint32_t x = thaw_pair(column), both = thaw_pair(weights);
        uint32_t first, second;
        __asm__("sxtb16 %0, %1" : "=r"(first) : "r"(both));
        __asm__("sxtb16 %0, %1, ror #8" : "=r"(second) : "r"(both));
        __asm__("smlad %0, %1, %2, %0" : "+r"(s) : "r"(x), "r"(first));
        __asm__("smlad %0, %1, %2, %0" : "+r"(t) : "r"(x), "r"(second));
        column += 2;
        weights += 4;
    } while (weights != end);
    sums[0] = s;
    sums[1] = t;
}

/* Two filters on THAW_LANES columns with interleaved pairs of taps: sums[filter][lane].
 *
 * The loop needs all registers, which compilers would spill, so it is written in assembly. An iteration processes four
 * pairs; the first one is entered in the middle if the count is not a multiple of four. Registers: r0 and r1 point to
 * columns and weights, r4 to r11 are the sums, r2 and r3 a pair of columns, r12 and lr the weights of the two filters. */
#define THAW_DOT_TURN \
    "ldr lr, [r1], #4\n" \
    "ldrd r2, r3, [r0], #8\n" \
    "sxtb16 r12, lr\n" \
    "sxtb16 lr, lr, ror #8\n" \
    "smlad r4, r2, r12, r4\n" \
    "smlad r8, r2, lr, r8\n" \
    "smlad r5, r3, r12, r5\n" \
    "smlad r9, r3, lr, r9\n" \
    "ldrd r2, r3, [r0], #8\n" \
    "smlad r6, r2, r12, r6\n" \
    "smlad r10, r2, lr, r10\n" \
    "smlad r7, r3, r12, r7\n" \
    "smlad r11, r3, lr, r11\n"

static __attribute__((naked, noinline)) void thaw_dot(
    const int16_t *columns __attribute__((unused)), const int8_t *weights __attribute__((unused)),
    int32_t pairs __attribute__((unused)), int32_t sums[2][THAW_LANES] __attribute__((unused)))
{
    __asm__(
        ".syntax unified\n"
        "push {r3-r11, lr}\n"
        "rsb r3, r2, #0\n"
        "and r3, r3, #3\n" /* pairs that the first iteration skips */
        "adds r2, r2, #3\n"
        "asrs r2, r2, #2\n" /* iterations */
        "push {r1, r2}\n"   /* r1 keeps the stack aligned */
        "movs r4, #0\n"
        "movs r5, #0\n"
        "movs r6, #0\n"
        "movs r7, #0\n"
        "mov r8, r4\n"
        "mov r9, r4\n"
        "mov r10, r4\n"
        "mov r11, r4\n"
        "tbb [pc, r3]\n"
        "0: .byte (1f - 0b) / 2\n"
        ".byte (2f - 0b) / 2\n"
        ".byte (3f - 0b) / 2\n"
        ".byte (4f - 0b) / 2\n"
        "1:\n" THAW_DOT_TURN
        "2:\n" THAW_DOT_TURN
        "3:\n" THAW_DOT_TURN
        "4:\n" THAW_DOT_TURN
        "ldr r2, [sp, #4]\n"
        "subs r2, r2, #1\n"
        "str r2, [sp, #4]\n"
        "bne 1b\n"
        "add sp, sp, #8\n"
        "pop {r3}\n"
        "stm r3, {r4-r11}\n"
        "pop {r4-r11, pc}\n");
}
#undef THAW_DOT_TURN
#else
/* A weight times a value, as int32_t: the sum of two products may overflow an int of 16 bits. */
THAW_INLINE int32_t thaw_product(int8_t weight, int16_t value)
{
    return (int32_t)weight * value;
}

/* Two filters on one column. */
THAW_INLINE void thaw_dot_one(const int16_t *column, const int8_t *weights, int32_t pairs, int32_t sums[2])
{
#if defined(THAW_AVX2)
    /* Four pairs at a time, with both filters interleaved: filter 0 has the even indices. */
    const __m128i order =
        _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    __m256i many = _mm256_setzero_si256();
    int32_t parts[8];
    for (; pairs >= 4; pairs -= 4, weights += 16, column += 8) {
        const __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)weights), order);
        const __m128i values = _mm_loadu_si128((const __m128i *)(const void *)column);
        const __m256i both = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(values), twice);
        many = _mm256_add_epi32(many, _mm256_madd_epi16(_mm256_cvtepi8_epi16(bytes), both));
    }
    _mm256_storeu_si256((__m256i *)(void *)parts, many);
    sums[0] = parts[0] + parts[2] + parts[4] + parts[6];
    sums[1] = parts[1] + parts[3] + parts[5] + parts[7];
#else
    sums[0] = sums[1] = 0;
#endif
    for (; pairs > 0; pairs--, weights += 4, column += 2) {
        sums[0] += thaw_product(weights[0], column[0]) + thaw_product(weights[2], column[1]);
        sums[1] += thaw_product(weights[1], column[0]) + thaw_product(weights[3], column[1]);
    }
}

/* Two filters on THAW_LANES columns with interleaved pairs of taps: sums[filter][lane]. */
THAW_INLINE void thaw_dot(
    const int16_t *columns, const int8_t *weights, int32_t pairs, int32_t sums[2][THAW_LANES])
{
    int lane;
    for (lane = 0; lane < THAW_LANES; lane++) {
        sums[0][lane] = sums[1][lane] = 0;
    }
    for (; pairs > 0; pairs--, weights += 4, columns += 2 * THAW_LANES) {
        for (lane = 0; lane < THAW_LANES; lane++) {
            const int16_t *const x = columns + 2 * lane;
            sums[0][lane] += thaw_product(weights[0], x[0]) + thaw_product(weights[2], x[1]);
            sums[1][lane] += thaw_product(weights[1], x[0]) + thaw_product(weights[3], x[1]);
        }
    }
}
#endif
