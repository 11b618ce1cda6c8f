/* NEON as every 64-bit ARM processor has it. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <stdint.h>

#define TARGET
#define INLINE static inline __attribute__((always_inline))
#define KERNELS coterie_neon

/* Upper bytes of a token, which are signed, and lower ones, which are not, in sums of 16 bits: eight products of a
 * code, up to 31, and a byte go into one, that is all of a group of 64. Of 6 bits four do, which are then added to
 * sums of 32 bits. */
typedef struct {
    int16x8_t high;
    uint16x8_t low;
    int32x4_t wide;
} whole_affine;

INLINE void widen(whole_affine *sums) {
    const int32x4_t high = vshlq_n_s32(vpaddlq_s16(sums->high), 8);
    sums->wide = vaddq_s32(sums->wide, vaddq_s32(high, vreinterpretq_s32_u32(vpaddlq_u16(sums->low))));
    sums->high = vdupq_n_s16(0);
    sums->low = vdupq_n_u16(0);
}

INLINE void add_affine(const int bits, whole_affine *sums, uint8x16_t even, uint8x16_t odd, const uint8_t *token) {
    const int8x16_t even_high = vld1q_s8((const int8_t *)token), odd_high = vld1q_s8((const int8_t *)token + 16);
    const uint8x16_t even_low = vld1q_u8(token + 32), odd_low = vld1q_u8(token + 48);
    const int8x16_t signed_even = vreinterpretq_s8_u8(even), signed_odd = vreinterpretq_s8_u8(odd);
    sums->high = vmlal_s8(sums->high, vget_low_s8(signed_even), vget_low_s8(even_high));
    sums->high = vmlal_high_s8(sums->high, signed_even, even_high);
    sums->high = vmlal_s8(sums->high, vget_low_s8(signed_odd), vget_low_s8(odd_high));
    sums->high = vmlal_high_s8(sums->high, signed_odd, odd_high);
    sums->low = vmlal_u8(sums->low, vget_low_u8(even), vget_low_u8(even_low));
    sums->low = vmlal_high_u8(sums->low, even, even_low);
    sums->low = vmlal_u8(sums->low, vget_low_u8(odd), vget_low_u8(odd_low));
    sums->low = vmlal_high_u8(sums->low, odd, odd_low);
    if (bits == 6) widen(sums);
}

INLINE int32x4_t sum_affine(const int bits, whole_affine sums) {
    if (bits != 6) widen(&sums);
    return sums.wide;
}

typedef int32x4_t whole_int8;

typedef struct {
    int16x8_t first, second;
} codes_int8;

INLINE int32_t store_int8(const int32_t *whole, void *to) {
    int16_t *values = to;
    for (int i = 0; i < 16; i++) values[i] = (int16_t)whole[i];
    return 0;
}

INLINE codes_int8 load_int8(const int8_t *codes) {
    const int8x16_t bytes = vld1q_s8(codes);
    return (codes_int8){vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)};
}

INLINE whole_int8 begin_int8(int32_t start) {
    return vdupq_n_s32(start);
}

INLINE void add_int8(whole_int8 *sums, codes_int8 codes, const void *token) {
    const int16x8_t first = vld1q_s16(token), second = vld1q_s16((const int16_t *)token + 8);
    *sums = vmlal_s16(*sums, vget_low_s16(codes.first), vget_low_s16(first));
    *sums = vmlal_high_s16(*sums, codes.first, first);
    *sums = vmlal_s16(*sums, vget_low_s16(codes.second), vget_low_s16(second));
    *sums = vmlal_high_s16(*sums, codes.second, second);
}

INLINE int32x4_t sum_int8(whole_int8 sums) {
    return sums;
}

#include "neon_rows.h"
#endif
