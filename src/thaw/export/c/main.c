/* Classify an image: ./example picture.ppm (binary PGM or PPM of any size, a format that most programs can write). */
#include "@PREFIX@.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The next integer of a PNM header, or -1. */
static long next_number(FILE *file)
{
    long number = 0;
    int letter = fgetc(file);
    while (isspace(letter) || letter == '#') {
        if (letter == '#') {
            while (letter != '\n' && letter != EOF) {
                letter = fgetc(file);
            }
        }
        letter = fgetc(file);
    }
    if (!isdigit(letter)) {
        return -1;
    }
    while (isdigit(letter)) {
        number = number * 10 + (letter - '0');
        if (number > 100000) {
            return -1;
        }
        letter = fgetc(file);
    }
    return number; /* the white space character after it has been read */
}

/* Convert big-endian samples of two bytes to uint16_t; `white` becomes 65535. */
static void convert_wide(uint8_t *samples, size_t count, uint32_t white)
{
    for (; count > 0; count--, samples += 2) {
        const uint32_t sample = ((uint32_t)samples[0] << 8) | samples[1];
        const uint16_t value = sample < white ? (uint16_t)((sample * 65535U + white / 2U) / white) : 65535U;
        memcpy(samples, &value, sizeof value);
    }
}

/* The pixels of a binary PGM (P5) or PPM (P6), 8 bits with a maximum of 255 or 16 bits; NULL for anything else. */
static uint8_t *read_image(const char *path, int32_t *width, int32_t *height, int *channels, int *sample_bytes)
{
    FILE *file = fopen(path, "rb");
    uint8_t *pixels = NULL;
    long columns, rows, white;
    if (!file) {
        return NULL;
    }
    if (fgetc(file) == 'P') {
        const int kind = fgetc(file);
        *channels = kind == '5' ? 1 : 3;
        columns = next_number(file);
        rows = next_number(file);
        white = next_number(file);
        *sample_bytes = white > 255 ? 2 : 1;
        if ((kind == '5' || kind == '6') && columns > 0 && rows > 0 && columns <= 32768 && rows <= 32768 &&
            white >= 255 && white <= 65535) {
            const size_t bytes = (size_t)columns * (size_t)rows * (size_t)*channels * (size_t)*sample_bytes;
            *width = (int32_t)columns;
            *height = (int32_t)rows;
            pixels = (uint8_t *)malloc(bytes);
            if (pixels && fread(pixels, 1, bytes, file) != bytes) {
                free(pixels);
                pixels = NULL;
            }
            if (pixels && *sample_bytes == 2) {
                convert_wide(pixels, bytes / 2, (uint32_t)white);
            }
        }
    }
    fclose(file);
    return pixels;
}

int main(int count, char **arguments)
{
    static uint8_t pixels[THAW_INPUT_BYTES];
    thaw_score scores[THAW_SCORES];
    int32_t width = 0, height = 0;
    int channels = 0, sample_bytes = 1, best = 0, index;
    thaw_format format;
    uint8_t *image;
    if (count != 2) {
        fprintf(stderr, "usage: %s picture.ppm\n", arguments[0]);
        return 2;
    }
    image = read_image(arguments[1], &width, &height, &channels, &sample_bytes);
    if (!image) {
        fprintf(stderr, "%s is not a binary PGM or PPM picture with 255 (or, of 16 bits, more) as white\n", arguments[1]);
        return 1;
    }
    if (sample_bytes == 2) {
        format = channels == 1 ? THAW_GRAY16 : THAW_RGB16;
    } else {
        format = channels == 1 ? THAW_GRAY8 : THAW_RGB888;
    }
    if (thaw_preprocess(image, width, height, width * channels * sample_bytes, format, pixels)) {
        fprintf(stderr, "%s has a size that cannot be used\n", arguments[1]);
        free(image);
        return 1;
    }
    free(image);
    thaw_predict(pixels, scores);
    for (index = 1; index < THAW_SCORES; index++) {
        best = scores[index] > scores[best] ? index : best;
    }
    printf("%s %.3f\n", thaw_class_names[best], (double)THAW_SCORE_SCALE * (scores[best] - THAW_SCORE_ZERO_POINT));
    return 0;
}
