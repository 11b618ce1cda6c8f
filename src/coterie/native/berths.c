/* A record comes to its berth, and goes. */
#include <time.h>

#include "berths.h"
#include "coterie.h"

/* Once everything that belongs to the record has been written. */
COTERIE_API void coterie_fill_berth(coterie_berth *berth, int64_t address) {
    __atomic_store_n(&berth->address, address, __ATOMIC_SEQ_CST);
}

/* Returns when nobody computes with it any more: no later than the calls that do so now. */
COTERIE_API void coterie_clear_berth(coterie_berth *berth) {
    const struct timespec pause = {0, 20000};
    __atomic_store_n(&berth->address, 0, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&berth->readers, __ATOMIC_SEQ_CST)) nanosleep(&pause, NULL);
}
