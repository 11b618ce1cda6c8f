/* The parts of the way through a layer, each for a thread that calls it: what layer.c puts together. */
#ifndef COTERIE_TOKEN_H
#define COTERIE_TOKEN_H

#include "bfloat16.h"

/* Calls NAME_avx512, NAME_avx2 or NAME_portable. */
#if defined(__x86_64__)
#define COTERIE_BY_LEVEL(level, name, ...)                                                                           \
    ((level) >= COTERIE_AVX512BF16 ? name##_avx512(__VA_ARGS__)                                                      \
     : (level) >= COTERIE_AVX2     ? name##_avx2(__VA_ARGS__)                                                        \
                                   : name##_portable(__VA_ARGS__))
#else
#define COTERIE_BY_LEVEL(level, name, ...) ((void)(level), name##_portable(__VA_ARGS__))
#endif

/* Rows to normalise; see coterie_rms_norm. */
typedef struct {
    const void *values, *weight;
    void *out;
    int64_t rows, columns;
    float epsilon;
    int form, is_bf16;
} coterie_normalisation;

void coterie_normalise(int level, int lanes, const coterie_normalisation *task);

/* One head; see coterie_rotate. */
void coterie_rotate_head(int level, uint16_t *head, int64_t width, const uint16_t *cosine, const uint16_t *sine);

/* See coterie_token_attention. */
typedef struct {
    const uint16_t *query, *keys, *values;
    int64_t heads, kv_heads, width, length, key_stride, value_stride;
    float scale;
    /* [heads / kv_heads, length], for one key head after the other. */
    float *scores;
    uint16_t *out;
} coterie_attention;

/* The query heads of one key head. */
void coterie_attend(int level, const coterie_attention *task, int64_t kv_head);

/* See coterie_router. */
typedef struct {
    const uint16_t *tokens, *weight;
    int64_t count, width, experts, top_k;
    int normalise;
    uint16_t *logits, *weights;
    int64_t *ids;
} coterie_routing;

/* Logits of experts [begin, end) for all tokens. */
void coterie_route_logits(int level, const coterie_routing *task, int64_t begin, int64_t end);

/* Ids and weights of tokens [begin, end), by the logits of all experts. */
void coterie_route_choice(int level, const coterie_routing *task, int64_t begin, int64_t end);

#endif
