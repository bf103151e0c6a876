/* Depthwise convolution with zero padding, forward and both gradients, for feature maps [images, rows, columns, channels].
 *
 * A vector holds one block of channels at one position. Rows are copied once, in the order of memory, to a ring of padded rows
 * in scratch memory that fits the first-level cache, so that no loop has a case for borders, channels or types:
 *
 *     ring [KERNEL rows] [blocks] [SIDE zeros, columns, SIDE zeros]     row y of the map is in slot (y + SIDE) % KERNEL
 *
 * The forward step can also compute the statistics of a normalization of the result. The backward step can first apply the
 * backward step of that normalization to the gradient that it receives. Both save a pass over memory.
 */
#include "maps.h"

/* The side of the kernel is odd, and the padding is SIDE. These are constants, so that the compiler can unroll loops. */
#define KERNEL THAW_KERNEL
#define STRIDE THAW_STRIDE
#define SIDE (KERNEL / 2)
#define TAPS (KERNEL * KERNEL)

/* Neighboring positions that are computed together, and rows of taps whose gradients are. They fill the registers. */
#define MANY 8
#if THAW_LANES == 16
#define TOTALS 25
#else
#define TOTALS 12
#endif
#if KERNEL > TOTALS
#define ROWS 1
#elif TAPS <= TOTALS
#define ROWS KERNEL
#else
#define ROWS (TOTALS / KERNEL)
#endif

/* Size of x. */
typedef struct {
    size_t images, rows, columns, channels;
} shape;

INLINE size_t reduced(size_t side) { return (side + STRIDE - 1) / STRIDE; }

typedef struct {
    vec *rows;
    size_t width, size; /* vectors of a row of one block, and of all blocks */
} ring;

static size_t ring_bytes(const shape *s)
{
    return KERNEL * blocks_of(s->channels) * (s->columns + KERNEL - 1) * sizeof(vec);
}

static ring ring_new(const shape *s, float **work)
{
    const size_t width = s->columns + KERNEL - 1;
    ring made = {cut(work, ring_bytes(s)), width, width * blocks_of(s->channels)};
    memset(made.rows, 0, ring_bytes(s));
    return made;
}

/* A row of the ring with its border; `row` counts from the upper border. */
INLINE vec *row_of(ring from, size_t row) { return from.rows + row % KERNEL * from.size; }

/* Floats of scratch memory that the functions below need. */
void thaw_depthwise_work(const shape *s, size_t *floats)
{
    *floats = (2 * ring_bytes(s) + blocks_of(s->channels) * ((2 * TAPS + 5) * sizeof(vec) + sizeof(moments)) + 1024) / 4;
}

/* Weights [channels, TAPS] as [blocks, TAPS, LANES], in reverse order for the gradient of the input. */
static void arrange(vec *restrict out, const float *restrict weights, size_t channels, int reverse)
{
    for (size_t b = 0; b < blocks_of(channels); b++) {
        for (size_t k = 0; k < TAPS; k++, out++) {
            float numbers[LANES] = {0.0f};
            for (size_t i = 0; i < count_of(channels); i++) {
                numbers[i] = weights[(first_of(b, channels) + i) * TAPS + (reverse ? TAPS - 1 - k : k)];
            }
            *out = load(numbers);
        }
    }
}

/* The rows under the kernel, for all blocks; `row` is the upper one, counted from the upper border. */
INLINE void rows_under(ring from, size_t row, const vec **rows)
{
    for (size_t r = 0; r < KERNEL; r++) {
        rows[r] = row_of(from, row + r);
    }
}

/* `many` neighboring positions from `x` of the rows under the kernel. */
INLINE void positions(size_t many, size_t stride, const vec *const *rows, size_t x, const vec *weights, vec *total)
{
#pragma GCC unroll 8
    for (size_t p = 0; p < many; p++) {
        total[p] = zeros();
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < KERNEL; r++) {
#pragma GCC unroll 8
        for (size_t k = 0; k < KERNEL; k++) {
            const vec weight = weights[r * KERNEL + k];
#pragma GCC unroll 8
            for (size_t p = 0; p < many; p++) {
                total[p] += weight * rows[r][x + k + p * stride];
            }
        }
    }
}

INLINE void write(size_t many, const vec *total, value *out, size_t channels, size_t lanes)
{
    if (lanes < LANES) {
        for (size_t p = 0; p < many; p++) {
            store_part(out + p * channels, total[p], lanes);
        }
        return;
    }
#pragma GCC unroll 8
    for (size_t p = 0; p < many; p++) {
        store_vec(out + p * channels, total[p]);
    }
}

/* Copy a row of an image, counted from the upper border, to the ring. */
static void fill(ring to, size_t row, const value *image, const shape *s)
{
    const size_t y = row - SIDE, channels = s->channels, lanes = count_of(channels);
    vec *out = row_of(to, row);
    if (y >= s->rows) { /* also above the image, where y wraps around to a large number */
        memset(out, 0, to.size * sizeof(vec));
        return;
    }
    out += SIDE;
    for (size_t b = 0; b < blocks_of(channels); b++, out += to.width) {
        const value *from = image + y * s->columns * channels + first_of(b, channels);
        if (lanes < LANES) {
            for (size_t x = 0; x < s->columns; x++, from += channels) {
                out[x] = load_part(from, lanes);
            }
            continue;
        }
        for (size_t x = 0; x < s->columns; x++, from += channels) {
            out[x] = load_vec(from);
        }
    }
}

/* A row of the result; the upper row under the kernel is `row`. */
static void forward_row(ring from, size_t row, const vec *weights, value *y, size_t columns, size_t channels, moments *sums,
                        soon next)
{
    const size_t share = share_of(next, blocks_of(channels) * (columns / MANY + 1));
    const vec *rows[KERNEL];
    rows_under(from, row, rows);
    for (size_t b = 0; b < blocks_of(channels); b++, weights += TAPS) {
        value *out = y + first_of(b, channels);
        moments block = sums[b];
        vec total[MANY];
        size_t x = 0;
        for (; x + MANY <= columns; x += MANY, out += MANY * channels) {
            prefetch_some(&next, share);
            prefetch_write(y + columns * channels + (b * columns + x) * LANES, MANY * LANES);
            positions(MANY, STRIDE, rows, x * STRIDE, weights, total);
            write(MANY, total, out, channels, count_of(channels));
            moments_add(&block, total, MANY);
        }
        for (; x < columns; x++, out += channels) {
            positions(1, STRIDE, rows, x * STRIDE, weights, total);
            write(1, total, out, channels, count_of(channels));
            moments_add(&block, total, 1);
        }
        sums[b].sums = block.sums;
        sums[b].squares = block.squares;
        for (size_t r = 0; r < KERNEL; r++) {
            rows[r] += from.width;
        }
    }
}

/* y = the convolution of x by weights [channels, KERNEL, KERNEL]. If `statistics` is not NULL, it receives the mean and
 * variance of y by channel, [2, channels]. */
void thaw_depthwise_forward(const shape *s, const value *restrict x, const float *restrict weights, value *restrict y,
                            double *statistics, float *work)
{
    const size_t channels = s->channels, blocks = blocks_of(channels);
    const size_t rows = reduced(s->rows), columns = reduced(s->columns);
    ring in = ring_new(s, &work);
    vec *arranged = cut(&work, blocks * TAPS * sizeof(vec));
    moments *sums = cut(&work, blocks * sizeof(moments));
    arrange(arranged, weights, channels, 0);
    for (size_t b = 0; b < blocks; b++) {
        moments_begin(&sums[b], zeros());
    }
    for (size_t image = 0; image < s->images; image++, x += s->rows * s->columns * channels) {
        size_t filled = 0;
        for (size_t row = 0; row < rows; row++, y += columns * channels) {
            for (; filled < row * STRIDE + KERNEL; filled++) {
                fill(in, filled, x, s);
            }
            const value *next = x + (filled - SIDE) * s->columns * channels;
            forward_row(in, row * STRIDE, arranged, y, columns, channels, sums, (soon){next, STRIDE * s->columns * channels, 0});
            if (image == 0 && row == 0) {
                /* The mean of the first row becomes the origin. */
                for (size_t b = 0; b < blocks; b++) {
                    moments_begin(&sums[b], sums[b].sums / (float)columns);
                }
                forward_row(in, 0, arranged, y, columns, channels, sums, (soon){NULL, 0, 0});
            }
        }
        for (size_t b = 0; b < blocks; b++) {
            moments_carry(&sums[b]);
        }
    }
    if (statistics) {
        moments_end(sums, s->images * rows * columns, channels, statistics);
    }
}

/* The gradient of y that the backward step receives. If `factors` is not NULL, it is the one after a normalization of y, and
 * the gradient of y is factor * dy + slope * (y - mean) + shift. Constants are [kinds, blocks]. */
typedef struct {
    const value *dy, *y;
    const vec *factors, *means, *slopes, *shifts;
} incoming;

/* `fill` for a gradient, with STRIDE - 1 zeros between its positions. */
static void fill_gradient(ring to, size_t row, const incoming *from, const shape *s)
{
    const size_t y = row - SIDE, channels = s->channels, lanes = count_of(channels);
    vec *out = row_of(to, row);
    if (y >= s->rows || y % STRIDE) {
        memset(out, 0, to.size * sizeof(vec));
        return;
    }
    out += SIDE;
    for (size_t b = 0; b < blocks_of(channels); b++, out += to.width) {
        size_t at = y / STRIDE * reduced(s->columns) * channels + first_of(b, channels);
        if (!from->factors) {
            for (size_t x = 0; x < s->columns; x += STRIDE, at += channels) {
                out[x] = load_some(from->dy + at, lanes);
            }
            continue;
        }
        const vec factor = from->factors[b], mean = from->means[b], slope = from->slopes[b], shift = from->shifts[b];
        for (size_t x = 0; x < s->columns; x += STRIDE, at += channels) {
            const vec distance = load_some(from->y + at, lanes) - mean;
            out[x] = factor * load_some(from->dy + at, lanes) + (slope * distance + shift);
        }
    }
}

/* Add the gradients of `many` rows of taps: products of a row of the gradient with rows of x. */
INLINE void rows_of_taps(size_t many, const vec *gradient, const vec *const *in, size_t columns, vec *sums)
{
    vec total[ROWS * KERNEL];
#pragma GCC unroll 32
    for (size_t k = 0; k < many * KERNEL; k++) {
        total[k] = sums[k];
    }
    for (size_t x = 0; x < columns; x += STRIDE) {
        vec factor = gradient[x];
        IN_REGISTER(factor);
#pragma GCC unroll 8
        for (size_t r = 0; r < many; r++) {
#pragma GCC unroll 32
            for (size_t k = 0; k < KERNEL; k++) {
                total[r * KERNEL + k] += factor * in[r][x + k];
            }
        }
    }
#pragma GCC unroll 32
    for (size_t k = 0; k < many * KERNEL; k++) {
        sums[k] = total[k];
    }
}

/* The gradients of all taps, from one row of dy, whose upper row under the kernel is `row`. */
static void backward_taps(ring from, ring gradient, size_t row, size_t columns, size_t channels, vec *sums, soon first,
                          soon second)
{
    const size_t one = share_of(first, blocks_of(channels)), other = share_of(second, blocks_of(channels));
    const vec *rows[KERNEL], *center = row_of(gradient, row + SIDE) + SIDE;
    rows_under(from, row, rows);
    for (size_t b = 0; b < blocks_of(channels); b++, center += gradient.width) {
        size_t r = 0;
        prefetch_some(&first, one);
        prefetch_some(&second, other);
        for (; r + ROWS <= KERNEL; r += ROWS, sums += ROWS * KERNEL) {
            rows_of_taps(ROWS, center, rows + r, columns, sums);
        }
#if KERNEL % ROWS
        for (; r < KERNEL; r++, sums += KERNEL) {
            rows_of_taps(1, center, rows + r, columns, sums);
        }
#endif
        for (r = 0; r < KERNEL; r++) {
            rows[r] += from.width;
        }
    }
}

/* A row of dx: the convolution of dy by the reversed weights, and `also` if it is not NULL. */
static void backward_row(ring gradient, size_t row, const vec *weights, const value *also, value *dx, size_t columns,
                         size_t channels, soon first, soon second)
{
    const size_t times = blocks_of(channels) * (columns / MANY + 1), one = share_of(first, times);
    const size_t other = share_of(second, times);
    const size_t lanes = count_of(channels);
    const vec *rows[KERNEL];
    rows_under(gradient, row, rows);
    for (size_t b = 0; b < blocks_of(channels); b++, weights += TAPS) {
        size_t x = 0, at = first_of(b, channels);
        vec total[MANY];
        for (; x + MANY <= columns; x += MANY, at += MANY * channels) {
            prefetch_some(&first, one);
            prefetch_some(&second, other);
            prefetch_write(dx + columns * channels + (b * columns + x) * LANES, MANY * LANES);
            positions(MANY, 1, rows, x, weights, total);
#pragma GCC unroll 8
            for (size_t p = 0; also && p < MANY; p++) {
                total[p] += load_some(also + at + p * channels, lanes);
            }
            write(MANY, total, dx + at, channels, lanes);
        }
        for (; x < columns; x++, at += channels) {
            positions(1, 1, rows, x, weights, total);
            total[0] += also ? load_some(also + at, lanes) : zeros();
            write(1, total, dx + at, channels, lanes);
        }
        for (size_t r = 0; r < KERNEL; r++) {
            rows[r] += gradient.width;
        }
    }
}

/* The gradients of `thaw_depthwise_forward`, which returned y for x. `dx` may be NULL if no one reads it; `also`, if not NULL,
 * is added to it. `dweights` is [channels, TAPS]. If dy is the gradient after a normalization of y, `constants` and `back` are
 * those of that normalization (`thaw_norm_constants`, `thaw_norm_back`); otherwise both are NULL, and y is not read. */
void thaw_depthwise_backward(const shape *s, const value *restrict dy, const value *restrict x, const value *restrict y,
                             const float *restrict weights, const float *constants, const float *back,
                             const value *restrict also, value *restrict dx, float *restrict dweights, float *work)
{
    const size_t channels = s->channels, blocks = blocks_of(channels), lanes = count_of(channels);
    ring in = ring_new(s, &work), gradient = ring_new(s, &work);
    vec *arranged = cut(&work, blocks * TAPS * sizeof(vec)), *sums = cut(&work, blocks * TAPS * sizeof(vec));
    incoming from = {.dy = dy, .y = y};
    if (back) {
        from.factors = by_block(&work, constants, 3, channels);
        from.means = from.factors + 2 * blocks;
        from.slopes = by_block(&work, back, 2, channels);
        from.shifts = from.slopes + blocks;
    }
    arrange(arranged, weights, channels, 1);
    memset(sums, 0, blocks * TAPS * sizeof(vec));
    for (size_t image = 0, at = 0; image < s->images; image++) {
        size_t filled = 0;
        for (size_t row = 0; row < s->rows; row++, at += s->columns * channels) {
            for (; filled < row + KERNEL; filled++) {
                fill(in, filled, x, s);
                fill_gradient(gradient, filled, &from, s);
            }
            const size_t across = s->columns * channels, coming = reduced(s->columns) * channels;
            const size_t below = (row + KERNEL - SIDE) / STRIDE * coming;
            if (row % STRIDE == 0) {
                const soon next_x = {x + (row + KERNEL - SIDE) * across, across, 0}, next_dy = {from.dy + below, coming, 0};
                backward_taps(in, gradient, row, s->columns, channels, sums, next_x, next_dy);
            }
            if (dx) {
                const soon next_y = {back ? from.y + below : NULL, back ? coming : 0, 0};
                const soon next_also = {also ? also + at + across : NULL, also ? across : 0, 0};
                backward_row(gradient, row, arranged, also ? also + at : NULL, dx + at, s->columns, channels, next_y, next_also);
            }
        }
        x += s->rows * s->columns * channels;
        from.dy += reduced(s->rows) * reduced(s->columns) * channels;
        from.y += back ? reduced(s->rows) * reduced(s->columns) * channels : 0;
    }
    for (size_t b = 0; b < blocks; b++) {
        for (size_t i = 0; i < lanes; i++) {
            for (size_t k = 0; k < TAPS; k++) {
                dweights[(first_of(b, channels) + i) * TAPS + k] = sums[b * TAPS + k][i];
            }
        }
    }
}
