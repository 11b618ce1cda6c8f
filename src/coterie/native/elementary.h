/* Elementary functions that compilers turn into vector instructions. */
#ifndef COTERIE_ELEMENTARY_H
#define COTERIE_ELEMENTARY_H

#include "bfloat16.h"

/* e^x to about two units in the last place; 0 below -87, for x up to 88.
 *
 * 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]: that of Cephes' expf (S. Moshier).
 */
COTERIE_INLINE float coterie_exp(float x) {
    float clamped = x < -87.0f ? -87.0f : x;
    /* Adding and taking away 1.5 * 2^23 rounds to a whole number. */
    float shifted = clamped * 1.44269504f + 12582912.0f, whole = shifted - 12582912.0f;
    float rest = clamped - whole * 0.693359375f + whole * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    float power = coterie_from_bits((uint32_t)((int32_t)whole + 127) << 23);
    return x < -87.0f ? 0.0f : sum * power;
}

#endif
