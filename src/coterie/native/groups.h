/* Which weights of a row share a scale: as coterie.quant.grouping has it, for any number of columns. */
#ifndef COTERIE_GROUPS_H
#define COTERIE_GROUPS_H

#include "coterie.h"

/* The largest group. */
#define COTERIE_GROUP 64

COTERIE_INLINE int64_t coterie_group_size(int64_t columns) {
    return columns % COTERIE_GROUP && columns % 32 == 0 ? 32 : COTERIE_GROUP;
}

/* Columns of a row with the zeros that it is filled with. */
COTERIE_INLINE int64_t coterie_filled(int scheme, int64_t columns) {
    const int64_t to = scheme == COTERIE_INT8 ? 1 : scheme == COTERIE_INT4 ? 2 : 16;
    return (columns + to - 1) / to * to;
}

/* Bytes of a row's codes and elements of its scales, a shorter group at the end included. */
COTERIE_INLINE int64_t coterie_row_bytes(int scheme, int64_t columns) {
    return coterie_filled(scheme, columns) * coterie_code_bits(scheme) / 8;
}

COTERIE_INLINE int64_t coterie_row_scales(int scheme, int64_t columns) {
    int64_t size = coterie_group_size(columns);
    return (columns + size - 1) / size * (coterie_is_affine(scheme) ? 2 : 1);
}

#endif
