static void thaw_relu(const int8_t *input, int32_t count, int8_t zero_point, int8_t *output)
{
    for (; count > 0; count--, input++) {
        *output++ = *input > zero_point ? *input : zero_point;
    }
}
