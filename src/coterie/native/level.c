/* Which level this machine can run, and the kernels of a level. */
#include "coterie.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { XSAVE_AVX = 0x6, XSAVE_AVX512 = 0xe6, XSAVE_TILES = 0x60000 };

static uint64_t enabled_state(void) {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx >> 27 & 1)) return 0;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Linux gives a process the tile registers only when it asks; asking again does no harm. */
static int tiles_granted(void) {
#if defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
}

static int highest(int wanted) {
    unsigned eax, ebx, ecx, edx, ebx7, ecx7, edx7;
    uint64_t state = enabled_state();
    if ((state & XSAVE_AVX) != XSAVE_AVX || !__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return COTERIE_PORTABLE;
    /* And numbers of 16 bits, which every processor with AVX2 converts. */
    int fma = (ecx >> 12 & 1) && (ecx >> 29 & 1);
    if (!__get_cpuid_count(7, 0, &eax, &ebx7, &ecx7, &edx7) || !fma || !(ebx7 >> 5 & 1)) return COTERIE_PORTABLE;
    /* F, DQ, BW, VL */
    unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    if ((state & XSAVE_AVX512) != XSAVE_AVX512 || (ebx7 & avx512) != avx512) return COTERIE_AVX2;
    /* VNNI and BF16 */
    if (!(ecx7 >> 11 & 1) || !__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) || !(eax >> 5 & 1)) return COTERIE_AVX2;
    /* BF16, TILE, INT8 of AMX */
    unsigned amx = 1u << 22 | 1u << 24 | 1u << 25;
    if (wanted < COTERIE_AMX || (state & XSAVE_TILES) != XSAVE_TILES || (edx7 & amx) != amx) return COTERIE_AVX512BF16;
    return tiles_granted() ? COTERIE_AMX : COTERIE_AVX512BF16;
}
#elif defined(__aarch64__)
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

static int has_dotprod(void) {
#if !defined(COTERIE_HAS_DOTPROD)
    return 0;
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, NULL, 0) == 0 && has;
#elif defined(__ARM_FEATURE_DOTPROD)
    return 1;
#else
    return 0;
#endif
}

static int highest(int wanted) {
    (void)wanted;
    return has_dotprod() ? COTERIE_DOTPROD : COTERIE_NEON;
}
#else
static int highest(int wanted) {
    (void)wanted;
    return COTERIE_PORTABLE;
}
#endif

/* Of a level, or NULL if there is none. */
COTERIE_API const char *coterie_level_name(int level) {
    static const char *const names[COTERIE_LEVELS] = {
        [COTERIE_PORTABLE] = "default",
#if defined(__x86_64__)
        [COTERIE_AVX2] = "avx2",
        [COTERIE_AVX512BF16] = "avx512bf16",
        [COTERIE_AMX] = "amx",
#elif defined(__aarch64__)
        [COTERIE_NEON] = "neon",
        [COTERIE_DOTPROD] = "dotprod",
#endif
    };
    return level >= 0 && level < COTERIE_LEVELS ? names[level] : NULL;
}

/* The highest level up to `wanted` that this machine runs. */
COTERIE_API int coterie_level(int wanted) {
    int level = highest(wanted);
    return level < wanted ? level : wanted;
}

const coterie_kernel *coterie_kernel_of(int scheme, int level) {
#if defined(__x86_64__)
    if (level >= COTERIE_AVX512BF16) return &coterie_avx512bf16[coterie_packing(scheme)];
    if (level >= COTERIE_AVX2) return &coterie_avx2[coterie_packing(scheme)];
#elif defined(__aarch64__)
#if defined(COTERIE_HAS_DOTPROD)
    if (level >= COTERIE_DOTPROD) return &coterie_dotprod[coterie_packing(scheme)];
#endif
    if (level >= COTERIE_NEON) return &coterie_neon[coterie_packing(scheme)];
#endif
    (void)level;
    return &coterie_portable[coterie_packing(scheme)];
}
