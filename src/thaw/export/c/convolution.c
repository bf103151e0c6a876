/* The only output position. */
static void thaw_position(const thaw_convolution *layer, const int16_t *column, int32_t pairs, int8_t *output)
{
    const int8_t *weights = layer->weights;
    const int32_t filters = layer->filters;
    int32_t filter, which;
    for (filter = 0; filter < filters; filter += 2, weights += 4 * pairs) {
        int32_t sums[2];
        thaw_dot_one(column, weights, pairs, sums);
        for (which = 0; which < 2 && filter + which < filters; which++) {
            const int32_t channel = filter + which;
            output[channel] = thaw_finish(
                sums[which] + layer->bias[channel], layer->multiplier[channel], layer->shift[channel],
                layer->zero_point, layer->least);
        }
    }
}

static void thaw_convolve(const thaw_convolution *layer, const uint8_t *input, int8_t *output, int16_t *columns)
{
    const int is_pixels = layer->is_pixels;
    const int32_t kernel_rows = layer->kernel_rows, kernel_columns = layer->kernel_columns;
    const int32_t channels = layer->channels, pitch = layer->columns * channels;
    const int32_t count = kernel_columns * channels, pairs = thaw_pairs(layer);
    const int32_t pool_columns = layer->pool_columns, positions = layer->pool_rows * pool_columns;
    const int32_t outputs = (int32_t)layer->out_rows * layer->out_columns;
    /* A pooling window uses whole batches: the last batch is padded by repeating its last position. */
    const int32_t lanes = positions > 1 ? (positions + THAW_LANES - 1) / THAW_LANES * THAW_LANES : 1;
    const int is_single = outputs == 1 && positions == 1;
    int32_t row = 0, column = 0, waiting = 0, done;
#if defined(THAW_AVX2)
    if (!is_single) {
        thaw_prepare(layer, pairs);
    }
#endif
    for (done = 1; done <= outputs; done++) {
        int32_t y = row * layer->pool_stride_rows * layer->stride_rows - layer->top;
        int32_t x = column * layer->pool_stride_columns * layer->stride_columns - layer->left;
        const int32_t first = x;
        int32_t lane, right = 0;
        for (lane = 0; lane < lanes; lane++) {
            int16_t *const batch = columns + ((uint32_t)lane / THAW_LANES) * 2 * THAW_LANES * (uint32_t)pairs;
            int16_t *const to = thaw_lane(batch, waiting + (int32_t)((uint32_t)lane % THAW_LANES), pairs);
            const int32_t step = is_single ? 2 : THAW_STEP;
            if (x < 0 || y < 0 || x + kernel_columns > layer->columns || y + kernel_rows > layer->rows) {
                thaw_gather_border(layer, input, y, x, to, step);
            } else if (is_pixels) {
                thaw_gather_pixels(input + y * pitch + x * channels, kernel_rows, count, pitch, to, step);
            } else {
                thaw_gather_int8(input + y * pitch + x * channels, kernel_rows, count, pitch, to, step);
            }
            if (lane + 1 < positions) {
                x += layer->stride_columns;
                if (++right == pool_columns) {
                    right = 0;
                    x = first;
                    y += layer->stride_rows;
                }
            }
        }
        if (is_single) {
            thaw_position(layer, columns, pairs, output);
        } else if (positions > 1) {
            thaw_window(layer, columns, pairs, lanes / THAW_LANES, output);
            output += layer->filters;
        } else if (++waiting == THAW_LANES || done == outputs) {
            thaw_positions(layer, columns, pairs, waiting, output);
            output += waiting * layer->filters;
            waiting = 0;
        }
        if (++column == layer->out_columns) {
            column = 0;
            row++;
        }
    }
}
