/* Pointwise (1x1) convolution between two normalizations, forward and backward:
 *
 *     a -> normalization -> ReLU -> h -> pointwise convolution -> b -> normalization -> ReLU
 *
 * Maps are [rows, channels] with rows = B H W, which is torch's channels-last order: a is [rows, inputs], b is
 * [rows, outputs]. A few rows at a time are converted, normalized and multiplied in scratch memory that fits the first-level
 * cache, so that h is never stored, and the statistics of b cost no pass over memory.
 *
 * In scratch memory, channels are padded with zeros to a multiple of LANES, so that products have no remainders.
 */
#include "maps.h"

/* Rows that are processed together, and rows of a tile of a product; both matrices of a tile fit the registers. */
#define CHUNK 16
#define TILE 4

typedef struct {
    size_t rows, inputs, outputs;
} shape;

static size_t padded(size_t channels) { return blocks_of(channels) * LANES; }

/* Floats of scratch memory that the functions below need. */
void thaw_pointwise_work(const shape *s, size_t *floats)
{
    const size_t in = padded(s->inputs), out = padded(s->outputs);
    *floats = 2 * in * out + (2 * CHUNK + 16) * (in + out) + 512;
}

/* `vectors` neighboring vectors of TILE rows of a product. */
INLINE void tile(size_t vectors, const float *left, size_t row, size_t step, const float *right, size_t width, size_t depth,
                 float *out, int add)
{
    vec total[TILE][3];
#pragma GCC unroll 4
    for (size_t i = 0; i < TILE; i++) {
#pragma GCC unroll 3
        for (size_t v = 0; v < vectors; v++) {
            total[i][v] = add ? load(out + i * width + v * LANES) : zeros();
        }
    }
    for (size_t k = 0; k < depth; k++, left += step, right += width) {
        vec factors[3];
#pragma GCC unroll 3
        for (size_t v = 0; v < vectors; v++) {
            factors[v] = load(right + v * LANES);
            IN_REGISTER(factors[v]);
        }
#pragma GCC unroll 4
        for (size_t i = 0; i < TILE; i++) {
#pragma GCC unroll 3
            for (size_t v = 0; v < vectors; v++) {
                total[i][v] += left[i * row] * factors[v];
            }
        }
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < TILE; i++) {
#pragma GCC unroll 3
        for (size_t v = 0; v < vectors; v++) {
            store(out + i * width + v * LANES, total[i][v]);
        }
    }
}

/* out[i][j] = sum of left[i * row + k * step] * right[k][j] over `depth` values of k, or that sum added to out. `right` and
 * `out` have `width` columns. `rows` is a multiple of TILE, `width` of LANES. */
static void multiply(const float *left, size_t row, size_t step, const float *right, size_t depth, float *out, size_t rows,
                     size_t width, int add, soon first, soon second)
{
    const size_t tiles = rows / TILE * ((width / LANES + 2) / 3);
    const size_t one = share_of(first, tiles), other = share_of(second, tiles);
    for (size_t left_over = width / LANES, done = 0; left_over; ) {
        /* 4 vectors are 2 and 2. */
        const size_t vectors = left_over == 4 || left_over == 2 ? 2 : left_over >= 3 ? 3 : 1;
        for (size_t i = 0; i < rows; i += TILE) {
            const float *from = left + i * row, *by = right + done * LANES;
            float *to = out + i * width + done * LANES;
            prefetch_some(&first, one);
            prefetch_some(&second, other);
            switch (vectors) {
            case 1:
                tile(1, from, row, step, by, width, depth, to, add);
                break;
            case 2:
                tile(2, from, row, step, by, width, depth, to, add);
                break;
            default:
                tile(3, from, row, step, by, width, depth, to, add);
            }
        }
        left_over -= vectors;
        done += vectors;
    }
}

/* Weights [outputs, inputs] as [inputs, padded outputs], or as [outputs, padded inputs] with `turned` 0. */
static void arrange(float *restrict out, const float *restrict weights, const shape *s, int turned)
{
    const size_t width = padded(turned ? s->outputs : s->inputs);
    for (size_t o = 0; o < s->outputs; o++) {
        for (size_t i = 0; i < s->inputs; i++) {
            out[turned ? i * width + o : o * width + i] = weights[o * s->inputs + i];
        }
    }
}

static float *zeroed(float **work, size_t floats)
{
    float *made = cut(work, floats * sizeof(float));
    memset(made, 0, floats * sizeof(float));
    return made;
}

/* h = relu(factor * a + offset) for `rows` rows of a; `constants` begins with factor and offset, by block. */
static void normalized(float *restrict h, const value *restrict a, const vec *restrict constants, size_t rows, size_t inputs)
{
    const size_t width = padded(inputs), count = count_of(inputs), blocks = blocks_of(inputs);
    for (size_t b = 0; b < blocks; b++) {
        const size_t first = first_of(b, inputs);
        const vec factor = constants[b], offset = constants[blocks + b];
        for (size_t r = 0; r < rows; r++) {
            store(h + r * width + first, relu_vec(factor * load_some(a + r * inputs + first, count) + offset));
        }
    }
}

/* b = h W^T with h = relu(factor * a + offset). `constants` begins with factor and offset, [2, inputs]; `weights` is [outputs, inputs].
 * `statistics` receives the mean and variance of b by channel, [2, outputs]. */
void thaw_pointwise_forward(const shape *s, const value *restrict a, const float *restrict constants,
                            const float *restrict weights, value *restrict b, double *restrict statistics, float *work)
{
    const size_t in = padded(s->inputs), out = padded(s->outputs), blocks = blocks_of(s->outputs);
    float *arranged = zeroed(&work, s->inputs * out), *h = zeroed(&work, CHUNK * in), *made = zeroed(&work, CHUNK * out);
    moments *sums = cut(&work, blocks * sizeof(moments));
    const vec *spread = by_block(&work, constants, 2, s->inputs);
    arrange(arranged, weights, s, 1);
    for (size_t row = 0; row < s->rows; row += CHUNK) {
        const size_t rest = s->rows - row, rows = rest < CHUNK ? rest : CHUNK;
        normalized(h, a + row * s->inputs, spread, rows, s->inputs);
        const size_t next = row + rows;
        const size_t coming = s->rows - next < CHUNK ? s->rows - next : CHUNK;
        multiply(h, in, 1, arranged, s->inputs, made, CHUNK, out, 0, (soon){a + next * s->inputs, coming * s->inputs, 0},
                 (soon){b + row * s->outputs, rows * s->outputs, 1});
        for (size_t k = 0; k < blocks; k++) {
            const size_t first = first_of(k, s->outputs), count = count_of(s->outputs);
            if (row == 0) {
                /* The mean of the first rows becomes the origin. */
                vec total = zeros();
                for (size_t r = 0; r < rows; r++) {
                    total += load(made + r * out + first);
                }
                moments_begin(&sums[k], total / (float)rows);
            }
            moments block = sums[k];
            size_t r = 0;
            for (; r + TILE <= rows; r += TILE) {
                vec numbers[TILE];
#pragma GCC unroll 4
                for (size_t i = 0; i < TILE; i++) {
                    numbers[i] = load(made + (r + i) * out + first);
                    store_some(b + (row + r + i) * s->outputs + first, numbers[i], count);
                }
                moments_add(&block, numbers, TILE);
            }
            for (; r < rows; r++) {
                const vec numbers = load(made + r * out + first);
                store_some(b + (row + r) * s->outputs + first, numbers, count);
                moments_add(&block, &numbers, 1);
            }
            moments_carry(&block);
            sums[k] = block;
        }
    }
    moments_end(sums, s->rows, s->outputs, statistics);
}

/* Maps of the backward step, and constants of the normalizations (`thaw_norm_constants`, `thaw_norm_back`) by
 * block. */
typedef struct {
    const value *dy, *a, *b;
    const vec *constants_a, *constants_b, *back_b;
} maps;

/* The gradient of b from that after its normalization and ReLU, for `rows` rows from `row`. */
static void gradient_of_b(float *restrict db, const maps *m, size_t row, size_t rows, size_t outputs)
{
    const size_t width = padded(outputs), count = count_of(outputs), blocks = blocks_of(outputs);
    for (size_t k = 0; k < blocks; k++) {
        const size_t first = first_of(k, outputs);
        const vec factor = m->constants_b[k], offset = m->constants_b[blocks + k], mean = m->constants_b[2 * blocks + k];
        const vec slope = m->back_b[k], shift = m->back_b[blocks + k];
        for (size_t r = 0; r < rows; r++) {
            const size_t at = (row + r) * outputs + first;
            const vec b = load_some(m->b + at, count), dy = load_some(m->dy + at, count);
            const vec passed = where_positive(factor * b + offset, dy);
            store(db + r * width + first, factor * passed + (slope * (b - mean) + shift));
        }
    }
}

/* Sums of gradients, and of their products with a - mean, in one block of channels. */
typedef struct {
    double sums[LANES], products[LANES];
} totals;

/* The gradient after a's normalization, from that after its ReLU, for `rows` rows from `row`, and its sums. */
static void gradient_of_h(value *restrict da, totals *restrict sums, const float *restrict dh, const float *restrict h,
                          const maps *m, size_t row, size_t rows, size_t inputs)
{
    const size_t width = padded(inputs), count = count_of(inputs), blocks = blocks_of(inputs);
    for (size_t k = 0; k < blocks; k++) {
        const size_t first = first_of(k, inputs);
        const vec mean = m->constants_a[2 * blocks + k];
        vec total = zeros(), products = zeros();
        for (size_t r = 0; r < rows; r++) {
            const size_t at = r * width + first, out = (row + r) * inputs + first;
            const vec gradient = where_positive(load(h + at), load(dh + at));
            store_some(da + out, gradient, count);
            total += gradient;
            products += gradient * (load_some(m->a + out, count) - mean);
        }
        for (size_t i = 0; i < LANES; i++) {
            sums[k].sums[i] += (double)total[i];
            sums[k].products[i] += (double)products[i];
        }
    }
}

/* The backward step of `thaw_pointwise_forward` and of the ReLUs, from dy, the gradient after the second ReLU.
 *
 * `da` receives the gradient after a's normalization and before its ReLU, and `sums` [2, inputs] its sum by channel and that of
 * its products with a - mean. `dweights` is [outputs, inputs]. */
void thaw_pointwise_backward(const shape *s, const value *restrict dy, const value *restrict a, const value *restrict b,
                             const float *constants_a, const float *constants_b, const float *back_b,
                             const float *restrict weights, value *restrict da, double *restrict sums,
                             float *restrict dweights, float *work)
{
    const maps m = {dy,
                    a,
                    b,
                    by_block(&work, constants_a, 3, s->inputs),
                    by_block(&work, constants_b, 3, s->outputs),
                    by_block(&work, back_b, 2, s->outputs)};
    const size_t in = padded(s->inputs), out = padded(s->outputs);
    float *arranged = zeroed(&work, s->outputs * in), *total = zeroed(&work, in * out);
    float *h = zeroed(&work, CHUNK * in), *dh = zeroed(&work, CHUNK * in), *db = zeroed(&work, CHUNK * out);
    totals *sums_by_block = (totals *)zeroed(&work, blocks_of(s->inputs) * sizeof(totals) / sizeof(float));
    arrange(arranged, weights, s, 0);
    for (size_t row = 0; row < s->rows; row += CHUNK) {
        const size_t rest = s->rows - row, rows = rest < CHUNK ? rest : CHUNK;
        gradient_of_b(db, &m, row, rows, s->outputs);
        normalized(h, a + row * s->inputs, m.constants_a, rows, s->inputs);
        const size_t next = row + rows;
        const size_t coming = s->rows - next < CHUNK ? s->rows - next : CHUNK;
        const soon next_dy = {dy + next * s->outputs, coming * s->outputs, 0};
        const soon next_b = {b + next * s->outputs, coming * s->outputs, 0};
        const soon next_a = {a + next * s->inputs, coming * s->inputs, 0};
        const soon this_da = {da + row * s->inputs, rows * s->inputs, 1};
        multiply(h, 1, in, db, rows, total, in, out, 1, next_dy, next_b);
        multiply(db, out, 1, arranged, s->outputs, dh, CHUNK, in, 0, this_da, next_a);
        gradient_of_h(da, sums_by_block, dh, h, &m, row, rows, s->inputs);
    }
    for (size_t k = 0; k < blocks_of(s->inputs); k++) {
        for (size_t i = 0; i < count_of(s->inputs); i++) {
            const size_t c = first_of(k, s->inputs) + i;
            sums[c] = sums_by_block[k].sums[i];
            sums[s->inputs + c] = sums_by_block[k].products[i];
        }
    }
    for (size_t o = 0; o < s->outputs; o++) {
        for (size_t i = 0; i < s->inputs; i++) {
            dweights[o * s->inputs + i] = total[i * out + o];
        }
    }
}
