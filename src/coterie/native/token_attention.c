/* What attention does for one token between its linear layers: normalisation and rotation of query and key, and the
 * weighted sum over the cache. Rotation has the bits of torch's operations; the sum is float32 throughout, and rounded
 * once.
 */
#include <math.h>

#include "bfloat16.h"
#include "coterie.h"
#include "elementary.h"

enum { LANES = 16, MOST_WIDTH = 512, MOST_QUERY = 8192 };

COTERIE_INLINE float rounded(float value) {
    return coterie_from_bf16(coterie_to_bf16(value));
}

/* x cos + rotate_half(x) sin in place, each product and the sum rounded to bfloat16. cosine, sine: [width]. */
COTERIE_INLINE void rotate(uint16_t *head, int64_t width, const uint16_t *cosine, const uint16_t *sine) {
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        float first = coterie_from_bf16(head[i]), second = coterie_from_bf16(head[i + half]);
        float a = rounded(first * coterie_from_bf16(cosine[i]));
        float b = rounded(-second * coterie_from_bf16(sine[i]));
        float c = rounded(second * coterie_from_bf16(cosine[i + half]));
        float d = rounded(first * coterie_from_bf16(sine[i + half]));
        head[i] = coterie_to_bf16(a + b);
        head[i + half] = coterie_to_bf16(c + d);
    }
}

/* Rotates heads of one token in place.
 *
 * heads:  bfloat16 [count, width], an even width.
 * cosine, sine: bfloat16 [width].
 */
COTERIE_API void coterie_rotate(uint16_t *heads, int64_t count, int64_t width, const uint16_t *cosine,
                                const uint16_t *sine) {
    for (int64_t head = 0; head < count; head++) rotate(heads + head * width, width, cosine, sine);
}

typedef struct {
    const uint16_t *query, *keys, *values;
    int64_t heads, kv_heads, width, length, key_stride, value_stride;
    float scale;
    float *scores;
    uint16_t *out;
    int level;
} attention;

COTERIE_INLINE float dot(const float *a, const float *b, int64_t width) {
    float sums[LANES] = {0}, sum = 0;
    for (int64_t i = 0; i < width; i += LANES)
        for (int k = 0; k < LANES; k++) sums[k] += a[i + k] * b[i + k];
    for (int k = 0; k < LANES; k++) sum += sums[k];
    return sum;
}

/* One key head and the query heads that share it: each key and value is read once for all of them. */
COTERIE_INLINE void attend(const attention *task, int64_t kv_head) {
    int64_t width = task->width, length = task->length, sharing = task->heads / task->kv_heads;
    const uint16_t *keys = task->keys + kv_head * task->key_stride;
    const uint16_t *values = task->values + kv_head * task->value_stride;
    int64_t first = kv_head * sharing;
    float *scores = task->scores + first * length;
    float row[MOST_WIDTH], queries[MOST_QUERY], *sums = queries;
    for (int64_t i = 0; i < sharing * width; i++)
        queries[i] = coterie_from_bf16(task->query[first * width + i]) * task->scale;
    for (int64_t t = 0; t < length; t++) {
        for (int64_t i = 0; i < width; i++) row[i] = coterie_from_bf16(keys[t * width + i]);
        for (int64_t g = 0; g < sharing; g++) scores[g * length + t] = dot(queries + g * width, row, width);
    }
    for (int64_t g = 0; g < sharing; g++) {
        float *own = scores + g * length, highest = -INFINITY, total = 0;
        for (int64_t t = 0; t < length; t++) highest = own[t] > highest ? own[t] : highest;
        for (int64_t t = 0; t < length; t++) own[t] = coterie_exp(own[t] - highest);
        for (int64_t t = 0; t < length; t++) total += own[t];
        for (int64_t t = 0; t < length; t++) own[t] /= total;
    }
    for (int64_t i = 0; i < sharing * width; i++) sums[i] = 0;
    for (int64_t t = 0; t < length; t++) {
        for (int64_t i = 0; i < width; i++) row[i] = coterie_from_bf16(values[t * width + i]);
        for (int64_t g = 0; g < sharing; g++)
            for (int64_t i = 0; i < width; i++) sums[g * width + i] += scores[g * length + t] * row[i];
    }
    for (int64_t i = 0; i < sharing * width; i++) task->out[first * width + i] = coterie_to_bf16(sums[i]);
}

static void attend_portable(const attention *task, int64_t head) {
    attend(task, head);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void attend_avx2(const attention *task, int64_t head) {
    attend(task, head);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))) static void attend_avx512(const attention *task,
                                                                                        int64_t head) {
    attend(task, head);
}
#endif

static void attend_some(void *context, int thread, int threads) {
    const attention *task = context;
    int64_t begin, end;
    coterie_share(task->kv_heads, 1, thread, threads, &begin, &end);
    for (int64_t head = begin; head < end; head++) {
#if defined(__x86_64__)
        if (task->level >= COTERIE_AVX512BF16) {
            attend_avx512(task, head);
            continue;
        }
        if (task->level >= COTERIE_AVX2) {
            attend_avx2(task, head);
            continue;
        }
#endif
        attend_portable(task, head);
    }
}

/* One token's attention over all tokens of a cache: softmax(query keys scale) values.
 *
 * query:  bfloat16 [heads, width]; width a multiple of 16 up to 512, and up to 8,192 values for a key head.
 * keys, values: bfloat16 [kv_heads, length, width], heads `key_stride` and `value_stride` elements apart.
 * scores: float32 [heads, length], for intermediate results.
 * out:    bfloat16 [heads, width].
 */
COTERIE_API void coterie_token_attention(int level, int threads, const uint16_t *query, const uint16_t *keys,
                                         const uint16_t *values, int64_t heads, int64_t kv_heads, int64_t width,
                                         int64_t length, int64_t key_stride, int64_t value_stride, float scale,
                                         float *scores, uint16_t *out) {
    attention task = {query, keys, values, heads, kv_heads, width, length, key_stride, value_stride, scale, scores,
                      out, level};
    /* Waking threads takes longer than a short cache does. */
    coterie_parallel(attend_some, &task, heads * length * width < 1 << 18 ? 1 : threads);
}
