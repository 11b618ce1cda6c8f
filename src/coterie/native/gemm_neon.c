/* Matrix products by NEON, with its fused products and sums. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>

#include "bfloat16.h"
#include "gemm.h"
#include "numbers.h"

#define LANES 4
#define TARGET
#define INLINE static inline __attribute__((always_inline))
#define NAME coterie_gemm_neon
/* That of AVX2, whose kernels for few are built alike; not measured. */
#define LEAST_ROWS 16
#define MULTIPLY_ADD(a, b, c) ((floats)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

#include "neon_codes.h"

INLINE void decode_affine(const int bits, const uint8_t *lower, const uint8_t *upper, float step, float zero, float *to) {
    const codes_of_32 codes = load_codes(bits, lower, upper);
    const uint8x16_t stored[2] = {vzip1q_u8(codes.even, codes.odd), vzip2q_u8(codes.even, codes.odd)};
    for (int j = 0; j < 2; j++) {
        const uint16x8_t halves[2] = {vmovl_u8(vget_low_u8(stored[j])), vmovl_high_u8(stored[j])};
        for (int h = 0; h < 2; h++) {
            float32x4_t first = vcvtq_f32_u32(vmovl_u16(vget_low_u16(halves[h])));
            float32x4_t second = vcvtq_f32_u32(vmovl_high_u16(halves[h]));
            vst1q_f32(to + j * 16 + h * 8, vfmaq_n_f32(vdupq_n_f32(zero), first, step));
            vst1q_f32(to + j * 16 + h * 8 + 4, vfmaq_n_f32(vdupq_n_f32(zero), second, step));
        }
    }
}

#include "gemm_float.h"
#endif
