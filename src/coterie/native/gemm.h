/* Many rows of activations times quantised matrices.
 *
 * Tokens come in blocks of 16, outputs in panels of twice 16 rows. A block is packed once: for each step along the
 * columns, 16 tokens side by side. A panel is decoded once and multiplied with all blocks. Products are transposed,
 * [32 rows][16 tokens], so that a token is a lane from the first multiplication to the last addition.
 */
#ifndef COTERIE_GEMM_H
#define COTERIE_GEMM_H

#include "activation.h"
#include "coterie.h"

enum { COTERIE_BLOCK = 16, COTERIE_HALF = 16, COTERIE_PANEL = 2 * COTERIE_HALF };

/* Floats of the products of one block and one panel, [COTERIE_PANEL][COTERIE_BLOCK]. */
#define COTERIE_PRODUCTS (COTERIE_PANEL * COTERIE_BLOCK)

typedef struct {
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
#endif

#endif
