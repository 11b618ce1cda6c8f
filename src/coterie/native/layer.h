/* A decoder layer and a token's way through it; both mirrored in layer.py. */
#ifndef COTERIE_LAYER_H
#define COTERIE_LAYER_H

#include "token.h"

/* See coterie_rms_norm. */
typedef struct {
    const uint16_t *weight;
    int64_t lanes, form;
    double epsilon;
} layer_norm;

/* See coterie_matrix. */
typedef struct {
    int64_t scheme, rows, columns, group;
    const uint8_t *codes;
    const uint16_t *scales;
} layer_matrix;

/* What stays the same. */
typedef struct {
    int64_t level, width, heads, kv_heads, head_width;
    double scale;
    /* Over the hidden state, heads of query and of key, and what goes to the experts. */
    layer_norm before, of_query, of_key, after;
    layer_matrix query, key, value, output;
    /* bfloat16 [experts, width], or NULL for a layer whose experts are somebody else's. */
    const uint16_t *router;
    int64_t experts, top_k, normalise;
} layer;

enum { STAGE_NORMS, STAGE_LINEAR, STAGE_ATTENTION, STAGE_ROUTER, STAGES };

/* Where results go; all activations are bfloat16. */
typedef struct {
    /* Of the first half: [kv_heads, head_width]. */
    uint16_t *key, *value;
    /* Of the second: [width] with attention added, and normalised; [top_k] each. */
    uint16_t *residual, *normed;
    int64_t *ids;
    uint16_t *weights;
} layer_results;

/* One token, and working memory. */
typedef struct {
    int64_t threads;
    /* [width]; [head_width]. */
    const uint16_t *hidden, *cosine, *sine;
    const layer_results *results;
    /* Work: [heads, head_width]. */
    uint16_t *query;
    /* The cache with this token: [kv_heads, length, head_width], heads so many elements apart. */
    uint16_t *keys, *values;
    int64_t length, key_stride, value_stride;
    /* Whether this token is still to be written there, from the results. */
    int64_t append;
    /* Work: float32 [heads, length]; [heads, head_width]; [experts]. */
    float *scores;
    uint16_t *mixed, *logits;
    /* Seconds that each stage took are added to these; or NULL. */
    double *times;
} layer_call;

#endif
