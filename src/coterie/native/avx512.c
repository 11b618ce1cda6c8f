/* AVX-512 with BF16. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "bfloat16.h"
#include "coterie.h"

#define SETS "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma"
#define TARGET __attribute__((target(SETS)))
#define TARGET_INLINE static inline __attribute__((always_inline, target(SETS)))

/* Columns that one load of int4 codes holds, and groups whose scales one load holds. */
enum { BLOCK = 128, GROUPS = 16 };

COTERIE_INLINE int64_t blocks_of(int64_t columns) {
    return (columns + BLOCK - 1) >> 7;
}

/* The sum of 16 lanes, always in the same order. */
TARGET_INLINE __m128 quarter(__m512 sums) {
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

TARGET_INLINE float total(__m512 sums) {
    __m128 four = quarter(sums);
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* Four of them at once. */
TARGET_INLINE __m128 totals(const __m512 sums[4]) {
    __m128 a = quarter(sums[0]), b = quarter(sums[1]), c = quarter(sums[2]), d = quarter(sums[3]);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    return _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d));
}

/* int4. Lane l of the 32 16-bit lanes of a load holds columns 4l to 4l + 3 in its four nibbles. A nibble is decoded by
 * looking it up in a table of bfloat16, which looks at the five lowest bits of an index: with the 16 values twice in the
 * table, nothing need be masked. So that a token's columns meet those of the codes, it is kept as four vectors for each
 * 128 columns, vector s holding columns 4l + s. Products of bfloat16 are exact and are added in float32; then lanes 0 to
 * 7 of the 16 sums belong to the first group of 64, lanes 8 to 15 to the second, and one multiplication scales both.
 * Zeros meet the sums of the token's groups, 16 groups at a time.
 */
static int64_t prepared_int4(int64_t columns) {
    int64_t sums = (columns / 32 + GROUPS - 1) / GROUPS * GROUPS;
    return blocks_of(columns) * BLOCK * 2 + sums * 4;
}

TARGET static void prepare_int4(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    uint16_t *order = prepared;
    float *sums = (float *)(order + blocks_of(columns) * BLOCK);
    const __m512i ones = _mm512_set1_epi16(0x3f80);
    int64_t groups = columns / group;
    for (int64_t g = groups; g % GROUPS; g++) sums[g] = 0;
    __m512 sum = _mm512_setzero_ps();
    for (int64_t first = 0; first < blocks_of(columns) * BLOCK; first += 32) {
        uint16_t *block = order + first / BLOCK * BLOCK + first % BLOCK / 4;
        /* Columns are a multiple of 32. */
        __m512i x = first < columns ? _mm512_loadu_si512(token + first) : _mm512_setzero_si512();
        for (int s = 0; s < 4; s++)
            _mm_storeu_si128((__m128i *)(block + s * 32), _mm512_cvtepi64_epi16(_mm512_srli_epi64(x, 16 * s)));
        if (first >= columns) continue;
        sum = _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)ones);
        if ((first + 32) % group == 0) {
            sums[first / group] = total(sum);
            sum = _mm512_setzero_ps();
        }
    }
}

TARGET_INLINE __m512i decoding_table(void) {
    /* -8 to 7, twice. */
    return _mm512_set_epi16(0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040, 0x4000, 0x3f80, 0x0000, 0xbf80, 0xc000, 0xc040,
                            0xc080, 0xc0a0, 0xc0c0, 0xc0e0, 0xc100, 0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040, 0x4000,
                            0x3f80, 0x0000, 0xbf80, 0xc000, 0xc040, 0xc080, 0xc0a0, 0xc0c0, 0xc0e0, 0xc100);
}

/* R rows with M tokens; R and M are known where this is inlined. */
TARGET_INLINE void tile_int4(const int R, const int M, const coterie_matrix *matrix, int64_t row,
                             const void *const *prepared, float *out, int64_t stride) {
    /* No division: a tile is short. */
    const int narrow = matrix->group == 32;
    const int64_t columns = matrix->columns, groups = columns >> (narrow ? 5 : 6);
    const int64_t blocks = blocks_of(columns), whole = columns >> 7;
    const int per_block = BLOCK / 64 << narrow, per_load = GROUPS / (BLOCK / 64) >> narrow;
    const __mmask64 rest = columns % BLOCK ? (__mmask64)-1 >> (64 - (columns & (BLOCK - 1)) / 2) : 0;
    const __m512i table = decoding_table(), upper = _mm512_set1_epi32((int)0xffff0000);
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i first_groups = _mm512_srl_epi32(lanes, _mm_cvtsi32_si128(3 - narrow));
    const __m512i step = _mm512_set1_epi32(per_block);
    const uint8_t *codes = matrix->codes + row * (columns / 2);
    const uint16_t *scales = matrix->scales + row * groups * 2;
    __m512 sums[4][4];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sums[r][m] = _mm512_setzero_ps();
    for (int64_t load = 0, block = 0; block < blocks; load++) {
        int64_t left = groups - load * GROUPS;
        __mmask16 present = left >= GROUPS ? 0xffff : (__mmask16)((1u << left) - 1);
        __m512 scale[4];
        for (int r = 0; r < R; r++) {
            __m512i pairs = _mm512_maskz_loadu_epi32(present, scales + (r * groups + load * GROUPS) * 2);
            scale[r] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
            __m512 zero = _mm512_castsi512_ps(_mm512_and_si512(pairs, upper));
            for (int m = 0; m < M; m++) {
                const float *token_sums = (const float *)((const uint16_t *)prepared[m] + blocks * BLOCK);
                sums[r][m] = _mm512_fmadd_ps(zero, _mm512_load_ps(token_sums + load * GROUPS), sums[r][m]);
            }
        }
        int64_t end = block + per_load < blocks ? block + per_load : blocks;
        __m512i at = first_groups;
        for (; block < end; block++, at = _mm512_add_epi32(at, step)) {
            __m512i packed[4];
            __m512 part[4][4];
            for (int r = 0; r < R; r++) {
                const uint8_t *from = codes + r * (columns / 2) + block * (BLOCK / 2);
                /* The next rows are asked for while these are computed: each row is a stream that would begin anew. */
                _mm_prefetch((const char *)from + R * (columns / 2), _MM_HINT_T0);
                packed[r] = block < whole ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8(rest, from);
                for (int m = 0; m < M; m++) part[r][m] = _mm512_setzero_ps();
            }
#pragma GCC unroll 4
            for (int s = 0; s < 4; s++)
                for (int r = 0; r < R; r++) {
                    __m512i index = s ? _mm512_srli_epi16(packed[r], 4 * s) : packed[r];
                    __m512bh weights = (__m512bh)_mm512_permutexvar_epi16(index, table);
                    for (int m = 0; m < M; m++) {
                        const uint16_t *token = (const uint16_t *)prepared[m] + block * BLOCK + s * 32;
                        part[r][m] = _mm512_dpbf16_ps(part[r][m], weights, (__m512bh)_mm512_load_si512(token));
                    }
                }
            for (int r = 0; r < R; r++) {
                __m512 factor = _mm512_permutexvar_ps(at, scale[r]);
                for (int m = 0; m < M; m++) sums[r][m] = _mm512_fmadd_ps(part[r][m], factor, sums[r][m]);
            }
        }
    }
    for (int m = 0; m < M; m++) {
        if (R == 4) {
            __m512 four[4] = {sums[0][m], sums[1][m], sums[2][m], sums[3][m]};
            _mm_storeu_ps(out + m * stride, totals(four));
        } else {
            for (int r = 0; r < R; r++) out[m * stride + r] = total(sums[r][m]);
        }
    }
}

/* int8. Codes become float32, 16 at a time, and so do tokens: a conversion to bfloat16 would cost more than it saves. */
static int64_t prepared_int8(int64_t columns) {
    return (columns + 15) / 16 * 64;
}

TARGET static void prepare_int8(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    (void)group;
    float *values = prepared;
    for (int64_t i = 0; i < columns; i += 16) {
        __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(token + i)));
        _mm512_store_ps(values + i, _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
    }
}

TARGET_INLINE void tile_int8(const int R, const int M, const coterie_matrix *matrix, int64_t row,
                             const void *const *prepared, float *out, int64_t stride) {
    const int64_t columns = matrix->columns, group = matrix->group, groups = columns >> (group == 32 ? 5 : 6);
    const int8_t *codes = (const int8_t *)matrix->codes + row * columns;
    const uint16_t *scales = matrix->scales + row * groups;
    __m512 sums[4][4];
    for (int r = 0; r < R; r++)
        for (int m = 0; m < M; m++) sums[r][m] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        __m512 part[4][4];
        for (int r = 0; r < R; r++)
            for (int m = 0; m < M; m++) part[r][m] = _mm512_setzero_ps();
        for (int r = 0; r < R; r++)
            _mm_prefetch((const char *)codes + (r + R) * columns + g * group, _MM_HINT_T0);
        for (int64_t i = g * group; i < (g + 1) * group; i += 16)
            for (int r = 0; r < R; r++) {
                __m128i bytes = _mm_loadu_si128((const __m128i *)(codes + r * columns + i));
                __m512 weights = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
                for (int m = 0; m < M; m++)
                    part[r][m] = _mm512_fmadd_ps(weights, _mm512_load_ps((const float *)prepared[m] + i), part[r][m]);
            }
        for (int r = 0; r < R; r++) {
            __m512 factor = _mm512_set1_ps(coterie_from_bf16(scales[r * groups + g]));
            for (int m = 0; m < M; m++) sums[r][m] = _mm512_fmadd_ps(part[r][m], factor, sums[r][m]);
        }
    }
    for (int m = 0; m < M; m++) {
        if (R == 4) {
            __m512 four[4] = {sums[0][m], sums[1][m], sums[2][m], sums[3][m]};
            _mm_storeu_ps(out + m * stride, totals(four));
        } else {
            for (int r = 0; r < R; r++) out[m * stride + r] = total(sums[r][m]);
        }
    }
}

/* As many rows and tokens at a time as the registers hold. */
#define ROWS(name, tile)                                                                                               \
    TARGET static void name##_by_1(const coterie_matrix *matrix, int64_t begin, int64_t end,                           \
                                   const void *const *prepared, float *out, int64_t stride) {                          \
        int64_t row = begin;                                                                                           \
        for (; row + 4 <= end; row += 4) tile(4, 1, matrix, row, prepared, out + row - begin, stride);                 \
        for (; row < end; row++) tile(1, 1, matrix, row, prepared, out + row - begin, stride);                         \
    }                                                                                                                  \
    TARGET static void name##_by_2(const coterie_matrix *matrix, int64_t begin, int64_t end,                           \
                                   const void *const *prepared, float *out, int64_t stride) {                          \
        int64_t row = begin;                                                                                           \
        for (; row + 4 <= end; row += 4) tile(4, 2, matrix, row, prepared, out + row - begin, stride);                 \
        for (; row < end; row++) tile(1, 2, matrix, row, prepared, out + row - begin, stride);                         \
    }                                                                                                                  \
    TARGET static void name(const coterie_matrix *matrix, int64_t begin, int64_t end, const void *const *prepared,     \
                            int tokens, float *out, int64_t stride) {                                                  \
        if (tokens == 1) {                                                                                             \
            name##_by_1(matrix, begin, end, prepared, out, stride);                                                    \
            return;                                                                                                    \
        }                                                                                                              \
        if (tokens == 2) {                                                                                             \
            name##_by_2(matrix, begin, end, prepared, out, stride);                                                    \
            return;                                                                                                    \
        }                                                                                                              \
        /* Two rows stay in the first-level cache while all tokens meet them. */                                       \
        for (int64_t row = begin; row < end; row += 2) {                                                               \
            int64_t last = row + 2 <= end ? row + 2 : end;                                                             \
            int t = 0;                                                                                                 \
            float *to = out + row - begin;                                                                             \
            for (; last - row == 2 && t + 4 <= tokens; t += 4)                                                         \
                tile(2, 4, matrix, row, prepared + t, to + t * stride, stride);                                        \
            for (; t + 2 <= tokens; t += 2) name##_by_2(matrix, row, last, prepared + t, to + t * stride, stride);     \
            if (t < tokens) name##_by_1(matrix, row, last, prepared + t, to + t * stride, stride);                     \
        }                                                                                                              \
    }

ROWS(rows_int4, tile_int4)
ROWS(rows_int8, tile_int8)

const coterie_kernel coterie_avx512bf16[COTERIE_SCHEMES] = {
    [COTERIE_INT4] = {prepared_int4, prepare_int4, rows_int4},
    [COTERIE_INT8] = {prepared_int8, prepare_int8, rows_int8},
};
#endif
