/* Many rows of activations times one quantised matrix. */
#include "gemm.h"

#include "numbers.h"

const coterie_gemm *coterie_gemm_of(int level) {
#if defined(__x86_64__)
    if (level >= COTERIE_AMX) return &coterie_gemm_amx;
    if (level >= COTERIE_AVX512BF16) return &coterie_gemm_avx512bf16;
    if (level >= COTERIE_AVX2) return &coterie_gemm_avx2;
#elif defined(__aarch64__)
    if (level >= COTERIE_NEON) return &coterie_gemm_neon;
#endif
    (void)level;
    return &coterie_gemm_portable;
}

/* Rows from which matrix products are faster than the kernels for few. */
COTERIE_API int64_t coterie_gemm_least_rows(int level) {
    return coterie_gemm_of(level)->least_rows;
}

typedef struct {
    const coterie_gemm *gemm;
    int scheme;
    coterie_matrix matrix;
    const uint16_t *x;
    uint16_t *out;
    int64_t tokens, outputs;
    char *packed, *own;
    int64_t block_bytes, own_bytes;
    coterie_queue queue;
} product;

static void pack_part(const product *call, int64_t start, int64_t task) {
    const int64_t columns = call->matrix.columns, parts = coterie_pack_parts(columns);
    const int64_t block = task / parts, begin = task % parts * COTERIE_PACKED_PART;
    const int64_t end = begin + COTERIE_PACKED_PART < columns ? begin + COTERIE_PACKED_PART : columns;
    const uint16_t *tokens[COTERIE_BLOCK];
    for (int t = 0; t < COTERIE_BLOCK; t++) {
        int64_t token = start + block * COTERIE_BLOCK + t;
        tokens[t] = token < call->tokens ? call->x + token * columns : NULL;
    }
    call->gemm->pack(call->scheme, tokens, begin, end, columns, call->packed + block * call->block_bytes);
}

static void multiply_panel(const product *call, int64_t start, int64_t count, int64_t first, char *own) {
    const int64_t halves[2] = {first, first + COTERIE_HALF}, left = call->outputs - first;
    const int outputs = left < COTERIE_PANEL ? (int)left : COTERIE_PANEL;
    float *products = (float *)own;
    char *panel = own + COTERIE_PRODUCTS_BYTES;
    for (int64_t token = 0; token < count; token += 2 * COTERIE_BLOCK) {
        int64_t some = count - token;
        coterie_panel_product(call->gemm, call->scheme, &call->matrix, halves, call->outputs, panel, call->packed,
                              call->block_bytes, coterie_blocks(count), token / COTERIE_BLOCK, products);
        for (int b = 0; b < 2 && b * COTERIE_BLOCK < some; b++) {
            int64_t present = some - b * COTERIE_BLOCK, row = start + token + b * COTERIE_BLOCK;
            call->gemm->store(products + b * COTERIE_PRODUCTS, present < COTERIE_BLOCK ? (int)present : COTERIE_BLOCK,
                              outputs, call->out + row * call->outputs + first, call->outputs);
        }
    }
}

static void part_of_product(void *context, int thread, int threads) {
    product *call = context;
    char *own = call->own + thread * call->own_bytes;
    int phase = 0;
    if (call->gemm->enter) call->gemm->enter();
    for (int64_t start = 0; start < call->tokens; start += COTERIE_MOST_ROWS) {
        int64_t left = call->tokens - start, count = left < COTERIE_MOST_ROWS ? left : COTERIE_MOST_ROWS;
        int64_t packs = coterie_blocks(count) * coterie_pack_parts(call->matrix.columns);
        int64_t panels = (call->outputs + COTERIE_PANEL - 1) / COTERIE_PANEL, task;
        coterie_begin(&call->queue, ++phase, thread);
        while ((task = coterie_take(&call->queue, phase)) < packs) pack_part(call, start, task);
        coterie_barrier(threads);
        coterie_begin(&call->queue, ++phase, thread);
        while ((task = coterie_take(&call->queue, phase)) < panels)
            multiply_panel(call, start, count, task * COTERIE_PANEL, own);
        coterie_barrier(threads);
    }
    if (call->gemm->leave) call->gemm->leave();
}

static int64_t own_bytes(const coterie_gemm *gemm, int scheme, int64_t columns) {
    return COTERIE_PRODUCTS_BYTES + gemm->panel_bytes(scheme, columns);
}

/* Bytes of scratch for so many threads and tokens. */
COTERIE_API int64_t coterie_gemm_bytes(int scheme, int level, int threads, int64_t tokens, int64_t columns) {
    const coterie_gemm *gemm = coterie_gemm_of(level);
    int64_t blocks = coterie_blocks(tokens < COTERIE_MOST_ROWS ? tokens : COTERIE_MOST_ROWS);
    return blocks * gemm->block_bytes(scheme, columns) + threads * own_bytes(gemm, scheme, columns);
}

/* out [tokens, outputs] = x [tokens, columns] times the matrix, all activations bfloat16; scratch is aligned to 64. */
COTERIE_API void coterie_gemm_matmul(int scheme, int level, int threads, const void *x, const void *codes,
                                     const void *scales, int64_t tokens, int64_t outputs, int64_t columns, void *out,
                                     void *scratch) {
    const coterie_gemm *gemm = coterie_gemm_of(level);
    product call = {.gemm = gemm,
                    .scheme = scheme,
                    .matrix = coterie_matrix_of(scheme, codes, scales, columns),
                    .x = x,
                    .out = out,
                    .tokens = tokens,
                    .outputs = outputs,
                    .own = scratch,
                    .block_bytes = gemm->block_bytes(scheme, columns),
                    .own_bytes = own_bytes(gemm, scheme, columns)};
    call.packed = call.own + threads * call.own_bytes;
    coterie_parallel(part_of_product, &call, threads);
}
