/* A router's choice for a few tokens: logits, softmax, the highest, their weights. */
#include <math.h>

#include "bfloat16.h"
#include "coterie.h"
#include "elementary.h"

enum { LANES = 16, MOST_EXPERTS = 1024, MOST_CHOICES = 64 };

typedef struct {
    const uint16_t *tokens, *weight;
    int64_t count, width, experts, top_k;
    int normalise;
    uint16_t *logits, *weights;
    int64_t *ids;
} routing;

COTERIE_INLINE float dot(const uint16_t *a, const uint16_t *b, int64_t width) {
    float sums[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES)
        for (int k = 0; k < LANES; k++) sums[k] += coterie_from_bf16(a[i + k]) * coterie_from_bf16(b[i + k]);
    for (; i < width; i++) sums[0] += coterie_from_bf16(a[i]) * coterie_from_bf16(b[i]);
    for (int k = 0; k < LANES; k++) sum += sums[k];
    return sum;
}

COTERIE_INLINE void choose(const routing *task, int64_t token) {
    float shares[MOST_EXPERTS], picked[MOST_CHOICES], highest = -INFINITY, total = 0, chosen = 0;
    const uint16_t *x = task->tokens + token * task->width;
    uint16_t *logits = task->logits + token * task->experts;
    for (int64_t e = 0; e < task->experts; e++) {
        logits[e] = coterie_to_bf16(dot(x, task->weight + e * task->width, task->width));
        shares[e] = coterie_from_bf16(logits[e]);
        highest = shares[e] > highest ? shares[e] : highest;
    }
    for (int64_t e = 0; e < task->experts; e++) shares[e] = coterie_exp(shares[e] - highest);
    for (int64_t e = 0; e < task->experts; e++) total += shares[e];
    for (int64_t k = 0; k < task->top_k; k++) {
        int64_t best = 0;
        for (int64_t e = 1; e < task->experts; e++) best = shares[e] > shares[best] ? e : best;
        task->ids[token * task->top_k + k] = best;
        picked[k] = shares[best] / total;
        chosen += picked[k];
        shares[best] = -1;
    }
    for (int64_t k = 0; k < task->top_k; k++)
        task->weights[token * task->top_k + k] = coterie_to_bf16(task->normalise ? picked[k] / chosen : picked[k]);
}

static void choose_portable(const routing *task, int64_t token) {
    choose(task, token);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void choose_avx2(const routing *task, int64_t token) {
    choose(task, token);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))) static void choose_avx512(const routing *task,
                                                                                        int64_t token) {
    choose(task, token);
}
#endif

/* The experts of a few tokens, highest share first; of equal shares, the lower id.
 *
 * tokens:    bfloat16 [count, width].
 * weight:    bfloat16 [experts, width], up to 1,024 experts.
 * normalise: Whether a token's weights are divided by their sum.
 * logits:    bfloat16 [count, experts], written.
 * ids:       [count, top_k], written; top_k up to 64.
 * weights:   bfloat16 [count, top_k], written.
 */
COTERIE_API void coterie_router(int level, const uint16_t *tokens, const uint16_t *weight, int64_t count,
                                int64_t width, int64_t experts, int64_t top_k, int normalise, uint16_t *logits,
                                int64_t *ids, uint16_t *weights) {
    routing task = {tokens, weight, count, width, experts, top_k, normalise, logits, weights, ids};
    for (int64_t token = 0; token < count; token++) {
#if defined(__x86_64__)
        if (level >= COTERIE_AVX512BF16) {
            choose_avx512(&task, token);
            continue;
        }
        if (level >= COTERIE_AVX2) {
            choose_avx2(&task, token);
            continue;
        }
#endif
        (void)level;
        choose_portable(&task, token);
    }
}
