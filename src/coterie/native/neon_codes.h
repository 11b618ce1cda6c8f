/* Codes of affine schemes in NEON's registers; included once for each instruction set, after INLINE. */
#include "planes.h"

typedef struct {
    uint8x16_t even, odd;
} codes_of_32;

/* Halves of bytes, lower ones first: 16 of them. */
INLINE uint8x16_t halves_of(uint8x8_t bytes) {
    const uint16x8_t wide = vmovl_u8(bytes);
    return vandq_u8(vreinterpretq_u8_u16(vorrq_u16(wide, vshlq_n_u16(wide, 4))), vdupq_n_u8(15));
}

/* The bits of four bytes, two in each of 16 bytes. */
INLINE uint8x16_t pairs_of_bits(const uint8_t *bytes) {
    uint32_t four;
    memcpy(&four, bytes, 4);
    const uint16x8_t wide = vmovl_u8(vget_low_u8(halves_of(vreinterpret_u8_u32(vdup_n_u32(four)))));
    return vandq_u8(vreinterpretq_u8_u16(vorrq_u16(wide, vshlq_n_u16(wide, 6))), vdupq_n_u8(3));
}

/* The stored codes of 32 columns, which begin where `lower` and `upper` point to. */
INLINE codes_of_32 load_codes(const int bits, const uint8_t *lower, const uint8_t *upper) {
    codes_of_32 codes;
    if (bits >= 4) {
        const uint8x16_t packed = vld1q_u8(lower);
        codes = (codes_of_32){vandq_u8(packed, vdupq_n_u8(15)), vshrq_n_u8(packed, 4)};
    } else {
        const uint8x16_t halves = halves_of(vld1_u8(lower));
        codes = (codes_of_32){vandq_u8(halves, vdupq_n_u8(3)), vshrq_n_u8(halves, 2)};
    }
    if (COTERIE_UPPER(bits) == 1) {
        const uint8x16_t two = pairs_of_bits(upper), one = vdupq_n_u8(1 << COTERIE_LOWER(bits));
        /* Not the shifts by a constant: to clang, a parameter is none. */
        const int8x16_t left = vdupq_n_s8(COTERIE_LOWER(bits)), less = vdupq_n_s8(COTERIE_LOWER(bits) - 1);
        codes.even = vorrq_u8(codes.even, vandq_u8(vshlq_u8(two, left), one));
        codes.odd = vorrq_u8(codes.odd, vandq_u8(vshlq_u8(two, less), one));
    } else if (COTERIE_UPPER(bits) == 2) {
        const uint8x16_t halves = halves_of(vld1_u8(upper)), two = vdupq_n_u8(3 << 4);
        codes.even = vorrq_u8(codes.even, vandq_u8(vshlq_n_u8(halves, 4), two));
        codes.odd = vorrq_u8(codes.odd, vandq_u8(vshlq_n_u8(halves, 2), two));
    }
    return codes;
}
