/* Addition of two tensors: shift left by 20 bits, rescale to a common scale, add, rescale to the output's scale. */
typedef struct {
    int32_t multiplier[3]; /* for the two terms and the sum */
    int8_t shift[3];
    int16_t zero_point[3];
    int16_t least;
} thaw_addition;

/* Like thaw_scale, for numbers that use all 32 bits; shift is at most 0. */
static int32_t thaw_scale_down(int32_t value, int32_t multiplier, int32_t shift)
{
    return thaw_divide_by_power(thaw_multiply_high(value, multiplier), -shift);
}

static void thaw_add(
    const thaw_addition *layer, const int8_t *first, const int8_t *second, int32_t count, int8_t *output)
{
    for (; count > 0; count--) {
        const int32_t a = ((int32_t)*first++ - layer->zero_point[0]) * ((int32_t)1 << 20);
        const int32_t b = ((int32_t)*second++ - layer->zero_point[1]) * ((int32_t)1 << 20);
        const int32_t sum = thaw_scale_down(a, layer->multiplier[0], layer->shift[0]) +
                            thaw_scale_down(b, layer->multiplier[1], layer->shift[1]);
        *output++ = thaw_clamp(
            thaw_scale_down(sum, layer->multiplier[2], layer->shift[2]) + layer->zero_point[2], layer->least);
    }
}
