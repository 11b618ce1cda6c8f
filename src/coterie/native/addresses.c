/* A record comes to its place, and goes. */
#include <time.h>

#include "addresses.h"
#include "coterie.h"

/* Once everything that belongs to the record has been written. */
COTERIE_API void coterie_publish_address(coterie_address *entry, int64_t address) {
    __atomic_store_n(&entry->address, address, __ATOMIC_SEQ_CST);
}

/* Returns when nobody computes with it any more: no later than the calls that do so now. */
COTERIE_API void coterie_withdraw_address(coterie_address *entry) {
    const struct timespec pause = {0, 20000};
    __atomic_store_n(&entry->address, 0, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&entry->readers, __ATOMIC_SEQ_CST)) nanosleep(&pause, NULL);
}
