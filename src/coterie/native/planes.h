/* Codes of 2 to 6 bits as planes: see coterie.quant.planes.
 *
 * A row has a plane of the lower 2 or 4 bits of all its codes, and behind it one of the upper 0, 1 or 2 bits. In a plane
 * of w bits, byte j holds columns 8j/w to 8j/w + 8/w - 1, the first one in its lowest bits.
 */
#ifndef COTERIE_PLANES_H
#define COTERIE_PLANES_H

#include "coterie.h"

#define COTERIE_LOWER(bits) ((bits) < 4 ? 2 : 4)
#define COTERIE_UPPER(bits) ((bits) - COTERIE_LOWER(bits))

/* Bits that are set in a code's lower part, and in its upper part where that belongs. */
#define COTERIE_LOWER_MASK(bits) ((1 << COTERIE_LOWER(bits)) - 1)
#define COTERIE_UPPER_MASK(bits) (((1 << COTERIE_UPPER(bits)) - 1) << COTERIE_LOWER(bits))

/* What is stored of the code 0. */
#define COTERIE_ZERO_CODE(bits) (1 << ((bits) - 1))

/* Bytes of so many columns, a multiple of 16, in the lower plane; where the upper plane begins in a row of so many. */
COTERIE_INLINE int64_t coterie_lower_bytes(const int bits, int64_t columns) {
    return columns * COTERIE_LOWER(bits) / 8;
}

COTERIE_INLINE int64_t coterie_upper_bytes(const int bits, int64_t columns) {
    return columns * COTERIE_UPPER(bits) / 8;
}

/* The stored codes of `count` columns from where `lower` and `upper` point on, which is the first of a byte. */
COTERIE_INLINE void coterie_unpack(const int bits, const uint8_t *lower, const uint8_t *upper, int count,
                                   uint8_t *codes) {
    const int below = COTERIE_LOWER(bits), above = COTERIE_UPPER(bits);
    for (int i = 0; i < count; i++) {
        codes[i] = (uint8_t)(lower[i * below / 8] >> i * below % 8 & COTERIE_LOWER_MASK(bits));
        if (above) codes[i] |= (uint8_t)(upper[i * above / 8] >> i * above % 8 << below & COTERIE_UPPER_MASK(bits));
    }
}

#endif
