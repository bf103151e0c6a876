/* The mean, rounded to nearest, halves away from zero. */
static void thaw_average_pool(const thaw_pooling *layer, const int8_t *input, int8_t *output)
{
    const int32_t channels = layer->channels;
    const int32_t count = (int32_t)layer->kernel_rows * layer->kernel_columns;
    int32_t row, column, channel, down, right;
    for (row = 0; row < layer->out_rows; row++) {
        for (column = 0; column < layer->out_columns; column++) {
            const int8_t *const window =
                input + (row * layer->stride_rows * layer->columns + column * layer->stride_columns) * channels;
            for (channel = 0; channel < channels; channel++) {
                int32_t sum = 0;
                for (down = 0; down < layer->kernel_rows; down++) {
                    for (right = 0; right < layer->kernel_columns; right++) {
                        sum += window[(down * layer->columns + right) * channels + channel];
                    }
                }
                *output++ = (int8_t)((sum > 0 ? sum + count / 2 : sum - count / 2) / count);
            }
        }
    }
}
