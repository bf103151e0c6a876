/* Batch normalization in training, fused with the operations after it, forward and backward. Each direction takes two passes
 * over memory, the minimum; torch takes one for each of normalization, ReLU and addition, and more in the backward step.
 *
 * Feature maps are [rows, channels] with rows = B H W, which is torch's channels-last order. Values are float32, or bfloat16
 * with -DTHAW_BFLOAT16. Sums and statistics are float32, their totals float64.
 *
 * Several rows are processed at a time, so that each inner loop runs over a fixed, large number of consecutive values. The
 * compiler can then vectorize it for any number of channels. The order of summation depends only on the shape.
 */
#include "maps.h"

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

/* Mean and variance of x per channel: statistics [2, channels].
 *
 * Two measures keep precision: differences are taken from the mean of the first rows, which matters when the variance is
 * small compared with the mean, and float32 sums cover only a piece and are then added to float64 totals. */
static void statistics_of(const value *restrict x, size_t rows, size_t channels, double *statistics)
{
    double *means = statistics, *variances = statistics + channels;
    float sums[MOST], squares[MOST], origin[MOST];
    const size_t tile = tile_of(channels), piece = tile / channels * 32 * channels;
    const size_t beginning = rows < 32 ? rows : 32;
    for (size_t c = 0; c < channels; c++) {
        double sum = 0.0;
        for (size_t row = 0; row < beginning; row++) {
            sum += (double)widen(x[row * channels + c]);
        }
        origin[c] = (float)(sum / (double)beginning);
        means[c] = 0.0;
        variances[c] = 0.0;
    }
    for (size_t i = channels; i < tile; i++) {
        origin[i] = origin[i - channels];
    }
    for (size_t begin = 0; begin < rows * channels; begin += piece) {
        const value *restrict part = x + begin;
        const size_t rest = rows * channels - begin, count = rest < piece ? rest : piece;
        memset(sums, 0, tile * sizeof *sums);
        memset(squares, 0, tile * sizeof *squares);
        EACH({
            float number = widen(part[at]) - origin[i];
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
        means[c] = (double)origin[c] + distance;
        variances[c] = variance < 0.0 ? 0.0 : variance;
    }
}

/* The constants of a normalization with these statistics of `rows` rows, [2, channels], which also update the running
 * statistics, the variance with Bessel's correction. `constants` receives factor, offset, mean and
 * 1 / sqrt(variance + epsilon), [4, channels]: the normalization is factor * x + offset. */
void thaw_norm_constants(const double *statistics, size_t rows, size_t channels, const float *weight, const float *bias,
                         float *running_mean, float *running_variance, float momentum, float epsilon, float *constants)
{
    for (size_t c = 0; c < channels; c++) {
        double mean = statistics[c], variance = statistics[channels + c];
        double inverse = 1.0 / sqrt(variance + (double)epsilon);
        double sample = rows > 1 ? variance * (double)rows / (double)(rows - 1) : variance;
        running_mean[c] += momentum * ((float)mean - running_mean[c]);
        running_variance[c] += momentum * ((float)sample - running_variance[c]);
        constants[c] = (float)(weight[c] * inverse);
        constants[channels + c] = (float)(bias[c] - mean * weight[c] * inverse);
        constants[2 * channels + c] = (float)mean;
        constants[3 * channels + c] = (float)inverse;
    }
}

/* y = after(factor * x + offset), where `after` selects the operations that follow. */
void thaw_norm_apply(const value *restrict x, const value *restrict shortcut, value *restrict y, size_t rows,
                     size_t channels, int after, const float *constants)
{
    float factor[MOST], offset[MOST];
    const size_t tile = tile_of(channels), count = rows * channels;
    repeat(factor, constants, channels, tile);
    repeat(offset, constants + channels, channels, tile);
    switch (after) {
    case NOTHING:
        EACH({ y[at] = narrow(widen(x[at]) * factor[i] + offset[i]); });
        break;
    case RELU:
        EACH({ y[at] = narrow(relu(widen(x[at]) * factor[i] + offset[i])); });
        break;
    case ADD_RELU:
        EACH({ y[at] = narrow(relu(widen(x[at]) * factor[i] + offset[i] + widen(shortcut[at]))); });
        break;
    case RELU_ADD:
        EACH({ y[at] = narrow(relu(widen(x[at]) * factor[i] + offset[i]) + widen(shortcut[at])); });
        break;
    }
}

/* y = after((x - mean) / sqrt(variance + epsilon) * weight + bias), and the constants as above. */
void thaw_norm_forward(const value *restrict x, const value *restrict shortcut, value *restrict y, size_t rows,
                       size_t channels, const float *weight, const float *bias, float *running_mean,
                       float *running_variance, float momentum, float epsilon, int after, float *constants)
{
    double statistics[2 * MOST];
    statistics_of(x, rows, channels, statistics);
    thaw_norm_constants(statistics, rows, channels, weight, bias, running_mean, running_variance, momentum, epsilon,
                        constants);
    thaw_norm_apply(x, shortcut, y, rows, channels, after, constants);
}

/* The gradient at the output of the normalization: dy where the ReLU was active, otherwise 0. */
static inline float passed(int after, value dy, value x, value y, float factor, float offset)
{
    float gradient = widen(dy);
    switch (after) {
    case NOTHING:
        return gradient;
    case ADD_RELU:
        return widen(y) > 0.0f ? gradient : 0.0f;
    default:
        return widen(x) * factor + offset > 0.0f ? gradient : 0.0f;
    }
}

INLINE void sums_after(int after, const value *restrict dy, const value *restrict x, const value *restrict y, size_t rows,
                       size_t channels, const float *constants, double *totals)
{
    float sums[MOST], products[MOST], factor[MOST], offset[MOST], mean[MOST];
    const size_t tile = tile_of(channels), count = rows * channels;
    memset(sums, 0, tile * sizeof *sums);
    memset(products, 0, tile * sizeof *products);
    repeat(factor, constants, channels, tile);
    repeat(offset, constants + channels, channels, tile);
    repeat(mean, constants + 2 * channels, channels, tile);
    EACH({
        float gradient = passed(after, dy[at], x[at], y[at], factor[i], offset[i]);
        sums[i] += gradient;
        products[i] += gradient * (widen(x[at]) - mean[i]);
    });
    for (size_t c = 0; c < channels; c++) {
        totals[c] = total_of(sums, c, channels, tile);
        totals[channels + c] = total_of(products, c, channels, tile);
    }
}

/* Separate calls of the functions above and below, so that the choice is made once and not for each value. */
#define AFTER(function, ...)                        \
    do {                                            \
        switch (after) {                            \
        case NOTHING:                               \
            function(NOTHING, __VA_ARGS__);         \
            break;                                  \
        case ADD_RELU:                              \
            function(ADD_RELU, __VA_ARGS__);        \
            break;                                  \
        default:                                    \
            function(RELU, __VA_ARGS__);            \
        }                                           \
    } while (0)

/* Sums over all rows for the backward step, [2, channels]: of the gradient g at the output of the normalization, and of
 * g (x - mean). */
void thaw_norm_sums(const value *restrict dy, const value *restrict x, const value *restrict y, size_t rows, size_t channels,
                    int after, const float *constants, double *sums)
{
    AFTER(sums_after, dy, x, y, rows, channels, constants, sums);
}

/* The gradients of weight and bias, and slope and shift [2, channels] of the backward step, which is
 * dx = factor g + slope (x - mean) + shift, from factor (g - mean(g) - x^ mean(g x^)) with x^ = (x - mean) inverse. */
void thaw_norm_back(const double *sums, size_t rows, size_t channels, const float *constants, float *dweight, float *dbias,
                    float *back)
{
    for (size_t c = 0; c < channels; c++) {
        double inverse = constants[3 * channels + c], along = sums[channels + c] * inverse;
        dbias[c] = (float)sums[c];
        dweight[c] = (float)along;
        back[c] = (float)(-constants[c] * inverse * along / (double)rows);
        back[channels + c] = (float)(-constants[c] * sums[c] / (double)rows);
    }
}

INLINE void gradient_after(int after, const value *restrict dy, const value *restrict x, const value *restrict y,
                           value *restrict dx, value *restrict dshortcut, size_t rows, size_t channels,
                           const float *constants, const float *back)
{
    float factor[MOST], offset[MOST], mean[MOST], slope[MOST], shift[MOST];
    const size_t tile = tile_of(channels), count = rows * channels;
    repeat(factor, constants, channels, tile);
    repeat(offset, constants + channels, channels, tile);
    repeat(mean, constants + 2 * channels, channels, tile);
    repeat(slope, back, channels, tile);
    repeat(shift, back + channels, channels, tile);
    EACH({
        float gradient = passed(after, dy[at], x[at], y[at], factor[i], offset[i]);
        if (after == ADD_RELU) {
            dshortcut[at] = narrow(gradient);
        }
        dx[at] = narrow(factor[i] * gradient + slope[i] * (widen(x[at]) - mean[i]) + shift[i]);
    });
}

/* The gradients of `thaw_norm_forward`, which returned y and `constants` for x. With ADD_RELU, dshortcut receives the gradient
 * of the shortcut. With RELU_ADD that gradient is dy itself, and dshortcut is not written. y is used only with ADD_RELU;
 * otherwise it may be any map of the same size, such as x. */
void thaw_norm_backward(const value *restrict dy, const value *restrict x, const value *restrict y, value *restrict dx,
                        value *restrict dshortcut, size_t rows, size_t channels, int after, const float *constants,
                        float *dweight, float *dbias)
{
    double sums[2 * MOST];
    float back[2 * MOST];
    thaw_norm_sums(dy, x, y, rows, channels, after, constants, sums);
    thaw_norm_back(sums, rows, channels, constants, dweight, dbias, back);
    AFTER(gradient_after, dy, x, y, dx, dshortcut, rows, channels, constants, back);
}
