/* Matrix products on any machine. */
#include <math.h>

#include "bfloat16.h"
#include "gemm.h"

#define LANES 4
#define TARGET
#define NAME coterie_gemm_portable
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

#include "gemm_float.h"
