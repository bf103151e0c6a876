/* Views of images: uint8 [count, height, width, channels] -> normalized float32 of the same shape.
 *
 * Each image goes through all steps before the next one, and stays in the first-level cache: flip and shift by whole pixels,
 * one bilinear resampling, brightness, a square of the mean color, normalization. Random numbers are drawn by the caller.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    size_t count, height, width, channels;
    int fill;
    int32_t square; /* side of the square in pixels */
} views;

/* Pixels outside of an image, numbered as in augmentation.py. */
enum { ZEROS, BORDER, REFLECTION };

/* An image in 0..1 in scratch memory has a margin of one pixel before its first row and column, and of two after its last. The
 * margin is black, so that resampling needs no case for positions outside. */
enum { BEFORE = 1, MARGIN = 3 };

static size_t stride_of(const views *v) { return (v->width + MARGIN) * v->channels; }

static size_t beginning(const views *v) { return BEFORE * (stride_of(v) + v->channels); }

/* Floats of scratch memory that `thaw_views` needs. */
void thaw_views_work(const views *v, size_t *floats)
{
    *floats = (v->height + MARGIN) * stride_of(v) + v->width * (3 + 2 * v->channels);
}

/* The pixel that is shown at a position, or -1 for black. */
static ptrdiff_t source(ptrdiff_t position, ptrdiff_t side, int fill)
{
    if (position >= 0 && position < side) {
        return position;
    }
    if (fill == ZEROS) {
        return -1;
    }
    if (fill == BORDER) {
        return position < 0 ? 0 : side - 1;
    }
    /* Mirrored at the outer edges of the pixels: -1 is 0, with a period of two sides. */
    position %= 2 * side;
    position += position < 0 ? 2 * side : 0;
    return position < side ? position : 2 * side - 1 - position;
}

/* An image to float32 in 0..1, moved by whole pixels. `frame`, if not NULL, is (down, across, mirrored); `columns` has room for
 * the source of each column. */
static void convert(const views *v, const uint8_t *pixels, const int32_t *frame, int32_t *restrict columns, float *restrict to)
{
    const ptrdiff_t height = (ptrdiff_t)v->height, width = (ptrdiff_t)v->width, channels = (ptrdiff_t)v->channels;
    for (ptrdiff_t x = 0; frame && x < width; x++) {
        columns[x] = (int32_t)source((frame[2] ? width - 1 - x : x) + frame[1], width, v->fill);
    }
    for (ptrdiff_t y = 0; y < height; y++, to += stride_of(v)) {
        const ptrdiff_t chosen = frame ? source(y + frame[0], height, v->fill) : y;
        if (chosen < 0) {
            memset(to, 0, v->width * v->channels * sizeof *to);
            continue;
        }
        const uint8_t *from = pixels + chosen * width * channels;
        if (!frame) {
            for (ptrdiff_t i = 0; i < width * channels; i++) {
                to[i] = (float)from[i] / 255.0f;
            }
        } else {
            for (ptrdiff_t x = 0; x < width; x++) {
                for (ptrdiff_t c = 0; c < channels; c++) {
                    to[x * channels + c] = columns[x] < 0 ? 0.0f : (float)from[columns[x] * channels + c] / 255.0f;
                }
            }
        }
    }
}

static inline float clamped(float number, float low, float high)
{
    number = number < low ? low : number;
    return number > high ? high : number;
}

/* A coordinate in pixels, moved to where its pixel is found. */
static inline float inside(float at, float side, int fill)
{
    switch (fill) {
    case ZEROS:
        return clamped(at, -1.0f, side);
    case BORDER:
        return clamped(at, 0.0f, side - 1.0f);
    default: {
        const float distance = fabsf(at + 0.5f), sides = floorf(distance / side), rest = distance - sides * side;
        const float odd = sides - 2.0f * floorf(sides * 0.5f);
        return clamped((odd > 0.5f ? side - rest : rest) - 0.5f, 0.0f, side - 1.0f);
    }
    }
}

/* Where the pixels of row `y` come from: the offset of the upper left one of four, and the weights of the right and lower ones.
 * x_in = t[0] x + t[1] y + t[2], y_in = t[3] x + t[4] y + t[5], in pixels. */
static inline void places(const views *v, const float *t, size_t y, int fill, int32_t *restrict offset, float *restrict right,
                          float *restrict down)
{
    const float step_x = t[0], step_y = t[3], first_x = t[1] * (float)y + t[2], first_y = t[4] * (float)y + t[5];
    const float width = (float)v->width, height = (float)v->height;
    const int32_t stride = (int32_t)stride_of(v), channels = (int32_t)v->channels;
    const int32_t count = (int32_t)v->width;
    for (int32_t x = 0; x < count; x++) {
        const float at_x = inside(step_x * (float)x + first_x, width, fill);
        const float at_y = inside(step_y * (float)x + first_y, height, fill);
        const float left = floorf(at_x), upper = floorf(at_y);
        offset[x] = (int32_t)upper * stride + (int32_t)left * channels;
        right[x] = at_x - left;
        down[x] = at_y - upper;
    }
}

/* Bilinear resampling of one row. */
static inline void sample(const float *restrict image, const int32_t *restrict offset, const float *restrict right,
                          const float *restrict down, size_t width, size_t stride, size_t channels, float *restrict to)
{
    for (size_t x = 0; x < width; x++) {
        for (size_t c = 0; c < channels; c++) {
            const float *upper = image + offset[x] + (ptrdiff_t)c, *lower = upper + stride;
            const float above = upper[0] + right[x] * (upper[channels] - upper[0]);
            const float below = lower[0] + right[x] * (lower[channels] - lower[0]);
            to[x * channels + c] = above + down[x] * (below - above);
        }
    }
}

static void resample(const views *v, const float *image, const float *t, float *work, float *to)
{
    int32_t *offset = (int32_t *)work;
    float *right = work + v->width, *down = right + v->width;
    const size_t stride = stride_of(v);
    for (size_t y = 0; y < v->height; y++, to += v->width * v->channels) {
        /* Separate calls, so that loops have no choices. */
        switch (v->fill) {
        case ZEROS:
            places(v, t, y, ZEROS, offset, right, down);
            break;
        case BORDER:
            places(v, t, y, BORDER, offset, right, down);
            break;
        default:
            places(v, t, y, REFLECTION, offset, right, down);
        }
        switch (v->channels) {
        case 1:
            sample(image, offset, right, down, v->width, stride, 1, to);
            break;
        case 3:
            sample(image, offset, right, down, v->width, stride, 3, to);
            break;
        default:
            sample(image, offset, right, down, v->width, stride, v->channels, to);
        }
    }
}

static void copy(const views *v, const float *image, float *to)
{
    const size_t row = v->width * v->channels;
    for (size_t y = 0; y < v->height; y++, image += stride_of(v), to += row) {
        memcpy(to, image, row * sizeof *to);
    }
}

/* Add a brightness; rounding of a resampling can also exceed the range. */
static void brighten(float *to, size_t size, float light)
{
    for (size_t i = 0; i < size; i++) {
        to[i] = clamped(to[i] + light, 0.0f, 1.0f);
    }
}

/* A square around `center` (row, column) gets the mean color. */
static void cut_out(const views *v, const int32_t *center, float *to)
{
    const int32_t height = (int32_t)v->height, width = (int32_t)v->width;
    int32_t top = center[0] - v->square / 2, left = center[1] - v->square / 2;
    int32_t bottom = top + v->square, end = left + v->square;
    top = top < 0 ? 0 : top;
    left = left < 0 ? 0 : left;
    bottom = bottom > height ? height : bottom;
    end = end > width ? width : end;
    for (size_t c = 0; c < v->channels; c++) {
        double sum = 0.0;
        for (size_t i = c; i < v->height * v->width * v->channels; i += v->channels) {
            sum += (double)to[i];
        }
        const float mean = (float)(sum / ((double)height * (double)width));
        for (int32_t y = top; y < bottom; y++) {
            for (int32_t x = left; x < end; x++) {
                to[((size_t)y * v->width + (size_t)x) * v->channels + c] = mean;
            }
        }
    }
}

static void normalize(const views *v, const float *restrict mean, const float *restrict deviation, float *restrict to)
{
    const size_t row = v->width * v->channels;
    for (size_t y = 0; y < v->height; y++, to += row) {
        for (size_t i = 0; i < row; i++) {
            to[i] = (to[i] - mean[i]) / deviation[i];
        }
    }
}

/* Arrays that are NULL switch a step off:
 * frames [count, 3]: shift down, shift across, whether to mirror; maps [count, 6]: as in `places`; lights [count]: added
 * brightness; centers [count, 2]: row and column of the square. `mean` and `deviation` are [channels]. */
void thaw_views(const views *v, const uint8_t *pixels, const int32_t *frames, const float *maps, const float *lights,
                const int32_t *centers, const float *mean, const float *deviation, float *out, float *work)
{
    const size_t size = v->height * v->width * v->channels, row = v->width * v->channels;
    float *image = work + beginning(v), *rows = work + (v->height + MARGIN) * stride_of(v);
    float *means = rows + 3 * v->width, *deviations = means + row;
    for (size_t i = 0; i < row; i++) {
        means[i] = mean[i % v->channels];
        deviations[i] = deviation[i % v->channels];
    }
    memset(work, 0, (v->height + MARGIN) * stride_of(v) * sizeof *work);
    for (size_t n = 0; n < v->count; n++, out += size) {
        convert(v, pixels + n * size, frames ? frames + 3 * n : NULL, (int32_t *)rows, image);
        if (maps) {
            resample(v, image, maps + 6 * n, rows, out);
        } else {
            copy(v, image, out);
        }
        if (maps || lights) {
            brighten(out, size, lights ? lights[n] : 0.0f);
        }
        if (centers) {
            cut_out(v, centers + 2 * n, out);
        }
        normalize(v, means, deviations, out);
    }
}
