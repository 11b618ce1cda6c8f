/* Matrix products by AVX2 with FMA. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include "bfloat16.h"
#include "gemm.h"

#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#define NAME coterie_gemm_avx2
#define MULTIPLY_ADD(a, b, c) ((floats)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

#include "gemm_float.h"
#endif
