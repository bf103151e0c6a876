/* Convolution with what comes after it, and dense layers, which are convolutions with one position.
 *
 * The inputs of THAW_LANES positions at a time are gathered into columns of int16 (the taps of one position lie together),
 * and every filter is multiplied with them. Where a max pooling follows, the positions are those of one window, and the
 * largest sum is all that is brought to the scale of the output: that is monotone, so the numbers are those of pooling
 * afterwards. Weights lie as filter 0 tap a, filter 1 tap a, filter 0 tap b, filter 1 tap b. */
#define THAW_LANES 4

typedef struct {
    const int8_t *weights;
    const int32_t *bias; /* holds what the zero point of the input adds to every sum */
    const int32_t *multiplier;
    const int8_t *shift;
    int16_t rows, columns, channels;             /* of the input */
    int16_t kernel_rows, kernel_columns;
    int16_t stride_rows, stride_columns;
    int16_t top, left;                           /* padding */
    int16_t out_rows, out_columns, filters;      /* of the output */
    int16_t pool_rows, pool_columns;             /* 1 and 1 without pooling */
    int16_t pool_stride_rows, pool_stride_columns;
    int16_t pad;                                 /* what padding reads */
    int16_t zero_point, least;                   /* of the output */
    int16_t is_pixels;                           /* the input is uint8 */
} thaw_convolution;

THAW_INLINE int32_t thaw_pairs(const thaw_convolution *layer)
{
    return ((int32_t)layer->kernel_rows * layer->kernel_columns * layer->channels + 1) / 2;
}

THAW_INLINE int16_t thaw_value(const uint8_t *from, int is_pixels)
{
    return is_pixels ? (int16_t)*from : (int16_t)(int8_t)*from;
}

/* `count` values as int16; the end of what was written. */
THAW_INLINE int16_t *thaw_widen(const uint8_t *from, int32_t count, int16_t *to, int is_pixels)
{
#if defined(THAW_DSP)
    for (; count >= 4; count -= 4) {
        uint32_t word, even, odd, low, high;
        memcpy(&word, from, 4);
        if (is_pixels) {
            __asm__("uxtb16 %0, %1" : "=r"(even) : "r"(word));
            __asm__("uxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(word));
        } else {
            __asm__("sxtb16 %0, %1" : "=r"(even) : "r"(word));
            __asm__("sxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(word));
        }
        __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(low) : "r"(even), "r"(odd));
        __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(high) : "r"(odd), "r"(even));
        memcpy(to, &low, 4);
        memcpy(to + 2, &high, 4);
        from += 4;
        to += 4;
    }
    if (count & 2) {
        to[0] = thaw_value(from, is_pixels);
        to[1] = thaw_value(from + 1, is_pixels);
        from += 2;
        to += 2;
    }
    if (count & 1) {
        *to++ = thaw_value(from, is_pixels);
    }
    return to;
#else
    int32_t index;
    for (index = 0; index < count; index++) {
        to[index] = thaw_value(from + index, is_pixels);
    }
    return to + count;
#endif
}

static THAW_NOINLINE int16_t *thaw_fill(int16_t *to, int32_t count, int16_t value)
{
    for (; count > 0; count--) {
        *to++ = value;
    }
    return to;
}

/* The inputs of the position whose window begins at (row, column), which may lie in the padding, as one column. */
THAW_INLINE void thaw_gather(
    const thaw_convolution *layer, const uint8_t *input, int32_t row, int32_t column, int16_t *to, int is_pixels)
{
    const int32_t channels = layer->channels;
    const int32_t before = column < 0 ? -column : 0;
    const int32_t beyond = column + layer->kernel_columns - layer->columns;
    const int32_t after = beyond > 0 ? beyond : 0;
    const int32_t inside = (layer->kernel_columns - before - after) * channels;
    const int32_t pitch = layer->columns * channels;
    int16_t *const end = to + 2 * thaw_pairs(layer);
    int32_t offset = row * pitch + (column + before) * channels;
    int32_t left = layer->kernel_rows;
    for (; left > 0; left--, row++, offset += pitch) {
        if (row < 0 || row >= layer->rows) {
            to = thaw_fill(to, layer->kernel_columns * channels, layer->pad);
            continue;
        }
        if (before) {
            to = thaw_fill(to, before * channels, layer->pad);
        }
        to = thaw_widen(input + offset, inside, to, is_pixels);
        if (after) {
            to = thaw_fill(to, after * channels, layer->pad);
        }
    }
    if (to != end) {
        *to = 0; /* an odd number of taps */
    }
}

typedef void (*thaw_gatherer)(
    const thaw_convolution *layer, const uint8_t *input, int32_t row, int32_t column, int16_t *to);

static void thaw_gather_pixels(
    const thaw_convolution *layer, const uint8_t *input, int32_t row, int32_t column, int16_t *to)
{
    thaw_gather(layer, input, row, column, to, 1);
}

static void thaw_gather_int8(
    const thaw_convolution *layer, const uint8_t *input, int32_t row, int32_t column, int16_t *to)
{
    thaw_gather(layer, input, row, column, to, 0);
}

#if defined(THAW_DSP)
THAW_INLINE uint32_t thaw_pair(const int16_t *from)
{
    uint32_t word;
    memcpy(&word, from, 4);
    return word;
}

THAW_INLINE int32_t thaw_multiply_pairs(uint32_t a, uint32_t b, int32_t sum)
{
    int32_t result;
    __asm__("smlad %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
}

THAW_INLINE void thaw_unpack(const int8_t *weights, uint32_t *first, uint32_t *second)
{
    uint32_t word;
    memcpy(&word, weights, 4);
    __asm__("sxtb16 %0, %1" : "=r"(*first) : "r"(word));
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(*second) : "r"(word));
}
#endif

/* Two filters on THAW_LANES columns, `pitch` apart: sums[filter][lane], which begin at what they hold. */
THAW_INLINE void thaw_dot(
    const int16_t *columns, int32_t pitch, const int8_t *weights, int32_t pairs, int32_t sums[2][THAW_LANES])
{
#if defined(THAW_DSP)
    int32_t s0 = sums[0][0], s1 = sums[0][1], s2 = sums[0][2], s3 = sums[0][3];
    int32_t t0 = sums[1][0], t1 = sums[1][1], t2 = sums[1][2], t3 = sums[1][3];
    const int8_t *const end = weights + 4 * pairs;
    do {
        uint32_t first, second, x;
        thaw_unpack(weights, &first, &second);
        weights += 4;
        x = thaw_pair(columns);
        s0 = thaw_multiply_pairs(x, first, s0);
        t0 = thaw_multiply_pairs(x, second, t0);
        x = thaw_pair(columns + pitch);
        s1 = thaw_multiply_pairs(x, first, s1);
        t1 = thaw_multiply_pairs(x, second, t1);
        x = thaw_pair(columns + 2 * pitch);
        s2 = thaw_multiply_pairs(x, first, s2);
        t2 = thaw_multiply_pairs(x, second, t2);
        x = thaw_pair(columns + 3 * pitch);
        s3 = thaw_multiply_pairs(x, first, s3);
        t3 = thaw_multiply_pairs(x, second, t3);
        columns += 2;
    } while (weights != end);
    sums[0][0] = s0, sums[0][1] = s1, sums[0][2] = s2, sums[0][3] = s3;
    sums[1][0] = t0, sums[1][1] = t1, sums[1][2] = t2, sums[1][3] = t3;
#else
    for (; pairs > 0; pairs--) {
        int lane;
        for (lane = 0; lane < THAW_LANES; lane++) {
            const int16_t *const x = columns + lane * pitch;
            sums[0][lane] += weights[0] * x[0] + weights[2] * x[1];
            sums[1][lane] += weights[1] * x[0] + weights[3] * x[1];
        }
        weights += 4;
        columns += 2;
    }
#endif
}

/* The same on one column. */
THAW_INLINE void thaw_dot_one(const int16_t *column, const int8_t *weights, int32_t pairs, int32_t sums[2])
{
    for (; pairs > 0; pairs--) {
#if defined(THAW_DSP)
        uint32_t first, second;
        const uint32_t x = thaw_pair(column);
        thaw_unpack(weights, &first, &second);
        sums[0] = thaw_multiply_pairs(x, first, sums[0]);
        sums[1] = thaw_multiply_pairs(x, second, sums[1]);
#else
        sums[0] += weights[0] * column[0] + weights[2] * column[1];
        sums[1] += weights[1] * column[0] + weights[3] * column[1];
#endif
        weights += 4;
        column += 2;
    }
}

THAW_INLINE int32_t thaw_larger(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* A sum of one filter on the scale of the output. */
THAW_INLINE int8_t thaw_finish(const thaw_convolution *layer, int32_t filter, int32_t sum)
{
    const int32_t scaled = thaw_scale(sum, layer->multiplier[filter], layer->shift[filter]);
    return thaw_clamp(scaled + layer->zero_point, layer->least);
}
