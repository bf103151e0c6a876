/* Batch normalization in training, fused with the operations after it, forward and backward. Each direction takes two passes
 * over memory, the minimum; torch takes one for each of normalization, ReLU and addition, and more in the backward step.
 *
 * Feature maps are [rows, channels] with rows = B H W, which is torch's channels-last order. Values are float32, or bfloat16
 * with -DTHAW_BFLOAT16. Sums and statistics are float32, their totals float64.
 *
 * Several rows are processed at a time, so that each inner loop runs over a fixed, large number of consecutive values. The
 * compiler can then vectorize it for any number of channels. The order of summation depends only on the shape.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef THAW_BFLOAT16
typedef uint16_t value;

static inline float load(value stored)
{
    uint32_t bits = (uint32_t)stored << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* Round to nearest, ties to even; NaN stays NaN. */
static inline value store(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return (value)(number == number ? rounded : 0x7FC0u);
}
#else
typedef float value;

static inline float load(value stored) { return stored; }
static inline value store(float number) { return number; }
#endif

/* The operations after the normalization, numbered as in normalization.py. */
enum { NOTHING, RELU, ADD_RELU, RELU_ADD };

/* MOST: maximum number of channels, and of values in an inner loop. TYPICAL: preferred number of values. */
enum { MOST = 4096, TYPICAL = 512 };

/* Number of values in an inner loop: a multiple of the channels, also of 16 if possible, and about TYPICAL. */
static size_t tile_of(size_t channels)
{
    size_t tile = channels;
    while (2 * tile <= MOST && (tile % 16 || 2 * tile <= TYPICAL)) {
        tile *= 2;
    }
    return tile;
}

static void repeat(float *restrict out, const float *restrict by_channel, size_t channels, size_t tile)
{
    for (size_t i = 0; i < tile; i += channels) {
        memcpy(out + i, by_channel, channels * sizeof *out);
    }
}

static double total_of(const float *sums, size_t channel, size_t channels, size_t tile)
{
    double total = 0.0;
    for (size_t i = channel; i < tile; i += channels) {
        total += sums[i];
    }
    return total;
}

/* Run a statement for each value; `at` is its index, and `i` its index in the tile. */
#define EACH(statement)                                                \
    do {                                                               \
        size_t first = 0;                                              \
        for (; first + tile <= count; first += tile) {                 \
            for (size_t i = 0; i < tile; i++) {                        \
                size_t at = first + i;                                 \
                statement                                              \
            }                                                          \
        }                                                              \
        for (size_t i = 0; first + i < count; i++) {                   \
            size_t at = first + i;                                     \
            statement                                                  \
        }                                                              \
    } while (0)

static inline float relu(float number) { return number < 0.0f ? 0.0f : number; }

/* Mean and variance of x per channel.
 *
 * Two measures keep precision: differences are taken from the mean of the first rows, which matters when the variance is
 * small compared with the mean, and float32 sums cover only a piece and are then added to float64 totals. */
static void statistics(const value *restrict x, size_t rows, size_t channels, double *means, double *variances)
{
    float sums[MOST], squares[MOST], origin[MOST], by_channel[MOST];
    const size_t tile = tile_of(channels), piece = tile / channels * 32 * channels;
    const size_t beginning = rows < 32 ? rows : 32;
    for (size_t c = 0; c < channels; c++) {
        double sum = 0.0;
        for (size_t row = 0; row < beginning; row++) {
            sum += (double)load(x[row * channels + c]);
        }
        by_channel[c] = (float)(sum / (double)beginning);
        means[c] = 0.0;
        variances[c] = 0.0;
    }
    repeat(origin, by_channel, channels, tile);
    for (size_t begin = 0; begin < rows * channels; begin += piece) {
        const value *restrict part = x + begin;
        const size_t rest = rows * channels - begin, count = rest < piece ? rest : piece;
        memset(sums, 0, sizeof sums);
        memset(squares, 0, sizeof squares);
        EACH({
            float number = load(part[at]) - origin[i];
            sums[i] += number;
            squares[i] += number * number;
        });
        for (size_t c = 0; c < channels; c++) {
            means[c] += total_of(sums, c, channels, tile);
            variances[c] += total_of(squares, c, channels, tile);
        }
    }
    for (size_t c = 0; c < channels; c++) {
        double distance = means[c] / (double)rows, variance = variances[c] / (double)rows - distance * distance;
        means[c] = (double)by_channel[c] + distance;
        variances[c] = variance < 0.0 ? 0.0 : variance;
    }
}

/* y = after((x - mean) / sqrt(variance + epsilon) * weight + bias), where `after` selects the operations that follow.
 *
 * The mean and variance of x per channel also update the running statistics, the variance with Bessel's correction. `saved`
 * receives factor, offset, mean and 1 / sqrt(variance + epsilon) for the backward step, [4, channels]. */
void thaw_norm_forward(const value *restrict x, const value *restrict shortcut, value *restrict y, size_t rows,
                       size_t channels, const float *weight, const float *bias, float *running_mean,
                       float *running_variance, float momentum, float epsilon, int after, float *saved)
{
    double means[MOST], variances[MOST];
    float factor[MOST], offset[MOST];
    const size_t tile = tile_of(channels), count = rows * channels;
    statistics(x, rows, channels, means, variances);
    for (size_t c = 0; c < channels; c++) {
        double mean = means[c], variance = variances[c];
        double inverse = 1.0 / sqrt(variance + (double)epsilon);
        double sample = rows > 1 ? variance * (double)rows / (double)(rows - 1) : variance;
        running_mean[c] += momentum * ((float)mean - running_mean[c]);
        running_variance[c] += momentum * ((float)sample - running_variance[c]);
        saved[c] = (float)(weight[c] * inverse);
        saved[channels + c] = (float)(bias[c] - mean * weight[c] * inverse);
        saved[2 * channels + c] = (float)mean;
        saved[3 * channels + c] = (float)inverse;
    }
    repeat(factor, saved, channels, tile);
    repeat(offset, saved + channels, channels, tile);
    switch (after) {
    case NOTHING:
        EACH({ y[at] = store(load(x[at]) * factor[i] + offset[i]); });
        break;
    case RELU:
        EACH({ y[at] = store(relu(load(x[at]) * factor[i] + offset[i])); });
        break;
    case ADD_RELU:
        EACH({ y[at] = store(relu(load(x[at]) * factor[i] + offset[i] + load(shortcut[at]))); });
        break;
    case RELU_ADD:
        EACH({ y[at] = store(relu(load(x[at]) * factor[i] + offset[i]) + load(shortcut[at])); });
        break;
    }
}

/* The gradient at the output of the normalization: dy where the ReLU was active, otherwise 0. */
static inline float passed(int after, value dy, value x, value y, float factor, float offset)
{
    float gradient = load(dy);
    switch (after) {
    case NOTHING:
        return gradient;
    case ADD_RELU:
        return load(y) > 0.0f ? gradient : 0.0f;
    default:
        return load(x) * factor + offset > 0.0f ? gradient : 0.0f;
    }
}

static inline __attribute__((always_inline)) void backward(
    int after, const value *restrict dy, const value *restrict x, const value *restrict y, value *restrict dx,
    value *restrict dshortcut, size_t rows, size_t channels, const float *saved, float *dweight, float *dbias)
{
    float sums[MOST] = {0.0f}, products[MOST] = {0.0f}, factor[MOST], offset[MOST], mean[MOST];
    float slope[MOST], shift[MOST];
    const size_t tile = tile_of(channels), count = rows * channels;
    repeat(factor, saved, channels, tile);
    repeat(offset, saved + channels, channels, tile);
    repeat(mean, saved + 2 * channels, channels, tile);
    EACH({
        float gradient = passed(after, dy[at], x[at], y[at], factor[i], offset[i]);
        sums[i] += gradient;
        products[i] += gradient * (load(x[at]) - mean[i]);
    });
    /* dx = factor (g - mean(g) - x^ mean(g x^)) with x^ = (x - mean) inverse, as factor g + slope (x - mean) + shift. */
    for (size_t c = 0; c < channels; c++) {
        double inverse = saved[3 * channels + c], sum = total_of(sums, c, channels, tile);
        double along = total_of(products, c, channels, tile) * inverse;
        dbias[c] = (float)sum;
        dweight[c] = (float)along;
        slope[c] = (float)(-saved[c] * inverse * along / (double)rows);
        shift[c] = (float)(-saved[c] * sum / (double)rows);
    }
    for (size_t i = channels; i < tile; i++) {
        slope[i] = slope[i - channels];
        shift[i] = shift[i - channels];
    }
    EACH({
        float gradient = passed(after, dy[at], x[at], y[at], factor[i], offset[i]);
        if (after == ADD_RELU) {
            dshortcut[at] = store(gradient);
        }
        dx[at] = store(factor[i] * gradient + slope[i] * (load(x[at]) - mean[i]) + shift[i]);
    });
}

/* The gradients of `thaw_norm_forward`, which returned y and `saved` for x. With ADD_RELU, dshortcut receives the gradient of
 * the shortcut. With RELU_ADD that gradient is dy itself, and dshortcut is not written. y is used only with ADD_RELU;
 * otherwise it may be any map of the same size, such as x. */
void thaw_norm_backward(const value *restrict dy, const value *restrict x, const value *restrict y, value *restrict dx,
                        value *restrict dshortcut, size_t rows, size_t channels, int after, const float *saved,
                        float *dweight, float *dbias)
{
    /* Separate calls, so that the choice is made once and not for each value. */
    switch (after) {
    case NOTHING:
        backward(NOTHING, dy, x, y, dx, dshortcut, rows, channels, saved, dweight, dbias);
        break;
    case ADD_RELU:
        backward(ADD_RELU, dy, x, y, dx, dshortcut, rows, channels, saved, dweight, dbias);
        break;
    default:
        backward(RELU, dy, x, y, dx, dshortcut, rows, channels, saved, dweight, dbias);
        break;
    }
}
