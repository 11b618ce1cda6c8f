/* Products of rows with a few tokens by NEON; included once for each instruction set.
 *
 * Before: TARGET, INLINE, KERNELS, and how codes meet a token, which is kept as 16-bit whole numbers with a scale for
 * each group (fixed_point.h):
 *   whole_affine: sums of products; begins with zeros. add_affine adds 32 codes, as whole numbers from 0 on, even columns
 *     and odd ones apart; sum_affine gives four sums of 32 bits.
 *   whole_int8, add_int8, sum_int8: the same for 16 signed codes, which load_int8 makes codes_int8; begin_int8 starts
 *     with a number that store_int8, which keeps 16 values of a token in 32 bytes, has chosen.
 */
#include "bfloat16.h"
#include "coterie.h"
#include "fixed_point.h"
#include "neon_codes.h"
#include "numbers.h"

/* Columns of which an affine scheme's and int8's codes are taken at a time, groups whose scales one load holds, rows and
 * tokens of a tile. */
enum { BLOCK_AFFINE = 32, BLOCK_INT8 = 16, GROUPS = 4, MOST_ROWS = 4, MOST_TOKENS = 2 };

COTERIE_INLINE int64_t padded_groups(int64_t columns) {
    return (columns / 32 + GROUPS - 1) / GROUPS * GROUPS;
}

/* A token: 16 bits for each column, a scale for each group, its sum, and of int8 32 bits more for each group. */
static int64_t prepared_bytes(int64_t columns) {
    return (columns * 2 + 2 * 4 * padded_groups(columns) + 63) / 64 * 64;
}

static int64_t prepared_int8(int64_t columns) {
    return (columns * 2 + 3 * 4 * padded_groups(columns) + 63) / 64 * 64;
}

COTERIE_INLINE float *token_scales(const void *prepared, int64_t columns) {
    return (float *)((char *)(uintptr_t)prepared + columns * 2);
}

COTERIE_INLINE float whole_group(const uint16_t *values, int64_t group, int32_t *whole, float *sum) {
    return group == 64 ? coterie_fixed_point(values, 64, whole, sum) : coterie_fixed_point(values, 32, whole, sum);
}

/* For each 32 columns the upper bytes of even ones, those of odd ones, and the lower bytes likewise. Codes stay as they
 * are stored, from 0 on: what that is too much is a multiple of the sum of a group's values, and goes with the zeros. */
TARGET static void prepare_affine(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    float *scales = token_scales(prepared, columns), *sums = scales + padded_groups(columns);
    for (int64_t g = columns / group; g < padded_groups(columns); g++) scales[g] = sums[g] = 0;
    for (int64_t first = 0; first < columns; first += group) {
        int32_t whole[64];
        scales[first / group] = whole_group(token + first, group, whole, sums + first / group);
        for (int64_t block = 0; block < group; block += BLOCK_AFFINE) {
            uint8_t *to = (uint8_t *)prepared + (first + block) * 2;
            for (int i = 0; i < BLOCK_AFFINE / 2; i++) {
                int32_t even = whole[block + 2 * i], odd = whole[block + 2 * i + 1];
                to[i] = (uint8_t)(even >> 8);
                to[16 + i] = (uint8_t)(odd >> 8);
                to[32 + i] = (uint8_t)even;
                to[48 + i] = (uint8_t)odd;
            }
        }
    }
}

TARGET static void prepare_int8(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    float *scales = token_scales(prepared, columns), *sums = scales + padded_groups(columns);
    int32_t *starts = (int32_t *)(sums + padded_groups(columns));
    for (int64_t g = columns / group; g < padded_groups(columns); g++) {
        scales[g] = sums[g] = 0;
        starts[g] = 0;
    }
    for (int64_t first = 0; first < columns; first += group) {
        int32_t whole[64], start = 0;
        scales[first / group] = whole_group(token + first, group, whole, sums + first / group);
        for (int64_t block = 0; block < group; block += BLOCK_INT8)
            start += store_int8(whole + block, (char *)prepared + (first + block) * 2);
        starts[first / group] = start;
    }
}

INLINE float32x4_t widened(uint16x4_t values) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(values), 16));
}

/* Scales and zeros of four groups; of those that are not there, zeros. */
INLINE uint16x4x2_t scales_and_zeros(const uint16_t *pairs, int present) {
    uint16_t few[2 * GROUPS] = {0};
    if (present == GROUPS) return vld2_u16(pairs);
    for (int i = 0; i < 2 * present; i++) few[i] = pairs[i];
    return vld2_u16(few);
}

INLINE float32x4_t converted(int dtype, uint16x4_t stored) {
    return dtype == COTERIE_FLOAT16 ? vcvt_f32_f16(vreinterpret_f16_u16(stored)) : widened(stored);
}

/* Four numbers of a dtype, or `count` and zeros, `step` numbers from one to the next. */
INLINE float32x4_t some_numbers(int dtype, int64_t count, int step, const uint8_t *from) {
    uint16_t few[GROUPS] = {0};
    float values[GROUPS] = {0};
    if (dtype == COTERIE_FLOAT32) {
        for (int64_t i = 0; i < count; i++) memcpy(values + i, from + 4 * step * i, 4);
        return vld1q_f32(values);
    }
    for (int64_t i = 0; i < count; i++) memcpy(few + i, from + 2 * step * i, 2);
    return converted(dtype, vld1_u16(few));
}

/* Of 4 of a token's groups, from `first` on, in a row of scales: the scale, and what is added for each unit of a value
 * because codes are stored from 0 on and because of the zero. `zero_code` stands for 0. */
INLINE void numbers_of(const int zero_code, const coterie_matrix *matrix, const uint8_t *row, int64_t first,
                       int64_t groups, float32x4_t *scale, float32x4_t *zero) {
    const int dtype = coterie_scale_dtype(matrix->scheme), numbers = coterie_numbers(matrix->scheme);
    const int64_t size = coterie_number_bytes(matrix->scheme), stored = groups >> matrix->doubled;
    const int64_t from = first >> matrix->doubled, most = GROUPS >> matrix->doubled;
    const int64_t count = stored - from < most ? stored - from : most;
    if (numbers == COTERIE_ZERO) {
        *scale = some_numbers(dtype, count, 2, row + 2 * size * from);
        *zero = some_numbers(dtype, count, 2, row + 2 * size * from + size);
        *zero = vfmsq_n_f32(*zero, *scale, (float)zero_code);
    } else {
        float points[GROUPS] = {0};
        *scale = some_numbers(dtype, count, 1, row + size * from);
        for (int64_t i = 0; i < count; i++)
            points[i] = numbers == COTERIE_SYM
                            ? (float)zero_code
                            : (float)(row[size * stored + (from + i) / 2] >> (from + i) % 2 * 4 & 15);
        *zero = vnegq_f32(vmulq_f32(vld1q_f32(points), *scale));
    }
    if (!matrix->doubled) return;
    *scale = vzip1q_f32(*scale, *scale);
    *zero = vzip1q_f32(*zero, *zero);
}

/* R rows with M tokens; whether scales are the usual ones, bits, R, M and the token's group are known where this is
 * inlined. */
INLINE void tile_affine(const int usual, const int bits, const int R, const int M, const int group,
                        const coterie_matrix *matrix, int64_t row, const void *const *prepared, float *out,
                        int64_t stride) {
    const int blocks = group / BLOCK_AFFINE;
    const int64_t columns = matrix->columns, padded = padded_groups(columns), groups = columns / group;
    const int64_t upper = coterie_lower_bytes(bits, columns), bytes = upper + coterie_upper_bytes(bits, columns);
    const int64_t apart = usual ? groups * 4 : coterie_scale_bytes(matrix);
    const uint8_t *codes = matrix->codes + row * bytes, *scales = matrix->scales + row * apart;
    float32x4_t sums[MOST_ROWS][MOST_TOKENS];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sums[r][m] = vdupq_n_f32(0);
    for (int64_t first = 0; first < groups; first += GROUPS) {
        const int present = groups - first < GROUPS ? (int)(groups - first) : GROUPS;
        float factors[MOST_ROWS][MOST_TOKENS][GROUPS];
        for (int r = 0; r < R; r++) {
            float32x4_t scale, zero;
            if (usual) {
                const uint16x4x2_t pairs = scales_and_zeros((const uint16_t *)(scales + r * apart + first * 4), present);
                scale = widened(pairs.val[0]);
                zero = vfmsq_n_f32(widened(pairs.val[1]), scale, COTERIE_ZERO_CODE(bits));
            } else {
                numbers_of(COTERIE_ZERO_CODE(bits), matrix, scales + r * apart, first, groups, &scale, &zero);
            }
            for (int m = 0; m < M; m++) {
                const float *of_token = token_scales(prepared[m], columns) + first;
                vst1q_f32(factors[r][m], vmulq_f32(scale, vld1q_f32(of_token)));
                sums[r][m] = vfmaq_f32(sums[r][m], zero, vld1q_f32(of_token + padded));
            }
        }
        for (int g = 0; g < present; g++) {
            whole_affine parts[MOST_ROWS][MOST_TOKENS] = {0};
            for (int b = 0; b < blocks; b++)
                for (int r = 0; r < R; r++) {
                    const int64_t block = (first + g) * blocks + b;
                    const uint8_t *from = codes + r * bytes + coterie_lower_bytes(bits, block * BLOCK_AFFINE);
                    const uint8_t *also = codes + r * bytes + upper + coterie_upper_bytes(bits, block * BLOCK_AFFINE);
                    /* The next rows are asked for while these are computed: each row is a stream that begins anew. */
                    __builtin_prefetch(from + R * bytes);
                    if (COTERIE_UPPER(bits)) __builtin_prefetch(also + R * bytes);
                    const codes_of_32 some = load_codes(bits, from, also);
                    for (int m = 0; m < M; m++)
                        add_affine(bits, &parts[r][m], some.even, some.odd,
                                   (const uint8_t *)prepared[m] + block * BLOCK_AFFINE * 2);
                }
            for (int r = 0; r < R; r++)
                for (int m = 0; m < M; m++)
                    sums[r][m] = vfmaq_n_f32(sums[r][m], vcvtq_f32_s32(sum_affine(bits, parts[r][m])),
                                              factors[r][m][g]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) out[m * stride + r] = vaddvq_f32(sums[r][m]);
}

INLINE void tile_int8(const int usual, const int R, const int M, const int group, const coterie_matrix *matrix,
                      int64_t row, const void *const *prepared, float *out, int64_t stride) {
    const int blocks = group / BLOCK_INT8;
    const int64_t columns = matrix->columns, padded = padded_groups(columns), groups = columns / group;
    const int64_t apart = usual ? groups * 2 : coterie_scale_bytes(matrix);
    const int with_zeros = !usual && coterie_numbers(matrix->scheme) == COTERIE_ZERO;
    const int8_t *codes = (const int8_t *)matrix->codes + row * columns;
    const uint8_t *scales = matrix->scales + row * apart;
    float32x4_t sums[MOST_ROWS][MOST_TOKENS];
    float steps[MOST_ROWS][GROUPS];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sums[r][m] = vdupq_n_f32(0);
    for (int64_t g = 0; g < groups; g++) {
        whole_int8 parts[MOST_ROWS][MOST_TOKENS];
        for (int r = 0; !usual && g % GROUPS == 0 && r < R; r++) {
            float32x4_t step, zero;
            numbers_of(0, matrix, scales + r * apart, g, groups, &step, &zero);
            vst1q_f32(steps[r], step);
            for (int m = 0; with_zeros && m < M; m++)
                sums[r][m] = vfmaq_f32(sums[r][m], zero, vld1q_f32(token_scales(prepared[m], columns) + padded + g));
        }
        for (int m = 0; m < M; m++) {
            const int32_t *starts = (const int32_t *)(token_scales(prepared[m], columns) + 2 * padded);
            for (int r = 0; r < R; r++) parts[r][m] = begin_int8(starts[g]);
        }
        for (int b = 0; b < blocks; b++)
            for (int r = 0; r < R; r++) {
                const int64_t block = g * blocks + b;
                const int8_t *from = codes + r * columns + block * BLOCK_INT8;
                __builtin_prefetch(from + R * columns);
                const codes_int8 some = load_int8(from);
                for (int m = 0; m < M; m++)
                    add_int8(&parts[r][m], some, (const char *)prepared[m] + block * BLOCK_INT8 * 2);
            }
        for (int r = 0; r < R; r++)
            for (int m = 0; m < M; m++) {
                const float step = usual ? coterie_number_at(COTERIE_BFLOAT16, scales + r * apart, g) : steps[r][g % GROUPS];
                float scale = step * token_scales(prepared[m], columns)[g];
                sums[r][m] = vfmaq_n_f32(sums[r][m], vcvtq_f32_s32(sum_int8(parts[r][m])), scale);
            }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) out[m * stride + r] = vaddvq_f32(sums[r][m]);
}

/* bfloat16. A token is kept as float32. */
static int64_t prepared_plain(int64_t columns) {
    return (columns * 4 + 63) / 64 * 64;
}

static void prepare_plain(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    float *values = prepared;
    (void)group;
    for (int64_t i = 0; i < columns; i++) values[i] = coterie_from_bf16(token[i]);
}

INLINE void tile_bf16(const int usual, const int R, const int M, const int group, const coterie_matrix *matrix, int64_t row,
                      const void *const *prepared, float *out, int64_t stride) {
    const int64_t columns = matrix->columns;
    (void)group, (void)usual;
    float32x4_t sums[MOST_ROWS][MOST_TOKENS];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sums[r][m] = vdupq_n_f32(0);
    for (int64_t i = 0; i < columns; i += 8)
        for (int r = 0; r < R; r++) {
            const uint8_t *from = matrix->codes + ((row + r) * columns + i) * 2;
            __builtin_prefetch(from + R * columns * 2);
            const uint16x8_t stored = vreinterpretq_u16_u8(vld1q_u8(from));
            const float32x4_t low = widened(vget_low_u16(stored)), high = widened(vget_high_u16(stored));
            for (int m = 0; m < M; m++) {
                const float *values = (const float *)prepared[m] + i;
                sums[r][m] = vfmaq_f32(sums[r][m], low, vld1q_f32(values));
                sums[r][m] = vfmaq_f32(sums[r][m], high, vld1q_f32(values + 4));
            }
        }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) out[m * stride + r] = vaddvq_f32(sums[r][m]);
}

/* As many rows and tokens at a time as the registers hold. */
#define ROWS_IN(name, group, tile, usual, ...)                                                                          \
    TARGET static void name(const coterie_matrix *matrix, int64_t begin, int64_t end, const void *const *prepared,     \
                            int tokens, float *out, int64_t stride) {                                                  \
        int64_t row = begin;                                                                                           \
        for (; row + 4 <= end; row += 4) {                                                                             \
            float *to = out + row - begin;                                                                             \
            int t = 0;                                                                                                 \
            for (; t + 2 <= tokens; t += 2) {                                                                          \
                tile(usual, ##__VA_ARGS__, 2, 2, group, matrix, row, prepared + t, to + t * stride, stride);                     \
                tile(usual, ##__VA_ARGS__, 2, 2, group, matrix, row + 2, prepared + t, to + t * stride + 2, stride);             \
            }                                                                                                          \
            if (t < tokens) tile(usual, ##__VA_ARGS__, 4, 1, group, matrix, row, prepared + t, to + t * stride, stride);         \
        }                                                                                                              \
        for (; row < end; row++)                                                                                       \
            for (int t = 0; t < tokens; t++)                                                                           \
                tile(usual, ##__VA_ARGS__, 1, 1, group, matrix, row, prepared + t, out + t * stride + row - begin, stride);      \
    }

/* For both groups of a token. */
#define ROWS_OF(name, tile, usual, ...)                                                                                \
    ROWS_IN(narrow_##name, 32, tile, usual, ##__VA_ARGS__)                                                             \
    ROWS_IN(wide_##name, 64, tile, usual, ##__VA_ARGS__)                                                               \
    static void rows_##name(const coterie_matrix *matrix, int64_t begin, int64_t end, const void *const *prepared,     \
                            int tokens, float *out, int64_t stride) {                                                  \
        (matrix->group == 32 ? narrow_##name : wide_##name)(matrix, begin, end, prepared, tokens, out, stride);        \
    }

/* The usual scales, and all others. */
#define ROWS(name, tile, ...)                                                                                          \
    ROWS_OF(usual_##name, tile, 1, ##__VA_ARGS__)                                                                      \
    ROWS_OF(other_##name, tile, 0, ##__VA_ARGS__)                                                                      \
    static void rows_##name(const coterie_matrix *matrix, int64_t begin, int64_t end, const void *const *prepared,     \
                            int tokens, float *out, int64_t stride) {                                                  \
        (coterie_is_usual(matrix) ? rows_usual_##name : rows_other_##name)(matrix, begin, end, prepared, tokens, out,  \
                                                                           stride);                                    \
    }

ROWS(int2, tile_affine, 2)
ROWS(int3, tile_affine, 3)
ROWS(int4, tile_affine, 4)
ROWS(int5, tile_affine, 5)
ROWS(int6, tile_affine, 6)
ROWS(int8, tile_int8)
ROWS_OF(bf16, tile_bf16, 1)

const coterie_kernel KERNELS[COTERIE_SCHEMES] = {
    [COTERIE_INT2] = {prepared_bytes, prepare_affine, rows_int2},
    [COTERIE_INT3] = {prepared_bytes, prepare_affine, rows_int3},
    [COTERIE_INT4] = {prepared_bytes, prepare_affine, rows_int4},
    [COTERIE_INT5] = {prepared_bytes, prepare_affine, rows_int5},
    [COTERIE_INT6] = {prepared_bytes, prepare_affine, rows_int6},
    [COTERIE_INT8] = {prepared_int8, prepare_int8, rows_int8},
    [COTERIE_BF16] = {prepared_plain, prepare_plain, rows_bf16},
};
