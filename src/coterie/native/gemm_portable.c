/* Matrix products on any machine. */
#include <math.h>

#include "bfloat16.h"
#include "gemm.h"

#define LANES 4
#define TARGET
#define NAME coterie_gemm_portable
#define LEAST_ROWS 3
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

static inline void decode_int4(const uint8_t *codes, float step, float zero, float *to) {
    for (int j = 0; j < 16; j++) {
        to[2 * j] = (float)(codes[j] & 15) * step + zero;
        to[2 * j + 1] = (float)(codes[j] >> 4) * step + zero;
    }
}

#include "gemm_float.h"
