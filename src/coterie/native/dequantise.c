/* Our schemes back to float32 or bfloat16, with the bits of coterie.quant: code times scale, rounded, plus the zero if
 * there is one, rounded (no fused multiply-add), and only then rounded to bfloat16.
 *
 * A group of int4 has sixteen values at most, so these are computed and rounded once, and codes look them up. Codes of
 * other affine schemes are unpacked and computed with one by one, in vectors that compilers make of these loops.
 */

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "bfloat16.h"
#include "coterie.h"
#include "numbers.h"
#include "planes.h"

#define INLINE COTERIE_INLINE

/* To nearest, halves to even; of numbers that are finite or infinite. */
INLINE uint16_t to_bf16(float x) {
    uint32_t bits = coterie_to_bits(x);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* What the codes 0 to 15 of a group stand for. */
INLINE void values_of(coterie_group of, float *values) {
    for (int code = 0; code < 16; code++) {
        float product = ((float)code - of.point) * of.scale;
        values[code] = product + of.zero;
    }
}

INLINE void int4_to_float(const uint8_t *codes, coterie_group of, int count, float *out) {
    float values[16];
    values_of(of, values);
    for (int j = 0; j < count / 2; j++) {
        out[2 * j] = values[codes[j] & 15];
        out[2 * j + 1] = values[codes[j] >> 4];
    }
    if (count % 2) out[count - 1] = values[codes[count / 2] & 15];
}

INLINE void int4_to_bf16(const uint8_t *codes, coterie_group of, int count, uint16_t *out) {
    float values[16];
    uint16_t rounded[16];
    values_of(of, values);
    for (int code = 0; code < 16; code++) rounded[code] = to_bf16(values[code]);
    for (int j = 0; j < count / 2; j++) {
        out[2 * j] = rounded[codes[j] & 15];
        out[2 * j + 1] = rounded[codes[j] >> 4];
    }
    if (count % 2) out[count - 1] = rounded[codes[count / 2] & 15];
}

INLINE void affine_to_float(const int bits, const uint8_t *lower, const uint8_t *upper, coterie_group of, int count,
                            float *out) {
    uint8_t codes[COTERIE_GROUP];
    coterie_unpack(bits, lower, upper, count, codes);
    for (int i = 0; i < count; i++) {
        float product = (float)(codes[i] - COTERIE_ZERO_CODE(bits)) * of.scale;
        out[i] = product + of.zero;
    }
}

INLINE void affine_to_bf16(const int bits, const uint8_t *lower, const uint8_t *upper, coterie_group of, int count,
                           uint16_t *out) {
    float values[COTERIE_GROUP];
    affine_to_float(bits, lower, upper, of, count, values);
    for (int i = 0; i < count; i++) out[i] = to_bf16(values[i]);
}

INLINE void int8_to_float(const int8_t *codes, coterie_group of, int count, float *out) {
    for (int i = 0; i < count; i++) {
        float product = (float)codes[i] * of.scale;
        out[i] = product + of.zero;
    }
}

INLINE void int8_to_bf16(const int8_t *codes, coterie_group of, int count, uint16_t *out) {
    for (int i = 0; i < count; i++) {
        float product = (float)codes[i] * of.scale;
        out[i] = to_bf16(product + of.zero);
    }
}

#if defined(__x86_64__)
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))

/* 32 codes: each byte becomes a pair of 16-bit lanes, its lower half first. */
INLINE AVX512 __m512i halves(const uint8_t *codes) {
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)codes));
    return _mm512_and_si512(_mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12)), _mm512_set1_epi32(0x000f000f));
}

INLINE AVX512 __m512 table_avx512(coterie_group of) {
    const __m512 stored = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512 codes = _mm512_sub_ps(stored, _mm512_set1_ps(of.point));
    return _mm512_add_ps(_mm512_mul_ps(codes, _mm512_set1_ps(of.scale)), _mm512_set1_ps(of.zero));
}

/* Whole groups, of 32 at least. */
INLINE AVX512 void int4_to_bf16_avx512(const uint8_t *codes, coterie_group of, int count, uint16_t *out) {
    __m512i bits = _mm512_castps_si512(table_avx512(of));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i table = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
    for (int i = 0; i < count; i += 32)
        _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(halves(codes + i / 2), table));
}

INLINE AVX512 void int4_to_float_avx512(const uint8_t *codes, coterie_group of, int count, float *out) {
    __m512 table = table_avx512(of);
    for (int i = 0; i < count; i += 32) {
        __m512i lanes = halves(codes + i / 2);
        __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(lanes));
        __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(lanes, 1));
        _mm512_storeu_ps(out + i, _mm512_permutexvar_ps(first, table));
        _mm512_storeu_ps(out + i + 16, _mm512_permutexvar_ps(second, table));
    }
}
#endif

#if defined(__aarch64__)
/* Bytes 0, 1, ... of sixteen values, each a table for the look-up of bytes; whole groups, of 32 at least. */
INLINE void int4_to_bf16_neon(const uint8_t *codes, coterie_group of, int count, uint16_t *out) {
    float values[16];
    uint16_t rounded[16];
    values_of(of, values);
    for (int code = 0; code < 16; code++) rounded[code] = to_bf16(values[code]);
    const uint8x16x2_t tables = vld2q_u8((const uint8_t *)rounded);
    for (int i = 0; i < count; i += 32) {
        uint8x16_t packed = vld1q_u8(codes + i / 2), even = vandq_u8(packed, vdupq_n_u8(15)), odd = vshrq_n_u8(packed, 4);
        uint8x16_t ordered[2] = {vzip1q_u8(even, odd), vzip2q_u8(even, odd)};
        for (int half = 0; half < 2; half++) {
            uint8x16x2_t bytes;
            for (int b = 0; b < 2; b++) bytes.val[b] = vqtbl1q_u8(tables.val[b], ordered[half]);
            vst2q_u8((uint8_t *)(out + i + 16 * half), bytes);
        }
    }
}

INLINE void int4_to_float_neon(const uint8_t *codes, coterie_group of, int count, float *out) {
    float values[16];
    values_of(of, values);
    const uint8x16x4_t tables = vld4q_u8((const uint8_t *)values);
    for (int i = 0; i < count; i += 32) {
        uint8x16_t packed = vld1q_u8(codes + i / 2), even = vandq_u8(packed, vdupq_n_u8(15)), odd = vshrq_n_u8(packed, 4);
        uint8x16_t ordered[2] = {vzip1q_u8(even, odd), vzip2q_u8(even, odd)};
        for (int half = 0; half < 2; half++) {
            uint8x16x4_t bytes;
            for (int b = 0; b < 4; b++) bytes.val[b] = vqtbl1q_u8(tables.val[b], ordered[half]);
            vst4q_u8((uint8_t *)(out + i + 16 * half), bytes);
        }
    }
}
#endif

/* A row, group by group; a shorter group at its end goes the plain way. */
#define ROW(name, target, type, codes_type, bytes_of, whole, rest)                                                      \
    static target void name(int scheme, const void *codes, const uint8_t *scales, int64_t columns, void *out) {         \
        const int size = (int)coterie_group_size(scheme, columns);                                                      \
        const int64_t groups = coterie_group_count(scheme, columns);                                                    \
        int64_t column = 0, g = 0;                                                                                      \
        for (; column + size <= columns; column += size, g++)                                                           \
            whole((const codes_type *)codes + bytes_of(column), coterie_group_at(scheme, scales, groups, g), size,      \
                  (type *)out + column);                                                                                \
        if (column < columns)                                                                                           \
            rest((const codes_type *)codes + bytes_of(column), coterie_group_at(scheme, scales, groups, g),             \
                 (int)(columns - column), (type *)out + column);                                                        \
    }
#define HALVED(column) ((column) / 2)
#define WHOLE(column) (column)

/* The same for affine schemes of two planes, or of groups whose values are not looked up. */
#define AFFINE_ROW(name, target, type, bits, to)                                                                        \
    static target void name(int scheme, const void *codes, const uint8_t *scales, int64_t columns, void *out) {         \
        const uint8_t *lower = codes;                                                                                   \
        const uint8_t *upper = lower + coterie_lower_bytes(bits, coterie_filled(scheme, columns));                      \
        const int size = (int)coterie_group_size(scheme, columns);                                                      \
        const int64_t groups = coterie_group_count(scheme, columns);                                                    \
        for (int64_t first = 0, g = 0; first < columns; first += size, g++) {                                           \
            const coterie_group of = coterie_group_at(scheme, scales, groups, g);                                       \
            const uint8_t *from = lower + coterie_lower_bytes(bits, first);                                             \
            const uint8_t *also = upper + coterie_upper_bytes(bits, first);                                             \
            type *values = (type *)out + first;                                                                         \
            if (first + size > columns)                                                                                 \
                to(bits, from, also, of, (int)(columns - first), values);                                               \
            else if (size == 128)                                                                                       \
                to(bits, from, also, of, 128, values);                                                                  \
            else if (size == 64)                                                                                        \
                to(bits, from, also, of, 64, values);                                                                   \
            else                                                                                                        \
                to(bits, from, also, of, 32, values);                                                                   \
        }                                                                                                               \
    }
#define AFFINE_ROWS(bits, level, target)                                                                                \
    AFFINE_ROW(int##bits##_float_##level, target, float, bits, affine_to_float)                                         \
    AFFINE_ROW(int##bits##_bf16_##level, target, uint16_t, bits, affine_to_bf16)

AFFINE_ROWS(2, portable, )
AFFINE_ROWS(3, portable, )
AFFINE_ROWS(5, portable, )
AFFINE_ROWS(6, portable, )
ROW(int4_float_portable, , float, uint8_t, HALVED, int4_to_float, int4_to_float)
ROW(int4_bf16_portable, , uint16_t, uint8_t, HALVED, int4_to_bf16, int4_to_bf16)
ROW(int8_float_portable, , float, int8_t, WHOLE, int8_to_float, int8_to_float)
ROW(int8_bf16_portable, , uint16_t, int8_t, WHOLE, int8_to_bf16, int8_to_bf16)
#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))
AFFINE_ROWS(2, avx2, AVX2)
AFFINE_ROWS(3, avx2, AVX2)
AFFINE_ROWS(5, avx2, AVX2)
AFFINE_ROWS(6, avx2, AVX2)
AFFINE_ROWS(2, avx512, AVX512)
AFFINE_ROWS(3, avx512, AVX512)
AFFINE_ROWS(5, avx512, AVX512)
AFFINE_ROWS(6, avx512, AVX512)
ROW(int4_float_avx2, AVX2, float, uint8_t, HALVED, int4_to_float, int4_to_float)
ROW(int4_bf16_avx2, AVX2, uint16_t, uint8_t, HALVED, int4_to_bf16, int4_to_bf16)
ROW(int8_float_avx2, AVX2, float, int8_t, WHOLE, int8_to_float, int8_to_float)
ROW(int8_bf16_avx2, AVX2, uint16_t, int8_t, WHOLE, int8_to_bf16, int8_to_bf16)
ROW(int4_float_avx512, AVX512, float, uint8_t, HALVED, int4_to_float_avx512, int4_to_float)
ROW(int4_bf16_avx512, AVX512, uint16_t, uint8_t, HALVED, int4_to_bf16_avx512, int4_to_bf16)
ROW(int8_float_avx512, AVX512, float, int8_t, WHOLE, int8_to_float, int8_to_float)
ROW(int8_bf16_avx512, AVX512, uint16_t, int8_t, WHOLE, int8_to_bf16, int8_to_bf16)
#elif defined(__aarch64__)
ROW(int4_float_neon, , float, uint8_t, HALVED, int4_to_float_neon, int4_to_float)
ROW(int4_bf16_neon, , uint16_t, uint8_t, HALVED, int4_to_bf16_neon, int4_to_bf16)
#endif

typedef void (*row_function)(int scheme, const void *codes, const uint8_t *scales, int64_t columns, void *out);

static row_function row_of(int packing, int level, int is_bf16) {
    static const row_function portable[COTERIE_SCHEMES][2] = {
        [COTERIE_INT2] = {int2_float_portable, int2_bf16_portable},
        [COTERIE_INT3] = {int3_float_portable, int3_bf16_portable},
        [COTERIE_INT4] = {int4_float_portable, int4_bf16_portable},
        [COTERIE_INT5] = {int5_float_portable, int5_bf16_portable},
        [COTERIE_INT6] = {int6_float_portable, int6_bf16_portable},
        [COTERIE_INT8] = {int8_float_portable, int8_bf16_portable},
    };
#if defined(__x86_64__)
    static const row_function avx2[COTERIE_SCHEMES][2] = {
        [COTERIE_INT2] = {int2_float_avx2, int2_bf16_avx2},
        [COTERIE_INT3] = {int3_float_avx2, int3_bf16_avx2},
        [COTERIE_INT4] = {int4_float_avx2, int4_bf16_avx2},
        [COTERIE_INT5] = {int5_float_avx2, int5_bf16_avx2},
        [COTERIE_INT6] = {int6_float_avx2, int6_bf16_avx2},
        [COTERIE_INT8] = {int8_float_avx2, int8_bf16_avx2},
    };
    static const row_function avx512[COTERIE_SCHEMES][2] = {
        [COTERIE_INT2] = {int2_float_avx512, int2_bf16_avx512},
        [COTERIE_INT3] = {int3_float_avx512, int3_bf16_avx512},
        [COTERIE_INT4] = {int4_float_avx512, int4_bf16_avx512},
        [COTERIE_INT5] = {int5_float_avx512, int5_bf16_avx512},
        [COTERIE_INT6] = {int6_float_avx512, int6_bf16_avx512},
        [COTERIE_INT8] = {int8_float_avx512, int8_bf16_avx512},
    };
    if (level >= COTERIE_AVX512BF16) return avx512[packing][is_bf16];
    if (level >= COTERIE_AVX2) return avx2[packing][is_bf16];
#elif defined(__aarch64__)
    if (level >= COTERIE_NEON && packing == COTERIE_INT4) return is_bf16 ? int4_bf16_neon : int4_float_neon;
#endif
    (void)level;
    return portable[packing][is_bf16];
}

typedef struct {
    row_function row;
    int scheme;
    const char *codes;
    const uint8_t *scales;
    char *out;
    int64_t rows, columns, code_stride, scale_stride, out_stride;
} dequantisation;

static void part_of_dequantisation(void *context, int thread, int threads) {
    const dequantisation *call = context;
    int64_t begin, end;
    coterie_share(call->rows, 1, thread, threads, &begin, &end);
    for (int64_t row = begin; row < end; row++)
        call->row(call->scheme, call->codes + row * call->code_stride, call->scales + row * call->scale_stride, call->columns,
                  call->out + row * call->out_stride);
}

/* out [rows, columns], bfloat16 or float32. */
COTERIE_API void coterie_dequantise(int scheme, int level, int threads, const void *codes, const void *scales,
                                    int64_t rows, int64_t columns, int is_bf16, void *out) {
    dequantisation call = {.row = row_of(coterie_packing(scheme), level, is_bf16),
                           .scheme = scheme,
                           .codes = codes,
                           .scales = scales,
                           .out = out,
                           .rows = rows,
                           .columns = columns,
                           .code_stride = coterie_row_bytes(scheme, columns),
                           .scale_stride = coterie_row_scales(scheme, columns),
                           .out_stride = columns * (is_bf16 ? 2 : 4)};
    coterie_parallel(part_of_dequantisation, &call, threads);
}
