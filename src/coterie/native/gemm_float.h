/* Matrix products in float32; included once for each instruction set.
 *
 * Before: LANES, TARGET, INLINE, NAME, the types `floats` and `ints`, MULTIPLY_ADD(a, b, c), LEAST_ROWS, and decode_affine,
 * which makes 32 stored codes of so many bits, from their lower and upper planes, times a step plus a zero. A panel is [columns / 32][32 rows][32], a block [columns][16 tokens].
 */

enum { STEP = 32, VECTORS = COTERIE_BLOCK / LANES, TOGETHER = 4 };

#include "activation_lanes.h"

static int64_t block_bytes(int scheme, int64_t columns) {
    (void)scheme;
    return columns * COTERIE_BLOCK * 4;
}

static int64_t panel_bytes(int scheme, int64_t columns) {
    (void)scheme;
    return columns * COTERIE_PANEL * 4;
}

TARGET static void pack(int scheme, const uint16_t *const *tokens, int64_t begin, int64_t end, int64_t columns,
                        void *block) {
    (void)scheme, (void)columns;
    float *to = block;
    for (int64_t first = begin; first < end; first += STEP)
        for (int t = 0; t < COTERIE_BLOCK; t++)
            for (int64_t c = first; c < first + STEP; c++)
                to[c * COTERIE_BLOCK + t] = tokens[t] ? coterie_from_bf16(tokens[t][c]) : 0;
}

/* Group by group of the matrix: where a column lies, and what its group has. */
typedef struct {
    const coterie_matrix *matrix;
    const uint8_t *scales;
    int64_t groups, size;
} row_groups;

INLINE coterie_group group_of(const row_groups *row, int64_t column) {
    return coterie_group_at(row->matrix->scheme, row->scales, row->groups, column / row->size);
}

INLINE void decode_row(const int bits, const uint8_t *codes, const row_groups *row, int64_t columns, float *to) {
    const uint8_t *upper = codes + coterie_lower_bytes(bits, columns);
    for (int64_t first = 0; first < columns; first += STEP, to += STEP * COTERIE_PANEL) {
        const coterie_group of = group_of(row, first);
        float step = of.scale, zero = of.zero - of.point * step;
        decode_affine(bits, codes + coterie_lower_bytes(bits, first), upper + coterie_upper_bytes(bits, first), step, zero,
                      to);
    }
}

TARGET static void decode(int scheme, const coterie_matrix *matrix, const int64_t *halves, int64_t limit, void *panel) {
    const int64_t columns = matrix->columns, size = matrix->group << matrix->doubled;
    const int64_t bytes = coterie_code_bytes(scheme, columns), apart = coterie_row_scales(scheme, columns);
    for (int r = 0; r < COTERIE_PANEL; r++) {
        int64_t row = halves[r / COTERIE_HALF] + r % COTERIE_HALF;
        if (row >= limit) row = limit - 1;
        const uint8_t *codes = matrix->codes + row * bytes;
        const row_groups groups = {matrix, matrix->scales + row * apart, columns / size, size};
        float *to = (float *)panel + r * STEP;
        switch (coterie_packing(scheme)) {
            case COTERIE_INT2: decode_row(2, codes, &groups, columns, to); break;
            case COTERIE_INT3: decode_row(3, codes, &groups, columns, to); break;
            case COTERIE_INT4: decode_row(4, codes, &groups, columns, to); break;
            case COTERIE_INT5: decode_row(5, codes, &groups, columns, to); break;
            case COTERIE_INT6: decode_row(6, codes, &groups, columns, to); break;
            case COTERIE_BF16:
                for (int64_t first = 0; first < columns; first += STEP, to += STEP * COTERIE_PANEL) {
                    uint16_t stored[STEP];
                    memcpy(stored, codes + first * 2, sizeof stored);
                    for (int j = 0; j < STEP; j++) to[j] = coterie_from_bf16(stored[j]);
                }
                break;
            default:
                for (int64_t first = 0; first < columns; first += STEP, to += STEP * COTERIE_PANEL) {
                    const coterie_group of = group_of(&groups, first);
                    for (int j = 0; j < STEP; j++) {
                        const float product = (float)(int8_t)codes[first + j] * of.scale;
                        to[j] = product + of.zero;
                    }
                }
        }
    }
}

TARGET static void multiply(int scheme, int64_t columns, const void *panel, const void *blocks, int count,
                            float *products) {
    for (int b = 0; b < count; b++) {
        const float *block = (const float *)((const char *)blocks + b * block_bytes(scheme, columns));
        for (int r = 0; r < COTERIE_PANEL; r += TOGETHER) {
            floats sums[TOGETHER][VECTORS];
            for (int i = 0; i < TOGETHER; i++)
                for (int v = 0; v < VECTORS; v++) sums[i][v] = (floats){0};
            for (int64_t first = 0; first < columns; first += STEP) {
                const float *weights = (const float *)panel + first * COTERIE_PANEL + r * STEP;
                for (int c = 0; c < STEP; c++) {
                    const floats *x = (const floats *)(block + (first + c) * COTERIE_BLOCK);
                    for (int i = 0; i < TOGETHER; i++)
                        for (int v = 0; v < VECTORS; v++)
                            sums[i][v] = MULTIPLY_ADD(weights[i * STEP + c] - (floats){0}, x[v], sums[i][v]);
                }
            }
            floats *to = (floats *)(products + b * COTERIE_PRODUCTS + r * COTERIE_BLOCK);
            for (int i = 0; i < TOGETHER; i++)
                for (int v = 0; v < VECTORS; v++) to[i * VECTORS + v] = sums[i][v];
        }
    }
}

TARGET static void activate(int activation, const float *products, int scheme, int64_t column, int64_t columns,
                            void *block) {
    (void)scheme, (void)columns;
    const floats *gates = (const floats *)products, *ups = gates + COTERIE_HALF * VECTORS;
    floats *to = (floats *)((float *)block + column * COTERIE_BLOCK);
    for (int i = 0; i < COTERIE_HALF * VECTORS; i++) to[i] = activated(activation, gates[i]) * ups[i];
}

TARGET static void store(const float *products, int count, int outputs, uint16_t *out, int64_t stride) {
    for (int t = 0; t < count; t++)
        for (int r = 0; r < outputs; r++) out[t * stride + r] = coterie_to_bf16(products[r * COTERIE_BLOCK + t]);
}

TARGET static void scale(const float *products, const float *factors, int count, int outputs, float *out,
                         int64_t stride) {
    for (int t = 0; t < count; t++)
        for (int r = 0; r < outputs; r++) out[t * stride + r] = products[r * COTERIE_BLOCK + t] * factors[t];
}

const coterie_gemm NAME = {
    .least_rows = LEAST_ROWS,
    .block_bytes = block_bytes,
    .panel_bytes = panel_bytes,
    .pack = pack,
    .decode = decode,
    .multiply = multiply,
    .activate = activate,
    .store = store,
    .scale = scale,
};
