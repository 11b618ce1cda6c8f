/* A router's logits and choice; included once for each instruction set, after vectors.h. */

/* Logits of `count` experts; the rows side by side, so that no sum waits for another. */
INLINE void NAME(logits)(const uint16_t *token, const uint16_t *weight, int64_t width, uint16_t *logits,
                         const int count) {
    floats sums[ROWS] = {{0}};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        floats x = NAME(widened)(token + i);
        for (int e = 0; e < count; e++) sums[e] += x * NAME(widened)(weight + e * width + i);
    }
    for (int e = 0; e < count; e++) {
        float lanes[LANES], sum = 0;
        memcpy(lanes, &sums[e], sizeof lanes);
        for (int64_t rest = i; rest < width; rest++)
            lanes[0] += coterie_from_bf16(token[rest]) * coterie_from_bf16(weight[e * width + rest]);
        for (int k = 0; k < LANES; k++) sum += lanes[k];
        logits[e] = coterie_to_bf16(sum);
    }
}

/* All tokens meet a few rows of the weight while these are in the cache. */
static TARGET void NAME(all_logits)(const coterie_routing *task, int64_t begin, int64_t end) {
    int64_t e = begin, width = task->width, experts = task->experts;
    for (; e + ROWS <= end; e += ROWS)
        for (int64_t t = 0; t < task->count; t++)
            NAME(logits)(task->tokens + t * width, task->weight + e * width, width, task->logits + t * experts + e, ROWS);
    for (; e < end; e++)
        for (int64_t t = 0; t < task->count; t++)
            NAME(logits)(task->tokens + t * width, task->weight + e * width, width, task->logits + t * experts + e, 1);
}

static TARGET void NAME(choose)(const coterie_routing *task, int64_t token) {
    const uint16_t *logits = task->logits + token * task->experts;
    int64_t *ids = task->ids + token * task->top_k;
    uint16_t *weights = task->weights + token * task->top_k;
    float shares[MOST_EXPERTS], picked[MOST_CHOICES], highest = -INFINITY, total = 0, chosen = 0;
    for (int64_t e = 0; e < task->experts; e++) {
        shares[e] = coterie_from_bf16(logits[e]);
        highest = shares[e] > highest ? shares[e] : highest;
    }
    for (int64_t e = 0; e < task->experts; e++) shares[e] = coterie_exp(shares[e] - highest);
    for (int64_t e = 0; e < task->experts; e++) total += shares[e];
    /* What is not a number goes before all numbers, as in torch, and each expert once: comparisons alone would not see to
     * that. */
    for (int64_t e = 0; total != total && e < task->experts; e++)
        if (shares[e] != shares[e]) shares[e] = INFINITY;
    for (int64_t k = 0; k < task->top_k; k++) {
        int64_t best = 0;
        for (int64_t e = 1; e < task->experts; e++) best = shares[e] > shares[best] ? e : best;
        ids[k] = best;
        picked[k] = shares[best] / total;
        chosen += picked[k];
        shares[best] = -1;
    }
    for (int64_t k = 0; k < task->top_k; k++)
        weights[k] = coterie_to_bf16(task->normalise ? picked[k] / chosen : picked[k]);
}
