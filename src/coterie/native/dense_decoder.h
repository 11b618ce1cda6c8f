/* A small decoder whose layers have no experts, with its head: a pass through all of it is one call. Mirrored in
 * dense_decoder.py.
 *
 * A call has one token or two of one sequence. Weights of products are in a scheme. What lies between products is
 * float32: the residual, norms, rotations and sums. It is rounded to bfloat16 only where a product or attention reads it.
 *
 * The bits depend neither on the number of threads nor on whether a token has another one beside it. Threads divide heads
 * and outputs of matrices among them, never a sum.
 */
#ifndef COTERIE_DENSE_DECODER_H
#define COTERIE_DENSE_DECODER_H

#include "layer.h"

/* Tokens of one call, and values of a hidden state, at the most. */
enum { DECODER_TOKENS = 2, DECODER_WIDTH = 8192 };

/* See coterie_rms_norm; weights are float32. */
typedef struct {
    const float *weight;
    double epsilon;
} decoder_norm;

typedef struct {
    /* Over the hidden state, heads of query and of key, and the hidden state with attention added. */
    decoder_norm before, of_query, of_key, after;
    layer_matrix query, key, value, output, gate, up, down;
} decoder_layer;

/* What stays the same. */
typedef struct {
    int64_t level, activation, width, heads, kv_heads, head_width, inner, positions, count;
    double scale;
    /* [count]. */
    const decoder_layer *layers;
    decoder_norm last;
    /* float32 [positions, head_width]. */
    const float *cosine, *sine;
} decoder;

typedef struct {
    int64_t threads, tokens;
    /* Place of the first of the tokens in the sequence. */
    int64_t position;
    /* bfloat16 [tokens, width]. */
    const uint16_t *embeddings;
    /* What makes logits of the last token, and float32 for all its rows. */
    const layer_matrix *head;
    float *logits;
    /* bfloat16 [count, kv_heads, positions, head_width]: those before the tokens are read, those of the tokens written. */
    uint16_t *keys, *values;
    /* Work, [tokens] of each: float32 [width]; float32 [heads + 2 kv_heads, head_width]; bfloat16 [heads, head_width]
     * twice; bfloat16 [inner]. */
    float *residual, *projected;
    uint16_t *query, *mixed, *hidden;
    /* Work: float32 [threads, heads / kv_heads, positions]. */
    float *scores;
} decoder_call;

#endif
