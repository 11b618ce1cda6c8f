/* A decoder layer and the way of some rows through it; mirrored in layer.py and token_state.py.
 *
 * A row is one token of one sequence. A call has T of them, up to COTERIE_ROWS, of different sequences; one token is the
 * case T = 1.
 *
 * Of each row: the hidden state, the position (cosine and sine), the keys and values before it and how many they are,
 * and all results. Shared: the weights and the threads. A piece of the weights is read from memory once and meets all
 * rows while it is in the cache; an expert that several rows chose is read once.
 *
 * The bits of a row are those of a call with this row alone, for every T, on any number of threads: products, norms,
 * rotations, sums over the cache and over experts never mix rows, and each adds up in its own order, whoever computes it.
 * Threads divide outputs of matrices, heads and rows among them, never a sum.
 */
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
    int64_t scheme, rows, columns;
    const uint8_t *codes, *scales;
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
    /* A gated feed-forward block that every token goes through: the whole of a layer without experts, or what all
     * tokens share of one with experts, and then times the sigmoid of its product with `share`, bfloat16 [width], unless
     * that is NULL. An inner width of 0 for none. */
    layer_matrix gate, up, down;
    const uint16_t *share;
    int64_t inner, activation;
} layer;

enum { STAGE_NORMS, STAGE_LINEAR, STAGE_ATTENTION, STAGE_ROUTER, STAGE_EXPERTS, STAGES };

/* What stages took in some passes: seconds; and how many passes there were, and how many of them through experts. */
typedef struct {
    double seconds[STAGES];
    int64_t passes, with_experts;
} layer_times;

/* Where results go; all activations are bfloat16. [T] of each. */
typedef struct {
    /* Of the first half: [kv_heads, head_width]. */
    uint16_t *key, *value;
    /* Of the second: [width] with attention added, and normalised; to the former, what the feed-forward block adds is
     * added afterwards. [top_k] each. */
    uint16_t *residual, *normed;
    int64_t *ids;
    uint16_t *weights;
    /* Of the experts: [width], the residual with what they add. */
    uint16_t *out;
    /* [top_k], where they are wanted: the Euclidean norm of what each chosen expert adds. */
    float *norms;
} layer_results;

/* A row's cache with this token: [kv_heads, length, head_width], heads so many elements apart. */
typedef struct {
    uint16_t *keys, *values;
    int64_t key_stride, value_stride, length;
} layer_room;

/* The rows, and working memory. */
typedef struct {
    int64_t threads, rows;
    /* [T, width]; [T, head_width], or [1, head_width] for all rows, which are so many elements apart. */
    const uint16_t *hidden, *cosine, *sine;
    int64_t position_stride;
    const layer_results *results;
    /* [T]. */
    const layer_room *rooms;
    /* Whether the tokens are still to be written there, from the results. */
    int64_t append;
    /* Work: [T, heads, head_width] twice; [T, experts]; [T, inner]. */
    uint16_t *query, *mixed, *logits, *between;
    /* Work: float32 [threads, heads / kv_heads, the greatest length]. */
    float *scores;
    int64_t longest;
    /* Work of the experts: float32 [T top_k, width], then bfloat16 [T top_k, inner width]. */
    float *contributions;
    /* This pass is added to these; or NULL. */
    layer_times *times;
} layer_call;

static inline double coterie_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

#endif
