/* 3x3 convolution without padding, 2x2 max pooling and ReLU in float32: what both directions have in common.
 *
 * x is [B, H, W, C], y and its gradient are [B, H', W', F] with H' = (H - 2) / 2 and W' likewise: torch's channels-last order.
 * A "window" is one value of y: the four positions of the convolution that are pooled. They read a patch of 4x4 pixels of x.
 *
 * The choice of each window is kept as a code: the number of its largest position (0 to 3, the first one if several are
 * equal), plus OFF if the ReLU is 0. Codes are int32 [blocks, H', W', tiles, LANES], where a block is LANES images and a tile
 * is up to TILE filters with CODE_BITS each.
 *
 * The order of all sums depends only on the shape. */
#include "vectors.h"

/* TILE: filters that are computed together. Their 4 TILE sums take half of the registers, or more. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define THAW_TILE 4
#else
#define THAW_TILE 3
#endif
enum { TILE = THAW_TILE, POSITIONS = 4, OFF = 4, CODE_BITS = 8 };

struct shape {
    size_t images, height, width, channels, filters;
};

static inline size_t windows_across(size_t side) { return (side - 2) / 2; }
static inline size_t tiles_of(size_t filters) { return (filters + TILE - 1) / TILE; }

/* Tiles differ by at most one filter. */
static inline size_t tile_size(size_t filters, size_t tile)
{
    return (filters + tiles_of(filters) - 1 - tile) / tiles_of(filters);
}
