/* Includes the file that LEVELLED names once for each instruction set, with TARGET, NAME and the vectors of that set.
 * COTERIE_BY_LEVEL chooses among what it defines.
 */
#define TARGET
#define NAME(x) x##_portable
#include "vectors.h"
#include LEVELLED
#undef TARGET
#undef NAME
#undef INLINE

#if defined(__x86_64__)
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_avx2
#include "vectors.h"
#include LEVELLED
#undef TARGET
#undef NAME
#undef INLINE

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define NAME(x) x##_avx512
#define SIXTEEN_AT_ONCE
#include "vectors.h"
#include LEVELLED
#undef SIXTEEN_AT_ONCE
#endif
