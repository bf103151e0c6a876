/* The forward pass of convolution, pooling and ReLU.
 *
 * Lane l of a vector belongs to image l of a block of LANES images, so that any number of channels and filters fills the
 * registers. The four positions of a window, for up to TILE filters, are accumulated in registers and pooled there. */
#include "conv_relu_pool.h"

#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif

INLINE vec choose(ints mask, vec yes, vec no) { return (vec)(((ints)yes & mask) | ((ints)no & ~mask)); }

/* Where a vector is larger; as in torch, one that is not a number counts as larger. */
INLINE ints larger(vec a, vec b) { return (a > b) | (a != a); }

/* Transpose LANES vectors of LANES floats: each pass interleaves the first half of the vectors with the second. */
INLINE void transpose(vec *rows)
{
    for (size_t pass = 1; pass < LANES; pass *= 2) {
        vec made[LANES];
        UNROLL
        for (size_t i = 0; i < LANES / 2; i++) {
            vec a = rows[i], b = rows[i + LANES / 2];
#if THAW_LANES == 16
            made[2 * i] = PICK(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            made[2 * i + 1] = PICK(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif THAW_LANES == 8
            made[2 * i] = PICK(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
            made[2 * i + 1] = PICK(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
            made[2 * i] = PICK(a, b, 0, 4, 1, 5);
            made[2 * i + 1] = PICK(a, b, 2, 6, 3, 7);
#endif
        }
        memcpy(rows, made, sizeof made);
    }
}

/* Copy a row of W pixels of each image of a block to ring[(c * 4 + slot) * W + column], lane by lane. */
static void load_row(const float *const *images, size_t offset, const struct shape *s, size_t slot, vec *ring)
{
    const size_t count = s->width * s->channels;
    size_t c = 0, column = 0;
    for (size_t first = 0; first < count; first += LANES) {
        const size_t rest = count - first, here = rest < LANES ? rest : LANES;
        vec rows[LANES];
        if (here == LANES) {
            for (size_t l = 0; l < LANES; l++) {
                rows[l] = load(images[l] + offset + first);
            }
            transpose(rows);
        } else {
            for (size_t i = 0; i < here; i++) {
                for (size_t l = 0; l < LANES; l++) {
                    rows[i][l] = images[l][offset + first + i];
                }
            }
        }
        for (size_t i = 0; i < here; i++) {
            ring[(c * 4 + slot) * s->width + column] = rows[i];
            if (++c == s->channels) {
                c = 0;
                column++;
            }
        }
    }
}

/* Copy a row of results, `count` vectors, to the same place of each of the first `images` images of a block. */
static void store_row(const vec *from, size_t count, float *y, size_t image_size, size_t images)
{
    for (size_t first = 0; first < count; first += LANES) {
        const size_t rest = count - first, here = rest < LANES ? rest : LANES;
        vec rows[LANES];
        if (here == LANES) {
            memcpy(rows, from + first, sizeof rows);
            transpose(rows);
            for (size_t l = 0; l < images; l++) {
                store(y + l * image_size + first, rows[l]);
            }
        } else {
            for (size_t l = 0; l < images; l++) {
                for (size_t i = 0; i < here; i++) {
                    y[l * image_size + first + i] = from[first + i][l];
                }
            }
        }
    }
}

/* One row of windows for a tile of `size` filters. `rows` are the offsets of four rows of x in each channel of the ring.
 * Results go to y[window * F + filter] and codes[window * tiles], with CODE_BITS for each filter of the tile. */
INLINE void window_row(const size_t size, const struct shape *s, const float *weights, const float *bias, const vec *ring,
                       const size_t *rows, vec *y, ints *codes)
{
    const size_t windows = windows_across(s->width), tiles = tiles_of(s->filters);
    for (size_t window = 0; window < windows; window++) {
        vec sums[TILE][POSITIONS];
        UNROLL
        for (size_t f = 0; f < size; f++) {
            UNROLL
            for (size_t k = 0; k < POSITIONS; k++) {
                sums[f][k] = splat(bias[f]);
            }
        }
        const float *weight = weights;
        const vec *at = ring + 2 * window;
        for (size_t c = 0; c < s->channels; c++, at += 4 * s->width) {
            UNROLL
            for (size_t ky = 0; ky < 3; ky++) {
                const vec *upper = at + rows[ky], *lower = at + rows[ky + 1];
                UNROLL
                for (size_t kx = 0; kx < 3; kx++, weight += size) {
                    UNROLL
                    for (size_t k = 0; k < POSITIONS; k++) {
                        const vec x = (k < 2 ? upper : lower)[kx + k % 2];
                        UNROLL
                        for (size_t f = 0; f < size; f++) {
                            sums[f][k] += splat(weight[f]) * x;
                        }
                    }
                }
            }
        }
        ints packed = {0};
        UNROLL
        for (size_t f = 0; f < size; f++) {
            const vec *sum = sums[f];
            const ints right = larger(sum[1], sum[0]), lower_right = larger(sum[3], sum[2]);
            const vec upper = choose(right, sum[1], sum[0]), lower = choose(lower_right, sum[3], sum[2]);
            const ints is_lower = larger(lower, upper);
            const vec largest = choose(is_lower, lower, upper);
            const ints is_off = largest <= 0.0f;
            y[window * s->filters + f] = (vec)((ints)largest & ~is_off);
            packed |= ((is_lower & (2 - lower_right)) | (~is_lower & -right) | (is_off & OFF)) << (int)(CODE_BITS * f);
        }
        codes[window * tiles] = packed;
    }
}

/* Weights have the strides [filter, channel, row, column] of torch. */
static void pack_weights(const float *weights, const size_t *strides, const struct shape *s, float *packed)
{
    for (size_t tile = 0, first = 0; tile < tiles_of(s->filters); first += tile_size(s->filters, tile++)) {
        for (size_t c = 0; c < s->channels; c++) {
            for (size_t tap = 0; tap < 9; tap++) {
                for (size_t f = first; f < first + tile_size(s->filters, tile); f++) {
                    *packed++ = weights[f * strides[0] + c * strides[1] + tap / 3 * strides[2] + tap % 3 * strides[3]];
                }
            }
        }
    }
}

/* Floats of the scratch memory, which is aligned to 64 bytes. */
size_t thaw_conv_relu_pool_forward_scratch(const struct shape *s)
{
    return (4 * s->width * s->channels + windows_across(s->width) * s->filters) * LANES + 9 * s->channels * s->filters;
}

/* Number of codes: int32 [blocks, H', W', tiles, LANES]. */
size_t thaw_conv_relu_pool_codes(const struct shape *s)
{
    const size_t blocks = (s->images + LANES - 1) / LANES;
    return blocks * windows_across(s->height) * windows_across(s->width) * tiles_of(s->filters) * LANES;
}

/* y and codes of all images. Weights have the strides [filter, channel, row, column] of torch. */
void thaw_conv_relu_pool_forward(const struct shape *s, const float *x, const float *weights, const size_t *strides,
                                 const float *bias, float *y, int32_t *codes, float *scratch)
{
    const size_t down = windows_across(s->height), across = windows_across(s->width), tiles = tiles_of(s->filters);
    const size_t row_size = s->width * s->channels, image_size = down * across * s->filters;
    vec *ring = (vec *)scratch, *results = ring + 4 * row_size;
    float *packed = (float *)(results + across * s->filters);
    pack_weights(weights, strides, s, packed);
    for (size_t block = 0; block < s->images; block += LANES) {
        const size_t rest = s->images - block, here = rest < LANES ? rest : LANES;
        const float *images[LANES];
        for (size_t l = 0; l < LANES; l++) {
            /* Lanes without an image repeat the last one; their results are not stored. */
            images[l] = x + (block + (l < here ? l : here - 1)) * s->height * row_size;
        }
        for (size_t row = 0; row < down; row++) {
            size_t rows[4];
            for (size_t i = 0; i < 4; i++) {
                const size_t slot = (2 * row + i) % 4;
                rows[i] = slot * s->width;
                if (row == 0 || i >= 2) {
                    load_row(images, (2 * row + i) * row_size, s, slot, ring);
                }
            }
            const float *weight = packed;
            ints *chosen = (ints *)codes + (block / LANES * down + row) * across * tiles;
            for (size_t tile = 0, f = 0; tile < tiles; tile++, chosen++) {
                const size_t size = tile_size(s->filters, tile);
                switch (size) {
#define ROW(filters)                                                                     \
    case filters:                                                                        \
        window_row(filters, s, weight, bias + f, ring, rows, results + f, chosen);       \
        break;
                ROW(1)
                ROW(2)
                ROW(3)
#if THAW_TILE == 4
                ROW(4)
#endif
                }
                f += size;
                weight += 9 * s->channels * size;
            }
            store_row(results, across * s->filters, y + block * image_size + row * across * s->filters, image_size, here);
        }
    }
}
