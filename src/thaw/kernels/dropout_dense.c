/* Dropout and a dense layer, forward and backward, in float32.
 *
 * x is [B, H, W, C], torch's channels-last order, with n = H W C features; logits and their gradient are [B, K]. All three
 * matrix products are computed by `multiply`. Its lanes are consecutive columns, so columns are padded with zeros.
 *
 * A feature is dropped if a hash of its number, which counts in the order [B, C, H, W], is below a threshold. So a mask
 * depends on one random number per batch, the key, and can be computed in any order and repeated in the backward pass.
 *
 * The order of all sums depends only on the shape. */
#include "vectors.h"

/* `multiply` computes ROWS rows of PAIR vectors at a time in registers. */
enum { ROWS = 4, PAIR = 2, COLUMNS = PAIR * LANES };

struct shape {
    size_t images, channels, height, width, classes;
};

struct dropout {
    uint32_t key;
    /* Dropped are hashes below it, of 0 to 2^24 - 1; 0 drops none. */
    uint32_t threshold;
    /* Factor of the features that are kept. */
    float scale;
};

static size_t padded(size_t columns) { return (columns + COLUMNS - 1) / COLUMNS * COLUMNS; }
static size_t features_of(const struct shape *s) { return s->channels * s->height * s->width; }

INLINE void multiply_rows(const size_t rows, const float *a, size_t row_step, size_t step, size_t depth, const float *b,
                          size_t columns, float *c)
{
    for (size_t column = 0; column < columns; column += COLUMNS) {
        vec sums[ROWS][PAIR] = {0};
        const float *left = a, *right = b + column;
        for (size_t i = 0; i < depth; i++, left += step, right += columns) {
            const vec first = load(right), second = load(right + LANES);
            UNROLL
            for (size_t row = 0; row < rows; row++) {
                const vec factor = splat(left[row * row_step]);
                sums[row][0] += factor * first;
                sums[row][1] += factor * second;
            }
        }
        UNROLL
        for (size_t row = 0; row < rows; row++) {
            store(c + row * columns + column, sums[row][0]);
            store(c + row * columns + column + LANES, sums[row][1]);
        }
    }
}

/* c [rows, columns] = a [rows, depth] b [depth, columns], where a has the strides row_step and step. */
static void multiply(size_t rows, const float *a, size_t row_step, size_t step, size_t depth, const float *b, size_t columns,
                     float *c)
{
    for (; rows >= ROWS; rows -= ROWS, a += ROWS * row_step, c += ROWS * columns) {
        multiply_rows(ROWS, a, row_step, step, depth, b, columns, c);
    }
    for (; rows; rows--, a += row_step, c += columns) {
        multiply_rows(1, a, row_step, step, depth, b, columns, c);
    }
}

/* The number of each feature of an image in the order [C, H, W]. */
static void number_features(const struct shape *s, uint32_t *numbers)
{
    for (size_t place = 0; place < s->height * s->width; place++) {
        for (size_t c = 0; c < s->channels; c++) {
            *numbers++ = (uint32_t)(c * s->height * s->width + place);
        }
    }
}

/* to = from where a feature is kept, times the scale, and otherwise 0. `first` is the number of the image's first feature. */
static void drop(const struct dropout *d, size_t first, const uint32_t *restrict numbers, size_t count,
                 const float *restrict from, float *restrict to)
{
    if (!d->threshold) {
        memcpy(to, from, count * sizeof *to);
        return;
    }
    const uint32_t offset = d->key + (uint32_t)first;
    const int32_t threshold = (int32_t)d->threshold;
    const float scale = d->scale;
    for (size_t i = 0; i < count; i++) {
        uint32_t hash = offset + numbers[i];
        hash = (hash ^ hash >> 16) * 0x045d9f3bu;
        hash = (hash ^ hash >> 16) * 0x045d9f3bu;
        hash ^= hash >> 16;
        const float factor = (int32_t)(hash >> 8) < threshold ? 0.0f : scale;
        to[i] = from[i] * factor;
    }
}

/* Weights and their gradient have the strides [class, channel, row, column]; `packed` is [n, padded K] or, if `by_class`,
 * [K, padded n]. Copies the weights into it, or it into the weights. */
INLINE void exchange(const struct shape *s, float *weights, const size_t *strides, float *packed, int by_class, int unpack)
{
    const size_t step = by_class ? 1 : padded(s->classes), class_step = by_class ? padded(features_of(s)) : 1;
    for (size_t k = 0; k < s->classes; k++) {
        float *at = packed + k * class_step;
        for (size_t y = 0; y < s->height; y++) {
            for (size_t x = 0; x < s->width; x++) {
                float *weight = weights + k * strides[0] + y * strides[2] + x * strides[3];
                for (size_t c = 0; c < s->channels; c++, at += step, weight += strides[1]) {
                    if (unpack) {
                        *weight = *at;
                    } else {
                        *at = *weight;
                    }
                }
            }
        }
    }
}

/* Floats of `kept`: the features of each image after dropout, padded. */
size_t thaw_dropout_dense_kept(const struct shape *s) { return s->images * padded(features_of(s)); }

/* Floats of the scratch memory that either direction needs. */
size_t thaw_dropout_dense_scratch(const struct shape *s)
{
    const size_t n = features_of(s), wide = padded(n), classes = padded(s->classes);
    const size_t forward = n + n * classes + s->images * classes, backward = n + 2 * s->classes * wide + ROWS * wide;
    return forward > backward ? forward : backward;
}

/* Logits; `kept` is needed by the backward pass. */
void thaw_dropout_dense_forward(const struct shape *s, const struct dropout *d, const float *x, const float *weights,
                                const size_t *strides, const float *bias, float *kept, float *logits, float *scratch)
{
    const size_t n = features_of(s), wide = padded(n), classes = padded(s->classes);
    uint32_t *numbers = (uint32_t *)scratch;
    float *packed = scratch + n, *results = packed + n * classes;
    number_features(s, numbers);
    memset(packed, 0, n * classes * sizeof *packed);
    exchange(s, (float *)weights, strides, packed, 0, 0);
    for (size_t image = 0; image < s->images; image++) {
        float *own = kept + image * wide;
        drop(d, image * n, numbers, n, x + image * n, own);
        memset(own + n, 0, (wide - n) * sizeof *own);
    }
    multiply(s->images, kept, wide, 1, n, packed, classes, results);
    for (size_t image = 0; image < s->images; image++) {
        for (size_t k = 0; k < s->classes; k++) {
            logits[image * s->classes + k] = results[image * classes + k] + bias[k];
        }
    }
}

/* Gradients: dx, dweights and dbias; dx may be NULL, and dweights and dbias together. dlogits is [B, K]. */
void thaw_dropout_dense_backward(const struct shape *s, const struct dropout *d, const float *kept, const float *weights,
                                 const size_t *strides, const float *dlogits, float *dx, float *dweights, float *dbias,
                                 float *scratch)
{
    const size_t n = features_of(s), wide = padded(n);
    uint32_t *numbers = (uint32_t *)scratch;
    float *packed = scratch + n, *gradients = packed + s->classes * wide, *rows = gradients + s->classes * wide;
    if (dweights) {
        multiply(s->classes, dlogits, 1, s->classes, s->images, kept, wide, gradients);
        exchange(s, dweights, strides, gradients, 1, 1);
        memset(dbias, 0, s->classes * sizeof *dbias);
        for (size_t i = 0; i < s->images * s->classes; i++) {
            dbias[i % s->classes] += dlogits[i];
        }
    }
    if (!dx) {
        return;
    }
    number_features(s, numbers);
    memset(packed, 0, s->classes * wide * sizeof *packed);
    exchange(s, (float *)weights, strides, packed, 1, 0);
    for (size_t image = 0; image < s->images; image += ROWS) {
        const size_t rest = s->images - image, here = rest < ROWS ? rest : ROWS;
        multiply(here, dlogits + image * s->classes, s->classes, 1, s->classes, packed, wide, rows);
        for (size_t i = 0; i < here; i++) {
            drop(d, (image + i) * n, numbers, n, rows + i * wide, dx + (image + i) * n);
        }
    }
}
