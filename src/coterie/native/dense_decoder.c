/* A pass through a decoder whose layers have no experts (dense_decoder.h): threads meet four times in a layer. */
#include "dense_decoder.h"

#include "numbers.h"
#include "product.h"

enum { GRAIN = 32, CHUNK = 128, LANES = 16, SCALE_THEN_ROUND = 1 };

/* A thread at work. */
typedef struct {
    const decoder *fixed;
    const decoder_call *call;
    int thread, threads;
    coterie_desk desk;
    /* A normalised hidden state, and those of all tokens as a product reads them. */
    float normed[DECODER_WIDTH];
    uint16_t tokens[DECODER_TOKENS * DECODER_WIDTH];
} worker;

typedef struct {
    const decoder *fixed;
    const decoder_call *call;
} pass;

static void normalise(const worker *own, const decoder_norm *norm, const float *values, int64_t rows, int64_t columns,
                      float *out) {
    const coterie_normalisation task = {values,  norm->weight,         out,              rows,
                                        columns, (float)norm->epsilon, SCALE_THEN_ROUND, 0};
    coterie_normalise((int)own->fixed->level, LANES, &task);
}

static void round_all(const float *values, int64_t count, uint16_t *out) {
    for (int64_t i = 0; i < count; i++) out[i] = coterie_to_bf16(values[i]);
}

/* Hidden states of tokens [first, last), normalised, in memory of the thread's own: every thread does it for itself, which
 * takes less time than waiting for one of them. */
static const uint16_t *normalised(worker *own, const decoder_norm *norm, int64_t first, int64_t last) {
    int64_t width = own->fixed->width;
    for (int64_t t = first; t < last; t++) {
        normalise(own, norm, own->call->residual + t * width, 1, width, own->normed);
        round_all(own->normed, width, own->tokens + (t - first) * width);
    }
    own->desk.of = NULL; /* what was there before has been written over */
    return own->tokens;
}

/* out[t * stride + n - begin] = outputs n in [begin, end) of a matrix for each token. */
static void multiply(worker *own, const layer_matrix *matrix, const uint16_t *x, int64_t tokens, int64_t begin,
                     int64_t end, float *out, int64_t stride) {
    const coterie_product task = {.scheme = (int)matrix->scheme,
                                  .level = (int)own->fixed->level,
                                  .matrix = coterie_matrix_of(matrix->scheme, matrix->codes, matrix->scales, matrix->columns),
                                  .x = x,
                                  .tokens = tokens,
                                  .outputs = matrix->rows};
    coterie_products(&task, &own->desk, begin, end, out, stride);
}

static void rotate(float *head, int64_t width, const float *cosine, const float *sine) {
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        float low = head[i], high = head[i + half];
        head[i] = low * cosine[i] - high * sine[i];
        head[i + half] = high * cosine[i + half] + low * sine[i + half];
    }
}

/* Heads of a token: normalised and rotated, and put where attention reads them. */
static void place_heads(const worker *own, const decoder_norm *norm, int64_t token, float *heads, int64_t count,
                        uint16_t *out, int64_t stride) {
    int64_t width = own->fixed->head_width, at = (own->call->position + token) * width;
    if (norm) normalise(own, norm, heads, count, width, heads);
    for (int64_t i = 0; i < count; i++) {
        if (norm) rotate(heads + i * width, width, own->fixed->cosine + at, own->fixed->sine + at);
        round_all(heads + i * width, width, out + i * stride);
    }
}

/* Key heads, each with all query heads that share it, fall to a thread: it waits for nobody before it attends. */
static void attend(worker *own, const decoder_layer *layer, int64_t number) {
    const decoder *fixed = own->fixed;
    const decoder_call *call = own->call;
    int64_t width = fixed->head_width, sharing = fixed->heads / fixed->kv_heads, begin, end;
    int64_t all = (fixed->heads + 2 * fixed->kv_heads) * width, kept = fixed->positions * width;
    uint16_t *keys = call->keys + number * fixed->kv_heads * kept;
    uint16_t *values = call->values + number * fixed->kv_heads * kept;
    float *query = call->projected, *key = query + fixed->heads * width, *value = key + fixed->kv_heads * width;

    const uint16_t *x = normalised(own, &layer->before, 0, call->tokens);
    coterie_share(fixed->kv_heads, 1, own->thread, own->threads, &begin, &end);
    int64_t first = begin * sharing, last = end * sharing;
    query += first * width;
    key += begin * width;
    value += begin * width;
    multiply(own, &layer->query, x, call->tokens, first * width, last * width, query, all);
    multiply(own, &layer->key, x, call->tokens, begin * width, end * width, key, all);
    multiply(own, &layer->value, x, call->tokens, begin * width, end * width, value, all);

    for (int64_t t = 0; t < call->tokens; t++) {
        int64_t at = begin * kept + (call->position + t) * width;
        place_heads(own, &layer->of_query, t, query + t * all, last - first,
                    call->query + (t * fixed->heads + first) * width, width);
        place_heads(own, &layer->of_key, t, key + t * all, end - begin, keys + at, kept);
        place_heads(own, NULL, t, value + t * all, end - begin, values + at, kept);
        const coterie_attention task = {.query = call->query + t * fixed->heads * width,
                                        .keys = keys,
                                        .values = values,
                                        .heads = fixed->heads,
                                        .kv_heads = fixed->kv_heads,
                                        .width = width,
                                        .length = call->position + t + 1,
                                        .key_stride = kept,
                                        .value_stride = kept,
                                        .scale = (float)fixed->scale,
                                        .scores = call->scores + own->thread * sharing * fixed->positions,
                                        .out = call->mixed + t * fixed->heads * width};
        for (int64_t head = begin; head < end; head++) coterie_attend((int)fixed->level, &task, head);
    }
}

/* Adds a product to the residual; the thread has its own share of the outputs. */
static void add_product(worker *own, const layer_matrix *matrix, const uint16_t *x) {
    const decoder_call *call = own->call;
    int64_t width = own->fixed->width, begin, end;
    float sums[DECODER_TOKENS * CHUNK];
    own->desk.of = NULL;
    coterie_share(width, GRAIN, own->thread, own->threads, &begin, &end);
    for (int64_t from = begin; from < end; from += CHUNK) {
        int64_t to = from + CHUNK < end ? from + CHUNK : end;
        multiply(own, matrix, x, call->tokens, from, to, sums, CHUNK);
        for (int64_t t = 0; t < call->tokens; t++)
            for (int64_t i = from; i < to; i++) call->residual[t * width + i] += sums[t * CHUNK + i - from];
    }
}

static void gate_and_up(worker *own, const decoder_layer *layer) {
    const decoder_call *call = own->call;
    const coterie_gate act = coterie_gate_of((int)own->fixed->level);
    int64_t inner = own->fixed->inner, begin, end;
    float gate[DECODER_TOKENS * CHUNK], up[DECODER_TOKENS * CHUNK];
    const uint16_t *x = normalised(own, &layer->after, 0, call->tokens);
    coterie_share(inner, GRAIN, own->thread, own->threads, &begin, &end);
    for (int64_t from = begin; from < end; from += CHUNK) {
        int64_t to = from + CHUNK < end ? from + CHUNK : end;
        multiply(own, &layer->gate, x, call->tokens, from, to, gate, CHUNK);
        multiply(own, &layer->up, x, call->tokens, from, to, up, CHUNK);
        for (int64_t t = 0; t < call->tokens; t++)
            act((int)own->fixed->activation, gate + t * CHUNK, up + t * CHUNK, call->hidden + t * inner + from,
                to - from);
    }
}

static void all_layers(void *context, int thread, int threads) {
    const pass *given = context;
    const decoder *fixed = given->fixed;
    const decoder_call *call = given->call;
    worker own;
    int64_t begin, end;
    own.fixed = fixed;
    own.call = call;
    own.thread = thread;
    own.threads = threads;
    for (int64_t i = 0; i < fixed->count; i++) {
        const decoder_layer *layer = &fixed->layers[i];
        attend(&own, layer, i);
        coterie_barrier(threads);
        add_product(&own, &layer->output, call->mixed);
        coterie_barrier(threads);
        gate_and_up(&own, layer);
        coterie_barrier(threads);
        add_product(&own, &layer->down, call->hidden);
        coterie_barrier(threads);
    }
    const uint16_t *x = normalised(&own, &fixed->last, call->tokens - 1, call->tokens);
    coterie_share(call->head->rows, GRAIN, thread, threads, &begin, &end);
    multiply(&own, call->head, x, 1, begin, end, call->logits + begin, call->head->rows);
}

/* One pass, from embeddings to logits. */
COTERIE_API void coterie_dense_decoder(const decoder *fixed, const decoder_call *call) {
    pass given = {fixed, call};
    for (int64_t i = 0; i < call->tokens * fixed->width; i++) call->residual[i] = coterie_from_bf16(call->embeddings[i]);
    coterie_parallel(all_layers, &given, (int)call->threads);
}

/* Bytes of the structures, for their mirrors. */
COTERIE_API int64_t coterie_decoder_bytes(void) {
    return sizeof(decoder);
}

COTERIE_API int64_t coterie_decoder_layer_bytes(void) {
    return sizeof(decoder_layer);
}

COTERIE_API int64_t coterie_decoder_call_bytes(void) {
    return sizeof(decoder_call);
}
