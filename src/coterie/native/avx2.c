/* AVX2 with FMA. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "bfloat16.h"
#include "coterie.h"
#include "fixed_point.h"
#include "planes.h"

#define TARGET __attribute__((target("avx2,fma")))
#define TARGET_INLINE static inline __attribute__((always_inline, target("avx2,fma")))

/* Groups whose scales one load holds. */
enum { GROUPS = 8 };

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

/* Affine schemes. A load holds 32 bytes of the lower plane (planes.h): two columns in each, or four, so 64 columns or 128.
 * Shifts and masks make as many vectors of it: their bytes j are the codes, as whole numbers from 0 on, of the columns
 * that byte j of the load holds. A token is kept as 16-bit whole numbers with a scale for each group (fixed_point.h),
 * their upper and lower bytes apart: for each block of so many columns the upper bytes of the columns of each vector,
 * then the lower bytes likewise. Sums of products of bytes fit 16 bits (the lower ones of int6 do not, and are widened
 * first); upper ones count 256 times. Codes stay as they are stored, from 0 on: what that is too much is a multiple of
 * the sum of the group's values, and goes with the zeros, 8 groups at a time.
 */
#define VECTORS(bits) (8 / COTERIE_LOWER(bits))
#define BLOCK(bits) (32 * VECTORS(bits))

COTERIE_INLINE int64_t blocks_of(const int block, int64_t columns) {
    return (columns + block - 1) / block;
}

COTERIE_INLINE int64_t values_affine(const int block, int64_t columns) {
    return blocks_of(block, columns) * block * 2;
}

COTERIE_INLINE int64_t prepared_affine(const int block, int64_t columns) {
    return whole_lines(values_affine(block, columns) + 2 * 4 * padded_groups(columns));
}

TARGET_INLINE void prepare_affine(const int block, const uint16_t *token, int64_t columns, int64_t group,
                                  void *prepared) {
    const int vectors = block / 32;
    float *scales = (float *)token_scales(prepared, values_affine(block, columns));
    float *sums = scales + padded_groups(columns);
    for (int64_t g = 0; g < padded_groups(columns); g++) scales[g] = sums[g] = 0;
    for (int64_t first = 0; first < columns; first += block) {
        uint8_t *to = (uint8_t *)prepared + first * 2;
        int32_t whole[128] = {0};
        for (int64_t i = first; i < columns && i < first + block; i += group)
            scales[i / group] = group == 64 ? coterie_fixed_point(token + i, 64, whole + i - first, sums + i / group)
                                            : coterie_fixed_point(token + i, 32, whole + i - first, sums + i / group);
        for (int i = 0; i < 32; i++)
            for (int v = 0; v < vectors; v++) {
                to[32 * v + i] = (uint8_t)(whole[vectors * i + v] >> 8);
                to[32 * (vectors + v) + i] = (uint8_t)whole[vectors * i + v];
            }
    }
}

/* Bytes whose parts, `by` bits above, belong into the byte after them. */
TARGET_INLINE __m256i spread(__m256i wide, const int by, const int mask) {
    return _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi32(wide, by)), _mm256_set1_epi32(mask));
}

/* The upper parts of the codes of a block: in each byte, those of the same byte of the lower plane. */
TARGET_INLINE __m256i upper_parts(const int bits, __m128i packed) {
    if (bits == 5) return spread(spread(_mm256_cvtepu8_epi32(packed), 12, 0x000f000f), 6, 0x03030303);
    return spread(_mm256_cvtepu8_epi16(packed), 4, 0x0f0f0f0f);
}

TARGET_INLINE __m256i moved(__m256i x, const int up) {
    return up >= 0 ? _mm256_slli_epi16(x, up) : _mm256_srli_epi16(x, -up);
}

/* The vectors of a block of which `left` columns are there, or more. */
TARGET_INLINE void codes_of(const int bits, const uint8_t *lower, const uint8_t *upper, int64_t left,
                            __m256i codes[4]) {
    const int below = COTERIE_LOWER(bits), above = COTERIE_UPPER(bits), whole = left >= BLOCK(bits);
    __m256i parts = _mm256_setzero_si256();
    __m256i packed = whole ? _mm256_loadu_si256((const __m256i *)lower)
                           : _mm256_maskload_epi32((const int *)lower, first_lanes(left * below / 32));
    if (above) {
        const __m128i present = _mm256_castsi256_si128(first_lanes(left * above / 32));
        if (!whole)
            parts = upper_parts(bits, _mm_maskload_epi32((const int *)upper, present));
        else if (bits == 5)
            parts = upper_parts(bits, _mm_loadl_epi64((const __m128i *)upper));
        else
            parts = upper_parts(bits, _mm_loadu_si128((const __m128i *)upper));
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS(bits); v++) {
        codes[v] = _mm256_and_si256(v ? _mm256_srli_epi16(packed, below * v) : packed,
                                    _mm256_set1_epi8(COTERIE_LOWER_MASK(bits)));
        if (above)
            codes[v] = _mm256_or_si256(codes[v], _mm256_and_si256(moved(parts, below - above * v),
                                                                  _mm256_set1_epi8(COTERIE_UPPER_MASK(bits))));
    }
}

/* Products of a block's codes with a token, in sums that lie beside each other as the codes do. */
TARGET_INLINE __m256i products_of(const int bits, const __m256i codes[4], const __m256i *token) {
    const __m256i once = _mm256_set1_epi16(1), times_256 = _mm256_set1_epi16(256);
    const int vectors = VECTORS(bits);
    __m256i high = _mm256_maddubs_epi16(codes[0], _mm256_load_si256(token));
    __m256i low = _mm256_maddubs_epi16(_mm256_load_si256(token + vectors), codes[0]), more = low;
    if (bits == 6) more = _mm256_madd_epi16(low, once);
#pragma GCC unroll 4
    for (int v = 1; v < vectors; v++) {
        __m256i next = _mm256_maddubs_epi16(_mm256_load_si256(token + vectors + v), codes[v]);
        high = _mm256_add_epi16(high, _mm256_maddubs_epi16(codes[v], _mm256_load_si256(token + v)));
        if (bits == 6)
            more = _mm256_add_epi32(more, _mm256_madd_epi16(next, once));
        else
            low = _mm256_add_epi16(low, next);
    }
    return _mm256_add_epi32(_mm256_madd_epi16(high, times_256), bits == 6 ? more : _mm256_madd_epi16(low, once));
}

/* R rows with M tokens; bits, R and M are known where this is inlined. */
TARGET_INLINE void tile_affine(const int bits, const int R, const int M, const coterie_matrix *matrix, int64_t row,
                               const void *const *prepared, float *out, int64_t stride) {
    /* No division: a tile is short. */
    const int narrow = matrix->group == 32;
    const int64_t columns = matrix->columns, groups = columns >> (narrow ? 5 : 6), padded = padded_groups(columns);
    const int64_t blocks = blocks_of(BLOCK(bits), columns), values = values_affine(BLOCK(bits), columns);
    const int per_block = BLOCK(bits) / 64 << narrow, per_load = GROUPS / (BLOCK(bits) / 64) >> narrow;
    const __m256i above = _mm256_set1_epi32((int)0xffff0000);
    const __m256i lanes = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    const __m256i first_groups = _mm256_srl_epi32(lanes, _mm_cvtsi32_si128((VECTORS(bits) == 4 ? 2 : 3) - narrow));
    const __m256i step = _mm256_set1_epi32(per_block);
    const int64_t upper = coterie_lower_bytes(bits, columns), bytes = upper + coterie_upper_bytes(bits, columns);
    const uint8_t *codes = matrix->codes + row * bytes;
    const uint16_t *scales = matrix->scales + row * groups * 2;
    __m256 sums[2][4];
    /* One row after the other, as they lie in memory: see COTERIE_CODES_AHEAD. */
    for (int r = 0; r < R; r++, codes += bytes, scales += groups * 2) {
        for (int m = 0; m < M; m++) sums[r][m] = _mm256_setzero_ps();
        for (int64_t load = 0, block = 0; block < blocks; load++) {
            const __m256i present = first_lanes(groups - load * GROUPS);
            const int *pairs_at = (const int *)(scales + load * GROUPS * 2);
            _mm_prefetch((const char *)pairs_at + COTERIE_SCALES_AHEAD, _MM_HINT_T0);
            __m256i pairs = _mm256_maskload_epi32(pairs_at, present);
            __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
            __m256 zero = _mm256_castsi256_ps(_mm256_and_si256(pairs, above));
            zero = _mm256_fnmadd_ps(_mm256_set1_ps(COTERIE_ZERO_CODE(bits)), scale, zero);
            __m256 factors[4];
            for (int m = 0; m < M; m++) {
                const float *of_token = token_scales(prepared[m], values) + load * GROUPS;
                factors[m] = _mm256_mul_ps(scale, _mm256_load_ps(of_token));
                sums[r][m] = _mm256_fmadd_ps(zero, _mm256_load_ps(of_token + padded), sums[r][m]);
            }
            int64_t end = block + per_load < blocks ? block + per_load : blocks;
            __m256i at = first_groups;
            for (; block < end; block++, at = _mm256_add_epi32(at, step)) {
                const uint8_t *from = codes + block * 32;
                const uint8_t *also = codes + upper + coterie_upper_bytes(bits, block * BLOCK(bits));
                __m256i some[4];
                _mm_prefetch((const char *)from + COTERIE_CODES_AHEAD, _MM_HINT_T0);
                if (COTERIE_UPPER(bits)) _mm_prefetch((const char *)also + COTERIE_CODES_AHEAD, _MM_HINT_T0);
                codes_of(bits, from, also, columns - block * BLOCK(bits), some);
                for (int m = 0; m < M; m++) {
                    const void *token = (const char *)prepared[m] + block * BLOCK(bits) * 2;
                    __m256i part = products_of(bits, some, token);
                    __m256 factor = _mm256_permutevar8x32_ps(factors[m], at);
                    sums[r][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part), factor, sums[r][m]);
                }
            }
        }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) out[m * stride + r] = total(sums[r][m]);
}

#define PREPARED(name, block)                                                                                          \
    static int64_t prepared_##name(int64_t columns) {                                                                  \
        return prepared_affine(block, columns);                                                                        \
    }                                                                                                                  \
    TARGET static void prepare_##name(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {         \
        prepare_affine(block, token, columns, group, prepared);                                                        \
    }

PREPARED(pairs, BLOCK(4))
PREPARED(fours, BLOCK(2))

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

/* bfloat16. A token is kept as float32. */
static int64_t prepared_bf16(int64_t columns) {
    return whole_lines(columns * 4);
}

TARGET static void prepare_bf16(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    float *values = prepared;
    (void)group;
    for (int64_t i = 0; i < columns; i++) values[i] = coterie_from_bf16(token[i]);
}

TARGET_INLINE void tile_bf16(const int R, const int M, const coterie_matrix *matrix, int64_t row,
                             const void *const *prepared, float *out, int64_t stride) {
    const int64_t columns = matrix->columns;
    const uint8_t *weights = matrix->codes + row * columns * 2;
    for (int r = 0; r < R; r++, weights += columns * 2) {
        __m256 sums[4][2];
        for (int m = 0; m < M; m++) sums[m][0] = sums[m][1] = _mm256_setzero_ps();
        for (int64_t i = 0; i < columns; i += 16) {
            _mm_prefetch((const char *)weights + i * 2 + COTERIE_CODES_AHEAD, _MM_HINT_T0);
            for (int h = 0; h < 2; h++) {
                __m128i stored = _mm_loadu_si128((const __m128i *)(weights + (i + 8 * h) * 2));
                __m256 some = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(stored), 16));
                for (int m = 0; m < M; m++)
                    sums[m][h] = _mm256_fmadd_ps(some, _mm256_load_ps((const float *)prepared[m] + i + 8 * h), sums[m][h]);
            }
        }
        for (int m = 0; m < M; m++) out[m * stride + r] = total(_mm256_add_ps(sums[m][0], sums[m][1]));
    }
}

/* As many rows and tokens at a time as the registers hold. */
#define ROWS(name, tile, ...)                                                                                          \
    TARGET static void name(const coterie_matrix *matrix, int64_t begin, int64_t end, const void *const *prepared,     \
                            int tokens, float *out, int64_t stride) {                                                  \
        int t = 0;                                                                                                     \
        for (int64_t row = begin; row < end; row++, t = 0) {                                                           \
            float *to = out + row - begin;                                                                             \
            if (tokens == 1 && row + 2 <= end) {                                                                       \
                tile(__VA_ARGS__ 2, 1, matrix, row++, prepared, to, stride);                                           \
                continue;                                                                                              \
            }                                                                                                          \
            for (; t + 4 <= tokens; t += 4)                                                                            \
                tile(__VA_ARGS__ 1, 4, matrix, row, prepared + t, to + t * stride, stride);                            \
            for (; t + 2 <= tokens; t += 2)                                                                            \
                tile(__VA_ARGS__ 1, 2, matrix, row, prepared + t, to + t * stride, stride);                            \
            if (t < tokens) tile(__VA_ARGS__ 1, 1, matrix, row, prepared + t, to + t * stride, stride);                \
        }                                                                                                              \
    }

#define BITS(bits) bits,

ROWS(rows_int2, tile_affine, BITS(2))
ROWS(rows_int3, tile_affine, BITS(3))
ROWS(rows_int4, tile_affine, BITS(4))
ROWS(rows_int5, tile_affine, BITS(5))
ROWS(rows_int6, tile_affine, BITS(6))
ROWS(rows_int8, tile_int8)
ROWS(rows_bf16, tile_bf16)

const coterie_kernel coterie_avx2[COTERIE_SCHEMES] = {
    [COTERIE_INT2] = {prepared_fours, prepare_fours, rows_int2},
    [COTERIE_INT3] = {prepared_fours, prepare_fours, rows_int3},
    [COTERIE_INT4] = {prepared_pairs, prepare_pairs, rows_int4},
    [COTERIE_INT5] = {prepared_pairs, prepare_pairs, rows_int5},
    [COTERIE_INT6] = {prepared_pairs, prepare_pairs, rows_int6},
    [COTERIE_INT8] = {prepared_int8, prepare_int8, rows_int8},
    [COTERIE_BF16] = {prepared_bf16, prepare_bf16, rows_bf16},
};
#endif
