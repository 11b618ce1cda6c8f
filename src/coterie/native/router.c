/* A router's choice for a few tokens: logits, softmax, the highest, their weights. */
#include <math.h>

#include "elementary.h"
#include "token.h"

enum { MOST_EXPERTS = 1024, MOST_CHOICES = 64, ROWS = 4 };

#define LEVELLED "router_lanes.h"
#include "each_level.h"

void coterie_route_logits(int level, const coterie_routing *task, int64_t begin, int64_t end) {
    COTERIE_BY_LEVEL(level, all_logits, task, begin, end);
}

void coterie_route_choice(int level, const coterie_routing *task, int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; token++) COTERIE_BY_LEVEL(level, choose, task, token);
}

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
    const coterie_routing task = {tokens, weight, count, width, experts, top_k, normalise, logits, weights, ids};
    coterie_route_logits(level, &task, 0, experts);
    coterie_route_choice(level, &task, 0, count);
}
