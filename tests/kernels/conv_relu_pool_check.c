/* Compares conv_relu_pool.c and conv_relu_pool_backward.c with plain loops in double precision, on memory of exactly the right
 * size. */
#include <stddef.h>
#include <stdint.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct shape {
    size_t images, height, width, channels, filters;
};

size_t thaw_conv_relu_pool_codes(const struct shape *s);
size_t thaw_conv_relu_pool_forward_scratch(const struct shape *s);
size_t thaw_conv_relu_pool_backward_scratch(const struct shape *s);
void thaw_conv_relu_pool_forward(const struct shape *s, const float *x, const float *weights, const size_t *strides,
                                 const float *bias, float *y, int32_t *codes, float *scratch);
void thaw_conv_relu_pool_backward(const struct shape *s, const float *x, const float *weights, const size_t *strides,
                                  const float *dy, const size_t *steps, const int32_t *codes, float *dx, float *dweights,
                                  float *dbias, float *scratch);

static uint32_t state = 1;

static float number(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / (float)(1 << 23) - 1.0f;
}

static void *memory(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

static float *numbers(size_t count)
{
    float *made = malloc(count * sizeof *made);
    for (size_t i = 0; i < count; i++) {
        made[i] = number();
    }
    return made;
}

static void compare(const float *found, const double *expected, size_t count, const char *what)
{
    for (size_t i = 0; i < count; i++) {
        if (!(fabs((double)found[i] - expected[i]) <= 1e-5 * (1.0 + fabs(expected[i])))) {
            fprintf(stderr, "%s[%zu]: %g instead of %g\n", what, i, (double)found[i], expected[i]);
            exit(1);
        }
    }
}

static void check(struct shape s)
{
    const size_t down = (s.height - 2) / 2, across = (s.width - 2) / 2, outputs = s.images * down * across * s.filters;
    const size_t inputs = s.images * s.height * s.width * s.channels, taps = 9 * s.channels * s.filters;
    /* The weights are in the order [filter, row, column, channel]. */
    const size_t strides[4] = {9 * s.channels, 1, 3 * s.channels, s.channels};
    const size_t steps[4] = {down * across * s.filters, 1, across * s.filters, s.filters};
    float *x = numbers(inputs), *weights = numbers(taps), *bias = numbers(s.filters), *dy = numbers(outputs);
    float *y = numbers(outputs), *dx = numbers(inputs), *dweights = numbers(taps), *dbias = numbers(s.filters);
    int32_t *codes = memory(thaw_conv_relu_pool_codes(&s) * sizeof *codes);
    float *scratch = memory(thaw_conv_relu_pool_forward_scratch(&s) * sizeof *scratch);
    double *ey = calloc(outputs, sizeof *ey), *ex = calloc(inputs, sizeof *ex);
    double *ew = calloc(taps, sizeof *ew), *eb = calloc(s.filters, sizeof *eb);
    for (size_t i = 0; i < outputs; i++) {
        dy[i] = i % 5 ? dy[i] : 0.0f;
        const size_t f = i % s.filters, column = i / s.filters % across, row = i / s.filters / across % down;
        const size_t image = i / s.filters / across / down;
        size_t from = 0;
        for (size_t k = 0; k < 4; k++) {
            const size_t start = ((image * s.height + 2 * row + k / 2) * s.width + 2 * column + k % 2) * s.channels;
            double sum = (double)bias[f];
            for (size_t t = 0; t < 9 * s.channels; t++) {
                const size_t at = start + t / (3 * s.channels) * s.width * s.channels + t % (3 * s.channels);
                sum += (double)x[at] * (double)weights[f * 9 * s.channels + t];
            }
            if (k == 0 || sum > ey[i]) {
                ey[i] = sum;
                from = start;
            }
        }
        if (ey[i] <= 0.0) {
            ey[i] = 0.0;
            continue;
        }
        eb[f] += (double)dy[i];
        for (size_t t = 0; t < 9 * s.channels; t++) {
            const size_t at = from + t / (3 * s.channels) * s.width * s.channels + t % (3 * s.channels);
            ew[f * 9 * s.channels + t] += (double)dy[i] * (double)x[at];
            ex[at] += (double)dy[i] * (double)weights[f * 9 * s.channels + t];
        }
    }
    thaw_conv_relu_pool_forward(&s, x, weights, strides, bias, y, codes, scratch);
    compare(y, ey, outputs, "y");
    free(scratch);
    scratch = memory(thaw_conv_relu_pool_backward_scratch(&s) * sizeof *scratch);
    thaw_conv_relu_pool_backward(&s, x, weights, strides, dy, steps, codes, dx, dweights, dbias, scratch);
    compare(dx, ex, inputs, "dx");
    compare(dweights, ew, taps, "dweights");
    compare(dbias, eb, s.filters, "dbias");
    thaw_conv_relu_pool_backward(&s, x, weights, strides, dy, steps, codes, NULL, dweights, dbias, scratch);
    compare(dweights, ew, taps, "dweights alone");
    thaw_conv_relu_pool_backward(&s, x, weights, strides, dy, steps, codes, dx, NULL, NULL, scratch);
    compare(dx, ex, inputs, "dx alone");
    void *all[] = {x, weights, bias, dy, y, dx, dweights, dbias, codes, scratch, ey, ex, ew, eb};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        free(all[i]);
    }
}

int main(void)
{
    const struct shape shapes[] = {
        {1, 4, 4, 1, 1},  {3, 4, 5, 1, 2},   {17, 5, 4, 2, 3},  {9, 13, 13, 10, 20}, {8, 28, 28, 1, 10},
        {5, 7, 9, 3, 5},  {2, 11, 10, 17, 7}, {1, 6, 5, 45, 33}, {16, 6, 6, 5, 4},    {33, 9, 4, 6, 11},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check(shapes[i]);
    }
    return 0;
}
