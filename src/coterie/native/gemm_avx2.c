/* Matrix products by AVX2 with FMA. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include "bfloat16.h"
#include "gemm.h"
#include "numbers.h"
#include "planes.h"

#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define NAME coterie_gemm_avx2
#define LEAST_ROWS 16
#define MULTIPLY_ADD(a, b, c) ((floats)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

/* Bytes whose parts, `by` bits above, belong further up. */
INLINE __m256i spread(__m256i wide, const int by, const int64_t mask) {
    return _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi64(wide, by)), _mm256_set1_epi64x(mask));
}

/* 32 parts of codes, of so many bits each, in order: one in each byte. */
INLINE __m256i parts_of(const int width, const uint8_t *plane) {
    const int64_t halves = 0x0f0f0f0f0f0f0f0f, quarters = 0x0303030303030303, ones = 0x0101010101010101;
    int32_t four;
    if (width == 4) return spread(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)plane)), 4, halves);
    if (width == 2) {
        __m256i wide = spread(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)plane)), 12, 0x000f000f000f000f);
        return spread(wide, 6, quarters);
    }
    memcpy(&four, plane, 4);
    __m256i wide = spread(_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four)), 28, 0x0000000f0000000f);
    return spread(spread(wide, 14, 0x0003000300030003), 7, ones);
}

INLINE void decode_affine(const int bits, const uint8_t *lower, const uint8_t *upper, float step, float zero, float *to) {
    __m256i codes = parts_of(COTERIE_LOWER(bits), lower);
    if (COTERIE_UPPER(bits))
        codes = _mm256_or_si256(codes, _mm256_slli_epi16(parts_of(COTERIE_UPPER(bits), upper), COTERIE_LOWER(bits)));
    const __m128i stored[2] = {_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1)};
    for (int j = 0; j < 2; j++) {
        __m256 first = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(stored[j]));
        __m256 second = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(stored[j], 8)));
        _mm256_store_ps(to + j * 16, _mm256_fmadd_ps(first, _mm256_set1_ps(step), _mm256_set1_ps(zero)));
        _mm256_store_ps(to + j * 16 + 8, _mm256_fmadd_ps(second, _mm256_set1_ps(step), _mm256_set1_ps(zero)));
    }
}

#include "gemm_float.h"
#endif
