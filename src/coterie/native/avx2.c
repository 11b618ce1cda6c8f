/* AVX2 with FMA. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "bfloat16.h"
#include "coterie.h"
#include "fixed_point.h"

#define TARGET __attribute__((target("avx2,fma")))
#define TARGET_INLINE static inline __attribute__((always_inline, target("avx2,fma")))

/* Columns that one load of int4 codes holds, and groups whose scales one load holds. */
enum { BLOCK = 64, GROUPS = 8 };

COTERIE_INLINE int64_t blocks_of(int64_t columns) {
    return (columns + BLOCK - 1) >> 6;
}

/* The sum of 8 lanes, always in the same order. */
TARGET_INLINE float total(__m256 sums) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* The first `count` of 8 lanes. */
TARGET_INLINE __m256i first_lanes(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}

COTERIE_INLINE int64_t padded_groups(int64_t columns) {
    return (columns / 32 + GROUPS - 1) / GROUPS * GROUPS;
}

COTERIE_INLINE int64_t whole_lines(int64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

/* Scales of a token's groups, behind its values. */
COTERIE_INLINE const float *token_scales(const void *prepared, int64_t values) {
    return (const float *)((const char *)prepared + values);
}

/* int4. Bytes of a load hold even columns in their lower halves and odd ones in their upper halves, as whole numbers
 * from 0 to 15. A token is kept as 16-bit whole numbers with a scale for each group (fixed_point.h), their upper and
 * lower bytes apart: for each 64 columns the upper bytes of even columns, those of odd ones, and the lower bytes
 * likewise. Sums of four products of bytes fit 16 bits; upper ones count 256 times. 8 times the sum of the group's values
 * is too much, because codes stay plus 8 here, and goes with the zeros, 8 groups at a time.
 */
COTERIE_INLINE int64_t values_int4(int64_t columns) {
    return blocks_of(columns) * BLOCK * 2;
}

static int64_t prepared_int4(int64_t columns) {
    return whole_lines(values_int4(columns) + 2 * 4 * padded_groups(columns));
}

TARGET static void prepare_int4(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    float *scales = (float *)token_scales(prepared, values_int4(columns)), *sums = scales + padded_groups(columns);
    for (int64_t g = 0; g < padded_groups(columns); g++) scales[g] = sums[g] = 0;
    for (int64_t first = 0; first < blocks_of(columns) * BLOCK; first += BLOCK) {
        uint8_t *block = (uint8_t *)prepared + first * 2;
        int32_t whole[BLOCK] = {0};
        for (int64_t i = first; i < columns && i < first + BLOCK; i += group)
            scales[i / group] = group == 64 ? coterie_fixed_point(token + i, 64, whole, sums + i / group)
                                            : coterie_fixed_point(token + i, 32, whole + i - first, sums + i / group);
        for (int i = 0; i < BLOCK / 2; i++) {
            block[i] = (uint8_t)(whole[2 * i] >> 8);
            block[32 + i] = (uint8_t)(whole[2 * i + 1] >> 8);
            block[64 + i] = (uint8_t)whole[2 * i];
            block[96 + i] = (uint8_t)whole[2 * i + 1];
        }
    }
}

/* R rows with M tokens; R and M are known where this is inlined. */
TARGET_INLINE void tile_int4(const int R, const int M, const coterie_matrix *matrix, int64_t row,
                             const void *const *prepared, float *out, int64_t stride) {
    /* No division: a tile is short. */
    const int narrow = matrix->group == 32;
    const int64_t columns = matrix->columns, groups = columns >> (narrow ? 5 : 6), padded = padded_groups(columns);
    const int64_t blocks = blocks_of(columns), whole = columns >> 6;
    const int per_block = BLOCK / 64 << narrow, per_load = GROUPS / (BLOCK / 64) >> narrow;
    const __m256i rest = first_lanes(columns % BLOCK / 8), upper = _mm256_set1_epi32((int)0xffff0000);
    const __m256i lanes = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), nibble = _mm256_set1_epi8(15);
    const __m256i first_groups = _mm256_srl_epi32(lanes, _mm_cvtsi32_si128(3 - narrow));
    const __m256i step = _mm256_set1_epi32(per_block);
    const __m256i once = _mm256_set1_epi16(1), times_256 = _mm256_set1_epi16(256);
    const uint8_t *codes = matrix->codes + row * (columns / 2);
    const uint16_t *scales = matrix->scales + row * groups * 2;
    __m256 sums[2][4];
    /* One row after the other, as they lie in memory: see COTERIE_CODES_AHEAD. */
    for (int r = 0; r < R; r++, codes += columns / 2, scales += groups * 2) {
        for (int m = 0; m < M; m++) sums[r][m] = _mm256_setzero_ps();
        for (int64_t load = 0, block = 0; block < blocks; load++) {
            const __m256i present = first_lanes(groups - load * GROUPS);
            const int *pairs_at = (const int *)(scales + load * GROUPS * 2);
            _mm_prefetch((const char *)pairs_at + COTERIE_SCALES_AHEAD, _MM_HINT_T0);
            __m256i pairs = _mm256_maskload_epi32(pairs_at, present);
            __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
            __m256 zero = _mm256_castsi256_ps(_mm256_and_si256(pairs, upper));
            zero = _mm256_fnmadd_ps(_mm256_set1_ps(8), scale, zero);
            __m256 factors[4];
            for (int m = 0; m < M; m++) {
                const float *of_token = token_scales(prepared[m], values_int4(columns)) + load * GROUPS;
                factors[m] = _mm256_mul_ps(scale, _mm256_load_ps(of_token));
                sums[r][m] = _mm256_fmadd_ps(zero, _mm256_load_ps(of_token + padded), sums[r][m]);
            }
            int64_t end = block + per_load < blocks ? block + per_load : blocks;
            __m256i at = first_groups;
            for (; block < end; block++, at = _mm256_add_epi32(at, step)) {
                const uint8_t *from = codes + block * (BLOCK / 2);
                _mm_prefetch((const char *)from + COTERIE_CODES_AHEAD, _MM_HINT_T0);
                __m256i packed = block < whole ? _mm256_loadu_si256((const __m256i *)from)
                                               : _mm256_maskload_epi32((const int *)from, rest);
                __m256i even = _mm256_and_si256(packed, nibble);
                __m256i odd = _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble);
                for (int m = 0; m < M; m++) {
                    const __m256i *token = (const __m256i *)((const char *)prepared[m] + block * BLOCK * 2);
                    __m256i high = _mm256_add_epi16(_mm256_maddubs_epi16(even, _mm256_load_si256(token)),
                                                    _mm256_maddubs_epi16(odd, _mm256_load_si256(token + 1)));
                    __m256i low = _mm256_add_epi16(_mm256_maddubs_epi16(_mm256_load_si256(token + 2), even),
                                                   _mm256_maddubs_epi16(_mm256_load_si256(token + 3), odd));
                    __m256i part = _mm256_add_epi32(_mm256_madd_epi16(high, times_256), _mm256_madd_epi16(low, once));
                    __m256 factor = _mm256_permutevar8x32_ps(factors[m], at);
                    sums[r][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part), factor, sums[r][m]);
                }
            }
        }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) out[m * stride + r] = total(sums[r][m]);
}

/* int8. Codes become 16-bit whole numbers, sixteen at a time, and meet a token that is kept as such (fixed_point.h). */
COTERIE_INLINE int64_t values_int8(int64_t columns) {
    return whole_lines(columns * 2);
}

static int64_t prepared_int8(int64_t columns) {
    return whole_lines(values_int8(columns) + columns / 32 * 4);
}

TARGET static void prepare_int8(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    float *scales = (float *)token_scales(prepared, values_int8(columns)), sum;
    int16_t *values = prepared;
    for (int64_t first = 0; first < columns; first += group) {
        int32_t whole[64];
        scales[first / group] = group == 64 ? coterie_fixed_point(token + first, 64, whole, &sum)
                                            : coterie_fixed_point(token + first, 32, whole, &sum);
        for (int64_t i = 0; i < group; i++) values[first + i] = (int16_t)whole[i];
    }
}

TARGET_INLINE void tile_int8(const int R, const int M, const coterie_matrix *matrix, int64_t row,
                             const void *const *prepared, float *out, int64_t stride) {
    const int64_t columns = matrix->columns, group = matrix->group, groups = columns >> (group == 32 ? 5 : 6);
    const int8_t *codes = (const int8_t *)matrix->codes + row * columns;
    const uint16_t *scales = matrix->scales + row * groups;
    __m256 sums[2][4];
    for (int r = 0; r < R; r++, codes += columns, scales += groups) {
        for (int m = 0; m < M; m++) sums[r][m] = _mm256_setzero_ps();
        for (int64_t g = 0; g < groups; g++) {
            __m256i part[4];
            for (int m = 0; m < M; m++) part[m] = _mm256_setzero_si256();
            _mm_prefetch((const char *)codes + g * group + COTERIE_CODES_AHEAD, _MM_HINT_T0);
            _mm_prefetch((const char *)(scales + g) + COTERIE_SCALES_AHEAD, _MM_HINT_T0);
            for (int64_t i = g * group; i < (g + 1) * group; i += 16) {
                __m256i code = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(codes + i)));
                for (int m = 0; m < M; m++) {
                    const __m256i *token = (const __m256i *)((const int16_t *)prepared[m] + i);
                    part[m] = _mm256_add_epi32(part[m], _mm256_madd_epi16(code, _mm256_load_si256(token)));
                }
            }
            for (int m = 0; m < M; m++) {
                float scale = coterie_from_bf16(scales[g]) * token_scales(prepared[m], values_int8(columns))[g];
                sums[r][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[m]), _mm256_set1_ps(scale), sums[r][m]);
            }
        }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) out[m * stride + r] = total(sums[r][m]);
}

/* As many rows and tokens at a time as the registers hold. */
#define ROWS(name, tile)                                                                                               \
    TARGET static void name(const coterie_matrix *matrix, int64_t begin, int64_t end, const void *const *prepared,     \
                            int tokens, float *out, int64_t stride) {                                                  \
        int t = 0;                                                                                                     \
        for (int64_t row = begin; row < end; row++, t = 0) {                                                           \
            float *to = out + row - begin;                                                                             \
            if (tokens == 1 && row + 2 <= end) {                                                                       \
                tile(2, 1, matrix, row++, prepared, to, stride);                                                       \
                continue;                                                                                              \
            }                                                                                                          \
            for (; t + 4 <= tokens; t += 4) tile(1, 4, matrix, row, prepared + t, to + t * stride, stride);            \
            for (; t + 2 <= tokens; t += 2) tile(1, 2, matrix, row, prepared + t, to + t * stride, stride);            \
            if (t < tokens) tile(1, 1, matrix, row, prepared + t, to + t * stride, stride);                            \
        }                                                                                                              \
    }

ROWS(rows_int4, tile_int4)
ROWS(rows_int8, tile_int8)

const coterie_kernel coterie_avx2[COTERIE_SCHEMES] = {
    [COTERIE_INT4] = {prepared_int4, prepare_int4, rows_int4},
    [COTERIE_INT8] = {prepared_int8, prepare_int8, rows_int8},
};
#endif
