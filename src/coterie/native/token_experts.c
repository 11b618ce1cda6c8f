/* The experts of a few rows in one call, from the router's choice to the sums with the residuals: nothing is asked of
 * Python.
 *
 * The arithmetic is that of experts.c, in the same order, so the bits are the same; none is ever multiplied as a matrix
 * of many rows, so they do not depend on other rows. An expert that several rows chose is read once.
 */
#include "token_experts.h"

#include "experts.h"
#include "layer.h"

enum { MOST_EXPERTS = 1024, MOST_CHOICES = 64, MOST_PAIRS = COTERIE_ROWS * MOST_CHOICES };

/* What coterie_route writes, and where the experts are. */
typedef struct {
    int64_t used, experts[MOST_PAIRS], addresses[MOST_PAIRS];
    int32_t offsets[MOST_PAIRS + 1], row_token[MOST_PAIRS], token_rows[MOST_PAIRS];
    float row_weight[MOST_PAIRS];
    uint8_t done[MOST_EXPERTS];
} grouping;

/* Whether a row chose an expert twice, or one that is none of the bank's. */
static int odd(const token_bank *bank, const int64_t *ids, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= bank->experts) return 1;
        for (int64_t k = 0; k < i; k++)
            if (ids[k] == ids[i]) return 1;
    }
    return 0;
}

/* Rows by expert; false where they are left to others. */
static int grouped(const token_bank *bank, const layer_call *call, int64_t count, grouping *of) {
    int32_t counts[MOST_EXPERTS], filled[COTERIE_ROWS];
    const layer_results *results = call->results;
    if (call->rows > COTERIE_ROWS || count < 1 || count > MOST_CHOICES || bank->experts > MOST_EXPERTS) return 0;
    for (int64_t row = 0; row < call->rows; row++)
        if (odd(bank, results->ids + row * count, count)) return 0;
    of->used = coterie_route(results->ids, results->weights, WEIGHTS_BFLOAT16, call->rows, count, bank->experts,
                             of->experts, of->offsets, of->row_token, of->row_weight, of->token_rows, counts, filled,
                             of->done);
    return 1;
}

static void compute(const token_bank *bank, const layer_call *call, grouping *of, int64_t count, int64_t norms) {
    const layer_results *results = call->results;
    int64_t table[MOST_PAIRS * TABLE_WIDTH];
    for (int64_t i = 0; i < of->used; i++) {
        const int64_t *record = bank->records + of->experts[i] * RECORD_WIDTH;
        int64_t *entry = table + i * TABLE_WIDTH;
        entry[TABLE_ID] = of->experts[i];
        for (int field = 0; field < RECORD_WIDTH; field++)
            entry[TABLE_GATE_UP + field] = field % 3 ? of->addresses[i] + record[field] : record[field];
    }
    experts_call pass = {.level = bank->level,
                         .threads = call->threads,
                         .activation = bank->activation,
                         .width = bank->width,
                         .inner = bank->inner,
                         .used = of->used,
                         .choices = count,
                         .experts = of->experts,
                         .offsets = of->offsets,
                         .row_token = of->row_token,
                         .row_weight = of->row_weight,
                         .token_rows = of->token_rows,
                         .done = of->done,
                         .count = of->used,
                         .table = table,
                         .tokens = call->rows,
                         .x = results->normed,
                         .rows = call->contributions,
                         .hidden = (uint16_t *)(call->contributions + call->rows * count * bank->width),
                         .out = results->out,
                         .ids = results->ids,
                         .norms = norms ? results->norms : NULL};
    coterie_experts(&pass);
    for (int64_t i = 0; i < call->rows * bank->width; i++)
        results->out[i] =
            coterie_to_bf16(coterie_from_bf16(results->residual[i]) + coterie_from_bf16(results->out[i]));
}

/* Whether all that the router chose for any row are in memory, at this moment. */
COTERIE_API int64_t coterie_token_experts_there(const token_bank *bank, const layer_call *call, int64_t count) {
    const int64_t *ids = call->results->ids;
    for (int64_t i = 0; i < call->rows * count; i++)
        if (ids[i] < 0 || ids[i] >= bank->experts ||
            !__atomic_load_n(&bank->addresses[ids[i]].address, __ATOMIC_RELAXED))
            return 0;
    return count > 0;
}

/* Computes what a layer's experts add to the residuals, if all that the router chose are in memory; returns whether.
 * `count` is how many a row chose. If norms are wanted, the results are given the Euclidean norm of what each choice adds. */
COTERIE_API int64_t coterie_token_experts(const token_bank *bank, const layer_call *call, int64_t count,
                                          int64_t norms) {
    grouping of;
    int64_t entered = 0, there = 1;
    double began = call->times ? coterie_now() : 0;
    if (!grouped(bank, call, count, &of)) return 0;
    for (; entered < of.used && there; entered++) {
        of.addresses[entered] = coterie_enter(&bank->addresses[of.experts[entered]]);
        there = of.addresses[entered] != 0;
    }
    if (there) compute(bank, call, &of, count, norms);
    for (int64_t i = 0; i < entered; i++) coterie_leave(&bank->addresses[of.experts[i]]);
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
