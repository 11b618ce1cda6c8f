/* Vectors of 16 floats, the same sums at every level; included once for each instruction set.
 *
 * Before: TARGET, NAME(x), which makes x the name of one set, and SIXTEEN_AT_ONCE where its registers hold 16 floats. A
 * vector function without its target attribute would be taken to pieces before it is inlined.
 */
#ifndef COTERIE_VECTORS_H
#define COTERIE_VECTORS_H

#include "bfloat16.h"

/* Vectors are passed between functions that are always inlined, never by an ABI. */
#pragma GCC diagnostic ignored "-Wpsabi"

enum { LANES = 16 };

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t eight_halves __attribute__((vector_size(16)));
typedef uint32_t eight_words __attribute__((vector_size(32)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

#if defined(__clang__)
#define COTERIE_TURNED(x, by)                                                                                       \
    __builtin_shufflevector(x, x, (by) % 16, (1 + by) % 16, (2 + by) % 16, (3 + by) % 16, (4 + by) % 16,            \
                            (5 + by) % 16, (6 + by) % 16, (7 + by) % 16, (8 + by) % 16, (9 + by) % 16,              \
                            (10 + by) % 16, (11 + by) % 16, (12 + by) % 16, (13 + by) % 16, (14 + by) % 16,         \
                            (15 + by) % 16)
#else
#define COTERIE_TURNED(x, by)                                                                                       \
    __builtin_shuffle(x, ((ints){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (by)) & 15)
#endif

#endif

#define INLINE static inline __attribute__((always_inline)) TARGET

/* 16 values of bfloat16. Where registers hold fewer, compilers convert 16 one by one, and 8 at once. */
INLINE floats NAME(widened)(const uint16_t *values) {
#if defined(SIXTEEN_AT_ONCE)
    halves narrow;
    memcpy(&narrow, values, sizeof narrow);
    return (floats)(__builtin_convertvector(narrow, words) << 16);
#else
    eight_halves narrow[2];
    eight_words wide[2];
    floats whole;
    memcpy(narrow, values, sizeof narrow);
    for (int i = 0; i < 2; i++) wide[i] = __builtin_convertvector(narrow[i], eight_words) << 16;
    memcpy(&whole, wide, sizeof whole);
    return whole;
#endif
}

INLINE floats NAME(loaded)(const float *values) {
    floats vector;
    memcpy(&vector, values, sizeof vector);
    return vector;
}

/* 16 values to bfloat16, as coterie_to_bf16. */
INLINE void NAME(narrowed)(floats x, uint16_t *values) {
    words bits = (words)x, nan = (words)(x != x);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    halves narrow = __builtin_convertvector((bits & ~nan) | (0x7fc0 & nan), halves);
    memcpy(values, &narrow, sizeof narrow);
}

/* Sum of the lanes: halves onto each other. */
INLINE float NAME(total)(const floats *lanes) {
    floats x = *lanes;
    x += COTERIE_TURNED(x, 8);
    x += COTERIE_TURNED(x, 4);
    x += COTERIE_TURNED(x, 2);
    x += COTERIE_TURNED(x, 1);
    return x[0];
}
