/* Convolution with activation and max pooling, and dense layers, which are convolutions with one position.
 *
 * The inputs of THAW_LANES positions are gathered into columns of int16 and multiplied with two filters at a time. If a max
 * pooling follows, the positions are those of one window, and only the largest sum is rescaled to the output: rescaling is
 * monotone, so the result equals that of a separate pooling.
 *
 * Taps are stored in pairs; each row of the kernel is padded to an even number of taps with a zero. The layout of weights is
 * filter 0 tap a, filter 1 tap a, filter 0 tap b, filter 1 tap b. The layout of columns is pair 0 of all lanes, pair 1 of
 * all lanes, and so on; for AVX2, one lane after another. VNNI multiplies unsigned bytes with signed bytes, four at a time:
 * columns are then bytes, and int8 values are offset by 128. */
#define THAW_LANES 4
#if defined(THAW_VNNI)
#define THAW_STEP 0
#elif defined(THAW_AVX2)
#define THAW_STEP 2
#else
#define THAW_STEP (2 * THAW_LANES)
#endif

typedef struct {
    const int8_t *weights;
    const int32_t *bias; /* includes the contribution of the input's zero point */
    const int32_t *multiplier;
    const int8_t *shift;
    int16_t rows, columns, channels;             /* of the input */
    int16_t kernel_rows, kernel_columns;
    int16_t stride_rows, stride_columns;
    int16_t top, left;                           /* padding */
    int16_t out_rows, out_columns, filters;      /* of the output */
    int16_t pool_rows, pool_columns;             /* 1 and 1 without pooling */
    int16_t pool_stride_rows, pool_stride_columns;
    int16_t pad;                                 /* value of padding */
    int16_t zero_point, least;                   /* of the output */
    int16_t is_pixels;                           /* the input is uint8 */
} thaw_convolution;

/* Pairs of taps. */
THAW_INLINE int32_t thaw_pairs(const thaw_convolution *layer)
{
    return layer->kernel_rows * (((int32_t)layer->kernel_columns * layer->channels + 1) / 2);
}

/* The first pair of a lane. */
THAW_INLINE int16_t *thaw_lane(int16_t *columns, int32_t lane, int32_t pairs)
{
#if defined(THAW_VNNI)
    return columns + lane * ((pairs + 1) / 2 * 2);
#elif defined(THAW_AVX2)
    return columns + lane * 2 * pairs;
#else
    (void)pairs;
    return columns + lane * 2;
#endif
}

THAW_INLINE int16_t thaw_value(const uint8_t *from, int is_pixels)
{
    return is_pixels ? (int16_t)*from : (int16_t)(int8_t)*from;
}

#if defined(THAW_DSP)
/* Bytes 0 and 2 of a word as a pair of int16. */
THAW_INLINE uint32_t thaw_bytes_0_2(uint32_t word, int is_pixels)
{
    uint32_t pair;
    if (is_pixels) {
        __asm__("uxtb16 %0, %1" : "=r"(pair) : "r"(word));
    } else {
        __asm__("sxtb16 %0, %1" : "=r"(pair) : "r"(word));
    }
    return pair;
}

THAW_INLINE uint32_t thaw_bytes_1_3(uint32_t word, int is_pixels)
{
    uint32_t pair;
    if (is_pixels) {
        __asm__("uxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(word));
    } else {
        __asm__("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(word));
    }
    return pair;
}
#endif

/* Write up to 3 values as pairs of int16, `step` apart; return the next position. */
THAW_INLINE int16_t *thaw_widen_rest(const uint8_t *from, int32_t count, int16_t *to, int32_t step, int is_pixels)
{
    if (count & 2) {
#if defined(THAW_DSP)
        uint16_t both;
        uint32_t word;
        memcpy(&both, from, 2);
        word = thaw_bytes_0_2(both | (uint32_t)both << 8, is_pixels);
        memcpy(to, &word, 4);
#else
        to[0] = thaw_value(from, is_pixels);
        to[1] = thaw_value(from + 1, is_pixels);
#endif
        from += 2;
        to += step;
    }
    if (count & 1) {
        to[0] = thaw_value(from, is_pixels);
        to[1] = 0;
        to += step;
    }
    return to;
}

#if defined(THAW_VNNI)
/* Write `count` values as unsigned bytes, padded to an even number with a zero. */
THAW_INLINE uint8_t *thaw_copy_bytes(const uint8_t *from, int32_t count, uint8_t *to, int is_pixels)
{
    const __m128i flip = _mm_set1_epi8((char)(is_pixels ? 0 : 0x80));
    const uint8_t flip_byte = (uint8_t)(is_pixels ? 0 : 0x80);
    if (count == 3) { /* as one word, since it is read as one */
        uint16_t both;
        uint32_t word;
        memcpy(&both, from, 2);
        word = (both | (uint32_t)from[2] << 16) ^ 0x00010101u * flip_byte;
        memcpy(to, &word, 4);
        return to + 4;
    }
    for (; count >= 16; count -= 16, from += 16, to += 16) {
        const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)from);
        _mm_storeu_si128((__m128i *)(void *)to, _mm_xor_si128(bytes, flip));
    }
    if (count & 8) {
        const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)from);
        _mm_storel_epi64((__m128i *)(void *)to, _mm_xor_si128(bytes, flip));
        from += 8;
        to += 8;
    }
    if (count & 4) {
        uint32_t word;
        memcpy(&word, from, 4);
        word ^= 0x01010101u * flip_byte;
        memcpy(to, &word, 4);
        from += 4;
        to += 4;
    }
    if (count & 2) {
        uint16_t both;
        memcpy(&both, from, 2);
        both = (uint16_t)(both ^ 0x0101u * flip_byte);
        memcpy(to, &both, 2);
        from += 2;
        to += 2;
    }
    if (count & 1) {
        to[0] = (uint8_t)(*from ^ flip_byte);
        to[1] = 0;
        to += 2;
    }
    return to;
}
#endif

/* A window inside the input: `rows` runs of `count` values, `pitch` apart. */
THAW_INLINE void thaw_gather_runs(
    const uint8_t *from, int32_t rows, int32_t count, int32_t pitch, int16_t *to, int32_t step, int is_pixels)
{
#if defined(THAW_VNNI)
    if (step == 0) {
        uint8_t *bytes = (uint8_t *)to;
        for (; rows > 0; rows--, from += pitch) {
            bytes = thaw_copy_bytes(from, count, bytes, is_pixels);
        }
        return;
    }
#endif
    if (count < 4) {
        for (; rows > 0; rows--, from += pitch) {
            to = thaw_widen_rest(from, count, to, step, is_pixels);
        }
        return;
    }
    for (; rows > 0; rows--, from += pitch) {
        const uint8_t *at = from;
        int32_t left = count;
#if defined(THAW_AVX2)
        for (; step == 2 && left >= 8; left -= 8, at += 8, to += 8) {
            const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)at);
            const __m128i words = is_pixels ? _mm_cvtepu8_epi16(bytes) : _mm_cvtepi8_epi16(bytes);
            _mm_storeu_si128((__m128i *)(void *)to, words);
        }
#endif
        for (; left >= 4; left -= 4, at += 4, to += 2 * step) {
#if defined(THAW_DSP)
            uint32_t word, even, odd;
            memcpy(&word, at, 4);
            even = thaw_bytes_0_2(word, is_pixels);
            odd = thaw_bytes_1_3(word, is_pixels);
            __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(word) : "r"(even), "r"(odd));
            __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(odd) : "r"(odd), "r"(even));
            memcpy(to, &word, 4);
            memcpy(to + step, &odd, 4);
#else
            to[0] = thaw_value(at, is_pixels);
            to[1] = thaw_value(at + 1, is_pixels);
            to[step] = thaw_value(at + 2, is_pixels);
            to[step + 1] = thaw_value(at + 3, is_pixels);
#endif
        }
        to = thaw_widen_rest(at, left, to, step, is_pixels);
    }
}

/* Not inlined on microcontrollers, where code size matters; inlined elsewhere. */
#if defined(THAW_AVX2)
#define THAW_GATHER THAW_INLINE
#else
#define THAW_GATHER static THAW_NOINLINE
#endif

THAW_GATHER void thaw_gather_pixels(
    const uint8_t *from, int32_t rows, int32_t count, int32_t pitch, int16_t *to, int32_t step)
{
    thaw_gather_runs(from, rows, count, pitch, to, step, 1);
}

THAW_GATHER void thaw_gather_int8(
    const uint8_t *from, int32_t rows, int32_t count, int32_t pitch, int16_t *to, int32_t step)
{
    thaw_gather_runs(from, rows, count, pitch, to, step, 0);
}

/* A window that begins at (row, column) and overlaps the padding. */
static THAW_NOINLINE void thaw_gather_border(
    const thaw_convolution *layer, const uint8_t *input, int32_t row, int32_t column, int16_t *to, int32_t step)
{
    const int32_t count = (int32_t)layer->kernel_columns * layer->channels;
    const int32_t last = row + layer->kernel_rows, first = column * layer->channels;
    const int32_t pitch = (int32_t)layer->columns * layer->channels;
#if defined(THAW_VNNI)
    uint8_t *bytes = (uint8_t *)to;
#endif
    for (; row < last; row++) {
        int32_t tap;
#if defined(THAW_VNNI)
        if (step == 0) {
            for (tap = 0; tap < count; tap++) {
                const int32_t place = first + tap;
                const int is_inside = row >= 0 && row < layer->rows && place >= 0 && place < pitch;
                const int16_t value = is_inside ? thaw_value(input + row * pitch + place, layer->is_pixels) : layer->pad;
                *bytes++ = (uint8_t)(layer->is_pixels ? value : value + 128);
            }
            if (count & 1) {
                *bytes++ = 0;
            }
            continue;
        }
#endif
        for (tap = 0; tap < count; tap++) {
            const int32_t place = first + tap;
            const int is_inside = row >= 0 && row < layer->rows && place >= 0 && place < pitch;
            to[tap & 1] = is_inside ? thaw_value(input + row * pitch + place, layer->is_pixels) : layer->pad;
            if (tap & 1) {
                to += step;
            }
        }
        if (count & 1) {
            to[1] = 0;
            to += step;
        }
    }
}
