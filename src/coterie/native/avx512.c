/* AVX-512 with VNNI, which every processor with BF16 has. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "bfloat16.h"
#include "coterie.h"
#include "fixed_point.h"
#include "numbers.h"
#include "planes.h"

#define SETS "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma"
#define TARGET __attribute__((target(SETS)))
#define TARGET_INLINE static inline __attribute__((always_inline, target(SETS)))

/* Groups whose scales one load holds. */
enum { GROUPS = 16 };

/* How many of R rows are taken side by side with M tokens. With few tokens memory is the limit, and rows are taken one
 * after the other, as they lie there (COTERIE_CODES_AHEAD); with more, what is loaded of a token serves several rows. */
#define SIDE(R, M) ((M) > 2 ? (R) : 1)

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

/* The lanes of a product's 16 sums belong to groups in order, a group of 64 to twice as many lanes as one of 32.
 * For each load of scales, and for each block in it, `at` says which of them each lane wants. */
TARGET_INLINE __m512i first_places(int lanes_of_group_log2) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_srl_epi32(lanes, _mm_cvtsi32_si128(lanes_of_group_log2));
}

COTERIE_INLINE int64_t padded_groups(int64_t columns) {
    return (columns / 32 + GROUPS - 1) / GROUPS * GROUPS;
}

/* Scales of a token's groups, then sums, of whole loads. */
COTERIE_INLINE const float *token_scales(const void *prepared, int64_t planes) {
    return (const float *)((const char *)prepared + planes);
}

/* The first `count` of 16 lanes. */
TARGET_INLINE __mmask16 first_lanes(int64_t count) {
    return count >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << count) - 1);
}

TARGET_INLINE __m512 from_bf16(__m256i stored) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(stored), 16));
}

/* Sixteen numbers of a dtype, or as many as are present and zeros. */
TARGET_INLINE __m512 some_numbers(int dtype, __mmask16 present, const uint8_t *from) {
    if (dtype == COTERIE_FLOAT32) return _mm512_maskz_loadu_ps(present, from);
    const __m256i stored = _mm256_maskz_loadu_epi16(present, from);
    return dtype == COTERIE_FLOAT16 ? _mm512_cvtph_ps(stored) : from_bf16(stored);
}

/* The same of pairs: first ones and second ones. */
TARGET_INLINE void some_pairs(int dtype, int64_t count, const uint8_t *from, __m512 *first, __m512 *second) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    if (dtype == COTERIE_FLOAT32) {
        const __m512 low = _mm512_maskz_loadu_ps(first_lanes(2 * count), from);
        const __m512 high = _mm512_maskz_loadu_ps(first_lanes(count > 8 ? 2 * count - 16 : 0), from + 64);
        *first = _mm512_permutex2var_ps(low, even, high);
        *second = _mm512_permutex2var_ps(low, _mm512_or_si512(even, _mm512_set1_epi32(1)), high);
        return;
    }
    const __m512i pairs = _mm512_maskz_loadu_epi32(first_lanes(count), from);
    const __m256i low = _mm512_cvtepi32_epi16(pairs), high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs, 16));
    *first = dtype == COTERIE_FLOAT16 ? _mm512_cvtph_ps(low) : from_bf16(low);
    *second = dtype == COTERIE_FLOAT16 ? _mm512_cvtph_ps(high) : from_bf16(high);
}

/* Sixteen zero points of a row, from an even one on, of which `left` bytes are there, or more. */
TARGET_INLINE __m512 some_points(const uint8_t *from, int64_t left) {
    const __m128i bytes = _mm_maskz_loadu_epi8(left >= 8 ? 0xff : (__mmask16)((1u << left) - 1), from);
    const __m128i wide = _mm_cvtepu8_epi16(bytes);
    const __m128i points = _mm_and_si128(_mm_or_si128(wide, _mm_slli_epi16(wide, 4)), _mm_set1_epi8(15));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(points));
}

/* Of 16 of a token's groups, from `first` on, in a row of scales: the scale, and what is added for each unit of a value
 * because codes are stored from 0 on and because of the zero. `zero_code` stands for 0. */
TARGET_INLINE void numbers_of(const int zero_code, const coterie_matrix *matrix, const uint8_t *row, int64_t first,
                              int64_t groups, __m512 *scale, __m512 *zero) {
    const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    const int dtype = coterie_scale_dtype(matrix->scheme), numbers = coterie_numbers(matrix->scheme);
    const int64_t size = coterie_number_bytes(matrix->scheme), stored = groups >> matrix->doubled;
    const int64_t from = first >> matrix->doubled, most = GROUPS >> matrix->doubled;
    const int64_t count = stored - from < most ? stored - from : most;
    if (numbers == COTERIE_ZERO) {
        some_pairs(dtype, count, row + 2 * size * from, scale, zero);
        *zero = _mm512_fnmadd_ps(_mm512_set1_ps((float)zero_code), *scale, *zero);
    } else {
        const uint8_t *points = row + size * stored;
        *scale = some_numbers(dtype, first_lanes(count), row + size * from);
        *zero = numbers == COTERIE_SYM ? _mm512_set1_ps((float)-zero_code)
                                       : -some_points(points + from / 2, (stored + 3) / 4 * 2 - from / 2);
        *zero = _mm512_mul_ps(*zero, *scale);
    }
    if (!matrix->doubled) return;
    *scale = _mm512_permutexvar_ps(twice, *scale);
    *zero = _mm512_permutexvar_ps(twice, *zero);
}

/* Affine schemes. A load holds 64 bytes of the lower plane (planes.h): two columns in each, or four, so 128 columns or
 * 256. Shifts and masks make as many vectors of it: their bytes j are the codes, as whole numbers from 0 on, of the
 * columns that byte j of the load holds. A token is kept as 16-bit whole numbers with a scale for each group
 * (fixed_point.h), their upper and lower bytes apart: for each block of so many columns the upper bytes of the columns of
 * each vector, then the lower bytes likewise. Sums of products of bytes are exact; upper ones count 256 times. Codes stay
 * as they are stored, from 0 on: what that is too much is a multiple of the sum of the group's values, and goes with the
 * zeros, 16 groups at a time.
 */
#define VECTORS(bits) (8 / COTERIE_LOWER(bits))
#define BLOCK(bits) (64 * VECTORS(bits))

COTERIE_INLINE int64_t blocks_of(const int block, int64_t columns) {
    return (columns + block - 1) / block;
}

COTERIE_INLINE int64_t values_affine(const int block, int64_t columns) {
    return blocks_of(block, columns) * block * 2;
}

COTERIE_INLINE int64_t prepared_affine(const int block, int64_t columns) {
    return values_affine(block, columns) + 2 * 4 * padded_groups(columns);
}

/* Sixteen columns of a block as bytes: those of each vector side by side. */
TARGET_INLINE void prepare_some(const int vectors, __m512i whole, char *to) {
    const __m128i order = vectors == 2 ? _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)
                                       : _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    char bytes[2][16];
    _mm_storeu_si128((__m128i *)bytes[0],
                     _mm_shuffle_epi8(_mm512_cvtepi32_epi8(_mm512_srai_epi32(whole, 8)), order));
    _mm_storeu_si128((__m128i *)bytes[1], _mm_shuffle_epi8(_mm512_cvtepi32_epi8(whole), order));
    for (int v = 0; v < vectors; v++) {
        memcpy(to + 64 * v, bytes[0] + 16 / vectors * v, 16 / vectors);
        memcpy(to + 64 * (vectors + v), bytes[1] + 16 / vectors * v, 16 / vectors);
    }
}

TARGET_INLINE void prepare_affine(const int block, const uint16_t *token, int64_t columns, int64_t group,
                                  void *prepared) {
    const int vectors = block / 64;
    float *scales = (float *)token_scales(prepared, values_affine(block, columns));
    float *sums = scales + padded_groups(columns);
    for (int64_t g = 0; g < padded_groups(columns); g++) scales[g] = sums[g] = 0;
    int32_t whole[64];
    for (int64_t first = 0; first < blocks_of(block, columns) * block; first += 16) {
        char *to = (char *)prepared + first / block * block * 2 + first % block / vectors;
        if (first >= columns) {
            prepare_some(vectors, _mm512_setzero_si512(), to);
            continue;
        }
        if (first % group == 0)
            scales[first / group] =
                group == 64 ? coterie_fixed_point(token + first, 64, whole, sums + first / group)
                            : coterie_fixed_point(token + first, 32, whole, sums + first / group);
        prepare_some(vectors, _mm512_loadu_si512(whole + first % group), to);
    }
}

/* Bytes whose parts, `by` bits above, belong into the byte after them. */
TARGET_INLINE __m512i spread(__m512i wide, const int by, const int mask) {
    return _mm512_ternarylogic_epi32(wide, _mm512_slli_epi32(wide, by), _mm512_set1_epi32(mask), 0xa8);
}

/* The upper parts of the codes of a block of which `left` columns are there, or more: in each byte, those of the same
 * byte of the lower plane. */
TARGET_INLINE __m512i upper_parts(const int bits, const uint8_t *upper, int64_t left) {
    const int whole = left >= BLOCK(bits);
    const __mmask32 present = ((__mmask32)1 << (left * COTERIE_UPPER(bits) / 8 & 31)) - 1;
    if (bits == 5) {
        __m128i packed = whole ? _mm_loadu_si128((const __m128i *)upper)
                               : _mm_maskz_loadu_epi8((__mmask16)present, upper);
        return spread(spread(_mm512_cvtepu8_epi32(packed), 12, 0x000f000f), 6, 0x03030303);
    }
    __m256i packed = whole ? _mm256_loadu_si256((const __m256i *)upper) : _mm256_maskz_loadu_epi8(present, upper);
    return spread(_mm512_cvtepu8_epi16(packed), 4, 0x0f0f0f0f);
}

TARGET_INLINE __m512i moved(__m512i x, const int up) {
    return up >= 0 ? _mm512_slli_epi16(x, up) : _mm512_srli_epi16(x, -up);
}

/* The vectors of a block of which `left` columns are there, or more. */
TARGET_INLINE void codes_of(const int bits, const uint8_t *lower, const uint8_t *upper, int64_t left,
                            __m512i codes[4]) {
    const int below = COTERIE_LOWER(bits), above = COTERIE_UPPER(bits);
    const __m512i low = _mm512_set1_epi8(COTERIE_LOWER_MASK(bits)), all = _mm512_set1_epi8((1 << bits) - 1);
    __m512i packed = left >= BLOCK(bits)
                         ? _mm512_loadu_si512(lower)
                         : _mm512_maskz_loadu_epi8((__mmask64)-1 >> (64 - left * below / 8 % 64), lower);
    __m512i parts = above ? upper_parts(bits, upper, left) : packed;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS(bits); v++) {
        codes[v] = v ? _mm512_srli_epi16(packed, below * v) : packed;
        if (above) {
            /* The lower bits of one and the others of the other. */
            codes[v] = _mm512_ternarylogic_epi32(codes[v], moved(parts, below - above * v), low, 0xe4);
            codes[v] = _mm512_and_si512(codes[v], all);
        } else {
            codes[v] = _mm512_and_si512(codes[v], low);
        }
    }
}

/* Products of a block's codes with a token, in sums that lie beside each other as the codes do. */
TARGET_INLINE __m512i products_of(const int vectors, const __m512i codes[4], const char *token) {
    __m512i part = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) part = _mm512_dpbusd_epi32(part, codes[v], _mm512_load_si512(token + 64 * v));
    part = _mm512_slli_epi32(part, 8);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++)
        part = _mm512_dpbusd_epi32(part, _mm512_load_si512(token + 64 * (vectors + v)), codes[v]);
    return part;
}

/* R rows with M tokens; whether scales are the usual ones, bits, R and M are known where this is inlined. */
TARGET_INLINE void tile_affine(const int usual, const int bits, const int R, const int M, const coterie_matrix *matrix, int64_t row,
                               const void *const *prepared, float *out, int64_t stride) {
    /* No division: a tile is short. */
    const int narrow = matrix->group == 32;
    const int64_t columns = matrix->columns, groups = columns >> (narrow ? 5 : 6), padded = padded_groups(columns);
    const int64_t blocks = blocks_of(BLOCK(bits), columns), values = values_affine(BLOCK(bits), columns);
    const int per_block = BLOCK(bits) / 64 << narrow, per_load = GROUPS / (BLOCK(bits) / 64) >> narrow;
    const __m512i above = _mm512_set1_epi32((int)0xffff0000);
    const __m512i first = first_places((VECTORS(bits) == 4 ? 2 : 3) - narrow), step = _mm512_set1_epi32(per_block);
    const int64_t upper = coterie_lower_bytes(bits, columns), bytes = upper + coterie_upper_bytes(bits, columns);
    const int64_t apart = usual ? groups * 4 : coterie_scale_bytes(matrix);
    const int64_t of_load = usual ? GROUPS * 4 : coterie_some_scale_bytes(matrix, GROUPS);
    const uint8_t *codes = matrix->codes + row * bytes, *scales = matrix->scales + row * apart;
    __m512 sums[4][4];
    for (int top = 0; top < R; top += SIDE(R, M), codes += SIDE(R, M) * bytes, scales += SIDE(R, M) * apart) {
        for (int r = 0; r < SIDE(R, M); r++)
            for (int m = 0; m < M; m++) sums[top + r][m] = _mm512_setzero_ps();
        for (int64_t load = 0, block = 0; block < blocks; load++) {
            int64_t left = groups - load * GROUPS;
            __mmask16 present = left >= GROUPS ? 0xffff : (__mmask16)((1u << left) - 1);
            __m512 factors[4][4];
            for (int r = 0; r < SIDE(R, M); r++) {
                __m512 scale, zero;
                const uint8_t *from = scales + r * apart + load * of_load;
                _mm_prefetch((const char *)from + COTERIE_SCALES_AHEAD, _MM_HINT_T0);
                if (usual) {
                    __m512i pairs = _mm512_maskz_loadu_epi32(present, from);
                    scale = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
                    zero = _mm512_castsi512_ps(_mm512_and_si512(pairs, above));
                    zero = _mm512_fnmadd_ps(_mm512_set1_ps(COTERIE_ZERO_CODE(bits)), scale, zero);
                } else {
                    numbers_of(COTERIE_ZERO_CODE(bits), matrix, scales + r * apart, load * GROUPS, groups, &scale, &zero);
                }
                for (int m = 0; m < M; m++) {
                    const float *of_token = token_scales(prepared[m], values) + load * GROUPS;
                    factors[r][m] = _mm512_mul_ps(scale, _mm512_load_ps(of_token));
                    sums[top + r][m] = _mm512_fmadd_ps(zero, _mm512_load_ps(of_token + padded), sums[top + r][m]);
                }
            }
            int64_t end = block + per_load < blocks ? block + per_load : blocks;
            __m512i at = first;
            for (; block < end; block++, at = _mm512_add_epi32(at, step))
                for (int r = 0; r < SIDE(R, M); r++) {
                    const uint8_t *from = codes + r * bytes + block * 64;
                    const uint8_t *also = codes + r * bytes + upper + coterie_upper_bytes(bits, block * BLOCK(bits));
                    __m512i some[4];
                    _mm_prefetch((const char *)from + COTERIE_CODES_AHEAD, _MM_HINT_T0);
                    if (COTERIE_UPPER(bits)) _mm_prefetch((const char *)also + COTERIE_CODES_AHEAD, _MM_HINT_T0);
                    codes_of(bits, from, also, columns - block * BLOCK(bits), some);
                    for (int m = 0; m < M; m++) {
                        const char *token = (const char *)prepared[m] + block * BLOCK(bits) * 2;
                        __m512i part = products_of(VECTORS(bits), some, token);
                        __m512 factor = _mm512_permutexvar_ps(at, factors[r][m]);
                        sums[top + r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), factor, sums[top + r][m]);
                    }
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

#define PREPARED(name, block)                                                                                          \
    static int64_t prepared_##name(int64_t columns) {                                                                  \
        return prepared_affine(block, columns);                                                                        \
    }                                                                                                                  \
    TARGET static void prepare_##name(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {         \
        prepare_affine(block, token, columns, group, prepared);                                                        \
    }

PREPARED(pairs, BLOCK(4))
PREPARED(fours, BLOCK(2))

/* int8. A load holds 64 columns. A token is kept as for int4, for each 64 columns the upper bytes and the lower ones.
 * One of two bytes that are multiplied has to be without sign: lower bytes are, and for the upper ones codes are made
 * so by adding 128. What that is too much is in sums that are kept with the token, behind its bytes, 16 for each load.
 */
enum { WIDE = 64 };

COTERIE_INLINE int64_t planes_int8(int64_t columns) {
    return (columns + WIDE - 1) / WIDE * WIDE * 3;
}

static int64_t prepared_int8(int64_t columns) {
    return planes_int8(columns) + 2 * 4 * padded_groups(columns);
}

TARGET static void prepare_int8(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    float *scales = (float *)token_scales(prepared, planes_int8(columns)), *sums = scales + padded_groups(columns);
    for (int64_t g = 0; g < padded_groups(columns); g++) scales[g] = sums[g] = 0;
    for (int64_t first = 0; first < columns; first += WIDE) {
        char *block = (char *)prepared + first * 3;
        int32_t whole[WIDE] = {0};
        for (int64_t i = first; i < columns && i < first + WIDE; i += group)
            scales[i / group] = group == 64 ? coterie_fixed_point(token + i, 64, whole, sums + i / group)
                                            : coterie_fixed_point(token + i, 32, whole + i - first, sums + i / group);
        for (int i = 0; i < WIDE; i += 16) {
            __m512i some = _mm512_loadu_si512(whole + i);
            _mm_storeu_si128((__m128i *)(block + i), _mm512_cvtepi32_epi8(_mm512_srai_epi32(some, 8)));
            _mm_storeu_si128((__m128i *)(block + 64 + i), _mm512_cvtepi32_epi8(some));
        }
        /* -128 times the upper bytes of four columns. */
        __m512i upper = _mm512_load_si512(block), highest = _mm512_set1_epi8((char)128);
        __m512i added = _mm512_dpbusd_epi32(_mm512_setzero_si512(), highest, upper);
        _mm512_store_si512(block + 128, _mm512_sub_epi32(_mm512_setzero_si512(), added));
    }
}

TARGET_INLINE void tile_int8(const int usual, const int R, const int M, const coterie_matrix *matrix, int64_t row,
                             const void *const *prepared, float *out, int64_t stride) {
    const int narrow = matrix->group == 32;
    const int64_t columns = matrix->columns, groups = columns >> (narrow ? 5 : 6);
    const int64_t blocks = (columns + WIDE - 1) / WIDE, whole = columns / WIDE;
    const int per_block = 1 << narrow, per_load = GROUPS >> narrow;
    const __mmask64 rest = (__mmask64)-1 >> 32;
    const __m512i highest = _mm512_set1_epi8((char)128), first = first_places(4 - narrow);
    const __m512i step = _mm512_set1_epi32(per_block);
    const int64_t padded = padded_groups(columns);
    const int64_t apart = usual ? groups * 2 : coterie_scale_bytes(matrix);
    const int64_t of_load = usual ? GROUPS * 2 : coterie_some_scale_bytes(matrix, GROUPS);
    const int with_zeros = !usual && coterie_numbers(matrix->scheme) == COTERIE_ZERO;
    const int8_t *codes = (const int8_t *)matrix->codes + row * columns;
    const uint8_t *scales = matrix->scales + row * apart;
    __m512 sums[4][4];
    for (int top = 0; top < R; top += SIDE(R, M), codes += SIDE(R, M) * columns, scales += SIDE(R, M) * apart) {
        for (int r = 0; r < SIDE(R, M); r++)
            for (int m = 0; m < M; m++) sums[top + r][m] = _mm512_setzero_ps();
        for (int64_t load = 0, block = 0; block < blocks; load++) {
            int64_t left = groups - load * GROUPS;
            __mmask16 present = left >= GROUPS ? 0xffff : (__mmask16)((1u << left) - 1);
            __m512 factors[4][4];
            for (int r = 0; r < SIDE(R, M); r++) {
                __m512 scale, zero;
                const uint8_t *from = scales + r * apart + load * of_load;
                _mm_prefetch((const char *)from + COTERIE_SCALES_AHEAD, _MM_HINT_T0);
                if (usual) {
                    scale = from_bf16(_mm256_maskz_loadu_epi16(present, from));
                } else {
                    numbers_of(0, matrix, scales + r * apart, load * GROUPS, groups, &scale, &zero);
                }
                for (int m = 0; m < M; m++) {
                    const float *of_token = token_scales(prepared[m], planes_int8(columns)) + load * GROUPS;
                    factors[r][m] = _mm512_mul_ps(scale, _mm512_load_ps(of_token));
                    if (with_zeros)
                        sums[top + r][m] = _mm512_fmadd_ps(zero, _mm512_load_ps(of_token + padded), sums[top + r][m]);
                }
            }
            int64_t end = block + per_load < blocks ? block + per_load : blocks;
            __m512i at = first;
            for (; block < end; block++, at = _mm512_add_epi32(at, step))
                for (int r = 0; r < SIDE(R, M); r++) {
                    const int8_t *from = codes + r * columns + block * WIDE;
                    _mm_prefetch((const char *)from + COTERIE_CODES_AHEAD, _MM_HINT_T0);
                    __m512i code = block < whole ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8(rest, from);
                    __m512i unsigned_code = _mm512_xor_si512(code, highest);
                    for (int m = 0; m < M; m++) {
                        const char *token = (const char *)prepared[m] + block * WIDE * 3;
                        __m512i part = _mm512_load_si512(token + 128);
                        part = _mm512_dpbusd_epi32(part, unsigned_code, _mm512_load_si512(token));
                        part = _mm512_slli_epi32(part, 8);
                        part = _mm512_dpbusd_epi32(part, _mm512_load_si512(token + 64), code);
                        __m512 factor = _mm512_permutexvar_ps(at, factors[r][m]);
                        sums[top + r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), factor, sums[top + r][m]);
                    }
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

/* bfloat16. A token is kept as float32. */
static int64_t prepared_bf16(int64_t columns) {
    return (columns + 15) / 16 * 64;
}

TARGET static void prepare_bf16(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    float *values = prepared;
    (void)group;
    for (int64_t i = 0; i < columns; i++) values[i] = coterie_from_bf16(token[i]);
}

TARGET_INLINE void tile_bf16(const int usual, const int R, const int M, const coterie_matrix *matrix, int64_t row,
                             const void *const *prepared, float *out, int64_t stride) {
    const int64_t columns = matrix->columns;
    (void)usual;
    for (int r = 0; r < R; r++) {
        const uint8_t *weights = matrix->codes + (row + r) * columns * 2;
        __m512 sums[4][2];
        for (int m = 0; m < M; m++) sums[m][0] = sums[m][1] = _mm512_setzero_ps();
        for (int64_t i = 0; i < columns; i += 32) {
            _mm_prefetch((const char *)weights + i * 2 + COTERIE_CODES_AHEAD, _MM_HINT_T0);
            for (int h = 0; h < 2; h++) {
                __m256i stored = _mm256_loadu_si256((const __m256i *)(weights + (i + 16 * h) * 2));
                __m512 some = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(stored), 16));
                for (int m = 0; m < M; m++)
                    sums[m][h] = _mm512_fmadd_ps(some, _mm512_load_ps((const float *)prepared[m] + i + 16 * h), sums[m][h]);
            }
        }
        for (int m = 0; m < M; m++) out[m * stride + r] = total(_mm512_add_ps(sums[m][0], sums[m][1]));
    }
}

/* As many rows and tokens at a time as the registers hold. */
#define ROWS_OF(name, tile, ...)                                                                                        \
    TARGET static void name##_by_1(const coterie_matrix *matrix, int64_t begin, int64_t end,                           \
                                   const void *const *prepared, float *out, int64_t stride) {                          \
        int64_t row = begin;                                                                                           \
        for (; row + 4 <= end; row += 4) tile(__VA_ARGS__, 4, 1, matrix, row, prepared, out + row - begin, stride);     \
        for (; row < end; row++) tile(__VA_ARGS__, 1, 1, matrix, row, prepared, out + row - begin, stride);             \
    }                                                                                                                  \
    TARGET static void name##_by_2(const coterie_matrix *matrix, int64_t begin, int64_t end,                           \
                                   const void *const *prepared, float *out, int64_t stride) {                          \
        int64_t row = begin;                                                                                           \
        for (; row + 4 <= end; row += 4) tile(__VA_ARGS__, 4, 2, matrix, row, prepared, out + row - begin, stride);     \
        for (; row < end; row++) tile(__VA_ARGS__, 1, 2, matrix, row, prepared, out + row - begin, stride);             \
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
                tile(__VA_ARGS__, 2, 4, matrix, row, prepared + t, to + t * stride, stride);                            \
            for (; t + 2 <= tokens; t += 2) name##_by_2(matrix, row, last, prepared + t, to + t * stride, stride);     \
            if (t < tokens) name##_by_1(matrix, row, last, prepared + t, to + t * stride, stride);                     \
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

const coterie_kernel coterie_avx512bf16[COTERIE_SCHEMES] = {
    [COTERIE_INT2] = {prepared_fours, prepare_fours, rows_int2},
    [COTERIE_INT3] = {prepared_fours, prepare_fours, rows_int3},
    [COTERIE_INT4] = {prepared_pairs, prepare_pairs, rows_int4},
    [COTERIE_INT5] = {prepared_pairs, prepare_pairs, rows_int5},
    [COTERIE_INT6] = {prepared_pairs, prepare_pairs, rows_int6},
    [COTERIE_INT8] = {prepared_int8, prepare_int8, rows_int8},
    [COTERIE_BF16] = {prepared_bf16, prepare_bf16, rows_bf16},
};
#endif
