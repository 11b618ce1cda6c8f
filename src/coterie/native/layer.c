/* A decoder layer of one token but for its experts: all at once, or in two halves, before the cache takes key and value
 * and after. Every part is the one that is called by itself elsewhere, on values rounded at the same places, so the bits are
 * the same; and they do not depend on threads.
 */
#include "layer.h"

enum { CHUNK = 128, GRAIN = 32, ROUTER_GRAIN = 4, MOST_WIDTH = 16384 };

typedef struct {
    const layer *fixed;
    layer_call *call;
    /* When the last stage ended; of thread 0. */
    double since;
} passage;

/* What a thread needs for products. */
typedef struct {
    _Alignas(64) char prepared[COTERIE_PREPARED_BYTES];
    int64_t scheme;
} desk;

static void lap(passage *own, int thread, int stage) {
    if (thread || !own->call->times) return;
    double time = coterie_now();
    own->call->times->seconds[stage] += time - own->since;
    own->since = time;
}

static void normalise(const passage *own, const layer_norm *norm, const uint16_t *values, int64_t columns,
                      uint16_t *out) {
    coterie_normalisation task = {values, norm->weight, out, 1, columns, (float)norm->epsilon, (int)norm->form, 1};
    coterie_normalise((int)own->fixed->level, (int)norm->lanes, &task);
}

/* out[row] = matrix row · x for rows [begin, end); added to a residual, if there is one. */
static void product(const passage *own, desk *at, const layer_matrix *matrix, const uint16_t *x, int64_t begin,
                    int64_t end, const uint16_t *residual, uint16_t *out) {
    const coterie_kernel *kernel = coterie_kernel_of((int)matrix->scheme, (int)own->fixed->level);
    const coterie_matrix view = {matrix->codes, matrix->scales, matrix->columns, matrix->group};
    const void *prepared = at->prepared;
    float sums[CHUNK];
    if (begin < end && at->scheme != matrix->scheme) {
        kernel->prepare(x, matrix->columns, matrix->group, at->prepared);
        at->scheme = matrix->scheme;
    }
    for (int64_t from = begin; from < end; from += CHUNK) {
        int64_t to = from + CHUNK < end ? from + CHUNK : end;
        kernel->rows(&view, from, to, &prepared, 1, sums, CHUNK);
        for (int64_t n = from; n < to; n++) out[n] = coterie_to_bf16(sums[n - from]);
        if (residual)
            for (int64_t n = from; n < to; n++)
                out[n] = coterie_to_bf16(coterie_from_bf16(residual[n]) + coterie_from_bf16(out[n]));
    }
}

/* Where the i-th head of query, key and value goes. */
static uint16_t *head_at(const passage *own, int64_t i) {
    int64_t heads = own->fixed->heads, kv_heads = own->fixed->kv_heads, width = own->fixed->head_width;
    if (i < heads) return own->call->query + i * width;
    i -= heads;
    return i < kv_heads ? own->call->results->key + i * width : own->call->results->value + (i - kv_heads) * width;
}

/* Whole heads fall to a thread, so that none waits for another before it goes on with them. */
static void first_half(void *context, int thread, int threads) {
    passage *own = context;
    const layer *fixed = own->fixed;
    const layer_call *call = own->call;
    const layer_matrix *matrices[] = {&fixed->query, &fixed->key, &fixed->value};
    uint16_t *outs[] = {call->query, call->results->key, call->results->value}, normed[MOST_WIDTH];
    int64_t begin, end, first = 0, width = fixed->head_width, rotated = fixed->heads + fixed->kv_heads;
    desk at;

    /* By every thread for itself: that takes less time than waiting for one of them. */
    normalise(own, &fixed->before, call->hidden, fixed->width, normed);
    lap(own, thread, STAGE_NORMS);

    at.scheme = -1;
    coterie_share((rotated + fixed->kv_heads) * width, width, thread, threads, &begin, &end);
    for (int m = 0; m < 3; m++) {
        int64_t rows = matrices[m]->rows, from = begin - first, to = end - first;
        product(own, &at, matrices[m], normed, from > 0 ? from : 0, to < rows ? to : rows, NULL, outs[m]);
        first += rows;
    }
    lap(own, thread, STAGE_LINEAR);

    begin /= width;
    end = end / width < rotated ? end / width : rotated;
    for (int64_t i = begin; i < end; i++)
        normalise(own, i < fixed->heads ? &fixed->of_query : &fixed->of_key, head_at(own, i), width, head_at(own, i));
    lap(own, thread, STAGE_NORMS);
    for (int64_t i = begin; i < end; i++)
        coterie_rotate_head((int)fixed->level, head_at(own, i), width, call->cosine, call->sine);
}

static void attend(const passage *own, int thread, int threads) {
    const layer *fixed = own->fixed;
    const layer_call *call = own->call;
    const coterie_attention task = {.query = call->query,
                                    .keys = call->keys,
                                    .values = call->values,
                                    .heads = fixed->heads,
                                    .kv_heads = fixed->kv_heads,
                                    .width = fixed->head_width,
                                    .length = call->length,
                                    .key_stride = call->key_stride,
                                    .value_stride = call->value_stride,
                                    .scale = (float)fixed->scale,
                                    .scores = call->scores,
                                    .out = call->mixed};
    int64_t begin, end;
    coterie_share(fixed->kv_heads, 1, thread, threads, &begin, &end);
    for (int64_t head = begin; head < end; head++) {
        int64_t width = fixed->head_width, last = (call->length - 1) * width;
        if (call->append) {
            memcpy(call->keys + head * call->key_stride + last, call->results->key + head * width, 2 * width);
            memcpy(call->values + head * call->value_stride + last, call->results->value + head * width, 2 * width);
        }
        coterie_attend((int)fixed->level, &task, head);
    }
}

static void second_half(void *context, int thread, int threads) {
    passage *own = context;
    const layer *fixed = own->fixed;
    const layer_call *call = own->call;
    uint16_t normed[MOST_WIDTH];
    int64_t begin, end;
    desk at;

    attend(own, thread, threads);
    coterie_barrier(threads);
    lap(own, thread, STAGE_ATTENTION);

    at.scheme = -1;
    coterie_share(fixed->width, GRAIN, thread, threads, &begin, &end);
    product(own, &at, &fixed->output, call->mixed, begin, end, call->hidden, call->results->residual);
    coterie_barrier(threads);
    lap(own, thread, STAGE_LINEAR);

    uint16_t *whole = thread ? normed : call->results->normed;
    if (thread == 0 || fixed->router) normalise(own, &fixed->after, call->results->residual, fixed->width, whole);
    lap(own, thread, STAGE_NORMS);
    if (!fixed->router) return;

    const coterie_routing routing = {.token = whole,
                                     .weight = fixed->router,
                                     .width = fixed->width,
                                     .experts = fixed->experts,
                                     .top_k = fixed->top_k,
                                     .normalise = (int)fixed->normalise,
                                     .logits = call->logits,
                                     .weights = call->results->weights,
                                     .ids = call->results->ids};
    coterie_share(fixed->experts, ROUTER_GRAIN, thread, threads, &begin, &end);
    coterie_route_logits((int)fixed->level, &routing, begin, end);
    coterie_barrier(threads);
    if (thread == 0) coterie_route_choice((int)fixed->level, &routing);
}

static void whole(void *context, int thread, int threads) {
    first_half(context, thread, threads);
    coterie_barrier(threads);
    lap(context, thread, STAGE_ATTENTION);
    second_half(context, thread, threads);
}

static void run(coterie_body body, const layer *fixed, layer_call *call, int last_stage) {
    passage own = {fixed, call, call->times ? coterie_now() : 0};
    coterie_parallel(body, &own, (int)call->threads);
    lap(&own, 0, last_stage);
}

static void run_to_the_end(coterie_body body, const layer *fixed, layer_call *call) {
    run(body, fixed, call, fixed->router ? STAGE_ROUTER : STAGE_NORMS);
    if (call->times) call->times->passes++;
}

/* Both halves: key and value are written to the cache here. */
COTERIE_API void coterie_layer(const layer *fixed, layer_call *call) {
    run_to_the_end(whole, fixed, call);
}

/* From the hidden state to query, key and value, normalised and rotated. */
COTERIE_API void coterie_layer_begin(const layer *fixed, layer_call *call) {
    run(first_half, fixed, call, STAGE_ATTENTION);
}

/* From the cache, which has this token now, to what the experts get, and which of them. */
COTERIE_API void coterie_layer_finish(const layer *fixed, layer_call *call) {
    run_to_the_end(second_half, fixed, call);
}

/* Bytes of the structures, for their mirrors. */
COTERIE_API int64_t coterie_layer_bytes(void) {
    return sizeof(layer);
}

COTERIE_API int64_t coterie_layer_call_bytes(void) {
    return sizeof(layer_call);
}

COTERIE_API int64_t coterie_layer_results_bytes(void) {
    return sizeof(layer_results);
}

COTERIE_API int64_t coterie_layer_times_bytes(void) {
    return sizeof(layer_times);
}
