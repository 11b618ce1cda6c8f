/* Matrix products on any machine. */
#include <math.h>

#include "bfloat16.h"
#include "gemm.h"
#include "numbers.h"
#include "planes.h"

#define LANES 4
#define TARGET
#define INLINE COTERIE_INLINE
#define NAME coterie_gemm_portable
#define LEAST_ROWS 3
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

INLINE void decode_affine(const int bits, const uint8_t *lower, const uint8_t *upper, float step, float zero, float *to) {
    uint8_t codes[32];
    coterie_unpack(bits, lower, upper, 32, codes);
    for (int j = 0; j < 32; j++) to[j] = (float)codes[j] * step + zero;
}

#include "gemm_float.h"
