/* Matrices to our schemes: coterie.quant's bytes, at a speed for models of many thousand million weights. */

#include <math.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "coterie.h"
#include "numbers.h"
#include "planes.h"

#define INT8_LARGEST 127

enum { MOST_CLIPS = 4, TURNS = 3 };

/* How the codes of an affine scheme are searched for: their range, and candidates to start from, shares of a group's
 * range, as coterie.quant.affine has them: share / (highest - lowest) and (1 - share) / 2. */
typedef struct {
    int bits;
    float lowest, highest;
    int clips;
    float scale_of_range[MOST_CLIPS], margin_of_range[MOST_CLIPS];
} affine_codes;

static affine_codes codes_of_bits(int bits) {
    static const double clips[][MOST_CLIPS] = {
        [2] = {1, 0.75, 0.5}, [3] = {1, 0.87}, [4] = {1, 0.87}, [5] = {1, 0.87}, [6] = {1, 0.87},
    };
    affine_codes codes = {.bits = bits, .lowest = -(1 << (bits - 1)), .highest = (1 << (bits - 1)) - 1};
    for (; codes.clips < MOST_CLIPS && clips[bits][codes.clips] > 0; codes.clips++) {
        double share = clips[bits][codes.clips];
        codes.scale_of_range[codes.clips] = (float)(share / ((1 << bits) - 1));
        codes.margin_of_range[codes.clips] = (float)((1 - share) / 2);
    }
    return codes;
}

typedef struct {
    const void *values;
    int is_bf16; /* else float32 */
    int64_t rows, columns, row_stride, column_stride;
} source;

#define LANES 4
#define TARGET
#define NAME(x) x##_portable
#define VMAX(a, b) select_portable((a) > (b), (a), (b))
#define VMIN(a, b) select_portable((a) < (b), (a), (b))
#include "quantise_lanes.h"
#undef LANES
#undef TARGET
#undef NAME
#undef VMAX
#undef VMIN

#if defined(__x86_64__)
#define LANES 8
#define TARGET __attribute__((target("avx2")))
#define NAME(x) x##_avx2
#define VMAX(a, b) ((floats_avx2)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define VMIN(a, b) ((floats_avx2)_mm256_min_ps((__m256)(a), (__m256)(b)))
#include "quantise_lanes.h"
#undef LANES
#undef TARGET
#undef NAME
#undef VMAX
#undef VMIN

#define LANES 16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define NAME(x) x##_avx512
#define VMAX(a, b) ((floats_avx512)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define VMIN(a, b) ((floats_avx512)_mm512_min_ps((__m512)(a), (__m512)(b)))
#include "quantise_lanes.h"
#undef LANES
#undef TARGET
#undef NAME
#undef VMAX
#undef VMIN
#endif

typedef struct {
    int lanes;
    /* Groups of so many columns. */
    uint32_t (*affine)(const source *w, int64_t row, int count, const affine_codes *range, int size, uint8_t *codes,
                       uint16_t *scales);
    uint32_t (*int8)(const source *w, int64_t row, int count, int size, uint8_t *codes, uint16_t *scales);
} kernel;

static kernel kernel_of(int level) {
#if defined(__x86_64__)
    if (level >= COTERIE_AVX512BF16) return (kernel){16, rows_affine_avx512, rows_int8_avx512};
    if (level >= COTERIE_AVX2) return (kernel){8, rows_affine_avx2, rows_int8_avx2};
#endif
    (void)level;
    return (kernel){4, rows_affine_portable, rows_int8_portable};
}

typedef struct {
    source weights;
    kernel kernel;
    int scheme, size;
    affine_codes range;
    uint8_t *codes;
    uint16_t *scales;
    int64_t code_stride, scale_stride;
    int64_t first_wrong;
} quantisation;

static void part_of_quantisation(void *context, int thread, int threads) {
    quantisation *call = context;
    int64_t rows = call->weights.rows, begin, end;
    coterie_share(rows, call->kernel.lanes, thread, threads, &begin, &end);
    for (int64_t row = begin; row < end; row += call->kernel.lanes) {
        int count = end - row < call->kernel.lanes ? (int)(end - row) : call->kernel.lanes;
        uint8_t *codes = call->codes + row * call->code_stride;
        uint16_t *scales = call->scales + row * call->scale_stride;
        uint32_t wrong = coterie_is_affine(call->scheme)
                             ? call->kernel.affine(&call->weights, row, count, &call->range, call->size, codes, scales)
                             : call->kernel.int8(&call->weights, row, count, call->size, codes, scales);
        if (!wrong) continue;
        /* The lowest of all threads. */
        int64_t found = row + __builtin_ctz(wrong), known = __atomic_load_n(&call->first_wrong, __ATOMIC_RELAXED);
        while (found < known && !__atomic_compare_exchange_n(&call->first_wrong, &known, found, 0, __ATOMIC_RELAXED,
                                                             __ATOMIC_RELAXED)) {
        }
        return;
    }
}

/* Quantises values [rows, columns], strides in elements. Returns the first row with a weight that is infinite, not a
 * number, or beyond the largest bfloat16, and then has not written everything; -1 if there is none. */
COTERIE_API int64_t coterie_quantise(int scheme, int level, int threads, const void *values, int is_bf16, int64_t rows,
                                     int64_t columns, int64_t row_stride, int64_t column_stride, void *codes,
                                     void *scales) {
    quantisation call = {.weights = {values, is_bf16, rows, columns, row_stride, column_stride},
                         .kernel = kernel_of(level),
                         .scheme = scheme,
                         .size = (int)coterie_group_size(scheme, columns),
                         .codes = codes,
                         .scales = scales,
                         .code_stride = coterie_row_bytes(scheme, columns),
                         .scale_stride = coterie_row_scales(scheme, columns) / 2,
                         .first_wrong = rows};
    if (coterie_is_affine(scheme)) call.range = codes_of_bits(coterie_code_bits(scheme));
    coterie_parallel(part_of_quantisation, &call, threads);
    return call.first_wrong < rows ? call.first_wrong : -1;
}
