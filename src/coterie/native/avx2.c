/* AVX2 with FMA. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "bfloat16.h"
#include "coterie.h"

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

TARGET_INLINE __m256 widened(const uint16_t *values) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)values));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

/* The first `count` of 8 lanes. */
TARGET_INLINE __m256i first_lanes(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}

/* int4. Lane l of the 8 32-bit lanes of a load holds columns 8l to 8l + 7 in its nibbles. Nibble s is masked where it
 * stands and converted, which makes it 16^s times too large; so the token's columns 8l + s are kept as a vector of
 * their own, divided by 16^s, which is exact. Only the last one, which reaches the sign, is shifted. Codes stay plus 8
 * here: what is too much is 8 times the scale times the sum of the token's group, and goes with the zeros.
 */
static int64_t prepared_int4(int64_t columns) {
    int64_t sums = (columns / 32 + GROUPS - 1) / GROUPS * GROUPS;
    return (blocks_of(columns) * BLOCK + sums + 15) / 16 * 64;
}

TARGET static void prepare_int4(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    static const float factors[8] = {1, 0x1p-4f, 0x1p-8f, 0x1p-12f, 0x1p-16f, 0x1p-20f, 0x1p-24f, 1};
    float *order = prepared, *sums = order + blocks_of(columns) * BLOCK;
    for (int64_t first = 0; first < blocks_of(columns) * BLOCK; first += 8) {
        float *block = order + first / BLOCK * BLOCK + first % BLOCK / 8;
        for (int s = 0; s < 8; s++)
            block[s * 8] = first < columns ? coterie_from_bf16(token[first + s]) * factors[s] : 0;
    }
    int64_t groups = columns / group;
    for (int64_t g = 0; g < groups; g++) {
        __m256 sum = _mm256_setzero_ps();
        for (int64_t i = g * group; i < (g + 1) * group; i += 8) sum = _mm256_add_ps(sum, widened(token + i));
        sums[g] = total(sum);
    }
    for (int64_t g = groups; g % GROUPS; g++) sums[g] = 0;
}

/* R rows with M tokens; R and M are known where this is inlined. */
TARGET_INLINE void tile_int4(const int R, const int M, const coterie_matrix *matrix, int64_t row,
                             const void *const *prepared, float *out, int64_t stride) {
    /* No division: a tile is short. */
    const int narrow = matrix->group == 32;
    const int64_t columns = matrix->columns, groups = columns >> (narrow ? 5 : 6);
    const int64_t blocks = blocks_of(columns), whole = columns >> 6;
    const int per_block = BLOCK / 64 << narrow, per_load = GROUPS / (BLOCK / 64) >> narrow;
    const __m256i rest = first_lanes(columns % BLOCK / 8), upper = _mm256_set1_epi32((int)0xffff0000);
    const __m256i lanes = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    const __m256i first_groups = _mm256_srl_epi32(lanes, _mm_cvtsi32_si128(3 - narrow));
    const __m256i step = _mm256_set1_epi32(per_block);
    const uint8_t *codes = matrix->codes + row * (columns / 2);
    const uint16_t *scales = matrix->scales + row * groups * 2;
    __m256 sums[2][4];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sums[r][m] = _mm256_setzero_ps();
    for (int64_t load = 0, block = 0; block < blocks; load++) {
        const __m256i present = first_lanes(groups - load * GROUPS);
        __m256 scale[2];
        for (int r = 0; r < R; r++) {
            const int *from = (const int *)(scales + (r * groups + load * GROUPS) * 2);
            __m256i pairs = _mm256_maskload_epi32(from, present);
            scale[r] = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
            __m256 zero = _mm256_castsi256_ps(_mm256_and_si256(pairs, upper));
            zero = _mm256_fnmadd_ps(_mm256_set1_ps(8), scale[r], zero);
            for (int m = 0; m < M; m++) {
                const float *token_sums = (const float *)prepared[m] + blocks * BLOCK;
                sums[r][m] = _mm256_fmadd_ps(zero, _mm256_load_ps(token_sums + load * GROUPS), sums[r][m]);
            }
        }
        int64_t end = block + per_load < blocks ? block + per_load : blocks;
        __m256i at = first_groups;
        for (; block < end; block++, at = _mm256_add_epi32(at, step)) {
            __m256i packed[2];
            __m256 part[2][4];
            for (int r = 0; r < R; r++) {
                const uint8_t *from = codes + r * (columns / 2) + block * (BLOCK / 2);
                /* The next rows are asked for while these are computed: each row is a stream that would begin anew. */
                _mm_prefetch((const char *)from + R * (columns / 2), _MM_HINT_T0);
                packed[r] = block < whole ? _mm256_loadu_si256((const __m256i *)from)
                                          : _mm256_maskload_epi32((const int *)from, rest);
                for (int m = 0; m < M; m++) part[r][m] = _mm256_setzero_ps();
            }
#pragma GCC unroll 8
            for (int s = 0; s < 8; s++)
                for (int r = 0; r < R; r++) {
                    __m256i code = s < 7 ? _mm256_and_si256(packed[r], _mm256_set1_epi32((int)(15u << 4 * s)))
                                         : _mm256_srli_epi32(packed[r], 28);
                    __m256 weights = _mm256_cvtepi32_ps(code);
                    for (int m = 0; m < M; m++) {
                        const float *token = (const float *)prepared[m] + block * BLOCK + s * 8;
                        part[r][m] = _mm256_fmadd_ps(weights, _mm256_load_ps(token), part[r][m]);
                    }
                }
            for (int r = 0; r < R; r++) {
                __m256 factor = _mm256_permutevar8x32_ps(scale[r], at);
                for (int m = 0; m < M; m++) sums[r][m] = _mm256_fmadd_ps(part[r][m], factor, sums[r][m]);
            }
        }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) out[m * stride + r] = total(sums[r][m]);
}

/* int8. Codes become float32, eight at a time. */
static int64_t prepared_int8(int64_t columns) {
    return (columns + 15) / 16 * 64;
}

TARGET static void prepare_int8(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    (void)group;
    float *values = prepared;
    for (int64_t i = 0; i < columns; i += 8) _mm256_store_ps(values + i, widened(token + i));
}

TARGET_INLINE void tile_int8(const int R, const int M, const coterie_matrix *matrix, int64_t row,
                             const void *const *prepared, float *out, int64_t stride) {
    const int64_t columns = matrix->columns, group = matrix->group, groups = columns >> (group == 32 ? 5 : 6);
    const int8_t *codes = (const int8_t *)matrix->codes + row * columns;
    const uint16_t *scales = matrix->scales + row * groups;
    __m256 sums[2][4];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sums[r][m] = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        __m256 part[2][4];
        for (int r = 0; r < R; r++)
            for (int m = 0; m < M; m++) part[r][m] = _mm256_setzero_ps();
        for (int r = 0; r < R; r++)
            _mm_prefetch((const char *)codes + (r + R) * columns + g * group, _MM_HINT_T0);
        for (int64_t i = g * group; i < (g + 1) * group; i += 8)
            for (int r = 0; r < R; r++) {
                __m128i bytes = _mm_loadl_epi64((const __m128i *)(codes + r * columns + i));
                __m256 weights = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
                for (int m = 0; m < M; m++)
                    part[r][m] = _mm256_fmadd_ps(weights, _mm256_load_ps((const float *)prepared[m] + i), part[r][m]);
            }
        for (int r = 0; r < R; r++) {
            __m256 factor = _mm256_set1_ps(coterie_from_bf16(scales[r * groups + g]));
            for (int m = 0; m < M; m++) sums[r][m] = _mm256_fmadd_ps(part[r][m], factor, sums[r][m]);
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
