/* Matrix products by AVX2 with FMA. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include "bfloat16.h"
#include "gemm.h"

#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#define NAME coterie_gemm_avx2
#define LEAST_ROWS 16
#define MULTIPLY_ADD(a, b, c) ((floats)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

TARGET static inline void decode_int4(const uint8_t *codes, float step, float zero, float *to) {
    const __m128i low = _mm_set1_epi8(15), packed = _mm_loadu_si128((const __m128i *)codes);
    const __m128i even = _mm_and_si128(packed, low), odd = _mm_and_si128(_mm_srli_epi16(packed, 4), low);
    const __m128i stored[2] = {_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd)};
    for (int j = 0; j < 2; j++) {
        __m256 first = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(stored[j]));
        __m256 second = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(stored[j], 8)));
        _mm256_store_ps(to + j * 16, _mm256_fmadd_ps(first, _mm256_set1_ps(step), _mm256_set1_ps(zero)));
        _mm256_store_ps(to + j * 16 + 8, _mm256_fmadd_ps(second, _mm256_set1_ps(step), _mm256_set1_ps(zero)));
    }
}

#include "gemm_float.h"
#endif
