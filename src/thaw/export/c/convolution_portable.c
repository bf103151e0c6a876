#if !defined(THAW_AVX2)
/* One position of the output from the columns of its window, as many batches of THAW_LANES as that has. */
static void thaw_window(
    const thaw_convolution *layer, const int16_t *columns, int32_t pitch, int32_t batches, int8_t *output)
{
    const int32_t pairs = thaw_pairs(layer);
    const int8_t *weights = layer->weights;
    int32_t filter;
    for (filter = 0; filter < layer->filters; filter += 2, weights += 4 * pairs) {
        const int is_last = filter + 1 == layer->filters;
        int32_t best[2] = {INT32_MIN, INT32_MIN};
        int32_t batch;
        for (batch = 0; batch < batches; batch++) {
            int32_t sums[2][THAW_LANES] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
            int which;
            thaw_dot(columns + batch * THAW_LANES * pitch, pitch, weights, pairs, sums);
            for (which = 0; which < 2; which++) {
                const int32_t a = thaw_larger(sums[which][0], sums[which][1]);
                const int32_t b = thaw_larger(sums[which][2], sums[which][3]);
                best[which] = thaw_larger(best[which], thaw_larger(a, b));
            }
        }
        output[filter] = thaw_finish(layer, filter, best[0] + layer->bias[filter]);
        if (!is_last) {
            output[filter + 1] = thaw_finish(layer, filter + 1, best[1] + layer->bias[filter + 1]);
        }
    }
}

/* `used` positions of the output, which follow one another, from a column each. */
static void thaw_positions(
    const thaw_convolution *layer, const int16_t *columns, int32_t pitch, int32_t used, int8_t *output)
{
    const int32_t pairs = thaw_pairs(layer);
    const int8_t *weights = layer->weights;
    int32_t filter;
    for (filter = 0; filter < layer->filters; filter += 2, weights += 4 * pairs) {
        const int is_last = filter + 1 == layer->filters;
        int32_t sums[2][THAW_LANES] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
        int32_t lane;
        thaw_dot(columns, pitch, weights, pairs, sums);
        for (lane = 0; lane < used; lane++) {
            int8_t *const to = output + lane * layer->filters + filter;
            to[0] = thaw_finish(layer, filter, sums[0][lane] + layer->bias[filter]);
            if (!is_last) {
                to[1] = thaw_finish(layer, filter + 1, sums[1][lane] + layer->bias[filter + 1]);
            }
        }
    }
}
#endif
