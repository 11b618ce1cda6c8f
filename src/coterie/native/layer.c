/* A decoder layer of a few rows but for those of its experts that a router chooses: all at once, or in two halves, before the cache takes keys and
 * values and after. Every part is the one that is called by itself elsewhere, on values rounded at the same places, so
 * the bits are the same; and they depend neither on threads nor on other rows (layer.h).
 */
#include "layer.h"

#include "elementary.h"
#include "numbers.h"
#include "product.h"

enum { GRAIN = 32, CHUNK = 128, ROUTER_GRAIN = 4, MOST_WIDTH = 16384 };

typedef struct {
    const layer *fixed;
    layer_call *call;
    /* When the last stage ended; of thread 0. */
    double since;
} token_state;

static void lap(token_state *own, int thread, int stage) {
    if (thread || !own->call->times) return;
    double time = coterie_now();
    own->call->times->seconds[stage] += time - own->since;
    own->since = time;
}

static void normalise(const token_state *own, const layer_norm *norm, const uint16_t *values, int64_t rows,
                      int64_t columns, uint16_t *out) {
    coterie_normalisation task = {values,  norm->weight,         out,             rows,
                                  columns, (float)norm->epsilon, (int)norm->form, 1};
    coterie_normalise((int)own->fixed->level, (int)norm->lanes, &task);
}

/* All hidden states, normalised. One row is normalised by every thread for itself, in memory of its own: that takes less
 * time than waiting for one of them. Several are divided among them, and go where the results do. */
static const uint16_t *normalised(const token_state *own, const layer_norm *norm, const uint16_t *values,
                                  uint16_t *alone, int thread, int threads) {
    int64_t begin, end, width = own->fixed->width;
    uint16_t *shared = own->call->results->normed;
    if (own->call->rows == 1) {
        normalise(own, norm, values, 1, width, alone);
        return alone;
    }
    coterie_share(own->call->rows, 1, thread, threads, &begin, &end);
    normalise(own, norm, values + begin * width, end - begin, width, shared + begin * width);
    coterie_barrier(threads);
    return shared;
}

static coterie_product product_of(const token_state *own, const layer_matrix *matrix, const uint16_t *x) {
    return (coterie_product){.scheme = (int)matrix->scheme,
                             .level = (int)own->fixed->level,
                             .matrix = coterie_matrix_of(matrix->scheme, matrix->codes, matrix->scales, matrix->columns),
                             .x = x,
                             .tokens = own->call->rows,
                             .outputs = matrix->rows};
}

/* Outputs [begin, end) of a matrix for all rows; added to a residual, if there is one. */
static void multiply(const token_state *own, coterie_desk *desk, const layer_matrix *matrix, const uint16_t *x,
                     int64_t begin, int64_t end, const uint16_t *residual, uint16_t *out) {
    coterie_product task = product_of(own, matrix, x);
    task.residual = residual;
    task.out = out;
    coterie_multiply(&task, desk, begin, end);
}

/* Where the i-th head of a row's query, key and value goes. */
static uint16_t *head_at(const token_state *own, int64_t row, int64_t i) {
    int64_t heads = own->fixed->heads, kv_heads = own->fixed->kv_heads, width = own->fixed->head_width;
    if (i < heads) return own->call->query + (row * heads + i) * width;
    i -= heads;
    if (i < kv_heads) return own->call->results->key + (row * kv_heads + i) * width;
    return own->call->results->value + (row * kv_heads + i - kv_heads) * width;
}

/* Whole heads fall to a thread, so that none waits for another before it goes on with them. */
static void first_half(void *context, int thread, int threads) {
    token_state *own = context;
    const layer *fixed = own->fixed;
    const layer_call *call = own->call;
    const layer_matrix *matrices[] = {&fixed->query, &fixed->key, &fixed->value};
    uint16_t *outs[] = {call->query, call->results->key, call->results->value}, alone[MOST_WIDTH];
    int64_t begin, end, first = 0, width = fixed->head_width, rotated = fixed->heads + fixed->kv_heads;
    coterie_desk desk;

    const uint16_t *normed = normalised(own, &fixed->before, call->hidden, alone, thread, threads);
    lap(own, thread, STAGE_NORMS);

    desk.of = NULL;
    coterie_share((rotated + fixed->kv_heads) * width, width, thread, threads, &begin, &end);
    for (int m = 0; m < 3; m++) {
        int64_t rows = matrices[m]->rows, from = begin - first, to = end - first;
        multiply(own, &desk, matrices[m], normed, from > 0 ? from : 0, to < rows ? to : rows, NULL, outs[m]);
        first += rows;
    }
    lap(own, thread, STAGE_LINEAR);

    begin /= width;
    end = end / width < rotated ? end / width : rotated;
    for (int64_t row = 0; row < call->rows; row++)
        for (int64_t i = begin; i < end; i++) {
            const layer_norm *norm = i < fixed->heads ? &fixed->of_query : &fixed->of_key;
            normalise(own, norm, head_at(own, row, i), 1, width, head_at(own, row, i));
        }
    lap(own, thread, STAGE_NORMS);
    for (int64_t row = 0; row < call->rows; row++)
        for (int64_t i = begin; i < end; i++)
            coterie_rotate_head((int)fixed->level, head_at(own, row, i), width,
                                call->cosine + row * call->position_stride, call->sine + row * call->position_stride);
}

/* One key head of a row with the query heads that share it, after the row's token has been written to the cache. */
static void attend_head(const token_state *own, int64_t row, int64_t head, float *scores) {
    const layer *fixed = own->fixed;
    const layer_call *call = own->call;
    const layer_room *room = &call->rooms[row];
    const coterie_attention task = {.query = head_at(own, row, 0),
                                    .keys = room->keys,
                                    .values = room->values,
                                    .heads = fixed->heads,
                                    .kv_heads = fixed->kv_heads,
                                    .width = fixed->head_width,
                                    .length = room->length,
                                    .key_stride = room->key_stride,
                                    .value_stride = room->value_stride,
                                    .scale = (float)fixed->scale,
                                    .scores = scores,
                                    .out = call->mixed + row * fixed->heads * fixed->head_width};
    if (call->append) {
        int64_t width = fixed->head_width, last = (room->length - 1) * width, from = fixed->heads + head;
        memcpy(room->keys + head * room->key_stride + last, head_at(own, row, from), 2 * width);
        from += fixed->kv_heads;
        memcpy(room->values + head * room->value_stride + last, head_at(own, row, from), 2 * width);
    }
    coterie_attend((int)fixed->level, &task, head);
}

/* Key heads of rows fall to threads by how many tokens are attended to. */
static void attend(const token_state *own, int thread, int threads) {
    const layer_call *call = own->call;
    int64_t heads = own->fixed->kv_heads, all = 0, before = 0;
    float *scores = call->scores + thread * (own->fixed->heads / heads) * call->longest;
    for (int64_t row = 0; row < call->rows; row++) all += call->rooms[row].length * heads;
    for (int64_t row = 0; row < call->rows; row++)
        for (int64_t head = 0; head < heads; head++) {
            int64_t length = call->rooms[row].length;
            /* Where its middle falls. */
            if ((2 * before + length) * threads / (2 * all) == thread) attend_head(own, row, head, scores);
            before += length;
        }
}

static coterie_routing routing_of(const token_state *own, const uint16_t *normed) {
    const layer *fixed = own->fixed;
    const layer_call *call = own->call;
    return (coterie_routing){.tokens = normed,
                             .weight = fixed->router,
                             .count = call->rows,
                             .width = fixed->width,
                             .experts = fixed->experts,
                             .top_k = fixed->top_k,
                             .normalise = (int)fixed->normalise,
                             .logits = call->logits,
                             .weights = call->results->weights,
                             .ids = call->results->ids};
}

/* Gate and up of the block that all tokens go through, a share of its inner width. */
static void gate_and_up(const token_state *own, coterie_desk *desk, const uint16_t *normed, int thread, int threads) {
    const layer *fixed = own->fixed;
    const layer_call *call = own->call;
    const coterie_gate act = coterie_gate_of((int)fixed->level);
    float gate[COTERIE_ROWS * CHUNK], up[COTERIE_ROWS * CHUNK];
    int64_t begin, end;
    desk->of = NULL;
    coterie_share(fixed->inner, GRAIN, thread, threads, &begin, &end);
    for (int64_t from = begin; from < end; from += CHUNK) {
        int64_t to = from + CHUNK < end ? from + CHUNK : end;
        const coterie_product of_gate = product_of(own, &fixed->gate, normed), of_up = product_of(own, &fixed->up, normed);
        coterie_products(&of_gate, desk, from, to, gate, CHUNK);
        coterie_products(&of_up, desk, from, to, up, CHUNK);
        for (int64_t row = 0; row < call->rows; row++)
            act((int)fixed->activation, gate + row * CHUNK, up + row * CHUNK, call->between + row * fixed->inner + from,
                to - from);
    }
}

/* How much of that block a row takes. */
static float share_of(const token_state *own, const uint16_t *normed) {
    uint16_t logit;
    if (!own->fixed->share) return 1;
    const coterie_routing task = {.tokens = normed,
                                  .weight = own->fixed->share,
                                  .count = 1,
                                  .width = own->fixed->width,
                                  .experts = 1,
                                  .logits = &logit};
    coterie_route_logits((int)own->fixed->level, &task, 0, 1);
    return 1 / (1 + coterie_exponential(-coterie_from_bf16(logit)));
}

/* Adds what the block gives to the residuals, a share of the width. */
static void add_down(const token_state *own, coterie_desk *desk, const uint16_t *normed, int thread, int threads) {
    const layer *fixed = own->fixed;
    const layer_call *call = own->call;
    const coterie_product task = product_of(own, &fixed->down, call->between);
    float sums[COTERIE_ROWS * CHUNK], shares[COTERIE_ROWS];
    int64_t begin, end, width = fixed->width;
    for (int64_t row = 0; row < call->rows; row++) shares[row] = share_of(own, normed + row * width);
    desk->of = NULL;
    coterie_share(width, GRAIN, thread, threads, &begin, &end);
    for (int64_t from = begin; from < end; from += CHUNK) {
        int64_t to = from + CHUNK < end ? from + CHUNK : end;
        coterie_products(&task, desk, from, to, sums, CHUNK);
        for (int64_t row = 0; row < call->rows; row++) {
            uint16_t *residual = call->results->residual + row * width;
            for (int64_t i = from; i < to; i++)
                residual[i] =
                    coterie_to_bf16(coterie_from_bf16(residual[i]) + shares[row] * sums[row * CHUNK + i - from]);
        }
    }
}

static void second_half(void *context, int thread, int threads) {
    token_state *own = context;
    const layer *fixed = own->fixed;
    const layer_call *call = own->call;
    uint16_t alone[MOST_WIDTH];
    int64_t begin, end;
    coterie_desk desk;

    attend(own, thread, threads);
    coterie_barrier(threads);
    lap(own, thread, STAGE_ATTENTION);

    desk.of = NULL;
    coterie_share(fixed->width, GRAIN, thread, threads, &begin, &end);
    multiply(own, &desk, &fixed->output, call->mixed, begin, end, call->hidden, call->results->residual);
    coterie_barrier(threads);
    lap(own, thread, STAGE_LINEAR);

    const uint16_t *normed = normalised(own, &fixed->after, call->results->residual,
                                        thread ? alone : call->results->normed, thread, threads);
    lap(own, thread, STAGE_NORMS);
    if (!fixed->router && !fixed->inner) return;

    const coterie_routing routing = routing_of(own, normed);
    if (fixed->router) {
        coterie_share(fixed->experts, ROUTER_GRAIN, thread, threads, &begin, &end);
        coterie_route_logits((int)fixed->level, &routing, begin, end);
    }
    if (fixed->inner) {
        lap(own, thread, STAGE_ROUTER);
        gate_and_up(own, &desk, normed, thread, threads);
    }
    coterie_barrier(threads);
    if (fixed->inner) {
        add_down(own, &desk, normed, thread, threads);
        lap(own, thread, STAGE_LINEAR);
    }
    if (!fixed->router) return;
    coterie_share(call->rows, 1, thread, threads, &begin, &end);
    coterie_route_choice((int)fixed->level, &routing, begin, end);
}

static void whole(void *context, int thread, int threads) {
    first_half(context, thread, threads);
    coterie_barrier(threads);
    lap(context, thread, STAGE_ATTENTION);
    second_half(context, thread, threads);
}

static void run(coterie_body body, const layer *fixed, layer_call *call, int last_stage) {
    token_state own = {fixed, call, call->times ? coterie_now() : 0};
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
