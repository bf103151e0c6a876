/* The backward pass of convolution, pooling and ReLU.
 *
 * Pooling passes the gradient of a window to one of four positions, and ReLU and dropout stop many of them. Each remaining
 * one costs the products of one 3x3xC patch, which is three runs of 3 C consecutive floats in an image. So lanes are
 * consecutive floats here, and images are processed one by one. */
#include "conv_relu_pool.h"

/* RUN: vectors of a run that are accumulated together. */
enum { RUN = 4 };

/* Vectors that hold a run of 3 C floats. */
static size_t run_vectors(size_t channels) { return (3 * channels + LANES - 1) / LANES; }

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
            const float *runs[3] = {patch, patch + row_size, patch + 2 * row_size};
            const vec gradient = splat(entries[n + set].gradient);
            UNROLL
            for (size_t i = 0; i < 3 * vectors; i++) {
                sums[set][i] += gradient * load(runs[i / vectors] + i % vectors * LANES);
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
        const float *runs[3] = {weight, weight + run, weight + 2 * run};
        const vec gradient = splat(filters[n].gradient);
        UNROLL
        for (size_t i = 0; i < 3 * vectors; i++) {
            sums[i] += gradient * load(runs[i / vectors] + i % vectors * LANES);
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
    /* Offsets in an image: of the positions in a window, and of all windows. */
    uint32_t patches[POSITIONS], *origins;
    /* Strides [image, filter, row, column] of dy, where a row is as long as its columns. */
    const size_t *steps;
    /* The image and its gradient, with room for the vectors that extend beyond their ends. */
    float *x, *dx;
    /* Weights and their gradients as [F, 3, run], padded with zeros. */
    float *weights, *dweights, *dbias;
    /* The gradients of one filter in an image; those of one window by position, [POSITIONS, F + 1]. */
    struct entry *entries;
    struct choice *filters;
};

/* Whether a window passes its gradient on, 0 or 1: unless it is off or the gradient is 0. Here and where it is called there are
 * no branches, which could not be predicted. */
INLINE uint32_t passes(uint32_t code, float gradient)
{
    uint32_t bits;
    memcpy(&bits, &gradient, sizeof bits);
    return (bits << 1 != 0) & ~(code / OFF);
}

/* `number` if `is_kept` is 1, and 0 if it is 0. */
INLINE float keep(uint32_t is_kept, float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    bits &= 0u - is_kept;
    memcpy(&number, &bits, sizeof bits);
    return number;
}

/* Add the gradients of an image to those of the weights and the bias, one filter after the other. */
static void add_image(const struct backward *b, const float *dy, const int32_t *codes)
{
    const struct shape *s = b->s;
    for (size_t tile = 0, f = 0; tile < b->tiles; tile++, codes += LANES) {
        const size_t size = tile_size(s->filters, tile);
        for (size_t shift = 0; shift < size * CODE_BITS; shift += CODE_BITS, f++) {
            uint32_t count = 0;
            float sum = 0.0f;
            const float *gradient = dy + f * b->steps[1];
            const int32_t *packed = codes;
            for (size_t window = 0; window < b->windows; window++) {
                /* An entry that does not pass is overwritten by the next. */
                const uint32_t code = (uint32_t)*packed >> shift, pass = passes(code, *gradient);
                b->entries[count] = (struct entry){b->origins[window] + b->patches[code % POSITIONS], *gradient};
                count += pass;
                sum += keep(pass, *gradient);
                gradient += b->steps[3];
                packed += b->tiles * LANES;
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
    for (size_t window = 0; window < b->windows; window++, dy += b->steps[3]) {
        float *patch = b->dx + b->origins[window];
        uint32_t counts[POSITIONS] = {0};
        for (size_t tile = 0, f = 0; tile < b->tiles; tile++, codes += LANES) {
            uint32_t packed = (uint32_t)*codes;
            for (size_t end = f + tile_size(s->filters, tile); f < end; f++, packed >>= CODE_BITS) {
                const size_t k = packed % POSITIONS;
                const float gradient = dy[f * b->steps[1]];
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

/* Floats of the scratch memory. */
size_t thaw_conv_relu_pool_backward_scratch(const struct shape *s)
{
    const size_t windows = windows_across(s->width) * windows_across(s->height), run = 3 * LANES * run_vectors(s->channels);
    const size_t image = s->height * s->width * s->channels + LANES * RUN;
    const size_t lists = 2 * (windows + RUN) + 2 * POSITIONS * (s->filters + 1) + windows;
    return 2 * (image + run * s->filters) + s->filters + lists;
}

/* Gradients of all images: dx, dweights and dbias; dx may be NULL, and dweights and dbias together. The weights and their
 * gradient have the strides [filter, channel, row, column], dy the strides [image, filter, row, column], where the stride of
 * rows is W' times that of columns. */
void thaw_conv_relu_pool_backward(const struct shape *s, const float *x, const float *weights, const size_t *strides,
                                  const float *dy, const size_t *steps, const int32_t *codes, float *dx, float *dweights, float *dbias,
                                  float *scratch)
{
    struct backward b = {.s = s, .steps = steps, .row_size = s->width * s->channels, .run = LANES * run_vectors(s->channels)};
    const size_t image = s->height * b.row_size, padded = image + LANES * RUN, kernels = 3 * b.run * s->filters;
    b.windows = windows_across(s->height) * windows_across(s->width);
    b.tiles = tiles_of(s->filters);
    b.weights = scratch;
    b.dweights = b.weights + kernels;
    b.x = b.dweights + kernels;
    b.dx = b.x + padded;
    b.dbias = b.dx + padded;
    b.entries = (struct entry *)(b.dbias + s->filters);
    b.filters = (struct choice *)(b.entries + b.windows + RUN);
    b.origins = (uint32_t *)(b.filters + POSITIONS * (s->filters + 1));
    for (size_t k = 0; k < POSITIONS; k++) {
        b.patches[k] = (uint32_t)(k / 2 * b.row_size + k % 2 * s->channels);
    }
    for (size_t window = 0, across = windows_across(s->width); window < b.windows; window++) {
        b.origins[window] = (uint32_t)(window / across * 2 * b.row_size + window % across * 2 * s->channels);
    }
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
