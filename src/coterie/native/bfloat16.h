/* bfloat16 as the upper half of a float32. */
#ifndef COTERIE_BFLOAT16_H
#define COTERIE_BFLOAT16_H

#include <string.h>

#include "coterie.h"

COTERIE_INLINE float coterie_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

COTERIE_INLINE uint32_t coterie_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

COTERIE_INLINE float coterie_from_bf16(uint16_t value) {
    return coterie_from_bits((uint32_t)value << 16);
}

/* To the nearest, ties to even; every NaN becomes the same one, as in torch. */
COTERIE_INLINE uint16_t coterie_to_bf16(float value) {
    uint32_t bits = coterie_to_bits(value);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return value == value ? (uint16_t)rounded : 0x7fc0;
}

/* To bfloat16 and back. */
COTERIE_INLINE float coterie_rounded(float value) {
    return coterie_from_bf16(coterie_to_bf16(value));
}

#endif
