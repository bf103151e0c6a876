THAW_INLINE int32_t thaw_larger(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* Rescale a sum to the output. */
THAW_INLINE int8_t thaw_finish(int32_t sum, int32_t multiplier, int32_t shift, int32_t zero_point, int32_t least)
{
    return thaw_clamp(thaw_scale(sum, multiplier, shift) + zero_point, least);
}

#if !defined(THAW_AVX2)
/* One output position from all columns of its window, in batches of THAW_LANES. */
static void thaw_window(
    const thaw_convolution *layer, const int16_t *columns, int32_t pairs, int32_t batches, int8_t *output)
{
    const int32_t *bias = layer->bias, *multiplier = layer->multiplier;
    const int8_t *shift = layer->shift, *weights = layer->weights;
    const int32_t zero_point = layer->zero_point, least = layer->least;
    int32_t left = layer->filters;
    for (; left > 0; left -= 2, weights += 4 * pairs) {
        int32_t sums[2][THAW_LANES];
        int32_t first, second, batch;
        thaw_dot(columns, weights, pairs, sums);
        first = thaw_larger(thaw_larger(sums[0][0], sums[0][1]), thaw_larger(sums[0][2], sums[0][3]));
        second = thaw_larger(thaw_larger(sums[1][0], sums[1][1]), thaw_larger(sums[1][2], sums[1][3]));
        for (batch = 1; batch < batches; batch++) {
            int lane;
            thaw_dot(columns + batch * 2 * THAW_LANES * pairs, weights, pairs, sums);
            for (lane = 0; lane < THAW_LANES; lane++) {
                first = thaw_larger(first, sums[0][lane]);
                second = thaw_larger(second, sums[1][lane]);
            }
        }
        *output++ = thaw_finish(first + *bias++, *multiplier++, *shift++, zero_point, least);
        if (left > 1) {
            *output++ = thaw_finish(second + *bias++, *multiplier++, *shift++, zero_point, least);
        }
    }
}

/* `used` consecutive output positions, one per lane. */
static void thaw_positions(
    const thaw_convolution *layer, const int16_t *columns, int32_t pairs, int32_t used, int8_t *output)
{
    const int32_t filters = layer->filters, zero_point = layer->zero_point, least = layer->least;
    const int8_t *weights = layer->weights;
    int32_t filter;
    for (filter = 0; filter < filters; filter += 2, weights += 4 * pairs) {
        int32_t sums[2][THAW_LANES];
        int32_t which, lane;
        thaw_dot(columns, weights, pairs, sums);
        for (which = 0; which < 2 && filter + which < filters; which++) {
            const int32_t bias = layer->bias[filter + which], multiplier = layer->multiplier[filter + which];
            const int32_t shift = layer->shift[filter + which];
            int8_t *to = output + filter + which;
            for (lane = 0; lane < used; lane++, to += filters) {
                *to = thaw_finish(sums[which][lane] + bias, multiplier, shift, zero_point, least);
            }
        }
    }
}
#endif
