/* One token's experts in one call, from the router's choice to the sum with the residual: nothing is asked of Python.
 *
 * The arithmetic is that of experts.c, in the same order, so the bits are the same.
 */
#include "token_experts.h"

#include "experts.h"
#include "layer.h"

enum { MOST_CHOICES = 64 };

/* The places of the chosen experts by ascending id; false if one was chosen twice or is none of the bank's. */
static int in_order(const token_bank *bank, const int64_t *ids, int64_t count, int *order) {
    for (int i = 0; i < count; i++) {
        int at = i;
        if (ids[i] < 0 || ids[i] >= bank->experts) return 0;
        for (; at > 0 && ids[order[at - 1]] >= ids[i]; at--) {
            if (ids[order[at - 1]] == ids[i]) return 0;
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
    return 1;
}

static void compute(const token_bank *bank, const layer_call *call, const int *order, const int64_t *addresses,
                    int64_t count, int64_t norms) {
    const layer_results *results = call->results;
    int64_t experts[MOST_CHOICES], table[MOST_CHOICES * TABLE_WIDTH];
    int32_t offsets[MOST_CHOICES + 1], row_token[MOST_CHOICES], token_rows[MOST_CHOICES];
    float row_weight[MOST_CHOICES];
    uint8_t done[MOST_CHOICES] = {0};
    for (int64_t i = 0; i < count; i++) {
        experts[i] = table[i * TABLE_WIDTH + TABLE_ID] = results->ids[order[i]];
        for (int field = 0; field < 4; field++)
            table[i * TABLE_WIDTH + TABLE_GATE_UP + field] = addresses[i] + bank->places[field];
        offsets[i] = token_rows[i] = (int32_t)i;
        row_token[i] = 0;
        row_weight[i] = coterie_from_bf16(results->weights[order[i]]);
    }
    offsets[count] = (int32_t)count;
    experts_call pass = {.scheme = bank->scheme,
                         .level = bank->level,
                         .threads = call->threads,
                         .activation = bank->activation,
                         .width = bank->width,
                         .inner = bank->inner,
                         .width_group = bank->width_group,
                         .inner_group = bank->inner_group,
                         .used = count,
                         .choices = count,
                         .experts = experts,
                         .offsets = offsets,
                         .row_token = row_token,
                         .row_weight = row_weight,
                         .token_rows = token_rows,
                         .done = done,
                         .count = count,
                         .table = table,
                         .tokens = 1,
                         .x = results->normed,
                         .rows = call->rows,
                         .hidden = (uint16_t *)(call->rows + count * bank->width),
                         .out = results->out,
                         .ids = results->ids,
                         .norms = norms ? results->norms : NULL};
    coterie_experts(&pass);
    for (int64_t i = 0; i < bank->width; i++)
        results->out[i] =
            coterie_to_bf16(coterie_from_bf16(results->residual[i]) + coterie_from_bf16(results->out[i]));
}

/* Whether all that the router chose are in memory, at this moment. */
COTERIE_API int64_t coterie_token_experts_there(const token_bank *bank, const layer_call *call, int64_t count) {
    const int64_t *ids = call->results->ids;
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= bank->experts || !__atomic_load_n(&bank->berths[ids[i]].address, __ATOMIC_RELAXED))
            return 0;
    return count > 0;
}

/* Computes what a layer's experts add to the residual, if all that the router chose are in memory; returns whether.
 * If norms are wanted, the results are given the Euclidean norm of what each choice adds. */
COTERIE_API int64_t coterie_token_experts(const token_bank *bank, const layer_call *call, int64_t count,
                                          int64_t norms) {
    const int64_t *ids = call->results->ids;
    int64_t addresses[MOST_CHOICES], entered = 0, there = 1;
    int order[MOST_CHOICES];
    double began = call->times ? coterie_now() : 0;
    if (count < 1 || count > MOST_CHOICES || !in_order(bank, ids, count, order)) return 0;
    for (; entered < count && there; entered++) {
        addresses[entered] = coterie_enter(&bank->berths[ids[order[entered]]]);
        there = addresses[entered] != 0;
    }
    if (there) compute(bank, call, order, addresses, count, norms);
    for (int64_t i = 0; i < entered; i++) coterie_leave(&bank->berths[ids[order[i]]]);
    if (there && call->times) {
        call->times->seconds[STAGE_EXPERTS] += coterie_now() - began;
        call->times->with_experts++;
    }
    return there;
}

/* Bytes of the structure, for its mirror. */
COTERIE_API int64_t coterie_token_bank_bytes(void) {
    return sizeof(token_bank);
}
