/* Convolution of each channel with its own kernel. Padding has the value of the input's zero point, so it adds nothing. */
typedef struct {
    const int8_t *weights; /* [kernel rows][kernel columns][channels] */
    const int32_t *bias;
    const int32_t *multiplier;
    const int8_t *shift;
    int16_t rows, columns, channels;
    int16_t kernel_rows, kernel_columns;
    int16_t stride_rows, stride_columns;
    int16_t top, left;
    int16_t out_rows, out_columns;
    int16_t input_zero_point, zero_point, least;
    int16_t is_pixels;
} thaw_depthwise;

static void thaw_convolve_depthwise(const thaw_depthwise *layer, const uint8_t *input, int8_t *output)
{
    const int32_t channels = layer->channels;
    int32_t row, column, channel;
    for (row = 0; row < layer->out_rows; row++) {
        const int32_t y = row * layer->stride_rows - layer->top;
        const int32_t first_row = y < 0 ? -y : 0;
        const int32_t last_row = layer->rows - y < layer->kernel_rows ? layer->rows - y : layer->kernel_rows;
        for (column = 0; column < layer->out_columns; column++) {
            const int32_t x = column * layer->stride_columns - layer->left;
            const int32_t first = x < 0 ? -x : 0;
            const int32_t last = layer->columns - x < layer->kernel_columns ? layer->columns - x : layer->kernel_columns;
            for (channel = 0; channel < channels; channel++) {
                int32_t sum = layer->bias[channel];
                int32_t down, right;
                for (down = first_row; down < last_row; down++) {
                    const uint8_t *from = input + ((y + down) * layer->columns + x + first) * channels + channel;
                    const int8_t *weights =
                        layer->weights + (down * layer->kernel_columns + first) * channels + channel;
                    for (right = first; right < last; right++, from += channels, weights += channels) {
                        const int32_t value = layer->is_pixels ? (int32_t)*from : (int32_t)(int8_t)*from;
                        sum += *weights * (value - layer->input_zero_point);
                    }
                }
                *output++ = thaw_clamp(
                    thaw_scale(sum, layer->multiplier[channel], layer->shift[channel]) + layer->zero_point,
                    layer->least);
            }
        }
    }
}
