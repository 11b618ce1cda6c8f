/* Many rows of activations times quantised matrices.
 *
 * Tokens come in blocks of 16, outputs in panels of twice 16 rows. A block is packed once: for each step along the
 * columns, 16 tokens side by side. A panel is decoded once and multiplied with all blocks. Products are transposed,
 * [32 rows][16 tokens], so that a token is a lane from the first multiplication to the last addition.
 */
#ifndef COTERIE_GEMM_H
#define COTERIE_GEMM_H

#include "coterie.h"

enum { COTERIE_BLOCK = 16, COTERIE_HALF = 16, COTERIE_PANEL = 2 * COTERIE_HALF };

/* Floats of the products of one block and one panel, [COTERIE_PANEL][COTERIE_BLOCK]. */
#define COTERIE_PRODUCTS (COTERIE_PANEL * COTERIE_BLOCK)

typedef struct {
    /* From so many rows on this is faster than the kernels for few, as measured. */
    int64_t least_rows;
    /* Bytes of a packed block, and of a decoded panel, multiples of 64. */
    int64_t (*block_bytes)(int scheme, int64_t columns);
    int64_t (*panel_bytes)(int scheme, int64_t columns);
    /* Packs columns [begin, end), multiples of 128 but for the end of the row, of 16 tokens; of which NULL are zeros.
     * `columns` of the matrix that they will meet. */
    void (*pack)(int scheme, const uint16_t *const *tokens, int64_t begin, int64_t end, int64_t columns, void *block);
    /* Decodes two halves of a panel, from these rows on; rows from `limit` on are never used. */
    void (*decode)(int scheme, const coterie_matrix *matrix, const int64_t *halves, int64_t limit, void *panel);
    /* products = panel times one or two blocks, which lie behind each other. */
    void (*multiply)(int scheme, int64_t columns, const void *panel, const void *blocks, int count, float *products);
    /* Both at once, for one or two blocks and none after them; the panel is scratch. NULL if that gains nothing. */
    void (*product)(int scheme, const coterie_matrix *matrix, const int64_t *halves, int64_t limit, void *panel,
                    const void *blocks, int count, float *products);
    /* act(upper half) times lower half: 16 columns of a block for the next matrix, which has `columns`. */
    void (*activate)(int activation, const float *products, int scheme, int64_t column, int64_t columns, void *block);
    /* Products as rows of bfloat16: `outputs` of them for each of `count` tokens. */
    void (*store)(const float *products, int count, int outputs, uint16_t *out, int64_t stride);
    /* Products times a factor of the token as rows of float32. */
    void (*scale)(const float *products, const float *factors, int count, int outputs, float *out, int64_t stride);
    /* Around a thread's work; may be NULL. */
    void (*enter)(void);
    void (*leave)(void);
} coterie_gemm;

const coterie_gemm *coterie_gemm_of(int level);

extern const coterie_gemm coterie_gemm_portable;
#if defined(__x86_64__)
extern const coterie_gemm coterie_gemm_avx2;
extern const coterie_gemm coterie_gemm_avx512bf16;
extern const coterie_gemm coterie_gemm_amx;
#elif defined(__aarch64__)
extern const coterie_gemm coterie_gemm_neon;
#endif

/* Rows that are packed at a time, at most; columns that are packed as one task, a multiple of 128. */
enum { COTERIE_MOST_ROWS = 512, COTERIE_PACKED_PART = 512 };

/* Bytes of the products of two blocks. */
#define COTERIE_PRODUCTS_BYTES (2 * COTERIE_PRODUCTS * 4)

COTERIE_INLINE int64_t coterie_blocks(int64_t rows) {
    return (rows + COTERIE_BLOCK - 1) / COTERIE_BLOCK;
}

COTERIE_INLINE int64_t coterie_pack_parts(int64_t columns) {
    return (columns + COTERIE_PACKED_PART - 1) / COTERIE_PACKED_PART;
}

/* Products of a panel with the one or two blocks of `count` from `block` on, which is even; the panel is decoded with
 * the first ones. */
COTERIE_INLINE void coterie_panel_product(const coterie_gemm *gemm, int scheme, const coterie_matrix *matrix,
                                          const int64_t *halves, int64_t limit, void *panel, const char *packed,
                                          int64_t block_bytes, int64_t count, int64_t block, float *products) {
    const char *blocks = packed + block * block_bytes;
    const int together = count - block > 1 ? 2 : 1;
    if (gemm->product && count <= 2) {
        gemm->product(scheme, matrix, halves, limit, panel, blocks, together, products);
        return;
    }
    if (block == 0) gemm->decode(scheme, matrix, halves, limit, panel);
    gemm->multiply(scheme, matrix->columns, panel, blocks, together, products);
}

/* Tasks that threads take as they come, phase after phase with a barrier between them. Zeros to begin with; phases are
 * numbered from 1, or from anything else: what a phase counts with is reset in the one before it, when the one before
 * that is over. */
typedef struct {
    int64_t next[3];
} coterie_queue;

COTERIE_INLINE void coterie_begin(coterie_queue *queue, int phase, int thread) {
    if (thread == 0) __atomic_store_n(&queue->next[(phase + 1) % 3], 0, __ATOMIC_RELAXED);
}

COTERIE_INLINE int64_t coterie_take(coterie_queue *queue, int phase) {
    return __atomic_fetch_add(&queue->next[phase % 3], 1, __ATOMIC_RELAXED);
}

#endif
