/* Products of a few tokens with a quantised matrix, for a thread that calls it. */
#ifndef COTERIE_PRODUCT_H
#define COTERIE_PRODUCT_H

#include "coterie.h"

/* A thread's tokens in the order in which a kernel reads them; they stay for the next product with the same. */
typedef struct {
    _Alignas(64) char memory[COTERIE_PREPARED_BYTES];
    const void *tokens[COTERIE_ROWS];
    /* Whose they are, or NULL; and for which scheme. */
    const uint16_t *of;
    int scheme;
} coterie_desk;

typedef struct {
    int scheme, level;
    coterie_matrix matrix;
    /* x [tokens, columns] and out [tokens, outputs]; if not NULL, residual is added, of the same shape as out. */
    const uint16_t *x, *residual;
    uint16_t *out;
    int64_t tokens, outputs;
} coterie_product;

/* Outputs [begin, end) of all tokens. Weights come from memory once. */
void coterie_multiply(const coterie_product *task, coterie_desk *desk, int64_t begin, int64_t end);

/* The same as float32 sums, not rounded and without a residual: out[t * stride + n - begin]. `task->out` is not used. */
void coterie_products(const coterie_product *task, coterie_desk *desk, int64_t begin, int64_t end, float *out,
                      int64_t stride);

#endif
