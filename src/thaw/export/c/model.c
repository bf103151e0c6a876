/* @NAME@: a network in C99 that needs no heap and no library. Made by thaw; do not edit.
 *
 * Define THAW_PORTABLE to leave out the kernels for the DSP extension of Arm and for AVX2; all give the same bits. */
#include "@PREFIX@.h"

#include <string.h>
@INCLUDES@
#ifdef THAW_TRACE
#ifdef __cplusplus
extern "C"
#endif
void thaw_trace(int step, const void *data, int32_t bytes);
#define THAW_TRACE_STEP(step, data, bytes) thaw_trace(step, data, bytes)
#else
#define THAW_TRACE_STEP(step, data, bytes) (void)0
#endif

@KERNELS@

@CONSTANTS@

const char *const thaw_class_names[THAW_CLASSES] = {
@NAMES@
};

static union {
    int8_t bytes[THAW_ARENA_BYTES];
    int16_t columns[THAW_ARENA_BYTES / 2];
    int32_t words[THAW_ARENA_BYTES / 4];
} thaw_arena;

void thaw_predict(const uint8_t *pixels, thaw_score *scores)
{
@CALLS@
    memcpy(scores, @RESULT@, THAW_SCORES * sizeof *scores);
}

@PREPROCESS@
