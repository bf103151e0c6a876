"""Training kernels under the address and undefined-behavior sanitizers, on buffers of exactly the needed size."""

from __future__ import annotations

import subprocess

import pytest
from compilers import has_sanitizers, needs_compiler

from thaw.host_c import find_compiler
from thaw.kernels.library import SOURCES

COMMON = """
#include <stdlib.h>

static void *filled(size_t count, size_t size)
{
    unsigned char *made = malloc(count * size);
    for (size_t i = 0; i < count * size; i++) {
        made[i] = (unsigned char)(i * 37 % 61);
    }
    return made;
}

static float *numbers(size_t count)
{
    float *made = malloc(count * sizeof *made);
    for (size_t i = 0; i < count; i++) {
        made[i] = (float)(i % 7) * 0.25f - 0.5f;
    }
    return made;
}

static value *map(size_t count)
{
    value *made = malloc(count * sizeof *made);
    for (size_t i = 0; i < count; i++) {
        made[i] = narrow((float)(i % 11) * 0.125f - 0.5f);
    }
    return made;
}
"""

DEPTHWISE = """
int main(void)
{
    const size_t sizes[][4] = {{2, 9, 11, 20}, {1, 1, 1, 1}, {3, 8, 8, 16}, {2, 5, 33, 7}, {1, 17, 4, 40}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const shape s = {sizes[i][0], sizes[i][1], sizes[i][2], sizes[i][3]};
        const size_t in = s.images * s.rows * s.columns * s.channels;
        const size_t out = s.images * reduced(s.rows) * reduced(s.columns) * s.channels;
        value *x = map(in), *also = map(in), *dx = map(in), *y = map(out), *dy = map(out);
        float *weights = numbers(s.channels * TAPS), *dweights = numbers(s.channels * TAPS);
        float *constants = numbers(4 * s.channels), *back = numbers(2 * s.channels);
        double *statistics = malloc(2 * s.channels * sizeof *statistics);
        size_t floats;
        thaw_depthwise_work(&s, &floats);
        float *work = numbers(floats);
        thaw_depthwise_forward(&s, x, weights, y, statistics, work);
        thaw_depthwise_forward(&s, x, weights, y, NULL, work);
        thaw_depthwise_backward(&s, dy, x, y, weights, constants, back, also, dx, dweights, work);
        thaw_depthwise_backward(&s, dy, x, NULL, weights, NULL, NULL, NULL, NULL, dweights, work);
        void *all[] = {x, also, dx, y, dy, weights, dweights, constants, back, statistics, work};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
            free(all[k]);
        }
    }
    return 0;
}
"""

POINTWISE = """
int main(void)
{
    const size_t sizes[][3] = {{100, 20, 33}, {1, 1, 1}, {32, 16, 8}, {65, 7, 3}, {31, 64, 40}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const shape s = {sizes[i][0], sizes[i][1], sizes[i][2]};
        value *a = map(s.rows * s.inputs), *da = map(s.rows * s.inputs);
        value *b = map(s.rows * s.outputs), *dy = map(s.rows * s.outputs);
        float *weights = numbers(s.inputs * s.outputs), *dweights = numbers(s.inputs * s.outputs);
        float *first = numbers(4 * s.inputs), *second = numbers(4 * s.outputs), *back = numbers(2 * s.outputs);
        double *statistics = malloc(2 * s.outputs * sizeof *statistics), *sums = malloc(2 * s.inputs * sizeof *sums);
        size_t floats;
        thaw_pointwise_work(&s, &floats);
        float *work = numbers(floats);
        thaw_pointwise_forward(&s, a, first, weights, b, statistics, work);
        thaw_pointwise_backward(&s, dy, a, b, first, second, back, weights, da, sums, dweights, work);
        void *all[] = {a, da, b, dy, weights, dweights, first, second, back, statistics, sums, work};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
            free(all[k]);
        }
    }
    return 0;
}
"""

AUGMENTATION = """
int main(void)
{
    const size_t sizes[][4] = {{3, 9, 11, 3}, {1, 1, 1, 1}, {2, 28, 28, 1}, {2, 5, 7, 2}, {2, 6, 4, 4}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int fill = 0; fill < 3; fill++) {
            const views v = {sizes[i][0], sizes[i][1], sizes[i][2], sizes[i][3], fill, 5};
            const size_t size = v.count * v.height * v.width * v.channels;
            unsigned char *pixels = filled(size, 1);
            int32_t *frames = malloc(3 * v.count * sizeof *frames), *centers = malloc(2 * v.count * sizeof *centers);
            float *maps = numbers(6 * v.count), *lights = numbers(v.count), *out = numbers(size);
            float mean[] = {0.5f, 0.4f, 0.3f, 0.2f}, deviation[] = {0.2f, 0.3f, 0.4f, 0.5f};
            for (size_t n = 0; n < v.count; n++) {
                frames[3 * n] = (int32_t)n - 70;
                frames[3 * n + 1] = 90 - (int32_t)n;
                frames[3 * n + 2] = n % 2 == 0;
                centers[2 * n] = (int32_t)v.height - 1;
                centers[2 * n + 1] = 0;
                maps[6 * n + 2] = 1000.0f * (float)n - 500.0f;
            }
            size_t floats;
            thaw_views_work(&v, &floats);
            float *work = numbers(floats);
            thaw_views(&v, pixels, frames, maps, lights, centers, mean, deviation, out, work);
            thaw_views(&v, pixels, frames, NULL, lights, NULL, mean, deviation, out, work);
            thaw_views(&v, pixels, NULL, maps, NULL, NULL, mean, deviation, out, work);
            thaw_views(&v, pixels, NULL, NULL, NULL, NULL, mean, deviation, out, work);
            void *all[] = {pixels, frames, centers, maps, lights, out, work};
            for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
                free(all[k]);
            }
        }
    }
    return 0;
}
"""

DROPOUT_DENSE = """
int main(void)
{
    const size_t sizes[][5] = {{1, 1, 1, 1, 1}, {5, 20, 5, 5, 10}, {7, 3, 2, 4, 33}};
    const uint32_t thresholds[] = {0, 5000000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (size_t k = 0; k < 2; k++) {
            const struct shape s = {sizes[i][0], sizes[i][1], sizes[i][2], sizes[i][3], sizes[i][4]};
            const struct dropout d = {4123456789u, thresholds[k], 1.4f};
            const size_t features = features_of(&s), strides[] = {features, s.height * s.width, s.width, 1};
            float *x = numbers(s.images * features), *dx = numbers(s.images * features);
            float *weights = numbers(s.classes * features), *dweights = numbers(s.classes * features);
            float *bias = numbers(s.classes), *dbias = numbers(s.classes), *logits = numbers(s.images * s.classes);
            float *kept = numbers(thaw_dropout_dense_kept(&s)), *scratch = numbers(thaw_dropout_dense_scratch(&s));
            thaw_dropout_dense_forward(&s, &d, x, weights, strides, bias, kept, logits, scratch);
            thaw_dropout_dense_backward(&s, &d, kept, weights, strides, logits, dx, dweights, dbias, scratch);
            thaw_dropout_dense_backward(&s, &d, kept, weights, strides, logits, NULL, dweights, dbias, scratch);
            thaw_dropout_dense_backward(&s, &d, kept, weights, strides, logits, dx, NULL, NULL, scratch);
            void *all[] = {x, dx, weights, dweights, bias, dbias, logits, kept, scratch};
            for (size_t n = 0; n < sizeof all / sizeof *all; n++) {
                free(all[n]);
            }
        }
    }
    return 0;
}
"""

NORMALIZATION = """
int main(void)
{
    const size_t sizes[][2] = {{2, 1}, {33, MOST}, {100, 20}, {1000, 17}, {5, 2049}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int after = NOTHING; after <= RELU_ADD; after++) {
            const size_t rows = sizes[i][0], channels = sizes[i][1], count = rows * channels;
            value *x = map(count), *shortcut = map(count), *y = map(count), *dx = map(count), *dshortcut = map(count);
            float *weight = numbers(channels), *bias = numbers(channels), *constants = numbers(4 * channels);
            float *mean = numbers(channels), *variance = numbers(channels);
            float *dweight = numbers(channels), *dbias = numbers(channels);
            thaw_norm_forward(x, after >= ADD_RELU ? shortcut : NULL, y, rows, channels, weight, bias, mean, variance,
                              0.1f, 1e-5f, after, constants);
            thaw_norm_backward(shortcut, x, y, dx, after == ADD_RELU ? dshortcut : NULL, rows, channels, after,
                               constants, dweight, dbias);
            void *all[] = {x, shortcut, y, dx, dshortcut, weight, bias, constants, mean, variance, dweight, dbias};
            for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
                free(all[k]);
            }
        }
    }
    return 0;
}
"""

OPTIMIZERS = """
int main(void)
{
    const size_t sizes[] = {0, 1, 7, 16, 181};
    const struct nadam nadam = {0.1f, 0.1f, 0.999f, 0.001f, 0.5f, 1e-8f, -0.1f, -0.1f};
    const struct sgd sgd = {0.1f, 0.9f, -0.1f, 1};
    struct item items[5];
    for (size_t i = 0; i < 5; i++) {
        const size_t n = sizes[i];
        const struct item made = {numbers(n), numbers(n), numbers(n), (float *)calloc(n, sizeof(float)), n};
        items[i] = made;
    }
    thaw_nadam(items, 5, &nadam);
    thaw_sgd(items, 5, &sgd);
    for (size_t i = 0; i < 5; i++) {
        void *all[] = {items[i].parameter, (void *)items[i].gradient, items[i].first, items[i].second};
        for (size_t k = 0; k < 4; k++) {
            free(all[k]);
        }
    }
    return 0;
}
"""

FLOATS = "typedef float value;\nstatic float narrow(float number) { return number; }\n"
"""What `COMMON` needs of sources that have no maps."""

# Each kernel and stride that families have is compiled from the same lines.
DEPTHWISE_FLAGS = [
    *(["-DTHAW_KERNEL=3", "-DTHAW_STRIDE=1"], ["-DTHAW_KERNEL=5", "-DTHAW_STRIDE=2", "-DTHAW_BFLOAT16"]),
    *(["-DTHAW_KERNEL=7", "-DTHAW_STRIDE=1"], ["-DTHAW_KERNEL=1", "-DTHAW_STRIDE=2"]),
]
CASES = [
    *(("depthwise.c", COMMON + DEPTHWISE, flags) for flags in DEPTHWISE_FLAGS),
    *(("pointwise.c", COMMON + POINTWISE, flags) for flags in ([], ["-DTHAW_BFLOAT16"])),
    *(("normalization.c", COMMON + NORMALIZATION, flags) for flags in ([], ["-DTHAW_BFLOAT16"])),
    ("augmentation.c", FLOATS + COMMON + AUGMENTATION, []),
    ("dropout_dense.c", FLOATS + COMMON + DROPOUT_DENSE, []),
    ("optimizers.c", "#include <stdint.h>\n" + FLOATS + COMMON + OPTIMIZERS, []),
]


@needs_compiler
@pytest.mark.parametrize("width", ["-DTHAW_LANES=4", "-DTHAW_LANES=16", "-march=native"])
@pytest.mark.parametrize(("source", "program", "flags"), CASES, ids=[f"{c[0]} {' '.join(c[2])}" for c in CASES])
def test_sanitizers_find_nothing(source, program, flags, width, tmp_path):
    if not has_sanitizers():
        pytest.skip("the C compiler has no sanitizers: install libasan and libubsan")
    for file in (source, "vectors.h", "maps.h"):
        (tmp_path / file).write_bytes((SOURCES / file).read_bytes())
    (tmp_path / "check.c").write_text(f'#include "{source}"\n{program}')
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-unused-function"]
    command = [find_compiler(), "-std=c99", width, *flags]
    subprocess.run([*command, "-O1", *warnings, "-c", "check.c"], cwd=tmp_path, check=True)
    # Without optimization, which takes minutes with sanitizers, and removes accesses that they would check.
    command += ["-O0", "-w", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([*command, "check.c", "-o", "check", "-lm"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "check"], cwd=tmp_path, check=True)
