#if defined(THAW_AVX2)
/* A register holds eight filters. Memory is not scarce on machines with AVX2, so the weights of a layer are unpacked first,
 * to words of 32 bits: word 0 of all filters, word 1 of all filters, and so on. A word is a pair of taps as int16, or with
 * VNNI two pairs as int8. An iteration processes up to 24 filters. Code for more filters than any layer has is omitted, since
 * compilers warn about reads beyond these arrays. */
#define THAW_WIDE_FILTERS ((THAW_MOST_FILTERS + 23) / 24 * 24)
static struct {
    int32_t weights[THAW_MOST_WEIGHTS / 2 + THAW_WIDE_FILTERS];
    int32_t bias[THAW_WIDE_FILTERS];
    int32_t multiplier[THAW_WIDE_FILTERS];
    int32_t left[THAW_WIDE_FILTERS];
    int32_t right[THAW_WIDE_FILTERS];
} thaw_wide;

/* Number of words in a column. */
THAW_INLINE int32_t thaw_words(int32_t pairs)
{
#if defined(THAW_VNNI)
    return (pairs + 1) / 2;
#else
    return pairs;
#endif
}

/* The words of two filters, and the amount that their weights add to every sum because int8 values are offset by 128. */
THAW_INLINE __m128i thaw_spread(const int8_t *from, int32_t pairs, int32_t *to, int32_t row)
{
#if defined(THAW_VNNI)
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, -1, -1, -1, -1, -1, -1, -1, -1);
    __m128i raised = _mm_setzero_si128();
    for (; pairs > 0; pairs -= 2, from += 8, to += row) {
        int32_t word;
        __m128i bytes;
        if (pairs > 1) {
            bytes = _mm_loadl_epi64((const __m128i *)(const void *)from);
        } else {
            memcpy(&word, from, 4);
            bytes = _mm_cvtsi32_si128(word);
        }
        bytes = _mm_shuffle_epi8(bytes, order);
        raised = _mm_dpbusd_epi32(raised, _mm_set1_epi8((char)0x80), bytes);
        _mm_storel_epi64((__m128i *)(void *)to, bytes);
    }
    return raised;
#else
    const __m128i order = _mm_set1_epi32(0x03010200); /* filter 0 tap a, tap b, filter 1 tap a, tap b */
    for (; pairs > 0; pairs--, from += 4, to += row) {
        int32_t word;
        memcpy(&word, from, 4);
        _mm_storel_epi64((__m128i *)(void *)to, _mm_cvtepi8_epi16(_mm_shuffle_epi8(_mm_cvtsi32_si128(word), order)));
    }
    return _mm_setzero_si128();
#endif
}

static void thaw_prepare(const thaw_convolution *layer, int32_t pairs)
{
    const int32_t filters = layer->filters, row = (filters + 7) / 8 * 8;
    int32_t filter;
    for (filter = 0; filter < row; filter++) {
        const int is_used = filter < filters;
        const int32_t shift = is_used ? layer->shift[filter] : 0;
        thaw_wide.bias[filter] = is_used ? layer->bias[filter] : 0;
        thaw_wide.multiplier[filter] = is_used ? layer->multiplier[filter] : 0;
        thaw_wide.left[filter] = shift > 0 ? shift : 0;
        thaw_wide.right[filter] = shift > 0 ? 0 : -shift;
    }
    for (filter = 0; filter < filters; filter += 2) {
        int32_t raised[2];
        _mm_storel_epi64(
            (__m128i *)(void *)raised, thaw_spread(layer->weights + 2 * filter * pairs, pairs, thaw_wide.weights + filter, row));
        if (!layer->is_pixels) {
            thaw_wide.bias[filter] -= raised[0];
            thaw_wide.bias[filter + 1] -= raised[1];
        }
    }
}

/* sums += a word of eight filters */
THAW_INLINE __m256i thaw_wide_dot(__m256i sums, __m256i weights, __m256i values)
{
#if defined(THAW_VNNI)
    return _mm256_dpbusd_epi32(sums, values, weights);
#else
    return _mm256_add_epi32(sums, _mm256_madd_epi16(weights, values));
#endif
}

/* thaw_scale for eight numbers. */
THAW_INLINE __m256i thaw_wide_scale(__m256i sums, int32_t filter)
{
    const __m256i multiplier = _mm256_loadu_si256((const __m256i *)(const void *)(thaw_wide.multiplier + filter));
    const __m256i left = _mm256_loadu_si256((const __m256i *)(const void *)(thaw_wide.left + filter));
    const __m256i right = _mm256_loadu_si256((const __m256i *)(const void *)(thaw_wide.right + filter));
    const __m256i rounding = _mm256_set1_epi64x((int64_t)1 << 30);
    const __m256i value = _mm256_sllv_epi32(sums, left);
    const __m256i even = _mm256_add_epi64(_mm256_mul_epi32(value, multiplier), rounding);
    const __m256i odd = _mm256_add_epi64(
        _mm256_mul_epi32(_mm256_srli_epi64(value, 32), _mm256_srli_epi64(multiplier, 32)), rounding);
    const __m256i high = _mm256_blend_epi32(_mm256_srli_epi64(even, 31), _mm256_slli_epi64(odd, 1), 0xAA);
    /* divide by 2^right, halves away from zero */
    const __m256i half = _mm256_srli_epi32(_mm256_sllv_epi32(_mm256_set1_epi32(1), right), 1);
    const __m256i is_divided = _mm256_cmpgt_epi32(right, _mm256_setzero_si256());
    const __m256i sign = _mm256_and_si256(_mm256_srai_epi32(high, 31), is_divided);
    return _mm256_srav_epi32(_mm256_add_epi32(high, _mm256_add_epi32(half, sign)), right);
}

/* Write the first `used` of eight sums to the output. */
THAW_INLINE void thaw_wide_finish(
    const thaw_convolution *layer, __m256i sums, int32_t filter, int32_t used, int8_t *output)
{
    const __m256i bias = _mm256_loadu_si256((const __m256i *)(const void *)(thaw_wide.bias + filter));
    const __m256i scaled = thaw_wide_scale(_mm256_add_epi32(sums, bias), filter);
    const __m256i moved = _mm256_add_epi32(scaled, _mm256_set1_epi32(layer->zero_point));
    const __m256i least = _mm256_max_epi32(moved, _mm256_set1_epi32(layer->least));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(least), _mm256_extracti128_si256(least, 1));
    const __m128i bytes = _mm_packs_epi16(words, words);
    if (used == 2) {
        const uint16_t both = (uint16_t)_mm_extract_epi16(bytes, 0);
        memcpy(output, &both, 2);
        return;
    }
    if (used >= 8) {
        _mm_storel_epi64((__m128i *)(void *)output, bytes);
    } else {
        int8_t all[8];
        _mm_storel_epi64((__m128i *)(void *)all, bytes);
        memcpy(output, all, (size_t)used);
    }
}

/* Sums of `blocks` times eight filters on THAW_LANES columns, by lane. */
THAW_INLINE void thaw_wide_block(
    const int16_t *columns, int32_t words, const int32_t *weights, int32_t row, int blocks, __m256i sums[3][THAW_LANES])
{
    const int32_t pitch = 2 * words;
    int32_t word;
    int block, lane;
    for (block = 0; block < blocks; block++) {
        for (lane = 0; lane < THAW_LANES; lane++) {
            sums[block][lane] = _mm256_setzero_si256();
        }
    }
    for (word = 0; word < words; word++, columns += 2, weights += row) {
        __m256i of[3];
        for (block = 0; block < blocks; block++) {
            of[block] = _mm256_loadu_si256((const __m256i *)(const void *)(weights + 8 * block));
        }
        for (lane = 0; lane < THAW_LANES; lane++) {
            int32_t value;
            __m256i values;
            memcpy(&value, columns + lane * pitch, 4);
            values = _mm256_set1_epi32(value);
            for (block = 0; block < blocks; block++) {
                sums[block][lane] = thaw_wide_dot(sums[block][lane], of[block], values);
            }
        }
    }
}

THAW_INLINE void thaw_window_blocks(
    const thaw_convolution *layer, const int16_t *columns, int32_t pairs, int32_t batches, int32_t filter, int blocks,
    int8_t *output)
{
    const int32_t row = (layer->filters + 7) / 8 * 8, words = thaw_words(pairs);
    __m256i best[3];
    int32_t batch;
    int block, lane;
    for (block = 0; block < 3; block++) {
        best[block] = _mm256_set1_epi32(INT32_MIN);
    }
    for (batch = 0; batch < batches; batch++) {
        __m256i sums[3][THAW_LANES];
        const int16_t *const from = columns + batch * 2 * THAW_LANES * pairs;
        thaw_wide_block(from, words, thaw_wide.weights + filter, row, blocks, sums);
        for (block = 0; block < blocks; block++) {
            for (lane = 0; lane < THAW_LANES; lane++) {
                best[block] = _mm256_max_epi32(best[block], sums[block][lane]);
            }
        }
    }
    for (block = 0; block < blocks; block++) {
        const int32_t at = filter + 8 * block;
        thaw_wide_finish(layer, best[block], at, layer->filters - at, output + at);
    }
}

/* One output position from all columns of its window, in batches of THAW_LANES. */
static void thaw_window(
    const thaw_convolution *layer, const int16_t *columns, int32_t pairs, int32_t batches, int8_t *output)
{
    int32_t filter;
    for (filter = 0; filter < THAW_MOST_FILTERS && filter < layer->filters; filter += 24) {
#if THAW_MOST_FILTERS > 16
        if (layer->filters - filter > 16) {
            thaw_window_blocks(layer, columns, pairs, batches, filter, 3, output);
            continue;
        }
#endif
#if THAW_MOST_FILTERS > 8
        if (layer->filters - filter > 8) {
            thaw_window_blocks(layer, columns, pairs, batches, filter, 2, output);
            continue;
        }
#endif
        thaw_window_blocks(layer, columns, pairs, batches, filter, 1, output);
    }
}

THAW_INLINE void thaw_positions_blocks(
    const thaw_convolution *layer, const int16_t *columns, int32_t pairs, int32_t used, int32_t filter, int blocks,
    int8_t *output)
{
    const int32_t row = (layer->filters + 7) / 8 * 8, words = thaw_words(pairs);
    __m256i sums[3][THAW_LANES];
    int32_t lane;
    int block;
    thaw_wide_block(columns, words, thaw_wide.weights + filter, row, blocks, sums);
    for (lane = 0; lane < used; lane++) {
        for (block = 0; block < blocks; block++) {
            const int32_t at = filter + 8 * block;
            thaw_wide_finish(layer, sums[block][lane], at, layer->filters - at, output + lane * layer->filters + at);
        }
    }
}

/* `used` consecutive output positions, one per lane; the contents of the other lanes are ignored. */
static void thaw_positions(
    const thaw_convolution *layer, const int16_t *columns, int32_t pairs, int32_t used, int8_t *output)
{
    int32_t filter;
    for (filter = 0; filter < THAW_MOST_FILTERS && filter < layer->filters; filter += 24) {
#if THAW_MOST_FILTERS > 16
        if (layer->filters - filter > 16) {
            thaw_positions_blocks(layer, columns, pairs, used, filter, 3, output);
            continue;
        }
#endif
#if THAW_MOST_FILTERS > 8
        if (layer->filters - filter > 8) {
            thaw_positions_blocks(layer, columns, pairs, used, filter, 2, output);
            continue;
        }
#endif
        thaw_positions_blocks(layer, columns, pairs, used, filter, 1, output);
    }
}
#endif
