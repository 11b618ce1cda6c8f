/* A call for some experts of a layer. */
#ifndef COTERIE_EXPERTS_H
#define COTERIE_EXPERTS_H

#include "gemm.h"
#include "numbers.h"

/* Mirrored in workspace.py. */
typedef struct {
    int64_t level, threads, activation;
    /* D and F. */
    int64_t width, inner;
    /* What coterie_route wrote. */
    int64_t used, choices;
    const int64_t *experts;
    const int32_t *offsets, *row_token;
    const float *row_weight;
    const int32_t *token_rows;
    /* By place in experts: whether it has been computed; and how many have. */
    uint8_t *done;
    int64_t computed;
    /* Of this call: count experts, seven numbers each: id, and for gate_up and for down the scheme, and where codes and
     * scales are. Each matrix may be in another scheme. */
    int64_t count;
    const int64_t *table;
    /* bfloat16 [tokens, D]. */
    int64_t tokens;
    const uint16_t *x;
    /* Of all rows: what is between gate and down, bfloat16 [rows, F], and weighted outputs, float32 [rows, D]. */
    uint16_t *hidden;
    float *rows;
    /* bfloat16 [tokens, D], the sums of each token's rows; NULL if other experts are still to come. */
    uint16_t *out;
    /* coterie_experts_scratch bytes, aligned to 64, or NULL to compute all experts a few tokens at a time. */
    void *scratch;
    /* Set here: the rows from which an expert has many. */
    int64_t many;
    /* What coterie_route was given, [tokens, choices]; and float32 of the same shape, where the last call writes the
     * Euclidean norm of each choice's row. NULL if nobody asks. */
    const int64_t *ids;
    float *norms;
} experts_call;

enum { TABLE_ID, TABLE_GATE_UP, TABLE_DOWN = 4, TABLE_WIDTH = 7 };

COTERIE_INLINE int scheme_at(const int64_t *fields) {
    return (int)fields[0];
}

COTERIE_INLINE coterie_matrix matrix_at(const int64_t *fields, int64_t columns) {
    return coterie_matrix_of(fields[0], (const void *)(intptr_t)fields[1], (const void *)(intptr_t)fields[2], columns);
}

/* Position of an expert among those that the router chose, or -1. */
COTERIE_INLINE int64_t position_of(const experts_call *call, int64_t expert) {
    int64_t low = 0, high = call->used;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (call->experts[middle] < expert)
            low = middle + 1;
        else
            high = middle;
    }
    return low < call->used && call->experts[low] == expert ? low : -1;
}

enum { WEIGHTS_FLOAT32, WEIGHTS_BFLOAT16 };

/* See route.c. */
int64_t coterie_route(const int64_t *ids, const void *weights, int kind, int64_t tokens, int64_t choices,
                      int64_t num_experts, int64_t *experts, int32_t *offsets, int32_t *row_token, float *row_weight,
                      int32_t *token_rows, int32_t *counts, int32_t *filled, uint8_t *done);

/* See experts.c. */
int64_t coterie_experts(experts_call *call);

/* Computes the rows of those of the call's experts that have many; returns how many experts these are. */
int64_t coterie_many_experts(experts_call *call);

#endif
