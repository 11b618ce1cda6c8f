/* One token's attention and rotation; included once for each instruction set, after vectors.h. */

/* x cos + rotate_half(x) sin in place, each product and the sum rounded to bfloat16; x: low and high, `half` values each.
 */
INLINE void NAME(rotate_halves)(uint16_t *restrict low, uint16_t *restrict high, int64_t half,
                                const uint16_t *restrict cosine, const uint16_t *restrict sine) {
    for (int64_t i = 0; i < half; i++) {
        float first = coterie_from_bf16(low[i]), second = coterie_from_bf16(high[i]);
        float a = coterie_rounded(first * coterie_from_bf16(cosine[i]));
        float b = coterie_rounded(-second * coterie_from_bf16(sine[i]));
        float c = coterie_rounded(second * coterie_from_bf16(cosine[i + half]));
        float d = coterie_rounded(first * coterie_from_bf16(sine[i + half]));
        low[i] = coterie_to_bf16(a + b);
        high[i] = coterie_to_bf16(c + d);
    }
}

static TARGET void NAME(rotate)(uint16_t *head, int64_t width, const uint16_t *cosine, const uint16_t *sine) {
    NAME(rotate_halves)(head, head + width / 2, width / 2, cosine, sine);
}

/* scores[g * length + t] = query g · key t, for `count` queries. */
INLINE void NAME(score)(const float *queries, const uint16_t *keys, int64_t width, int64_t length, float *scores,
                        const int count) {
    for (int64_t t = 0; t < length; t++) {
        floats sums[SHARING] = {{0}};
        for (int64_t i = 0; i < width; i += LANES) {
            floats key = NAME(widened)(keys + t * width + i);
            for (int g = 0; g < count; g++) sums[g] += NAME(loaded)(queries + g * width + i) * key;
        }
        for (int g = 0; g < count; g++) scores[g * length + t] = NAME(total)(&sums[g]);
    }
}

/* Shares of the scores, in place: e^(score - highest) over their sum. */
INLINE void NAME(share)(float *scores, int64_t length) {
    float highest = -INFINITY, sum = 0;
    floats high = (floats){0} + highest, sums = {0};
    int64_t t = 0;
    for (; t + LANES <= length; t += LANES) {
        floats own = NAME(loaded)(scores + t);
        ints more = own > high;
        high = (floats)(((ints)own & more) | ((ints)high & ~more));
    }
    for (int k = 0; k < LANES; k++) highest = high[k] > highest ? high[k] : highest;
    for (; t < length; t++) highest = scores[t] > highest ? scores[t] : highest;
    for (t = 0; t < length; t++) scores[t] = coterie_exp(scores[t] - highest);
    for (t = 0; t + LANES <= length; t += LANES) sums += NAME(loaded)(scores + t);
    for (; t < length; t++) sum += scores[t];
    sum += NAME(total)(&sums);
    for (t = 0; t < length; t++) scores[t] /= sum;
}

/* out[g * width + i] = sum over t of scores[g * length + t] values[t * width + i], for `vectors` vectors of i. */
INLINE void NAME(mix)(const float *scores, const uint16_t *values, int64_t width, int64_t length, uint16_t *out,
                      const int count, const int vectors) {
    floats sums[SHARING][2] = {{{0}}};
    for (int64_t t = 0; t < length; t++)
        for (int v = 0; v < vectors; v++) {
            floats value = NAME(widened)(values + t * width + v * LANES);
            for (int g = 0; g < count; g++) sums[g][v] += scores[g * length + t] * value;
        }
    for (int g = 0; g < count; g++)
        for (int v = 0; v < vectors; v++) NAME(narrowed)(sums[g][v], out + g * width + v * LANES);
}

INLINE void NAME(mix_all)(const float *scores, const uint16_t *values, int64_t width, int64_t length, uint16_t *out,
                          const int count) {
    int64_t i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) NAME(mix)(scores, values + i, width, length, out + i, count, 2);
    if (i < width) NAME(mix)(scores, values + i, width, length, out + i, count, 1);
}

/* One key head and the query heads that share it, a few at a time. */
static TARGET void NAME(attend)(const coterie_attention *task, int64_t kv_head) {
    int64_t width = task->width, length = task->length, sharing = task->heads / task->kv_heads;
    const uint16_t *keys = task->keys + kv_head * task->key_stride;
    const uint16_t *values = task->values + kv_head * task->value_stride;
    int64_t first = kv_head * sharing, g = 0;
    float queries[SHARING * MOST_WIDTH];
    const uint16_t *query = task->query + first * width;
    uint16_t *out = task->out + first * width;
    while (g < sharing) {
        int count = sharing - g < SHARING ? 1 : SHARING;
        for (int64_t i = 0; i < count * width; i++)
            queries[i] = coterie_from_bf16(query[g * width + i]) * task->scale;
        float *own = task->scores + g * length;
        if (count == SHARING)
            NAME(score)(queries, keys, width, length, own, SHARING);
        else
            NAME(score)(queries, keys, width, length, own, 1);
        for (int k = 0; k < count; k++) NAME(share)(own + k * length, length);
        if (count == SHARING)
            NAME(mix_all)(own, values, width, length, out + g * width, SHARING);
        else
            NAME(mix_all)(own, values, width, length, out + g * width, 1);
        g += count;
    }
}
