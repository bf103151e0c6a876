/* @NAME@: a network in C99 that needs no heap and no library. Made by thaw; do not edit.
 *
 * thaw_predict takes @HEIGHT@x@WIDTH@x@CHANNELS@ pixels as they are, 0 to 255; scaling and offset are inside. It works in one static arena
 * of THAW_ARENA_BYTES bytes, so that it must not be called by two threads at once. */
#ifndef THAW_MODEL_H
#define THAW_MODEL_H

#include <stdint.h>

#define THAW_HEIGHT @HEIGHT@
#define THAW_WIDTH @WIDTH@
#define THAW_CHANNELS @CHANNELS@ /* 1 grey, 3 red, green, blue */
#define THAW_FIT_CROP @FIT_CROP@ /* thaw_preprocess: 1 takes the largest centred part of the model's shape, 0 stretches */
#define THAW_RANGE_LOW @RANGE_LOW@ /* thaw_preprocess: 16-bit values that become 0 and 255 */
#define THAW_RANGE_HIGH @RANGE_HIGH@
#define THAW_CLASSES @CLASSES@
#define THAW_SCORES @SCORES@
#define THAW_ARENA_BYTES @ARENA_BYTES@

typedef @SCORE_TYPE@ thaw_score;

/* What a score stands for: (score - THAW_SCORE_ZERO_POINT) * THAW_SCORE_SCALE. */
#define THAW_SCORE_SCALE @SCORE_SCALE@
#define THAW_SCORE_ZERO_POINT (@SCORE_ZERO_POINT@)

#ifdef __cplusplus
extern "C" {
#endif

/* The names of the classes, in the order of the scores, in UTF-8. */
extern const char *const thaw_class_names[THAW_CLASSES];

/* pixels: THAW_HEIGHT rows of THAW_WIDTH pixels of THAW_CHANNELS bytes. scores: THAW_SCORES of them. */
void thaw_predict(const uint8_t *pixels, @SCORE_TYPE@ *scores);

@PREPROCESS@

#ifdef __cplusplus
}
#endif

#endif
