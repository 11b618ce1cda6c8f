/* Which weights of a row share a scale: as coterie.quant.grouping has it, for any number of columns. */
#ifndef COTERIE_GROUPS_H
#define COTERIE_GROUPS_H

#include "coterie.h"

/* The largest group. */
#define COTERIE_GROUP 64

COTERIE_INLINE int64_t coterie_group_size(int64_t columns) {
    return columns % COTERIE_GROUP && columns % 32 == 0 ? 32 : COTERIE_GROUP;
}

/* Bytes of a row's codes and elements of its scales, a shorter group at the end included. */
COTERIE_INLINE int64_t coterie_row_bytes(int scheme, int64_t columns) {
    return scheme == COTERIE_INT4 ? (columns + 1) / 2 : columns;
}

COTERIE_INLINE int64_t coterie_row_scales(int scheme, int64_t columns) {
    int64_t size = coterie_group_size(columns);
    return (columns + size - 1) / size * (scheme == COTERIE_INT4 ? 2 : 1);
}

#endif
