/* Softmax in integers, with the exponential and the reciprocal of gemmlowp, on which the LiteRT specification is based.
 * A number with n integer bits represents value / 2^(31 - n). The result has scale 1/256 and zero point -128. */
typedef struct {
    int32_t multiplier; /* converts a difference of scores to 5 integer bits, after a left shift */
    int8_t shift;
    int32_t least;      /* scores further below the largest one have probability 0 */
} thaw_softmax_scale;

static int32_t thaw_shift_left_saturating(int32_t value, int32_t bits)
{
    const int32_t most = INT32_MAX >> bits;
    if (value > most) {
        return INT32_MAX;
    }
    return value < -most - 1 ? INT32_MIN : value * ((int32_t)1 << bits);
}

/* exp(a) for a <= 0 with 5 integer bits; the result has none. */
static int32_t thaw_exp(int32_t a)
{
    /* exp(-1/4), exp(-1/2), ... exp(-16), times 2^31 */
    static const int32_t powers[7] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
    const int32_t quarter = (int32_t)1 << 24;
    const int32_t below = (a & (quarter - 1)) - quarter;
    const int32_t remainder = below - a;
    /* Taylor series around -1/8 */
    const int32_t x = below * 32 + ((int32_t)1 << 28);
    const int32_t x2 = thaw_multiply_high(x, x);
    const int32_t x3 = thaw_multiply_high(x2, x);
    const int32_t x4 = thaw_multiply_high(x2, x2);
    const int32_t thirds = thaw_multiply_high(thaw_divide_by_power(x4, 2) + x3, INT32_C(715827883));
    const int32_t series = thaw_divide_by_power(thirds + x2, 1);
    int32_t result = INT32_C(1895147668) + thaw_multiply_high(x + series, INT32_C(1895147668));
    int bit;
    if (a == 0) {
        return INT32_MAX;
    }
    for (bit = 0; bit < 7; bit++) {
        if (remainder & (quarter << bit)) {
            result = thaw_multiply_high(result, powers[bit]);
        }
    }
    return result;
}

/* 1 / (1 + a) for 0 <= a < 1: three Newton-Raphson steps from 48/17 - 32/17 x, which has 2 integer bits. */
static int32_t thaw_reciprocal(int32_t a)
{
    const int32_t half = (int32_t)(((int64_t)a + INT32_MAX + 1) / 2);
    int32_t x = INT32_C(1515870810) + thaw_multiply_high(half, -INT32_C(1010580540));
    int step;
    for (step = 0; step < 3; step++) {
        const int32_t rest = ((int32_t)1 << 29) - thaw_multiply_high(half, x);
        x += thaw_shift_left_saturating(thaw_multiply_high(x, rest), 2);
    }
    return thaw_shift_left_saturating(x, 1);
}

static int32_t thaw_power_of_difference(const thaw_softmax_scale *scale, int32_t difference)
{
    return thaw_exp(thaw_multiply_high(difference * ((int32_t)1 << scale->shift), scale->multiplier));
}

static void thaw_softmax(const thaw_softmax_scale *scale, const int8_t *scores, int32_t count, int8_t *output)
{
    int32_t index, largest = -128, sum = 0, zeros = 0, share;
    for (index = 0; index < count; index++) {
        largest = scores[index] > largest ? scores[index] : largest;
    }
    for (index = 0; index < count; index++) {
        if (scores[index] - largest >= scale->least) {
            sum += thaw_divide_by_power(thaw_power_of_difference(scale, scores[index] - largest), 12);
        }
    }
    while (!(((uint32_t)sum << zeros) & UINT32_C(0x80000000))) {
        zeros++;
    }
    share = thaw_reciprocal((int32_t)(((uint32_t)sum << zeros) - UINT32_C(0x80000000)));
    for (index = 0; index < count; index++) {
        const int32_t difference = scores[index] - largest;
        int32_t result = -128;
        if (difference >= scale->least) {
            const int32_t power = thaw_power_of_difference(scale, difference);
            result += thaw_divide_by_power(thaw_multiply_high(share, power), 12 - zeros + 31 - 8);
        }
        output[index] = thaw_clamp(result, -128);
    }
}
