/* Elementary functions that compilers turn into vector instructions. */
#ifndef COTERIE_ELEMENTARY_H
#define COTERIE_ELEMENTARY_H

#include "bfloat16.h"

/* e^x to about two units in the last place, without a branch, so that loops over it become vectors (Cody and Waite's
 * reduction, the polynomial of Cephes). NaN stays NaN. */
COTERIE_INLINE float coterie_exponential(float x) {
    x = x < -87.33f ? -87.33f : x;
    x = x > 88.37f ? 88.37f : x;
    const float magic = 12582912.0f;
    float count = x * 1.44269504088896341f + magic;
    uint32_t power = coterie_to_bits(count) << 23;
    count -= magic;
    float r = x - count * 0.693359375f + count * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return coterie_from_bits(coterie_to_bits(p) + power);
}

/* The same, and 0 below -87. */
COTERIE_INLINE float coterie_exp(float x) {
    return x < -87.0f ? 0.0f : coterie_exponential(x);
}

#endif
