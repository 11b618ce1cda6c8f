/* NEON with products of four bytes at once, of ARMv8.2 and later. */
#include "coterie.h"

#if defined(COTERIE_HAS_DOTPROD)
#include <arm_neon.h>

#if defined(__clang__)
#define TARGET __attribute__((target("dotprod")))
#else
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define INLINE static inline __attribute__((always_inline)) TARGET
#define KERNELS coterie_dotprod

/* Of upper bytes of a token, which are signed, and of lower ones, which are not. */
typedef struct {
    int32x4_t high;
    uint32x4_t low;
} whole_bytes;

INLINE int32x4_t sum_of(whole_bytes sums) {
    return vaddq_s32(vshlq_n_s32(sums.high, 8), vreinterpretq_s32_u32(sums.low));
}

typedef whole_bytes whole_affine;

INLINE void add_affine(const int bits, whole_affine *sums, uint8x16_t even, uint8x16_t odd, const uint8_t *token) {
    (void)bits;
    sums->high = vdotq_s32(sums->high, vreinterpretq_s8_u8(even), vld1q_s8((const int8_t *)token));
    sums->high = vdotq_s32(sums->high, vreinterpretq_s8_u8(odd), vld1q_s8((const int8_t *)token + 16));
    sums->low = vdotq_u32(sums->low, even, vld1q_u8(token + 32));
    sums->low = vdotq_u32(sums->low, odd, vld1q_u8(token + 48));
}

INLINE int32x4_t sum_affine(const int bits, whole_affine sums) {
    (void)bits;
    return sum_of(sums);
}

typedef whole_bytes whole_int8;

/* As they are, and plus 128: both factors of a product have a sign, or neither. */
typedef struct {
    int8x16_t with_sign;
    uint8x16_t without;
} codes_int8;

/* Upper bytes, then lower ones. Returns what the codes plus 128 make too much of those, to begin a sum with. */
INLINE int32_t store_int8(const int32_t *whole, void *to) {
    uint8_t *bytes = to;
    int32_t low = 0;
    for (int i = 0; i < 16; i++) {
        bytes[i] = (uint8_t)(whole[i] >> 8);
        bytes[16 + i] = (uint8_t)whole[i];
        low += whole[i] & 255;
    }
    return -128 * low;
}

INLINE codes_int8 load_int8(const int8_t *codes) {
    const int8x16_t bytes = vld1q_s8(codes);
    return (codes_int8){bytes, veorq_u8(vreinterpretq_u8_s8(bytes), vdupq_n_u8(128))};
}

INLINE whole_int8 begin_int8(int32_t start) {
    return (whole_int8){vdupq_n_s32(0), vsetq_lane_u32((uint32_t)start, vdupq_n_u32(0), 0)};
}

INLINE void add_int8(whole_int8 *sums, codes_int8 codes, const void *token) {
    sums->high = vdotq_s32(sums->high, codes.with_sign, vld1q_s8(token));
    sums->low = vdotq_u32(sums->low, codes.without, vld1q_u8((const uint8_t *)token + 16));
}

INLINE int32x4_t sum_int8(whole_int8 sums) {
    return sum_of(sums);
}

#include "neon_rows.h"
#endif
