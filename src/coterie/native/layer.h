/* A decoder layer and a token's way through it; both mirrored in layer.py. */
#ifndef COTERIE_LAYER_H
#define COTERIE_LAYER_H

#include <time.h>

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

enum { STAGE_NORMS, STAGE_LINEAR, STAGE_ATTENTION, STAGE_ROUTER, STAGE_EXPERTS, STAGES };

/* What stages took in some passes: seconds; and how many passes there were, and how many of them through experts. */
typedef struct {
    double seconds[STAGES];
    int64_t passes, with_experts;
} layer_times;

/* Where results go; all activations are bfloat16. */
typedef struct {
    /* Of the first half: [kv_heads, head_width]. */
    uint16_t *key, *value;
    /* Of the second: [width] with attention added, and normalised; [top_k] each. */
    uint16_t *residual, *normed;
    int64_t *ids;
    uint16_t *weights;
    /* Of the experts: [width], the residual with what they add. */
    uint16_t *out;
    /* [top_k], where they are wanted: the Euclidean norm of what each chosen expert adds. */
    float *norms;
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
    /* Work of the experts: float32 [top_k, width], then bfloat16 [top_k, inner width]. */
    float *rows;
    /* This pass is added to these; or NULL. */
    layer_times *times;
} layer_call;

static inline double coterie_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

#endif
