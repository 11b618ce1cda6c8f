/* AVX2 with FMA. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "bfloat16.h"
#include "coterie.h"
#include "fixed_point.h"
#include "numbers.h"
#include "planes.h"

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define TARGET_INLINE static inline __attribute__((always_inline, target("avx2,fma,f16c")))

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

TARGET_INLINE __m256 converted(int dtype, __m128i stored) {
    if (dtype == COTERIE_FLOAT16) return _mm256_cvtph_ps(stored);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(stored), 16));
}

/* Eight numbers of a dtype, or `count` and zeros. */
TARGET_INLINE __m256 some_numbers(int dtype, int64_t count, const uint8_t *from) {
    if (dtype == COTERIE_FLOAT32) return _mm256_maskload_ps((const float *)from, first_lanes(count));
    if (count == GROUPS) return converted(dtype, _mm_loadu_si128((const __m128i *)from));
    uint16_t few[GROUPS] = {0};
    for (int64_t i = 0; i < count; i++) memcpy(few + i, from + 2 * i, 2);
    return converted(dtype, _mm_loadu_si128((const __m128i *)few));
}

/* The same of pairs: first ones and second ones. */
TARGET_INLINE void some_pairs(int dtype, int64_t count, const uint8_t *from, __m256 *first, __m256 *second) {
    if (dtype == COTERIE_FLOAT32) {
        const __m256 low = _mm256_maskload_ps((const float *)from, first_lanes(2 * count));
        const __m256 high = _mm256_maskload_ps((const float *)from + 8, first_lanes(2 * count - 8));
        /* Of each half of 128 bits two; then these in order. */
        const __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0x88));
        const __m256d odd = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0xdd));
        *first = _mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8));
        *second = _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8));
        return;
    }
    const __m256i pairs = _mm256_maskload_epi32((const int *)from, first_lanes(count));
    const __m256i low = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff)), high = _mm256_srli_epi32(pairs, 16);
    const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
    *first = converted(dtype, _mm256_castsi256_si128(both));
    *second = converted(dtype, _mm256_extracti128_si256(both, 1));
}

/* Eight zero points of a row, from an even one on, of which `left` bytes are there, 2 at least. */
TARGET_INLINE __m256 some_points(const uint8_t *from, int64_t left) {
    uint32_t packed = 0;
    memcpy(&packed, from, left < 4 ? 2 : 4);
    const __m256i shifts = _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0);
    const __m256i points = _mm256_srlv_epi32(_mm256_set1_epi32((int)packed), shifts);
    return _mm256_cvtepi32_ps(_mm256_and_si256(points, _mm256_set1_epi32(15)));
}

/* Of 8 of a token's groups, from `first` on, in a row of scales: the scale, and what is added for each unit of a value
 * because codes are stored from 0 on and because of the zero. `zero_code` stands for 0. */
TARGET_INLINE void numbers_of(const int zero_code, const coterie_matrix *matrix, const uint8_t *row, int64_t first,
                              int64_t groups, __m256 *scale, __m256 *zero) {
    const __m256i twice = _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0);
    const int dtype = coterie_scale_dtype(matrix->scheme), numbers = coterie_numbers(matrix->scheme);
    const int64_t size = coterie_number_bytes(matrix->scheme), stored = groups >> matrix->doubled;
    const int64_t from = first >> matrix->doubled, most = GROUPS >> matrix->doubled;
    const int64_t count = stored - from < most ? stored - from : most;
    if (numbers == COTERIE_ZERO) {
        some_pairs(dtype, count, row + 2 * size * from, scale, zero);
        *zero = _mm256_fnmadd_ps(_mm256_set1_ps((float)zero_code), *scale, *zero);
    } else {
        const uint8_t *points = row + size * stored;
        *scale = some_numbers(dtype, count, row + size * from);
        *zero = numbers == COTERIE_SYM ? _mm256_set1_ps((float)-zero_code)
                                       : -some_points(points + from / 2, (stored + 3) / 4 * 2 - from / 2);
        *zero = _mm256_mul_ps(*zero, *scale);
    }
    if (!matrix->doubled) return;
    *scale = _mm256_permutevar8x32_ps(*scale, twice);
    *zero = _mm256_permutevar8x32_ps(*zero, twice);
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

/* R rows with M tokens; whether scales are the usual ones, bits, R and M are known where this is inlined. */
TARGET_INLINE void tile_affine(const int usual, const int bits, const int R, const int M, const coterie_matrix *matrix, int64_t row,
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
    const int64_t apart = usual ? groups * 4 : coterie_scale_bytes(matrix);
    const int64_t of_load = usual ? GROUPS * 4 : coterie_some_scale_bytes(matrix, GROUPS);
    const uint8_t *codes = matrix->codes + row * bytes, *scales = matrix->scales + row * apart;
    __m256 sums[2][4];
    /* One row after the other, as they lie in memory: see COTERIE_CODES_AHEAD. */
    for (int r = 0; r < R; r++, codes += bytes, scales += apart) {
        for (int m = 0; m < M; m++) sums[r][m] = _mm256_setzero_ps();
        for (int64_t load = 0, block = 0; block < blocks; load++) {
            const uint8_t *of_groups = scales + load * of_load;
            __m256 scale, zero;
            _mm_prefetch((const char *)of_groups + COTERIE_SCALES_AHEAD, _MM_HINT_T0);
            if (usual) {
                __m256i pairs = _mm256_maskload_epi32((const int *)of_groups, first_lanes(groups - load * GROUPS));
                scale = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
                zero = _mm256_castsi256_ps(_mm256_and_si256(pairs, above));
                zero = _mm256_fnmadd_ps(_mm256_set1_ps(COTERIE_ZERO_CODE(bits)), scale, zero);
            } else {
                numbers_of(COTERIE_ZERO_CODE(bits), matrix, scales, load * GROUPS, groups, &scale, &zero);
            }
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
    return whole_lines(values_int8(columns) + 2 * 4 * padded_groups(columns));
}

TARGET static void prepare_int8(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    float *scales = (float *)token_scales(prepared, values_int8(columns)), *sums = scales + padded_groups(columns);
    int16_t *values = prepared;
    for (int64_t g = 0; g < padded_groups(columns); g++) scales[g] = sums[g] = 0;
    for (int64_t first = 0; first < columns; first += group) {
        int32_t whole[64];
        scales[first / group] = group == 64 ? coterie_fixed_point(token + first, 64, whole, sums + first / group)
                                            : coterie_fixed_point(token + first, 32, whole, sums + first / group);
        for (int64_t i = 0; i < group; i++) values[first + i] = (int16_t)whole[i];
    }
}

TARGET_INLINE void tile_int8(const int usual, const int R, const int M, const coterie_matrix *matrix, int64_t row,
                             const void *const *prepared, float *out, int64_t stride) {
    const int64_t columns = matrix->columns, group = matrix->group, groups = columns >> (group == 32 ? 5 : 6);
    const int64_t apart = usual ? groups * 2 : coterie_scale_bytes(matrix), padded = padded_groups(columns);
    const int with_zeros = !usual && coterie_numbers(matrix->scheme) == COTERIE_ZERO;
    const int8_t *codes = (const int8_t *)matrix->codes + row * columns;
    const uint8_t *scales = matrix->scales + row * apart;
    __m256 sums[2][4];
    for (int r = 0; r < R; r++, codes += columns, scales += apart) {
        float steps[GROUPS];
        for (int m = 0; m < M; m++) sums[r][m] = _mm256_setzero_ps();
        for (int64_t g = 0; g < groups; g++) {
            if (!usual && g % GROUPS == 0) {
                __m256 step, zero;
                numbers_of(0, matrix, scales, g, groups, &step, &zero);
                _mm256_storeu_ps(steps, step);
                for (int m = 0; with_zeros && m < M; m++) {
                    const float *of_token = token_scales(prepared[m], values_int8(columns)) + padded + g;
                    sums[r][m] = _mm256_fmadd_ps(zero, _mm256_loadu_ps(of_token), sums[r][m]);
                }
            }
            __m256i part[4];
            for (int m = 0; m < M; m++) part[m] = _mm256_setzero_si256();
            _mm_prefetch((const char *)codes + g * group + COTERIE_CODES_AHEAD, _MM_HINT_T0);
            _mm_prefetch((const char *)scales + g * 2 + COTERIE_SCALES_AHEAD, _MM_HINT_T0);
            for (int64_t i = g * group; i < (g + 1) * group; i += 16) {
                __m256i code = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(codes + i)));
                for (int m = 0; m < M; m++) {
                    const __m256i *token = (const __m256i *)((const int16_t *)prepared[m] + i);
                    part[m] = _mm256_add_epi32(part[m], _mm256_madd_epi16(code, _mm256_load_si256(token)));
                }
            }
            const float step = usual ? coterie_number_at(COTERIE_BFLOAT16, scales, g) : steps[g % GROUPS];
            for (int m = 0; m < M; m++) {
                float scale = step * token_scales(prepared[m], values_int8(columns))[g];
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

TARGET_INLINE void tile_bf16(const int usual, const int R, const int M, const coterie_matrix *matrix, int64_t row,
                             const void *const *prepared, float *out, int64_t stride) {
    const int64_t columns = matrix->columns;
    const uint8_t *weights = matrix->codes + row * columns * 2;
    (void)usual;
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
#define ROWS_OF(name, tile, ...)                                                                                        \
    TARGET static void name(const coterie_matrix *matrix, int64_t begin, int64_t end, const void *const *prepared,     \
                            int tokens, float *out, int64_t stride) {                                                  \
        int t = 0;                                                                                                     \
        for (int64_t row = begin; row < end; row++, t = 0) {                                                           \
            float *to = out + row - begin;                                                                             \
            if (tokens == 1 && row + 2 <= end) {                                                                       \
                tile(__VA_ARGS__, 2, 1, matrix, row++, prepared, to, stride);                                           \
                continue;                                                                                              \
            }                                                                                                          \
            for (; t + 4 <= tokens; t += 4)                                                                            \
                tile(__VA_ARGS__, 1, 4, matrix, row, prepared + t, to + t * stride, stride);                            \
            for (; t + 2 <= tokens; t += 2)                                                                            \
                tile(__VA_ARGS__, 1, 2, matrix, row, prepared + t, to + t * stride, stride);                            \
            if (t < tokens) tile(__VA_ARGS__, 1, 1, matrix, row, prepared + t, to + t * stride, stride);                \
        }                                                                                                              \
    }

/* The usual scales, and all others. */
#define ROWS(name, tile, ...)                                                                                          \
    ROWS_OF(name##_usual, tile, 1, ##__VA_ARGS__)                                                                      \
    ROWS_OF(name##_other, tile, 0, ##__VA_ARGS__)                                                                      \
    static void name(const coterie_matrix *matrix, int64_t begin, int64_t end, const void *const *prepared,            \
                     int tokens, float *out, int64_t stride) {                                                         \
        (coterie_is_usual(matrix) ? name##_usual : name##_other)(matrix, begin, end, prepared, tokens, out, stride);   \
    }

ROWS(rows_int2, tile_affine, 2)
ROWS(rows_int3, tile_affine, 3)
ROWS(rows_int4, tile_affine, 4)
ROWS(rows_int5, tile_affine, 5)
ROWS(rows_int6, tile_affine, 6)
ROWS(rows_int8, tile_int8)
ROWS_OF(rows_bf16, tile_bf16, 1)

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
