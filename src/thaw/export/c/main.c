/* The network on a picture: ./example picture.ppm (binary PGM or PPM, of any size; most programs can save as one). */
#include "model.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

/* The next whole number of a PNM header, or -1. */
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
    return number; /* the one white space that follows has been read */
}

/* The pixels of a binary PGM (P5) or PPM (P6) with 255 as white; NULL for anything else. */
static uint8_t *read_image(const char *path, int32_t *width, int32_t *height, int *channels)
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
        if ((kind == '5' || kind == '6') && columns > 0 && rows > 0 && columns <= 32768 && rows <= 32768 && white == 255) {
            const size_t bytes = (size_t)columns * (size_t)rows * (size_t)*channels;
            *width = (int32_t)columns;
            *height = (int32_t)rows;
            pixels = malloc(bytes);
            if (pixels && fread(pixels, 1, bytes, file) != bytes) {
                free(pixels);
                pixels = NULL;
            }
        }
    }
    fclose(file);
    return pixels;
}

int main(int count, char **arguments)
{
    static uint8_t pixels[THAW_HEIGHT * THAW_WIDTH * THAW_CHANNELS];
    int8_t scores[THAW_SCORES];
    int32_t width = 0, height = 0;
    int channels = 0, best = 0, index;
    uint8_t *image;
    if (count != 2) {
        fprintf(stderr, "usage: %s picture.ppm\n", arguments[0]);
        return 2;
    }
    image = read_image(arguments[1], &width, &height, &channels);
    if (!image) {
        fprintf(stderr, "%s is not a binary PGM or PPM picture with 255 as white\n", arguments[1]);
        return 1;
    }
    if (thaw_preprocess(image, width, height, width * channels, channels == 1 ? THAW_GREY8 : THAW_RGB888, pixels)) {
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
