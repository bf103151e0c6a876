/* The only position of the output. */
static void thaw_position(const thaw_convolution *layer, const int16_t *column, int8_t *output)
{
    const int32_t pairs = thaw_pairs(layer);
    const int8_t *weights = layer->weights;
    int32_t filter;
    for (filter = 0; filter < layer->filters; filter += 2, weights += 4 * pairs) {
        int32_t sums[2] = {0, 0};
        thaw_dot_one(column, weights, pairs, sums);
        output[filter] = thaw_finish(layer, filter, sums[0] + layer->bias[filter]);
        if (filter + 1 < layer->filters) {
            output[filter + 1] = thaw_finish(layer, filter + 1, sums[1] + layer->bias[filter + 1]);
        }
    }
}

static void thaw_convolve(const thaw_convolution *layer, const uint8_t *input, int8_t *output, int16_t *columns)
{
    const thaw_gatherer gather = layer->is_pixels ? thaw_gather_pixels : thaw_gather_int8;
    const int32_t pitch = 2 * thaw_pairs(layer);
    const int32_t positions = (int32_t)layer->pool_rows * layer->pool_columns;
    const int32_t count = (int32_t)layer->out_rows * layer->out_columns;
    int32_t row = 0, column = 0, lane = 0, done;
    if (count == 1 && positions == 1) {
        gather(layer, input, -layer->top, -layer->left, columns);
        thaw_position(layer, columns, output);
        return;
    }
#if defined(THAW_AVX2)
    thaw_prepare(layer);
#endif
    for (done = 1; done <= count; done++) {
        const int32_t y = row * layer->pool_stride_rows * layer->stride_rows - layer->top;
        const int32_t x = column * layer->pool_stride_columns * layer->stride_columns - layer->left;
        if (positions == 1) {
            gather(layer, input, y, x, columns + lane * pitch);
            lane++;
            if (lane == THAW_LANES || done == count) {
                thaw_positions(layer, columns, pitch, lane, output);
                output += lane * layer->filters;
                lane = 0;
            }
        } else {
            int32_t down, right;
            int16_t *to = columns;
            for (down = 0; down < layer->pool_rows; down++) {
                for (right = 0; right < layer->pool_columns; right++, to += pitch) {
                    gather(layer, input, y + down * layer->stride_rows, x + right * layer->stride_columns, to);
                }
            }
            for (lane = positions; lane % THAW_LANES; lane++, to += pitch) {
                memcpy(to, columns, 2 * (size_t)pitch);
            }
            thaw_window(layer, columns, pitch, lane / THAW_LANES, output);
            lane = 0;
            output += layer->filters;
        }
        if (++column == layer->out_columns) {
            column = 0;
            row++;
        }
    }
}
