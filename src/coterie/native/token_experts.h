/* The experts of a few rows, where all that they chose are in memory; mirrored in token_experts.py. */
#ifndef COTERIE_TOKEN_EXPERTS_H
#define COTERIE_TOKEN_EXPERTS_H

#include "addresses.h"
#include "coterie.h"

/* What stays the same of a bank. */
typedef struct {
    int64_t level, activation;
    /* D and F. */
    int64_t width, inner;
    /* E, and where they are. */
    int64_t experts;
    coterie_address *addresses;
    /* Six numbers for each expert: for gate_up and for down the scheme, and where codes and scales are in its record. */
    const int64_t *records;
} token_bank;

enum { RECORD_WIDTH = 6 };

#endif
