/* @NAME@: a network in C99 that needs no heap and no library. Made by thaw; do not edit.
 *
 * thaw_predict takes @HEIGHT@x@WIDTH@x@CHANNELS@ pixels as they are, 0 to 255; scaling and offset are inside.
 *
 * Threads: thaw_predict works in one static arena of THAW_ARENA_BYTES bytes, so two threads must not be in thaw_predict of
 * this model at once, nor may an interrupt call it meanwhile. thaw_preprocess has no state. Other models have arenas and
 * names of their own: theirs may run at the same time. */
#ifndef THAW_MODEL_H
#define THAW_MODEL_H

#include <stdint.h>

#define THAW_HEIGHT @HEIGHT@
#define THAW_WIDTH @WIDTH@
#define THAW_CHANNELS @CHANNELS@ /* 1 gray, 3 red, green, blue */
#define THAW_FIT_CROP @FIT_CROP@ /* thaw_preprocess: 1 takes the largest centered part of the model's shape, 0 stretches */
#define THAW_INPUT_BYTES @INPUT_BYTES@ /* THAW_HEIGHT * THAW_WIDTH * THAW_CHANNELS, also where an int has 16 bits */
#define THAW_RANGE_LOW @RANGE_LOW@ /* thaw_preprocess: 16-bit values that become 0 and 255 */
#define THAW_RANGE_HIGH @RANGE_HIGH@
#define THAW_CLASSES @CLASSES@
#define THAW_SCORES @SCORES@
#define THAW_ARENA_BYTES @ARENA_BYTES@
#define THAW_DIGEST @DIGEST@ /* of this model */

/* What a score stands for: (score - THAW_SCORE_ZERO_POINT) * THAW_SCORE_SCALE. */
#define THAW_SCORE_SCALE @SCORE_SCALE@
#define THAW_SCORE_ZERO_POINT (@SCORE_ZERO_POINT@)

#ifdef __cplusplus
extern "C" {
#endif

typedef @SCORE_TYPE@ thaw_score;

/* The names of the classes, in the order of the scores, in UTF-8. */
extern const char *const thaw_class_names[THAW_CLASSES];

/* pixels: THAW_HEIGHT rows of THAW_WIDTH pixels of THAW_CHANNELS bytes. scores: THAW_SCORES of them. */
void thaw_predict(const uint8_t *pixels, thaw_score *scores);

@PREPROCESS@

#ifdef __cplusplus
}
#endif

#endif

/* A model with the same prefix that was included before has left out all of the above. */
#if THAW_DIGEST != @DIGEST@
#error "two models have the prefix @PREFIX@: export one of them again with another --prefix"
#endif
