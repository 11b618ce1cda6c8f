/* A token's values as 16-bit whole numbers, so that products with codes are sums of whole numbers, without rounding.
 *
 * The values of a group share a scale, a power of two: the largest lies in [2^14, 2^15). Values down to 2^-7 of the
 * largest are exact, smaller ones are rounded to 2^-15 of it. bfloat16 itself has 8 bits, so what is lost is far less
 * than what the token has lost when it was rounded to bfloat16.
 */
#ifndef COTERIE_FIXED_POINT_H
#define COTERIE_FIXED_POINT_H

#include "bfloat16.h"

/* `values` of one group as `whole` times the result; `sum` is that of the values so represented. A group with a value
 * that is no number, or infinite, gets NaN for its scale and sum. */
COTERIE_INLINE float coterie_fixed_point(const uint16_t *values, int64_t group, int32_t *whole, float *sum) {
    int32_t largest = 0, total = 0;
    for (int64_t i = 0; i < group; i++) {
        int32_t size = values[i] & 0x7fff;
        largest = size > largest ? size : largest;
    }
    /* Exponents with their bias; the scale and its inverse stay normal numbers. */
    int32_t exponent = largest >> 7, power = exponent > 15 ? exponent - 14 : 1;
    float scale = coterie_from_bits((uint32_t)power << 23), inverse = coterie_from_bits((uint32_t)(254 - power) << 23);
    if (exponent == 255) {
        for (int64_t i = 0; i < group; i++) whole[i] = 0;
        return *sum = coterie_from_bits(0x7fc00000);
    }
    for (int64_t i = 0; i < group; i++) {
        /* Adding 1.5 * 2^23 rounds to a whole number, ties to even, and leaves it in the lowest bits. */
        float shifted = coterie_from_bf16(values[i]) * inverse + 12582912.0f;
        whole[i] = (int32_t)(coterie_to_bits(shifted) - 0x4b400000u);
        total += whole[i];
    }
    *sum = (float)total * scale;
    return scale;
}

#endif
