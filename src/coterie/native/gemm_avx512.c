/* Matrix products by AVX-512 with BF16, and by AMX.
 *
 * Both multiply pairs of bfloat16 and add in float32. A panel is [columns / 32][2 halves][16 rows][32], each [16][32] a
 * tile of 1 KiB; a block is [columns / 32][16 pairs][16 tokens][2]. Affine schemes of up to 4 bits are decoded by looking
 * codes up in a table of the group's values. Of 128 columns, 16-bit lane l of a plane, made as wide as that, holds columns
 * 4l to 4l + 3, so that step s of four has columns 4l + s, and blocks are packed in the same order; where 128 columns are
 * not full, zeros fill them.
 */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include "bfloat16.h"
#include "gemm.h"
#include "numbers.h"
#include "planes.h"

#define SETS "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma"
#define TARGET __attribute__((target(SETS)))
#define TILES __attribute__((target(SETS ",amx-tile,amx-bf16")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define TILES_INLINE static inline __attribute__((always_inline, target(SETS ",amx-tile,amx-bf16")))
#define LANES 16

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

#include "activation_lanes.h"

/* Columns of a step, bytes of a tile, columns of a load of an affine scheme's codes. */
enum { STEP = 32, TILE = 1024, LOAD = 128 };

/* Loads of codes between asking for them and using them. */
enum { AHEAD = 8 };

COTERIE_INLINE int64_t steps_of(int scheme, int64_t columns) {
    return coterie_is_affine(scheme) ? (columns + LOAD - 1) / LOAD * (LOAD / STEP) : columns / STEP;
}

static int64_t block_bytes(int scheme, int64_t columns) {
    return steps_of(scheme, columns) * TILE;
}

static int64_t panel_bytes(int scheme, int64_t columns) {
    int64_t steps = steps_of(scheme, columns), least = 2 * LOAD / STEP;
    return (steps > least ? steps : least) * 2 * TILE;
}

INLINE void transpose(__m512i x[16]) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
    }
}

/* Where pair j of the 32 columns from `first` on lies in a block. */
INLINE char *place(int scheme, void *block, int64_t first, int j) {
    if (coterie_is_affine(scheme)) {
        int64_t step = first / LOAD * (LOAD / STEP) + j % 4, pair = first % LOAD / 8 + j / 4;
        return (char *)block + step * TILE + pair * 64;
    }
    return (char *)block + first / STEP * TILE + j * 64;
}

TARGET static void pack(int scheme, const uint16_t *const *tokens, int64_t begin, int64_t end, int64_t columns,
                        void *block) {
    /* In each 8 columns, 0 and 4 side by side, 1 and 5, 2 and 6, 3 and 7. */
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    /* What fills the last steps up comes with the end of the row. */
    int64_t filled = end == columns ? steps_of(scheme, columns) * STEP : end;
    for (int64_t first = begin; first < filled; first += STEP) {
        __m512i x[16];
        for (int t = 0; t < COTERIE_BLOCK; t++) {
            x[t] = tokens[t] && first < end ? _mm512_loadu_si512(tokens[t] + first) : _mm512_setzero_si512();
            if (coterie_is_affine(scheme)) x[t] = _mm512_shuffle_epi8(x[t], order);
        }
        transpose(x);
        for (int j = 0; j < 16; j++) _mm512_store_si512(place(scheme, block, first, j), x[j]);
    }
}

/* Where the numbers of some groups of a token are: the usual ones in pairs of bfloat16, others as they were read. */
typedef struct {
    const uint8_t *pairs;
    const coterie_group *read;
} group_numbers;

/* What a group has; broadcast from memory, which costs no shuffle. */
typedef struct {
    __m512 scale, zero, point;
} broadcast_group;

INLINE broadcast_group group_of(const int usual, const int bits, group_numbers numbers, int i) {
    if (!usual) {
        const coterie_group of = numbers.read[i];
        return (broadcast_group){_mm512_set1_ps(of.scale), _mm512_set1_ps(of.zero), _mm512_set1_ps(of.point)};
    }
    int pair;
    memcpy(&pair, numbers.pairs + 4 * i, 4);
    __m512i both = _mm512_set1_epi32(pair);
    return (broadcast_group){_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)),
                             _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000))),
                             _mm512_set1_ps(COTERIE_ZERO_CODE(bits))};
}

/* What the codes that are stored as 0 to 15 stand for in a group. */
INLINE __m512 values_of(const int usual, const int bits, group_numbers numbers, int i) {
    const __m512 stored = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const broadcast_group of = group_of(usual, bits, numbers, i);
    return _mm512_fmadd_ps(_mm512_sub_ps(stored, of.point), of.scale, of.zero);
}

/* Of two groups from the i-th on, of which `count` are there. */
INLINE __m512i values_of_two(const int usual, const int bits, group_numbers numbers, int i, int count) {
    return (__m512i)_mm512_cvtne2ps_pbh(count > 1 ? values_of(usual, bits, numbers, i + 1) : _mm512_setzero_ps(),
                                        values_of(usual, bits, numbers, i));
}

/* One plane of 128 columns, of which `left` are there, or more: 16-bit lane l has the parts of columns 4l to 4l + 3. */
INLINE __m512i lanes_of(const int width, const uint8_t *plane, int64_t left) {
    const int64_t bytes = left < LOAD ? left * width / 8 : LOAD * width / 8;
    if (width == 4) return _mm512_maskz_loadu_epi8((__mmask64)-1 >> (64 - bytes), plane);
    __m256i packed = _mm256_maskz_loadu_epi8((__mmask32)-1 >> (32 - bytes), plane);
    if (width == 2) return _mm512_cvtepu8_epi16(packed);
    __m512i bytes_apart = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(packed));
    return _mm512_and_si512(_mm512_or_si512(bytes_apart, _mm512_slli_epi32(bytes_apart, 12)),
                            _mm512_set1_epi16(15));
}

INLINE __m512i moved(__m512i x, const int up) {
    return up >= 0 ? _mm512_slli_epi16(x, up) : _mm512_srli_epi16(x, -up);
}

/* The stored codes of step s. */
INLINE __m512i codes_of(const int bits, const int s, __m512i lower, __m512i upper) {
    const int below = COTERIE_LOWER(bits), above = COTERIE_UPPER(bits);
    __m512i codes = _mm512_and_si512(_mm512_srli_epi16(lower, below * s),
                                     _mm512_set1_epi16(COTERIE_LOWER_MASK(bits)));
    if (!above) return codes;
    __m512i parts = _mm512_and_si512(moved(upper, below - above * s), _mm512_set1_epi16(COTERIE_UPPER_MASK(bits)));
    return _mm512_or_si512(codes, parts);
}

/* Sixteen of a step's codes, in groups of 64 all in one, of 32 in two. */
INLINE __m512 computed(__m256i codes, broadcast_group first, broadcast_group second) {
    const __m512 stored = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(codes));
    const __m512 point = _mm512_mask_mov_ps(first.point, 0xff00, second.point);
    const __m512 scale = _mm512_mask_mov_ps(first.scale, 0xff00, second.scale);
    const __m512 zero = _mm512_mask_mov_ps(first.zero, 0xff00, second.zero);
    return _mm512_fmadd_ps(_mm512_sub_ps(stored, point), scale, zero);
}

/* 128 columns of a row, or as many as are left of it, with the numbers of their groups: four steps, `stride` bytes
 * apart. */
INLINE void decode_affine(const int usual, const int bits, const uint8_t *lower_plane, const uint8_t *upper_plane,
                          group_numbers numbers, const int64_t group, int64_t left, char *to, int64_t stride) {
    const int groups = (int)(left / group);
    const __m512i lower = lanes_of(COTERIE_LOWER(bits), lower_plane, left);
    const __m512i upper = COTERIE_UPPER(bits) ? lanes_of(COTERIE_UPPER(bits), upper_plane, left) : lower;
    if (bits > 4) {
        broadcast_group parts[4];
        for (int part = 0; part < 4; part++) {
            const int of = group == 32 ? part : part / 2;
            parts[part] = of < groups
                              ? group_of(usual, bits, numbers, of)
                              : (broadcast_group){_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
        }
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++) {
            const __m512i codes = codes_of(bits, s, lower, upper);
            const __m512 first = computed(_mm512_castsi512_si256(codes), parts[0], parts[1]);
            const __m512 second = computed(_mm512_extracti64x4_epi64(codes, 1), parts[2], parts[3]);
            _mm512_store_si512(to + s * stride, (__m512i)_mm512_cvtne2ps_pbh(second, first));
        }
        return;
    }
    __m512i table = values_of_two(usual, bits, numbers, 0, groups), rest = table;
    /* Which group's values: above the code in an index. */
    __m512i above = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
    if (group == 32) {
        rest = groups > 2 ? values_of_two(usual, bits, numbers, 2, groups - 2) : _mm512_setzero_si512();
        above = _mm512_set_epi64(0x0030003000300030, 0x0030003000300030, 0x0020002000200020, 0x0020002000200020,
                                 0x0010001000100010, 0x0010001000100010, 0, 0);
    }
#pragma GCC unroll 4
    for (int s = 0; s < 4; s++) {
        __m512i index = _mm512_or_si512(codes_of(bits, s, lower, upper), above);
        __m512i values = group == 32 ? _mm512_permutex2var_epi16(table, index, rest)
                                     : _mm512_permutexvar_epi16(index, table);
        _mm512_store_si512(to + s * stride, values);
    }
}

/* 32 columns of a row. */
INLINE void decode_int8(const int8_t *codes, coterie_group of, char *to) {
    const __m512 step = _mm512_set1_ps(of.scale), zero = _mm512_set1_ps(of.zero);
    __m512 first = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)codes)));
    __m512 second = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(codes + 16))));
    _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(_mm512_fmadd_ps(second, step, zero),
                                                        _mm512_fmadd_ps(first, step, zero)));
}

/* The rows of a panel. */
typedef struct {
    const uint8_t *codes[COTERIE_PANEL], *scales[COTERIE_PANEL];
    const coterie_matrix *matrix;
    int64_t columns, group;
    /* Bytes to the same row of the next panel. */
    int64_t next;
} panel_rows;

INLINE panel_rows rows_of(int scheme, const coterie_matrix *matrix, const int64_t *halves, int64_t limit) {
    panel_rows rows = {.matrix = matrix, .columns = matrix->columns, .group = matrix->group};
    const int64_t scales = coterie_row_scales(scheme, rows.columns);
    const int64_t bytes = coterie_code_bytes(scheme, rows.columns);
    rows.next = (halves[1] == halves[0] + COTERIE_HALF ? COTERIE_PANEL : COTERIE_HALF) * bytes;
    for (int r = 0; r < COTERIE_PANEL; r++) {
        int64_t row = halves[r / COTERIE_HALF] + r % COTERIE_HALF;
        if (row >= limit) row = limit - 1;
        rows.codes[r] = matrix->codes + row * bytes;
        rows.scales[r] = matrix->scales + row * scales;
    }
    return rows;
}

INLINE int64_t wide(int scheme) {
    return coterie_is_affine(scheme) ? LOAD : STEP;
}

/* How far ahead of a row's beginning a plane, or all of a row, of so many bytes is asked for when `load` is decoded; where
 * the row of this panel has ended, that of the next one is. */
INLINE int64_t ahead_of(const panel_rows *rows, int64_t load, int64_t bytes, int64_t plane) {
    const int64_t far = (load + AHEAD) * bytes;
    return far < plane ? far : rows->next + far - plane;
}

/* What some of a token's groups have in a row of a panel. */
INLINE void read_groups(const panel_rows *rows, int r, int64_t first, int64_t count, coterie_group *read) {
    const coterie_matrix *matrix = rows->matrix;
    const int64_t groups = rows->columns / rows->group >> matrix->doubled;
    for (int64_t i = 0; i < count; i++)
        read[i] = coterie_group_at(matrix->scheme, rows->scales[r], groups, (first + i) >> matrix->doubled);
}

/* One load of each row: columns by columns and not row by row, so that what is written stays together. */
INLINE void load_affine(const int usual, const int bits, const int64_t group, const panel_rows *rows, int64_t load, char *to) {
    const int64_t bytes = coterie_lower_bytes(bits, LOAD), also = coterie_upper_bytes(bits, LOAD);
    const int64_t plane = coterie_lower_bytes(bits, rows->columns);
    const int64_t lower_ahead = ahead_of(rows, load, bytes, plane);
    const int64_t upper_ahead = plane + ahead_of(rows, load, also, coterie_upper_bytes(bits, rows->columns));
    const int64_t left = rows->columns - load * LOAD;
    for (int r = 0; r < COTERIE_PANEL; r++) {
        const uint8_t *lower = rows->codes[r] + load * bytes, *upper = rows->codes[r] + plane + load * also;
        coterie_group read[LOAD / 32];
        const group_numbers numbers = {rows->scales[r] + load * (LOAD / group) * 4, read};
        if (!usual) read_groups(rows, r, load * LOAD / group, left < LOAD ? left / group : LOAD / group, read);
        _mm_prefetch((const char *)rows->codes[r] + lower_ahead, _MM_HINT_T0);
        if (also) _mm_prefetch((const char *)rows->codes[r] + upper_ahead, _MM_HINT_T0);
        if (left >= LOAD)
            decode_affine(usual, bits, lower, upper, numbers, group, LOAD, to + r * 64, 2 * TILE);
        else
            decode_affine(usual, bits, lower, upper, numbers, group, left, to + r * 64, 2 * TILE);
    }
}

TARGET static void load_int8(const panel_rows *rows, int64_t load, char *to) {
    const int64_t ahead = ahead_of(rows, load, STEP, rows->columns);
    for (int r = 0; r < COTERIE_PANEL; r++) {
        _mm_prefetch((const char *)rows->codes[r] + ahead, _MM_HINT_T0);
        coterie_group of;
        read_groups(rows, r, load * STEP / rows->group, 1, &of);
        decode_int8((const int8_t *)rows->codes[r] + load * STEP, of, to + r * 64);
    }
}

TARGET static void load_bf16(const panel_rows *rows, int64_t load, char *to) {
    const int64_t ahead = ahead_of(rows, load, STEP * 2, rows->columns * 2);
    for (int r = 0; r < COTERIE_PANEL; r++) {
        _mm_prefetch((const char *)rows->codes[r] + ahead, _MM_HINT_T0);
        _mm512_store_si512(to + r * 64, _mm512_loadu_si512(rows->codes[r] + load * STEP * 2));
    }
}

#define LOADS(bits)                                                                                                    \
    TARGET static void load_wide_int##bits(const panel_rows *rows, int64_t load, char *to) {                           \
        load_affine(1, bits, 64, rows, load, to);                                                                      \
    }                                                                                                                  \
    TARGET static void load_narrow_int##bits(const panel_rows *rows, int64_t load, char *to) {                         \
        load_affine(1, bits, 32, rows, load, to);                                                                      \
    }                                                                                                                  \
    TARGET static void load_other_wide_int##bits(const panel_rows *rows, int64_t load, char *to) {                     \
        load_affine(0, bits, 64, rows, load, to);                                                                      \
    }                                                                                                                  \
    TARGET static void load_other_narrow_int##bits(const panel_rows *rows, int64_t load, char *to) {                   \
        load_affine(0, bits, 32, rows, load, to);                                                                      \
    }

LOADS(2)
LOADS(3)
LOADS(4)
LOADS(5)
LOADS(6)

/* Decodes a load of all rows of a panel. */
typedef void (*load_decoder)(const panel_rows *rows, int64_t load, char *to);

static load_decoder decoder_of(const panel_rows *rows) {
    static const load_decoder usual[COTERIE_SCHEMES][2] = {
        [COTERIE_INT2] = {load_narrow_int2, load_wide_int2}, [COTERIE_INT3] = {load_narrow_int3, load_wide_int3},
        [COTERIE_INT4] = {load_narrow_int4, load_wide_int4}, [COTERIE_INT5] = {load_narrow_int5, load_wide_int5},
        [COTERIE_INT6] = {load_narrow_int6, load_wide_int6}, [COTERIE_INT8] = {load_int8, load_int8},
        [COTERIE_BF16] = {load_bf16, load_bf16},
    };
    static const load_decoder other[COTERIE_SCHEMES][2] = {
        [COTERIE_INT2] = {load_other_narrow_int2, load_other_wide_int2},
        [COTERIE_INT3] = {load_other_narrow_int3, load_other_wide_int3},
        [COTERIE_INT4] = {load_other_narrow_int4, load_other_wide_int4},
        [COTERIE_INT5] = {load_other_narrow_int5, load_other_wide_int5},
        [COTERIE_INT6] = {load_other_narrow_int6, load_other_wide_int6},
        [COTERIE_INT8] = {load_int8, load_int8},
    };
    const int packing = coterie_packing(rows->matrix->scheme);
    return (coterie_is_usual(rows->matrix) ? usual : other)[packing][rows->group == 64];
}

TARGET static void decode(int scheme, const coterie_matrix *matrix, const int64_t *halves, int64_t limit, void *panel) {
    const panel_rows rows = rows_of(scheme, matrix, halves, limit);
    const load_decoder decoder = decoder_of(&rows);
    for (int64_t load = 0; load * wide(scheme) < rows.columns; load++)
        decoder(&rows, load, (char *)panel + load * (wide(scheme) / STEP) * 2 * TILE);
}

/* Eight rows with B blocks. */
INLINE void multiply_rows(const int B, int64_t steps, const char *panel, const char *blocks, float *products) {
    __m512 sums[8][2];
    for (int r = 0; r < 8; r++)
        for (int b = 0; b < B; b++) sums[r][b] = _mm512_setzero_ps();
    for (int64_t step = 0; step < steps; step++)
        for (int pair = 0; pair < 16; pair++) {
            __m512i x[2];
            for (int b = 0; b < B; b++) x[b] = _mm512_load_si512(blocks + (b * steps + step) * TILE + pair * 64);
            for (int r = 0; r < 8; r++) {
                int weights;
                memcpy(&weights, panel + step * 2 * TILE + r * 64 + pair * 4, 4);
                __m512i w = _mm512_set1_epi32(weights);
                for (int b = 0; b < B; b++) sums[r][b] = _mm512_dpbf16_ps(sums[r][b], (__m512bh)w, (__m512bh)x[b]);
            }
        }
    for (int r = 0; r < 8; r++)
        for (int b = 0; b < B; b++) _mm512_store_ps(products + b * COTERIE_PRODUCTS + r * COTERIE_BLOCK, sums[r][b]);
}

TARGET static void multiply(int scheme, int64_t columns, const void *panel, const void *blocks, int count,
                            float *products) {
    const int64_t steps = steps_of(scheme, columns);
    for (int r = 0; r < COTERIE_PANEL; r += 8) {
        if (count == 2)
            multiply_rows(2, steps, (const char *)panel + r * 64, blocks, products + r * COTERIE_BLOCK);
        else
            multiply_rows(1, steps, (const char *)panel + r * 64, blocks, products + r * COTERIE_BLOCK);
    }
}

/* Tiles 0 to 3 are sums, 4 and 5 the halves of a panel, 6 and 7 two blocks. */
TILES static void enter_tiles(void) {
    /* Constant, because compilers do not know that loading it reads all of it. */
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } configuration = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&configuration);
}

TILES static void leave_tiles(void) {
    _tile_release();
}

TILES_INLINE void clear_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* Some steps of a panel with the same steps of B blocks. */
TILES_INLINE void add_steps(const int B, int64_t steps, const char *panel, const char *first, const char *second) {
    for (int64_t step = 0; step < steps; step++) {
        _tile_loadd(6, first + step * TILE, 64);
        _tile_loadd(4, panel + step * 2 * TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, panel + step * 2 * TILE + TILE, 64);
        _tile_dpbf16ps(1, 5, 6);
        if (B == 2) {
            _tile_loadd(7, second + step * TILE, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
}

TILES_INLINE void store_sums(int count, float *products) {
    float *lower = products + COTERIE_HALF * COTERIE_BLOCK;
    _tile_stored(0, products, 64);
    _tile_stored(1, lower, 64);
    if (count == 1) return;
    _tile_stored(2, products + COTERIE_PRODUCTS, 64);
    _tile_stored(3, lower + COTERIE_PRODUCTS, 64);
}

TILES static void multiply_tiles(int scheme, int64_t columns, const void *panel, const void *blocks, int count,
                                 float *products) {
    const int64_t steps = steps_of(scheme, columns);
    const char *first = blocks, *second = first + steps * TILE;
    clear_sums();
    if (count == 2)
        add_steps(2, steps, panel, first, second);
    else
        add_steps(1, steps, panel, first, second);
    store_sums(count, products);
}

/* Decoding and multiplying by turns: what is decoded stays in the nearest cache. */
TILES_INLINE void stream(int scheme, const int B, const panel_rows *rows, char *buffer, const char *blocks,
                         float *products) {
    const int64_t steps = steps_of(scheme, rows->columns), columns = wide(scheme);
    const load_decoder decoder = decoder_of(rows);
    /* The next columns are decoded while those before are being multiplied. */
    char *half[2] = {buffer, buffer + LOAD / STEP * 2 * TILE};
    clear_sums();
    for (int64_t load = 0; load * columns < rows->columns; load++) {
        const char *first = blocks + load * columns / STEP * TILE;
        decoder(rows, load, half[load & 1]);
        /* Compilers do not know that tiles are loaded from memory. */
        __asm__ volatile("" ::: "memory");
        add_steps(B, columns / STEP, half[load & 1], first, first + steps * TILE);
    }
    store_sums(B, products);
}

TILES static void product_tiles(int scheme, const coterie_matrix *matrix, const int64_t *halves, int64_t limit,
                                void *panel, const void *blocks, int count, float *products) {
    const panel_rows rows = rows_of(scheme, matrix, halves, limit);
    if (count == 2)
        stream(scheme, 2, &rows, panel, blocks, products);
    else
        stream(scheme, 1, &rows, panel, blocks, products);
}

TARGET static void activate(int activation, const float *products, int scheme, int64_t column, int64_t columns,
                            void *block) {
    (void)columns;
    const int64_t first = column / STEP * STEP;
    const int start = (int)(column % STEP) / 2, apart = coterie_is_affine(scheme) ? 4 : 1;
    __m512 values[COTERIE_HALF];
    for (int r = 0; r < COTERIE_HALF; r++) {
        __m512 gate = _mm512_load_ps(products + r * COTERIE_BLOCK);
        __m512 up = _mm512_load_ps(products + (COTERIE_HALF + r) * COTERIE_BLOCK);
        values[r] = _mm512_mul_ps((__m512)activated(activation, (floats)gate), up);
    }
    for (int j = 0; j < COTERIE_HALF / 2; j++) {
        int left = apart == 4 ? j / 4 * 8 + j % 4 : 2 * j;
        __m512i upper = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(values[left + apart]));
        __m512i lower = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(values[left]));
        __m512i pair = _mm512_or_si512(lower, _mm512_slli_epi32(upper, 16));
        _mm512_store_si512(place(scheme, block, first, start + j), pair);
    }
}

INLINE void turned(const float *products, __m512 rows[16]) {
    __m512i x[16];
    for (int r = 0; r < 16; r++) x[r] = _mm512_load_si512(products + r * COTERIE_BLOCK);
    transpose(x);
    for (int t = 0; t < 16; t++) rows[t] = _mm512_castsi512_ps(x[t]);
}

/* The first `count` of 16 lanes. */
INLINE __mmask16 first_lanes(int count) {
    return count >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << (count > 0 ? count : 0)) - 1);
}

TARGET static void store(const float *products, int count, int outputs, uint16_t *out, int64_t stride) {
    for (int half = 0; half < 2 && half * COTERIE_HALF < outputs; half++) {
        __mmask16 present = first_lanes(outputs - half * COTERIE_HALF);
        __m512 rows[16];
        turned(products + half * COTERIE_HALF * COTERIE_BLOCK, rows);
        for (int t = 0; t < 16; t++)
            if (t < count)
                _mm256_mask_storeu_epi16(out + t * stride + half * COTERIE_HALF, present,
                                         (__m256i)_mm512_cvtneps_pbh(rows[t]));
    }
}

TARGET static void scale(const float *products, const float *factors, int count, int outputs, float *out,
                         int64_t stride) {
    for (int half = 0; half < 2 && half * COTERIE_HALF < outputs; half++) {
        __mmask16 present = first_lanes(outputs - half * COTERIE_HALF);
        __m512 rows[16];
        turned(products + half * COTERIE_HALF * COTERIE_BLOCK, rows);
        for (int t = 0; t < 16; t++)
            if (t < count)
                _mm512_mask_storeu_ps(out + t * stride + half * COTERIE_HALF, present,
                                      _mm512_mul_ps(rows[t], _mm512_set1_ps(factors[t])));
    }
}

const coterie_gemm coterie_gemm_avx512bf16 = {
    .least_rows = 16,
    .block_bytes = block_bytes,
    .panel_bytes = panel_bytes,
    .pack = pack,
    .decode = decode,
    .multiply = multiply,
    .activate = activate,
    .store = store,
    .scale = scale,
};

const coterie_gemm coterie_gemm_amx = {
    .least_rows = 5,
    .block_bytes = block_bytes,
    .panel_bytes = panel_bytes,
    .pack = pack,
    .decode = decode,
    .multiply = multiply_tiles,
    .product = product_tiles,
    .activate = activate,
    .store = store,
    .scale = scale,
    .enter = enter_tiles,
    .leave = leave_tiles,
};
#endif
