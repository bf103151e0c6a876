/* Resize an image of any size to the model's input, in integer arithmetic.

   A target pixel is a weighted mean of source pixels: along an axis that shrinks, of the pixels that it covers; along
   an axis that grows, of the two nearest. The mean over columns keeps 8 fractional bits (0 to 65280), the mean over
   rows rounds to a byte. The means over columns of a row are computed again for each target pixel that needs them. An
   axis that shrinks needs a source row at most twice, and no buffer is required.

   Bounds: with source sides up to 32768 and target sides up to 8192, the weights of an axis sum to at most 32768, so
   all values are at most 255 * 256 * 32768 + 128 * 32768 = 2143289344, which is below 2^31. */
#define THAW_MAX_SOURCE_SIDE 32768

/* Source positions of an axis, first to last. All have the same weight, except that the first and the last have less. */
typedef struct {
    uint32_t first;
    uint32_t last;
    uint32_t weight;
    uint32_t less_first;
    uint32_t less_last;
} thaw_taps;

static thaw_taps thaw_axis_taps(uint32_t position, uint32_t source, uint32_t target)
{
    thaw_taps taps;
    if (target <= source) {
        /* In units in which a source pixel has length `target` and a target pixel has length `source`. */
        const uint32_t begin = position * source;
        const uint32_t end = begin + source;
        taps.weight = target;
        taps.first = begin / target;
        taps.last = (end - 1U) / target;
        taps.less_first = begin - taps.first * target;
        taps.less_last = (taps.last + 1U) * target - end;
    } else {
        /* The target pixel's center, in steps of 1 / (2 target) from the first source pixel's center. */
        const uint32_t center = (2U * position + 1U) * source;
        const uint32_t place = center > target ? center - target : 0U;
        taps.weight = 2U * target;
        taps.first = place / taps.weight;
        taps.last = taps.first;
        taps.less_first = place - taps.first * taps.weight;
        taps.less_last = 0U;
        if (taps.less_first == 0U || taps.first + 1U == source) {
            taps.less_first = 0U;
        } else {
            taps.last = taps.first + 1U;
            taps.less_last = taps.weight - taps.less_first;
        }
    }
    return taps;
}

/* Convert a 16-bit value in native byte order to 8 bits; intermediate values are at most 65535 * 510 + 65535 = 33488385. */
static uint32_t thaw_scaled(const uint8_t *source)
{
    const uint32_t low = THAW_RANGE_LOW;
    const uint32_t span = THAW_RANGE_HIGH - low;
    uint16_t value;
    uint32_t above;
    memcpy(&value, source, sizeof value);
    above = value > low ? value - low : 0U;
    return above < span ? (above * 510U + span) / (2U * span) : 255U;
}

#if THAW_CHANNELS == 1
static uint32_t thaw_gray(uint32_t red, uint32_t green, uint32_t blue)
{
    return (77U * red + 150U * green + 29U * blue + 128U) >> 8;
}
#endif

/* The sum of `count` pixels of a row, and the last of them: gray values for a model with gray input, else values of the
   color `channel`. */
static uint32_t thaw_sum(const uint8_t *pixel, uint32_t count, thaw_format format, uint32_t channel, uint32_t *last)
{
    uint32_t sum = 0U;
    uint32_t value = 0U;
    (void)channel;
    if (format == THAW_GRAY8) {
        for (; count > 0U; count--, pixel++) {
            value = pixel[0];
            sum += value;
        }
    } else if (format == THAW_RGB888) {
        for (; count > 0U; count--, pixel += 3) {
#if THAW_CHANNELS == 1
            value = thaw_gray(pixel[0], pixel[1], pixel[2]);
#else
            value = pixel[channel];
#endif
            sum += value;
        }
    } else if (format == THAW_GRAY16) {
        for (; count > 0U; count--, pixel += 2) {
            value = thaw_scaled(pixel);
            sum += value;
        }
    } else if (format == THAW_RGB16) {
        for (; count > 0U; count--, pixel += 6) {
#if THAW_CHANNELS == 1
            value = thaw_gray(thaw_scaled(pixel), thaw_scaled(pixel + 2), thaw_scaled(pixel + 4));
#else
            value = thaw_scaled(pixel + 2U * channel);
#endif
            sum += value;
        }
    } else {
        for (; count > 0U; count--, pixel += 2) {
            const uint32_t bits = (uint32_t)pixel[0] | ((uint32_t)pixel[1] << 8);
            const uint32_t red = bits >> 11;
            const uint32_t green = (bits >> 5) & 63U;
            const uint32_t blue = bits & 31U;
#if THAW_CHANNELS == 1
            value = thaw_gray((red << 3) | (red >> 2), (green << 2) | (green >> 4), (blue << 3) | (blue >> 2));
#else
            if (channel == 1U) {
                value = (green << 2) | (green >> 4);
            } else {
                value = channel == 0U ? red : blue;
                value = (value << 3) | (value >> 2);
            }
#endif
            sum += value;
        }
    }
    *last = value;
    return sum;
}

int thaw_preprocess(const uint8_t *source, int32_t width, int32_t height, int32_t stride_bytes, thaw_format format,
                    uint8_t *pixels)
{
    uint32_t columns = (uint32_t)width;
    uint32_t rows = (uint32_t)height;
    uint32_t pixel_bytes = 1U;
    uint32_t channels = THAW_CHANNELS;
    uint32_t x_total;
    uint32_t y_total;
    uint32_t x;
    uint32_t y;
    uint32_t channel;
    size_t stride;

    if (source == NULL || pixels == NULL || width < 1 || width > THAW_MAX_SOURCE_SIDE || height < 1 ||
        height > THAW_MAX_SOURCE_SIDE) {
        return -1;
    }
    if (format == THAW_RGB888) {
        pixel_bytes = 3U;
    } else if (format == THAW_RGB565) {
        pixel_bytes = 2U;
    } else if (format == THAW_RGB16) {
        pixel_bytes = 6U;
    } else if (format == THAW_GRAY8) {
        channels = 1U;
    } else if (format == THAW_GRAY16) {
        pixel_bytes = 2U;
        channels = 1U;
    } else {
        return -3;
    }
    if (stride_bytes < (int32_t)(columns * pixel_bytes)) {
        return -2;
    }
    stride = (size_t)stride_bytes;
#if THAW_FIT_CROP
    /* The largest centered window with the model's aspect ratio. */
    if (columns * THAW_HEIGHT > rows * THAW_WIDTH) {
        const uint32_t used = rows * THAW_WIDTH / THAW_HEIGHT;
        columns = used > 0U ? used : 1U;
        source += ((uint32_t)width - columns) / 2U * pixel_bytes;
    } else if (columns * THAW_HEIGHT < rows * THAW_WIDTH) {
        const uint32_t used = columns * THAW_HEIGHT / THAW_WIDTH;
        rows = used > 0U ? used : 1U;
        source += ((uint32_t)height - rows) / 2U * stride;
    }
#endif
    x_total = columns < THAW_WIDTH ? 2U * THAW_WIDTH : columns;
    y_total = rows < THAW_HEIGHT ? 2U * THAW_HEIGHT : rows;
    for (y = 0U; y < THAW_HEIGHT; y++) {
        const thaw_taps down = thaw_axis_taps(y, rows, THAW_HEIGHT);
        for (x = 0U; x < THAW_WIDTH; x++) {
            const thaw_taps across = thaw_axis_taps(x, columns, THAW_WIDTH);
            const uint32_t first_weight = across.weight - across.less_first;
            for (channel = 0U; channel < channels; channel++) {
                uint32_t tall = 0U;
                uint32_t row;
                for (row = down.first; row <= down.last; row++) {
                    const uint8_t *pixel = source + row * stride + across.first * pixel_bytes;
                    uint32_t last;
                    uint32_t wide = first_weight * thaw_sum(pixel, 1U, format, channel, &last);
                    uint32_t weight = down.weight;
                    wide += across.weight *
                            thaw_sum(pixel + pixel_bytes, across.last - across.first, format, channel, &last);
                    wide -= across.less_last * last;
                    if (row == down.first) {
                        weight -= down.less_first;
                    }
                    if (row == down.last) {
                        weight -= down.less_last;
                    }
                    tall += weight * ((256U * wide + x_total / 2U) / x_total);
                }
                pixels[channel] = (uint8_t)((tall + 128U * y_total) / (256U * y_total));
            }
#if THAW_CHANNELS == 3
            if (channels == 1U) {
                pixels[1] = pixels[0];
                pixels[2] = pixels[0];
            }
#endif
            pixels += THAW_CHANNELS;
        }
    }
    return 0;
}
