/* What is stored for groups of weights beside their codes, and which weights are a group: coterie.spec.encodings has the
 * same in Python.
 *
 * A scheme is one number: codes as they are packed (coterie.h), and by fields above those what is stored for a group, the
 * dtype of scales and zeros, and how many weights share a scale. Where the fields are 0, that is what is usual: groups of
 * 64, in bfloat16 a scale and, in schemes of fewer than 8 bits, a zero. Mirrored in schemes.py.
 */
#ifndef COTERIE_NUMBERS_H
#define COTERIE_NUMBERS_H

#include "bfloat16.h"
#include "coterie.h"

/* A scale alone; a scale and a zero; a scale and a zero point, a whole number among the stored codes. */
enum { COTERIE_USUAL, COTERIE_SYM, COTERIE_ZERO, COTERIE_ZP };
enum { COTERIE_BFLOAT16, COTERIE_FLOAT16, COTERIE_FLOAT32 };
enum { COTERIE_GROUP_64, COTERIE_GROUP_32, COTERIE_GROUP_128 };

/* The largest group. */
#define COTERIE_GROUP 128

COTERIE_INLINE int coterie_numbers(int scheme) {
    const int said = scheme >> 4 & 3;
    return said != COTERIE_USUAL ? said : coterie_is_affine(scheme) ? COTERIE_ZERO : COTERIE_SYM;
}

COTERIE_INLINE int coterie_scale_dtype(int scheme) {
    return scheme >> 6 & 3;
}

/* Bytes of a scale, or of a zero. */
COTERIE_INLINE int64_t coterie_number_bytes(int scheme) {
    return coterie_scale_dtype(scheme) == COTERIE_FLOAT32 ? 4 : 2;
}

/* Neighbouring weights of a row that share a scale: as many as the scheme says, if that divides the row; else the largest
 * of 64 and 32 below that which does; else as many as the scheme says, the last ones fewer. */
COTERIE_INLINE int64_t coterie_group_size(int scheme, int64_t columns) {
    const int said = scheme >> 8 & 3;
    if (said == COTERIE_GROUP_128 && columns % 128 == 0) return 128;
    if (said != COTERIE_GROUP_32 && columns % 64 == 0) return 64;
    if (said == COTERIE_GROUP_32 || columns % 32 == 0) return 32;
    return said == COTERIE_GROUP_128 ? 128 : 64;
}

/* Groups of a row, a shorter one at the end included. */
COTERIE_INLINE int64_t coterie_group_count(int scheme, int64_t columns) {
    const int64_t size = coterie_group_size(scheme, columns);
    return (columns + size - 1) / size;
}

/* Bytes of what a row of so many groups has beside its codes. */
COTERIE_INLINE int64_t coterie_numbers_bytes(int scheme, int64_t groups) {
    const int64_t size = coterie_number_bytes(scheme);
    switch (coterie_numbers(scheme)) {
        case COTERIE_ZERO: return 2 * size * groups;
        case COTERIE_ZP: return size * groups + (groups + 3) / 4 * 2;
        default: return size * groups;
    }
}

/* Columns of a row with the zeros that it is filled with; bytes of its codes; bytes of its scales. */
COTERIE_INLINE int64_t coterie_filled(int scheme, int64_t columns) {
    const int64_t to = !coterie_is_affine(scheme) ? 1 : coterie_code_bits(scheme) == 4 ? 2 : 16;
    return (columns + to - 1) / to * to;
}

COTERIE_INLINE int64_t coterie_row_bytes(int scheme, int64_t columns) {
    return coterie_filled(scheme, columns) * coterie_code_bits(scheme) / 8;
}

COTERIE_INLINE int64_t coterie_row_scales(int scheme, int64_t columns) {
    if ((scheme & 15) == COTERIE_BF16) return 0;
    return coterie_numbers_bytes(scheme, coterie_group_count(scheme, columns));
}

COTERIE_INLINE float coterie_from_f16(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
    if (exponent == 31) return coterie_from_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent) return coterie_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    /* Whole numbers of 2^-24. */
    const float size = (float)fraction * 5.9604644775390625e-8f;
    return coterie_from_bits(sign | coterie_to_bits(size));
}

COTERIE_INLINE float coterie_number_at(int dtype, const uint8_t *stored, int64_t i) {
    uint16_t half;
    uint32_t whole;
    if (dtype == COTERIE_FLOAT32) {
        memcpy(&whole, stored + 4 * i, 4);
        return coterie_from_bits(whole);
    }
    memcpy(&half, stored + 2 * i, 2);
    return dtype == COTERIE_FLOAT16 ? coterie_from_f16(half) : coterie_from_bf16(half);
}

/* weight = (stored - point) * scale + zero, each operation rounded. */
typedef struct {
    float scale, zero, point;
} coterie_group;

/* Of group g of a row of so many, whose scales begin at `row`. A zero that is none is -0: adding it changes nothing. */
COTERIE_INLINE coterie_group coterie_group_at(int scheme, const uint8_t *row, int64_t groups, int64_t g) {
    const int dtype = coterie_scale_dtype(scheme), numbers = coterie_numbers(scheme);
    const float usual = coterie_is_affine(scheme) ? (float)(1 << (coterie_code_bits(scheme) - 1)) : 0;
    if (numbers == COTERIE_ZERO)
        return (coterie_group){coterie_number_at(dtype, row, 2 * g), coterie_number_at(dtype, row, 2 * g + 1), usual};
    const float scale = coterie_number_at(dtype, row, g);
    if (numbers == COTERIE_SYM) return (coterie_group){scale, -0.0f, usual};
    const uint8_t *points = row + groups * coterie_number_bytes(scheme);
    return (coterie_group){scale, -0.0f, (float)(points[g / 2] >> g % 2 * 4 & 15)};
}

/* A token's values share a scale in groups of their own, which a group of 128 has two of. */
COTERIE_INLINE coterie_matrix coterie_matrix_of(int64_t scheme, const void *codes, const void *scales,
                                                int64_t columns) {
    const int64_t size = coterie_group_size((int)scheme, columns);
    return (coterie_matrix){.codes = codes,
                            .scales = scales,
                            .columns = columns,
                            .group = size < 64 ? size : 64,
                            .scheme = (int)scheme,
                            .doubled = size == 128};
}

/* Whether each of a token's groups has the numbers of a scheme whose name says nothing of them. */
COTERIE_INLINE int coterie_is_usual(const coterie_matrix *matrix) {
    return (matrix->scheme & 0xf0) == 0 && !matrix->doubled;
}

/* Bytes of a row's scales, and of those that belong to so many of a token's groups. */
COTERIE_INLINE int64_t coterie_scale_bytes(const coterie_matrix *matrix) {
    return coterie_numbers_bytes(matrix->scheme, matrix->columns / matrix->group >> matrix->doubled);
}

COTERIE_INLINE int64_t coterie_some_scale_bytes(const coterie_matrix *matrix, int64_t groups) {
    const int64_t size = coterie_number_bytes(matrix->scheme);
    return (groups >> matrix->doubled) * (coterie_numbers(matrix->scheme) == COTERIE_ZERO ? 2 * size : size);
}

#endif
