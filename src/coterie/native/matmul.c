/* Few rows of activations times a quantised matrix. */
#include "bfloat16.h"
#include "numbers.h"
#include "product.h"

enum { CHUNK = 128, GRAIN = 32 };

static void prepare(const coterie_product *task, coterie_desk *desk, const coterie_kernel *kernel, const uint16_t *x,
                    int count) {
    const int64_t columns = task->matrix.columns, bytes = kernel->prepared_bytes(columns);
    if (desk->of == x && desk->scheme == task->scheme) return;
    for (int t = 0; t < count; t++) {
        desk->tokens[t] = desk->memory + t * bytes;
        kernel->prepare(x + t * columns, columns, task->matrix.group, desk->memory + t * bytes);
    }
    desk->of = x;
    desk->scheme = task->scheme;
}

static void write(const coterie_product *task, const float *sums, int64_t token, int64_t begin, int64_t end) {
    uint16_t *out = task->out + token * task->outputs;
    for (int64_t n = begin; n < end; n++) out[n] = coterie_to_bf16(sums[n - begin]);
    if (!task->residual) return;
    const uint16_t *residual = task->residual + token * task->outputs;
    for (int64_t n = begin; n < end; n++)
        out[n] = coterie_to_bf16(coterie_from_bf16(residual[n]) + coterie_from_bf16(out[n]));
}

void coterie_multiply(const coterie_product *task, coterie_desk *desk, int64_t begin, int64_t end) {
    const coterie_kernel *kernel = coterie_kernel_of(task->scheme, task->level);
    const int block = coterie_tokens_that_fit(kernel, task->matrix.columns);
    float sums[COTERIE_ROWS * CHUNK];
    for (int64_t from = begin; from < end; from += CHUNK) {
        int64_t to = from + CHUNK < end ? from + CHUNK : end;
        /* All tokens meet a chunk of the weights while it is in the cache. */
        for (int64_t first = 0; first < task->tokens; first += block) {
            int count = task->tokens - first < block ? (int)(task->tokens - first) : block;
            prepare(task, desk, kernel, task->x + first * task->matrix.columns, count);
            coterie_rows(kernel, &task->matrix, from, to, desk->tokens, count, sums, CHUNK);
            for (int t = 0; t < count; t++) write(task, sums + t * CHUNK, first + t, from, to);
        }
    }
}

void coterie_products(const coterie_product *task, coterie_desk *desk, int64_t begin, int64_t end, float *out,
                      int64_t stride) {
    const coterie_kernel *kernel = coterie_kernel_of(task->scheme, task->level);
    const int block = coterie_tokens_that_fit(kernel, task->matrix.columns);
    for (int64_t first = 0; first < task->tokens && begin < end; first += block) {
        int count = task->tokens - first < block ? (int)(task->tokens - first) : block;
        prepare(task, desk, kernel, task->x + first * task->matrix.columns, count);
        coterie_rows(kernel, &task->matrix, begin, end, desk->tokens, count, out + first * stride, stride);
    }
}

static void part_of_product(void *context, int thread, int threads) {
    const coterie_product *task = context;
    coterie_desk desk;
    int64_t begin, end;
    desk.of = NULL;
    coterie_share(task->outputs, GRAIN, thread, threads, &begin, &end);
    coterie_multiply(task, &desk, begin, end);
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
                                const void *scales, int64_t tokens, int64_t outputs, int64_t columns, void *out) {
    coterie_product task = {.scheme = scheme,
                            .level = level,
                            .matrix = coterie_matrix_of(scheme, codes, scales, columns),
                            .x = x,
                            .out = out,
                            .tokens = tokens,
                            .outputs = outputs};
    coterie_parallel(part_of_product, &task, threads);
}
