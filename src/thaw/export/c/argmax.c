static void thaw_argmax(const int8_t *input, int32_t count, int32_t *output)
{
    int32_t best = 0, index;
    for (index = 1; index < count; index++) {
        if (input[index] > input[best]) {
            best = index;
        }
    }
    *output = best;
}
