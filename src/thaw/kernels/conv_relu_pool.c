/* 3x3 convolution without padding, 2x2 max pooling and ReLU, forward and backward, in float32.
 *
 * x is [B, H, W, C], y and its gradient are [B, H', W', F] with H' = (H - 2) / 2 and W' likewise: torch's channels-last order.
 * A "window" is one value of y: the four positions of the convolution that are pooled. They read a patch of 4x4 pixels of x.
 *
 * Forward: lane l of a vector belongs to image l of a block of LANES images, so that any number of channels and filters fills
 * the registers. The four positions of a window, for up to TILE filters, are accumulated in registers and pooled there.
 * The choice of each window is kept: the number of its largest position (0 to 3, the first one if several are equal), plus
 * OFF if the ReLU is 0.
 *
 * Backward: pooling passes the gradient of a window to one of four positions, and ReLU and dropout stop many of them. Each
 * remaining one costs the products of one 3x3xC patch, which is three runs of 3 C consecutive floats in an image. So lanes
 * are consecutive floats here, and images are processed one by one.
 *
 * The order of all sums depends only on the shape. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* LANES: floats in a vector; tests set THAW_LANES. TILE: filters that are computed together, whose 4 TILE sums must fit into
 * the registers. */
#if !defined(THAW_LANES) && defined(__AVX512F__)
#define THAW_LANES 16
#elif !defined(THAW_LANES) && defined(__AVX__)
#define THAW_LANES 8
#elif !defined(THAW_LANES)
#define THAW_LANES 4
#endif
/* Half of the registers, or more, hold sums. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define THAW_TILE 4
#else
#define THAW_TILE 3
#endif
enum { LANES = THAW_LANES, TILE = THAW_TILE };

/* RUN: vectors of a run that are accumulated together. */
enum { RUN = 4, POSITIONS = 4, OFF = 4, CODE_BITS = 8 };

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

struct shape {
    size_t images, height, width, channels, filters;
};

/* x - 0 is x for every float, and compilers make it one broadcast. */
INLINE vec splat(float number) { return number - (vec){0}; }

INLINE vec load(const float *at)
{
    vec values;
    memcpy(&values, at, sizeof values);
    return values;
}

INLINE void store(float *at, vec values) { memcpy(at, &values, sizeof values); }

INLINE vec choose(ints mask, vec yes, vec no) { return (vec)(((ints)yes & mask) | ((ints)no & ~mask)); }

/* Where a vector is larger; as in torch, one that is not a number counts as larger. */
INLINE ints larger(vec a, vec b) { return (a > b) | (a != a); }

/* gcc has __builtin_shufflevector from version 12 on, and clang has no __builtin_shuffle. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif

static size_t windows_across(size_t side) { return (side - 2) / 2; }
static size_t tiles_of(size_t filters) { return (filters + TILE - 1) / TILE; }
/* Tiles differ by at most one filter. */
static size_t tile_size(size_t filters, size_t tile) { return (filters + tiles_of(filters) - 1 - tile) / tiles_of(filters); }

/* Vectors that hold a run of 3 C floats. */
static size_t run_vectors(size_t channels) { return (3 * channels + LANES - 1) / LANES; }
/* Transpose LANES vectors of LANES floats: each pass interleaves the first half of the vectors with the second. */
INLINE void transpose(vec *rows)
{
    for (size_t pass = 1; pass < LANES; pass *= 2) {
        vec made[LANES];
        UNROLL
        for (size_t i = 0; i < LANES / 2; i++) {
            vec a = rows[i], b = rows[i + LANES / 2];
#if THAW_LANES == 16
            made[2 * i] = SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            made[2 * i + 1] = SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif THAW_LANES == 8
            made[2 * i] = SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
            made[2 * i + 1] = SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
            made[2 * i] = SHUFFLE(a, b, 0, 4, 1, 5);
            made[2 * i + 1] = SHUFFLE(a, b, 2, 6, 3, 7);
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

/* Floats of the scratch memory, which is aligned to 64 bytes, that either direction needs. */
size_t thaw_conv_relu_pool_scratch(const struct shape *s)
{
    const size_t windows = windows_across(s->width) * windows_across(s->height), run = 3 * LANES * run_vectors(s->channels);
    const size_t forward =
        (4 * s->width * s->channels + windows_across(s->width) * s->filters) * LANES + 9 * s->channels * s->filters;
    const size_t image = s->height * s->width * s->channels + LANES * RUN;
    const size_t lists = 2 * (windows + RUN) + 2 * POSITIONS * (s->filters + 1);
    const size_t backward = 2 * (image + run * s->filters) + s->filters + lists;
    return forward > backward ? forward : backward;
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

/* A gradient at a position of the convolution, and the offset of the position's patch in the image. */
struct entry {
    uint32_t patch;
    float gradient;
};

/* A gradient at a position of the convolution, and its filter. */
struct choice {
    uint32_t filter;
    float gradient;
};

/* Entries that are processed together, so that sums of short runs do not wait for one another. */
#define SETS(vectors) (RUN / (vectors))

/* Add to one filter's gradient, three runs of `vectors` vectors, all entries: the patch times the gradient. After the last
 * entry there is room for RUN more. */
INLINE void add_patches(const size_t vectors, struct entry *entries, size_t count, const float *x, size_t row_size, size_t run,
                        float *dweight)
{
    vec sums[RUN][3 * RUN] = {0};
    for (size_t n = count; n % SETS(vectors); n++) {
        entries[n] = (struct entry){0, 0.0f};
    }
    for (size_t n = 0; n < count; n += SETS(vectors)) {
        for (size_t set = 0; set < SETS(vectors); set++) {
            const float *patch = x + entries[n + set].patch;
            const vec gradient = splat(entries[n + set].gradient);
            UNROLL
            for (size_t i = 0; i < 3 * vectors; i++) {
                sums[set][i] += gradient * load(patch + i / vectors * row_size + i % vectors * LANES);
            }
        }
    }
    UNROLL
    for (size_t i = 0; i < 3 * vectors; i++) {
        float *at = dweight + i / vectors * run + i % vectors * LANES;
        vec sum = load(at);
        for (size_t set = 0; set < SETS(vectors); set++) {
            sum += sums[set][i];
        }
        store(at, sum);
    }
}

/* Add to a patch of the image's gradient the weights of the listed filters times their gradients. */
INLINE void add_filters(const size_t vectors, const struct choice *filters, size_t count, const float *weights, size_t run,
                        float *dpatch, size_t row_size)
{
    /* Starting from 0, and not from the patch, the sums need not wait until the patch before has been stored. */
    vec sums[3 * RUN] = {0};
    for (size_t n = 0; n < count; n++) {
        const float *weight = weights + 3 * run * filters[n].filter;
        const vec gradient = splat(filters[n].gradient);
        UNROLL
        for (size_t i = 0; i < 3 * vectors; i++) {
            sums[i] += gradient * load(weight + i / vectors * run + i % vectors * LANES);
        }
    }
    UNROLL
    for (size_t i = 0; i < 3 * vectors; i++) {
        float *at = dpatch + i / vectors * row_size + i % vectors * LANES;
        store(at, load(at) + sums[i]);
    }
}

/* Call a function above for runs of any length: RUN vectors at a time, and the rest. */
#define BY_RUNS(function, run, ...)                           \
    for (size_t begin = 0; begin < (run); begin += LANES * RUN) { \
        switch (((run) - begin) / LANES) {                    \
        case 1: function(1, __VA_ARGS__); break;              \
        case 2: function(2, __VA_ARGS__); break;              \
        case 3: function(3, __VA_ARGS__); break;              \
        default: function(RUN, __VA_ARGS__); break;           \
        }                                                     \
    }

/* The memory of the backward pass, in the scratch memory. */
struct backward {
    const struct shape *s;
    size_t row_size, run, windows, tiles;
    size_t patches[POSITIONS];
    /* Strides [image, filter, row, column] of dy. */
    const size_t *steps;
    /* The image and its gradient, with room for the vectors that extend beyond their ends. */
    float *x, *dx;
    /* Weights and their gradients as [F, 3, run], padded with zeros. */
    float *weights, *dweights, *dbias;
    /* The gradients of one filter in an image; those of one window by position, [POSITIONS, F + 1]. */
    struct entry *entries;
    struct choice *filters;
};

/* Whether a window passes its gradient on, 0 or 1. */
INLINE uint32_t passes(uint32_t code, float gradient) { return !(code & OFF) & (gradient != 0.0f); }

/* Add the gradients of an image to those of the weights and the bias, one filter after the other. */
static void add_image(const struct backward *b, const float *dy, const int32_t *codes)
{
    const struct shape *s = b->s;
    const size_t down = windows_across(s->height), across = windows_across(s->width);
    for (size_t tile = 0, f = 0; tile < b->tiles; tile++, codes += LANES) {
        const size_t size = tile_size(s->filters, tile);
        for (size_t shift = 0; shift < size * CODE_BITS; shift += CODE_BITS, f++) {
            uint32_t count = 0;
            float sum = 0.0f;
            const int32_t *packed = codes;
            for (size_t row = 0; row < down; row++) {
                const float *gradient = dy + f * b->steps[1] + row * b->steps[2];
                size_t origin = row * 2 * b->row_size;
                for (size_t column = 0; column < across; column++, origin += 2 * s->channels, gradient += b->steps[3]) {
                    /* Without branches, which could not be predicted: what does not pass is overwritten. */
                    const uint32_t code = (uint32_t)*packed >> shift;
                    b->entries[count] = (struct entry){(uint32_t)(origin + b->patches[code % POSITIONS]), *gradient};
                    count += passes(code, *gradient);
                    sum += code & OFF ? 0.0f : *gradient;
                    packed += b->tiles * LANES;
                }
            }
            b->dbias[f] += sum;
            BY_RUNS(add_patches, b->run, b->entries, count, b->x + begin, b->row_size, b->run,
                    b->dweights + 3 * f * b->run + begin)
        }
    }
}

/* Add up an image's own gradient, one window after the other. */
static void add_dx(const struct backward *b, const float *dy, const int32_t *codes)
{
    const struct shape *s = b->s;
    const size_t across = windows_across(s->width);
    for (size_t window = 0; window < b->windows; window++) {
        const float *gradients = dy + window / across * b->steps[2] + window % across * b->steps[3];
        float *patch = b->dx + window / across * 2 * b->row_size + window % across * 2 * s->channels;
        uint32_t counts[POSITIONS] = {0};
        for (size_t tile = 0, f = 0; tile < b->tiles; tile++, codes += LANES) {
            uint32_t packed = (uint32_t)*codes;
            for (size_t end = f + tile_size(s->filters, tile); f < end; f++, packed >>= CODE_BITS) {
                const size_t k = packed % POSITIONS;
                const float gradient = gradients[f * b->steps[1]];
                b->filters[k * (s->filters + 1) + counts[k]] = (struct choice){(uint32_t)f, gradient};
                counts[k] += passes(packed, gradient);
            }
        }
        for (size_t k = 0; k < POSITIONS; k++) {
            if (counts[k]) {
                BY_RUNS(add_filters, b->run, b->filters + k * (s->filters + 1), counts[k], b->weights + begin, b->run,
                        patch + b->patches[k] + begin, b->row_size)
            }
        }
    }
}

/* Gradients of all images: dx, dweights and dbias; dx may be NULL, and dweights and dbias together. The weights and their
 * gradient have the strides [filter, channel, row, column], dy the strides [image, filter, row, column]. */
void thaw_conv_relu_pool_backward(const struct shape *s, const float *x, const float *weights, const size_t *strides,
                                  const float *dy, const size_t *steps, const int32_t *codes, float *dx, float *dweights, float *dbias,
                                  float *scratch)
{
    struct backward b = {.s = s, .steps = steps, .row_size = s->width * s->channels, .run = LANES * run_vectors(s->channels)};
    const size_t image = s->height * b.row_size, padded = image + LANES * RUN, kernels = 3 * b.run * s->filters;
    const size_t patches[POSITIONS] = {0, s->channels, b.row_size, b.row_size + s->channels};
    memcpy(b.patches, patches, sizeof patches);
    b.windows = windows_across(s->height) * windows_across(s->width);
    b.tiles = tiles_of(s->filters);
    b.weights = scratch;
    b.dweights = b.weights + kernels;
    b.x = b.dweights + kernels;
    b.dx = b.x + padded;
    b.dbias = b.dx + padded;
    b.entries = (struct entry *)(b.dbias + s->filters);
    b.filters = (struct choice *)(b.entries + b.windows + RUN);
    memset(scratch, 0, (2 * (kernels + padded) + s->filters) * sizeof *scratch);
    for (size_t f = 0; f < s->filters; f++) {
        for (size_t i = 0; i < 9 * s->channels; i++) {
            const size_t ky = i / (3 * s->channels), kx = i / s->channels % 3, c = i % s->channels;
            b.weights[(3 * f + ky) * b.run + kx * s->channels + c] =
                weights[f * strides[0] + c * strides[1] + ky * strides[2] + kx * strides[3]];
        }
    }
    for (size_t n = 0; n < s->images; n++) {
        /* The image's codes are in lane n % LANES of its block. */
        const int32_t *own = codes + n / LANES * b.windows * b.tiles * LANES + n % LANES;
        const float *gradients = dy + n * steps[0];
        if (dweights) {
            memcpy(b.x, x + n * image, image * sizeof *x);
            add_image(&b, gradients, own);
        }
        if (dx) {
            memset(b.dx, 0, image * sizeof *dx);
            add_dx(&b, gradients, own);
            memcpy(dx + n * image, b.dx, image * sizeof *dx);
        }
    }
    for (size_t f = 0; dweights && f < s->filters; f++) {
        dbias[f] = b.dbias[f];
        for (size_t i = 0; i < 9 * s->channels; i++) {
            const size_t ky = i / (3 * s->channels), kx = i / s->channels % 3, c = i % s->channels;
            dweights[f * strides[0] + c * strides[1] + ky * strides[2] + kx * strides[3]] =
                b.dweights[(3 * f + ky) * b.run + kx * s->channels + c];
        }
    }
}
