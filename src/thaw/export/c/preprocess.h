/* How a source image keeps its pixels, row by row from the top left:
   THAW_GRAY8   one byte a pixel;
   THAW_RGB888  three bytes a pixel: red, green, blue;
   THAW_RGB565  two bytes a pixel, the low byte first: red in bits 15 to 11, green in 10 to 5, blue in 4 to 0. They
                become 8 bits by repeating their upper bits: (v << 3) | (v >> 2) for red and blue, (v << 2) | (v >> 4)
                for green;
   THAW_GRAY16  a uint16_t a pixel, in the byte order of the machine;
   THAW_RGB16   three uint16_t a pixel: red, green, blue.
   16-bit values become 8 bits by the range of the images that the model was trained on: 0 up to THAW_RANGE_LOW, 255
   from THAW_RANGE_HIGH on, and (v - low) * 255 / (high - low) between them, rounded half up. 8-bit values are used as
   they are. */
typedef enum { THAW_GRAY8, THAW_RGB888, THAW_RGB565, THAW_GRAY16, THAW_RGB16 } thaw_format;

/* Turn an image of any size into the model's input.

   source        height rows of width pixels, each row stride_bytes after the one before; an array of uint16_t is
                 passed as (const uint8_t *)array;
   width, height 1 to 32768;
   stride_bytes  at least the bytes of one row's pixels;
   pixels        THAW_HEIGHT * THAW_WIDTH * THAW_CHANNELS bytes, which must not overlap the source.

   Color becomes gray where the model takes gray, and gray is repeated where the model takes color. Memory is needed
   for a few local variables only.

   Returns 0, or without touching pixels:
   -1  a null pointer, or a width or height that is not valid;
   -2  stride_bytes is less than a row's pixels take;
   -3  the format is none of these. */
int thaw_preprocess(const uint8_t *source, int32_t width, int32_t height, int32_t stride_bytes, thaw_format format,
                    uint8_t *pixels);
