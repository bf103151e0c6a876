/* Copies one input of a concatenation: `channels` per position, into an output with `pitch` channels per position. */
static void thaw_concat(const int8_t *input, int32_t positions, int32_t channels, int32_t pitch, int8_t *output)
{
    for (; positions > 0; positions--, input += channels, output += pitch) {
        memcpy(output, input, (size_t)channels);
    }
}
