/* Few rows of activations times a quantised matrix. */
#include "bfloat16.h"
#include "coterie.h"

enum { CHUNK = 128, GRAIN = 32 };

typedef struct {
    const coterie_kernel *kernel;
    coterie_matrix matrix;
    const uint16_t *x;
    uint16_t *out;
    int64_t tokens, outputs;
} product;

/* As many tokens at a time as fit the buffer. */
static int block_of(const coterie_kernel *kernel, int64_t columns) {
    int64_t fit = COTERIE_PREPARED_BYTES / kernel->prepared_bytes(columns);
    return fit < COTERIE_TOKENS ? (int)fit : COTERIE_TOKENS;
}

static void part_of_product(void *context, int thread, int threads) {
    const product *call = context;
    const coterie_kernel *kernel = call->kernel;
    const int64_t columns = call->matrix.columns, group = call->matrix.group, outputs = call->outputs;
    const int64_t bytes = kernel->prepared_bytes(columns);
    const int block = block_of(kernel, columns);
    _Alignas(64) char buffer[COTERIE_PREPARED_BYTES];
    float sums[COTERIE_TOKENS * CHUNK];
    const void *prepared[COTERIE_TOKENS];
    int64_t begin, end;
    coterie_share(outputs, GRAIN, thread, threads, &begin, &end);
    for (int t = 0; t < block; t++) prepared[t] = buffer + t * bytes;
    int64_t ready = -1;
    for (int64_t from = begin; from < end; from += CHUNK) {
        int64_t to = from + CHUNK < end ? from + CHUNK : end;
        /* Weights come from memory once: all tokens meet a chunk of them while it is in the cache. */
        for (int64_t first = 0; first < call->tokens; first += block) {
            int count = call->tokens - first < block ? (int)(call->tokens - first) : block;
            if (first != ready)
                for (int t = 0; t < count; t++)
                    kernel->prepare(call->x + (first + t) * columns, columns, group, buffer + t * bytes);
            ready = first;
            kernel->rows(&call->matrix, from, to, prepared, count, sums, CHUNK);
            for (int t = 0; t < count; t++)
                for (int64_t n = from; n < to; n++)
                    call->out[(first + t) * outputs + n] = coterie_to_bf16(sums[t * CHUNK + n - from]);
        }
    }
}

/* The most columns that a level can serve. */
COTERIE_API int64_t coterie_most_columns(int scheme, int level) {
    const coterie_kernel *kernel = coterie_kernel_of(scheme, level);
    int64_t columns = 64;
    while (kernel->prepared_bytes(columns + 64) <= COTERIE_PREPARED_BYTES) columns += 64;
    return columns;
}

/* out [tokens, outputs] = x [tokens, columns] times the matrix, all activations bfloat16. */
COTERIE_API void coterie_matmul(int scheme, int level, int threads, const void *x, const void *codes,
                                const void *scales, int64_t tokens, int64_t outputs, int64_t columns, int64_t group,
                                void *out) {
    product call = {.kernel = coterie_kernel_of(scheme, level),
                    .matrix = {codes, scales, columns, group},
                    .x = x,
                    .out = out,
                    .tokens = tokens,
                    .outputs = outputs};
    coterie_parallel(part_of_product, &call, threads);
}
