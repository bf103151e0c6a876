/* Pixel formats of a source image, row by row from the top left:
   THAW_GRAY8   one byte per pixel;
   THAW_RGB888  three bytes per pixel: red, green, blue;
   THAW_RGB565  two bytes per pixel, low byte first: red in bits 15 to 11, green in 10 to 5, blue in 4 to 0. They
                become 8 bits by repeating their upper bits: (v << 3) | (v >> 2) for red and blue, (v << 2) | (v >> 4)
                for green;
   THAW_GRAY16  one uint16_t per pixel, in native byte order;
   THAW_RGB16   three uint16_t per pixel: red, green, blue.
   16-bit values are scaled to 8 bits by the range of the training images: 0 up to THAW_RANGE_LOW, 255 from
   THAW_RANGE_HIGH on, and (v - low) * 255 / (high - low) between them, rounded half up. 8-bit values are not
   scaled. */
typedef enum { THAW_GRAY8, THAW_RGB888, THAW_RGB565, THAW_GRAY16, THAW_RGB16 } thaw_format;

/* Convert an image of any size to the model's input.

   source        height rows of width pixels, stride_bytes apart; pass an array of uint16_t as
                 (const uint8_t *)array;
   width, height 1 to 32768;
   stride_bytes  at least the size of a row's pixels;
   pixels        THAW_HEIGHT * THAW_WIDTH * THAW_CHANNELS bytes, which must not overlap the source.

   Color is converted to gray for a model with gray input, and gray is replicated for a model with color input. Only a
   few local variables need memory.

   Returns 0, or, without writing to pixels:
   -1  null pointer, or invalid width or height;
   -2  stride_bytes is less than the size of a row's pixels;
   -3  unknown format. */
int thaw_preprocess(const uint8_t *source, int32_t width, int32_t height, int32_t stride_bytes, thaw_format format,
                    uint8_t *pixels);
