/* Which sources the library was built from. */
#include "coterie.h"

COTERIE_API const char *coterie_fingerprint(void) {
    return COTERIE_FINGERPRINT;
}
