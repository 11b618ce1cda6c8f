/* Any machine: eight float32 sums at a time, which compilers turn into whatever vectors there are. */
#include "bfloat16.h"
#include "coterie.h"
#include "numbers.h"
#include "planes.h"

enum { LANES = 8 };

typedef float floats __attribute__((vector_size(4 * LANES)));

/* Vectors go by address: how one is passed by value depends on the instruction set. */
COTERIE_INLINE void load(floats *loaded, const float *values) {
    memcpy(loaded, values, sizeof *loaded);
}

COTERIE_INLINE float total(const floats *of) {
    const floats sums = *of;
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

/* Tokens as float32; affine schemes have the even columns of each 16 before the odd ones. Behind all of them are the
 * groups' sums, but of bfloat16. */
static int64_t prepared_bytes(int64_t columns) {
    return (columns + columns / 32 + 15) / 16 * 64;
}

COTERIE_INLINE void sum_groups(const float *values, int64_t columns, int64_t group, float *sums) {
    for (int64_t g = 0; g < columns / group; g++) {
        floats sum = {0}, part;
        for (int64_t i = 0; i < group; i += LANES) {
            load(&part, values + g * group + i);
            sum += part;
        }
        sums[g] = total(&sum);
    }
}

static void prepare_affine(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    float *values = prepared, *sums = values + columns;
    for (int64_t first = 0; first < columns; first += 2 * LANES)
        for (int i = 0; i < LANES; i++) {
            values[first + i] = coterie_from_bf16(token[first + 2 * i]);
            values[first + LANES + i] = coterie_from_bf16(token[first + 2 * i + 1]);
        }
    sum_groups(values, columns, group, sums);
}

static void prepare_plain(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    (void)group;
    float *values = prepared;
    for (int64_t i = 0; i < columns; i++) values[i] = coterie_from_bf16(token[i]);
}

static void prepare_int8(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    float *values = prepared;
    prepare_plain(token, columns, group, prepared);
    sum_groups(values, columns, group, values + columns);
}

COTERIE_INLINE void rows_affine(const int bits, const coterie_matrix *matrix, int64_t begin, int64_t end,
                                const void *const *prepared, int tokens, float *out, int64_t stride) {
    const int64_t columns = matrix->columns, group = matrix->group, groups = columns / group;
    const int64_t apart = coterie_scale_bytes(matrix), stored_groups = groups >> matrix->doubled;
    const int64_t upper = coterie_lower_bytes(bits, columns), bytes = upper + coterie_upper_bytes(bits, columns);
    for (int64_t row = begin; row < end; row++) {
        const uint8_t *codes = matrix->codes + row * bytes;
        const uint8_t *scales = matrix->scales + row * apart;
        for (int t = 0; t < tokens; t++) {
            const float *values = prepared[t], *sums = values + columns;
            floats sum = {0};
            float zeros = 0;
            for (int64_t g = 0; g < groups; g++) {
                floats part = {0};
                for (int64_t i = g * group; i < (g + 1) * group; i += 2 * LANES) {
                    uint8_t stored[2 * LANES];
                    floats low, high, even, odd;
                    coterie_unpack(bits, codes + coterie_lower_bytes(bits, i),
                                   codes + upper + coterie_upper_bytes(bits, i), 2 * LANES, stored);
                    for (int j = 0; j < LANES; j++) {
                        low[j] = (float)((int)stored[2 * j] - COTERIE_ZERO_CODE(bits));
                        high[j] = (float)((int)stored[2 * j + 1] - COTERIE_ZERO_CODE(bits));
                    }
                    load(&even, values + i);
                    load(&odd, values + i + LANES);
                    part += low * even;
                    part += high * odd;
                }
                const coterie_group of = coterie_group_at(matrix->scheme, scales, stored_groups, g >> matrix->doubled);
                sum += part * of.scale;
                zeros += (of.zero + (COTERIE_ZERO_CODE(bits) - of.point) * of.scale) * sums[g];
            }
            out[t * stride + row - begin] = total(&sum) + zeros;
        }
    }
}

#define AFFINE(bits)                                                                                                   \
    static void rows_int##bits(const coterie_matrix *matrix, int64_t begin, int64_t end, const void *const *prepared,  \
                               int tokens, float *out, int64_t stride) {                                               \
        rows_affine(bits, matrix, begin, end, prepared, tokens, out, stride);                                          \
    }

AFFINE(2)
AFFINE(3)
AFFINE(4)
AFFINE(5)
AFFINE(6)

static void rows_int8(const coterie_matrix *matrix, int64_t begin, int64_t end, const void *const *prepared, int tokens,
                      float *out, int64_t stride) {
    const int64_t columns = matrix->columns, group = matrix->group, groups = columns / group;
    const int64_t apart = coterie_scale_bytes(matrix), stored_groups = groups >> matrix->doubled;
    const int with_zeros = coterie_numbers(matrix->scheme) == COTERIE_ZERO;
    for (int64_t row = begin; row < end; row++) {
        const int8_t *codes = (const int8_t *)matrix->codes + row * columns;
        const uint8_t *scales = matrix->scales + row * apart;
        for (int t = 0; t < tokens; t++) {
            const float *values = prepared[t], *sums = values + columns;
            floats sum = {0};
            float zeros = 0;
            for (int64_t g = 0; g < groups; g++) {
                floats part = {0};
                for (int64_t i = g * group; i < (g + 1) * group; i += LANES) {
                    floats weights, token;
                    for (int j = 0; j < LANES; j++) weights[j] = (float)codes[i + j];
                    load(&token, values + i);
                    part += weights * token;
                }
                const coterie_group of = coterie_group_at(matrix->scheme, scales, stored_groups, g >> matrix->doubled);
                sum += part * of.scale;
                if (with_zeros) zeros += of.zero * sums[g];
            }
            out[t * stride + row - begin] = with_zeros ? total(&sum) + zeros : total(&sum);
        }
    }
}

static void rows_bf16(const coterie_matrix *matrix, int64_t begin, int64_t end, const void *const *prepared, int tokens,
                      float *out, int64_t stride) {
    for (int64_t row = begin; row < end; row++) {
        const uint8_t *weights = matrix->codes + row * matrix->columns * 2;
        for (int t = 0; t < tokens; t++) {
            const float *values = prepared[t];
            floats sum = {0};
            for (int64_t i = 0; i < matrix->columns; i += LANES) {
                floats some, token;
                uint16_t stored[LANES];
                memcpy(stored, weights + i * 2, sizeof stored);
                for (int j = 0; j < LANES; j++) some[j] = coterie_from_bf16(stored[j]);
                load(&token, values + i);
                sum += some * token;
            }
            out[t * stride + row - begin] = total(&sum);
        }
    }
}

const coterie_kernel coterie_portable[COTERIE_SCHEMES] = {
    [COTERIE_INT2] = {prepared_bytes, prepare_affine, rows_int2},
    [COTERIE_INT3] = {prepared_bytes, prepare_affine, rows_int3},
    [COTERIE_INT4] = {prepared_bytes, prepare_affine, rows_int4},
    [COTERIE_INT5] = {prepared_bytes, prepare_affine, rows_int5},
    [COTERIE_INT6] = {prepared_bytes, prepare_affine, rows_int6},
    [COTERIE_INT8] = {prepared_bytes, prepare_int8, rows_int8},
    [COTERIE_BF16] = {prepared_bytes, prepare_plain, rows_bf16},
};
