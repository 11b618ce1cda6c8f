/* Which tokens go to which expert: rows grouped by expert, in ascending order of ids. */
#include "bfloat16.h"
#include "experts.h"

/* Groups what a router chose.
 *
 * ids [tokens, choices]; weights of the same shape, in float32 or bfloat16; an id of num_experts or more is left out.
 * Written: experts [U], ascending; offsets [U + 1], the rows of each; row_token and row_weight [rows]; token_rows
 * [tokens, choices], the rows of each token in ascending order of experts, ended by -1 where there are fewer.
 * counts [num_experts] and filled [tokens] are scratch, done [num_experts] becomes 0. Returns U, or -1 if an id is
 * negative.
 */
COTERIE_API int64_t coterie_route(const int64_t *ids, const void *weights, int kind, int64_t tokens, int64_t choices,
                                  int64_t num_experts, int64_t *experts, int32_t *offsets, int32_t *row_token,
                                  float *row_weight, int32_t *token_rows, int32_t *counts, int32_t *filled,
                                  uint8_t *done) {
    int64_t pairs = tokens * choices, used = 0;
    memset(counts, 0, sizeof *counts * (size_t)num_experts);
    memset(done, 0, (size_t)num_experts);
    for (int64_t i = 0; i < pairs; i++) {
        if (ids[i] < 0) return -1;
        if (ids[i] < num_experts) counts[ids[i]]++;
    }
    int32_t row = 0;
    for (int64_t e = 0; e < num_experts; e++) {
        if (!counts[e]) continue;
        experts[used] = e;
        offsets[used++] = row;
        int32_t next = row + counts[e];
        counts[e] = row;
        row = next;
    }
    offsets[used] = row;
    for (int64_t i = 0; i < pairs; i++) {
        if (ids[i] >= num_experts) continue;
        int32_t at = counts[ids[i]]++;
        row_token[at] = (int32_t)(i / choices);
        row_weight[at] = kind == WEIGHTS_FLOAT32 ? ((const float *)weights)[i]
                                                 : coterie_from_bf16(((const uint16_t *)weights)[i]);
    }
    memset(filled, 0, sizeof *filled * (size_t)tokens);
    for (int32_t at = 0; at < row; at++) {
        int32_t token = row_token[at];
        token_rows[token * choices + filled[token]++] = at;
    }
    for (int64_t t = 0; t < tokens; t++)
        if (filled[t] < choices) token_rows[t * choices + filled[t]] = -1;
    return used;
}
