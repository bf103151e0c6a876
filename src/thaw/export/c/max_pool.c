static void thaw_max_pool(const thaw_pooling *layer, const int8_t *input, int8_t *output)
{
    const int32_t channels = layer->channels;
    int32_t row, column, channel, down, right;
    for (row = 0; row < layer->out_rows; row++) {
        for (column = 0; column < layer->out_columns; column++) {
            const int8_t *const window =
                input + (row * layer->stride_rows * layer->columns + column * layer->stride_columns) * channels;
            for (channel = 0; channel < channels; channel++) {
                int8_t best = -128;
                for (down = 0; down < layer->kernel_rows; down++) {
                    for (right = 0; right < layer->kernel_columns; right++) {
                        const int8_t value = window[(down * layer->columns + right) * channels + channel];
                        best = value > best ? value : best;
                    }
                }
                *output++ = best;
            }
        }
    }
}
