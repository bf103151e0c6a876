/* The same real values on another scale. */
typedef struct {
    int32_t multiplier;
    int8_t shift;
    int16_t input_zero_point, zero_point;
    int16_t is_pixels;
} thaw_requantization;

static void thaw_requantize(const thaw_requantization *layer, const uint8_t *input, int32_t count, int8_t *output)
{
    for (; count > 0; count--, input++) {
        const int32_t value = layer->is_pixels ? (int32_t)*input : (int32_t)(int8_t)*input;
        const int32_t scaled = thaw_scale(value - layer->input_zero_point, layer->multiplier, layer->shift);
        *output++ = thaw_clamp(scaled + layer->zero_point, -128);
    }
}
