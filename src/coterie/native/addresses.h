/* Where the experts of a bank lie in memory, for calls that look for themselves while others read and evict.
 *
 * Who computes adds itself to the readers, then looks whether there is an address. Who evicts takes the address away, then
 * waits until there are no readers. In whichever order that happens, one of the two sees the other.
 */
#ifndef COTERIE_ADDRESSES_H
#define COTERIE_ADDRESSES_H

#include <stdint.h>

/* Mirrored in addresses.py. */
typedef struct {
    /* Of the record, or 0 where the expert is not in memory. */
    int64_t address;
    /* Calls that compute with it. */
    int64_t readers;
} coterie_address;

/* The address of a record that stays until coterie_leave; 0 if it is not there. To be left in either case. */
static inline int64_t coterie_enter(coterie_address *entry) {
    __atomic_fetch_add(&entry->readers, 1, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&entry->address, __ATOMIC_SEQ_CST);
}

static inline void coterie_leave(coterie_address *entry) {
    __atomic_fetch_sub(&entry->readers, 1, __ATOMIC_SEQ_CST);
}

#endif
