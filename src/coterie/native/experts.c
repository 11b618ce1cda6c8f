/* The experts of a layer, as many as there are in memory: gate and up, then down, in one parallel region.
 *
 * Those with many tokens are left to gemm_experts.c. Every thread has the same share of the rows of every other expert, so all have the same to do, whatever the tokens. A
 * thread has the same columns of the output each time, so it can add up what it has computed without waiting.
 */
#include <math.h>

#include "bfloat16.h"
#include "experts.h"

enum { CHUNK = 128, GRAIN = 32, LANES = 8 };

typedef struct {
    const experts_call *call;
    /* Of the matrix at hand, and how many of a token's values share a scale there. */
    const coterie_kernel *kernel;
    int64_t group;
    coterie_gate gate;
    /* The call's tokens prepared once for all experts whose kernels read them alike, if there is room for them. */
    int shared;
    int block;
    char *buffer;
    const void *prepared[COTERIE_ROWS];
} worker;

static void prepare_token(const worker *own, int64_t token, int at) {
    const experts_call *call = own->call;
    own->kernel->prepare(call->x + token * call->width, call->width, own->group,
                         own->buffer + at * own->kernel->prepared_bytes(call->width));
}

/* Rows [begin, end) of gate and of up for some rows of one expert. */
static void gate_and_up(worker *own, const coterie_matrix *matrix, int64_t first, int count, int64_t begin,
                        int64_t end) {
    const experts_call *call = own->call;
    const int64_t bytes = own->kernel->prepared_bytes(call->width);
    float gate[COTERIE_ROWS * CHUNK], up[COTERIE_ROWS * CHUNK];
    for (int r = 0; r < count; r++) {
        int64_t token = call->row_token[first + r];
        if (!own->shared) prepare_token(own, token, r);
        own->prepared[r] = own->buffer + (own->shared ? token : r) * bytes;
    }
    for (int64_t from = begin; from < end; from += CHUNK) {
        int64_t to = from + CHUNK < end ? from + CHUNK : end, inner = call->inner;
        coterie_rows(own->kernel, matrix, from, to, own->prepared, count, gate, CHUNK);
        coterie_rows(own->kernel, matrix, inner + from, inner + to, own->prepared, count, up, CHUNK);
        for (int r = 0; r < count; r++)
            own->gate((int)call->activation, gate + r * CHUNK, up + r * CHUNK,
                      call->hidden + (first + r) * inner + from, to - from);
    }
}

/* Rows [begin, end) of down for some rows of one expert, times the gate weights. */
static void down(worker *own, const coterie_matrix *matrix, int64_t first, int count, int64_t begin, int64_t end) {
    const experts_call *call = own->call;
    const int64_t bytes = own->kernel->prepared_bytes(call->inner);
    for (int r = 0; r < count; r++) {
        own->prepared[r] = own->buffer + r * bytes;
        own->kernel->prepare(call->hidden + (first + r) * call->inner, call->inner, matrix->group,
                             own->buffer + r * bytes);
    }
    float *out = call->rows + first * call->width + begin;
    for (int64_t from = begin; from < end; from += CHUNK) {
        int64_t to = from + CHUNK < end ? from + CHUNK : end;
        coterie_rows(own->kernel, matrix, from, to, own->prepared, count, out + from - begin, call->width);
    }
    for (int r = 0; r < count; r++)
        for (int64_t i = 0; i < end - begin; i++) out[r * call->width + i] *= call->row_weight[first + r];
}

/* Columns [begin, end) of the sums, in ascending order of experts, rounded once. */
static void combine(const experts_call *call, int64_t begin, int64_t end) {
    float sums[CHUNK];
    for (int64_t token = 0; token < call->tokens; token++) {
        const int32_t *rows = call->token_rows + token * call->choices;
        for (int64_t from = begin; from < end; from += CHUNK) {
            int64_t size = end - from < CHUNK ? end - from : CHUNK;
            for (int64_t i = 0; i < size; i++) sums[i] = 0;
            for (int64_t k = 0; k < call->choices && rows[k] >= 0; k++)
                for (int64_t i = 0; i < size; i++) sums[i] += call->rows[rows[k] * call->width + from + i];
            for (int64_t i = 0; i < size; i++)
                call->out[token * call->width + from + i] = coterie_to_bf16(sums[i]);
        }
    }
}

/* Each row is summed up in one order, whatever the number of threads. */
static float norm(const float *values, int64_t count) {
    double sums[LANES] = {0}, total = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int lane = 0; lane < LANES; lane++) sums[lane] += (double)values[i + lane] * values[i + lane];
    for (; i < count; i++) total += (double)values[i] * values[i];
    for (int lane = 0; lane < LANES; lane++) total += sums[lane];
    return (float)sqrt(total);
}

/* Norms of a thread's share of the rows, put where their choices are. */
static void measure(const experts_call *call, int thread, int threads) {
    int64_t begin, end, at = 0;
    coterie_share(call->offsets[call->used], 1, thread, threads, &begin, &end);
    for (int64_t row = begin; row < end; row++) {
        while (call->offsets[at + 1] <= row) at++;
        /* Where a token names an expert more than once, its rows follow each other, in the order of its choices. */
        int64_t token = call->row_token[row], again = 0, choice = 0;
        while (row - again > call->offsets[at] && call->row_token[row - again - 1] == token) again++;
        const int64_t *ids = call->ids + token * call->choices;
        while (ids[choice] != call->experts[at] || again-- > 0) choice++;
        call->norms[token * call->choices + choice] = norm(call->rows + row * call->width, call->width);
    }
}

/* Rows [begin, end) of gate and up of all experts of the call in one scheme that have few tokens. */
static void all_gate_and_up(worker *own, int scheme, int64_t begin, int64_t end) {
    const experts_call *call = own->call;
    const coterie_kernel *before = own->kernel;
    const int64_t group_before = own->group;
    int ready = 0;
    for (int64_t e = 0; e < call->count; e++) {
        const int64_t *entry = call->table + e * TABLE_WIDTH;
        if (scheme_at(entry + TABLE_GATE_UP) != scheme) continue;
        const coterie_matrix matrix = matrix_at(entry + TABLE_GATE_UP, call->width);
        if (!ready) {
            own->group = matrix.group;
            own->kernel = coterie_kernel_of(scheme, (int)call->level);
            own->block = coterie_tokens_that_fit(own->kernel, call->width);
            own->shared = call->tokens <= own->block;
            if (own->shared && !(before && before->prepare == own->kernel->prepare && group_before == own->group))
                for (int64_t token = 0; token < call->tokens; token++) prepare_token(own, token, (int)token);
            ready = 1;
        }
        int64_t at = position_of(call, entry[TABLE_ID]), last = call->offsets[at + 1];
        if (last - call->offsets[at] >= call->many) continue;
        for (int64_t first = call->offsets[at]; first < last; first += own->block)
            gate_and_up(own, &matrix, first, last - first < own->block ? (int)(last - first) : own->block, begin, end);
    }
}

/* Whether an expert is the first of the call with gate and up in its scheme. */
static int is_first(const experts_call *call, int64_t e) {
    const int64_t *schemes = call->table + TABLE_GATE_UP;
    int64_t before = 0;
    while (schemes[before * TABLE_WIDTH] != schemes[e * TABLE_WIDTH]) before++;
    return before == e;
}

static void part_of_experts(void *context, int thread, int threads) {
    const experts_call *call = context;
    _Alignas(64) char buffer[COTERIE_PREPARED_BYTES];
    worker own = {.call = call, .gate = coterie_gate_of((int)call->level), .buffer = buffer};
    int64_t begin, end;

    coterie_share(call->inner, GRAIN, thread, threads, &begin, &end);
    if (begin < end)
        for (int packing = 0; packing < COTERIE_SCHEMES; packing++)
            for (int64_t e = 0; e < call->count; e++) {
                int scheme = scheme_at(call->table + e * TABLE_WIDTH + TABLE_GATE_UP);
                if (coterie_packing(scheme) == packing && is_first(call, e)) all_gate_and_up(&own, scheme, begin, end);
            }
    coterie_barrier(threads);

    coterie_share(call->width, GRAIN, thread, threads, &begin, &end);
    for (int64_t e = 0; e < call->count && begin < end; e++) {
        const int64_t *entry = call->table + e * TABLE_WIDTH;
        const coterie_matrix matrix = matrix_at(entry + TABLE_DOWN, call->inner);
        int64_t at = position_of(call, entry[TABLE_ID]), last = call->offsets[at + 1];
        if (last - call->offsets[at] >= call->many) continue;
        own.kernel = coterie_kernel_of(scheme_at(entry + TABLE_DOWN), (int)call->level);
        own.block = coterie_tokens_that_fit(own.kernel, call->inner);
        for (int64_t first = call->offsets[at]; first < last; first += own.block)
            down(&own, &matrix, first, last - first < own.block ? (int)(last - first) : own.block, begin, end);
    }
    if (call->out) combine(call, begin, end);
    if (call->out && call->norms) {
        coterie_barrier(threads);
        measure(call, thread, threads);
    }
}

/* Computes the rows of the call's experts, and the sums if it is the last call.
 *
 * Returns 0; or 1 plus the place in the table of an expert that was not chosen or has been computed before; or minus the
 * number of experts that are missing in the last call. Unless it returns 0, nothing was computed. */
COTERIE_API int64_t coterie_experts(experts_call *call) {
    int64_t e = 0;
    for (; e < call->count; e++) {
        int64_t at = position_of(call, call->table[e * TABLE_WIDTH + TABLE_ID]);
        if (at < 0 || call->done[at]) break;
        call->done[at] = 1;
    }
    int64_t missing = call->used - call->computed - call->count;
    if (e < call->count || (call->out && missing > 0)) {
        for (int64_t marked = 0; marked < e; marked++)
            call->done[position_of(call, call->table[marked * TABLE_WIDTH + TABLE_ID])] = 0;
        return e < call->count ? e + 1 : -missing;
    }
    call->computed += call->count;
    call->many = call->scratch ? coterie_gemm_of((int)call->level)->least_rows : INT64_MAX;
    int64_t many = coterie_many_experts(call);
    if (many < call->count || call->out) coterie_parallel(part_of_experts, call, (int)call->threads);
    return 0;
}

/* Bytes of the structure, for its mirror. */
COTERIE_API int64_t coterie_experts_call_bytes(void) {
    return sizeof(experts_call);
}
