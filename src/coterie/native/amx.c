/* AMX: the int4 products of up to eight tokens for little more than one.
 *
 * A tile of weights is 16 rows by 32 columns of a group, decoded to bfloat16 in the first-level cache; a tile of tokens
 * is the same columns of up to eight tokens. Codes stay whole numbers, so products are exact and are added in float32.
 * After the two tiles of a group the sums are stored, and vectors scale them while the next group is multiplied.
 */
#if defined(__x86_64__)
#include <immintrin.h>

#include "bfloat16.h"
#include "coterie.h"

#define SETS "avx512f,avx512bw,avx512dq,avx512vl,fma,amx-tile,amx-bf16"
#define TARGET __attribute__((target(SETS)))
#define TARGET_INLINE static inline __attribute__((always_inline, target(SETS)))

enum { GROUP = 64, TILE_ROWS = 16, TWICE = 2 * TILE_ROWS, TILE = TILE_ROWS * 32, TOKENS_BYTES = 64 * 1024 };

/* Groups that are asked for ahead of time; and the fewest tokens that are faster in tiles, measured: a tile costs the
 * same for one token as for eight, and its 32 rows come less evenly from memory than four. */
enum { AHEAD = 8, FEWEST = 4 };

/* Tiles are read behind the compiler's back: what they read must have been written. */
COTERIE_INLINE void written(const void *memory) {
    __asm__ volatile("" : : "r"(memory) : "memory");
}

static int64_t vector_bytes(int64_t columns) {
    return coterie_avx512bf16[COTERIE_INT4].prepared_bytes(columns);
}

/* A token is kept twice: as AVX-512 wants it, which serves few tokens, and rows in groups of 32; and by groups: the even
 * columns of each, then its odd ones, two to a 32-bit word, and behind all of them the sums of the groups. */
static int64_t prepared_int4(int64_t columns) {
    return vector_bytes(columns) + (columns * 2 + columns / 32 * 4 + 63) / 64 * 64;
}

TARGET static void prepare_int4(const uint16_t *token, int64_t columns, int64_t group, void *prepared) {
    coterie_avx512bf16[COTERIE_INT4].prepare(token, columns, group, prepared);
    if (group != GROUP) return;
    prepared = (char *)prepared + vector_bytes(columns);
    uint16_t *order = prepared;
    float *sums = (float *)(order + columns);
    for (int64_t first = 0; first < columns; first += GROUP) {
        __m512 sum = _mm512_setzero_ps();
        for (int half = 0; half < 2; half++) {
            __m512i x = _mm512_loadu_si512(token + first + half * 32), odd = _mm512_srli_epi32(x, 16);
            uint16_t *to = order + first + half * 16;
            _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(x));
            _mm256_storeu_si256((__m256i *)(to + 32), _mm512_cvtepi32_epi16(odd));
            sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)));
            sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(odd, 16)));
        }
        sums[first / GROUP] = _mm512_reduce_add_ps(sum);
    }
}

/* Tiles 0 and 1 are sums, 2 and 3 tokens, 4 to 7 weights. */
TARGET_INLINE void configure(int width) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } wanted = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        wanted.rows[tile] = TILE_ROWS;
        wanted.bytes[tile] = (uint16_t)(tile < 4 ? 4 * width : 64);
    }
    written(&wanted);
    _tile_loadconfig(&wanted);
}

/* A group of 32 rows as four tiles: even and odd columns of the first 16 rows, then of the others. A byte in a 16-bit
 * lane is an even column below an odd one; the look-up sees five bits, so a table with its 16 values twice needs no
 * mask. */
TARGET_INLINE void decode(const uint8_t *const *rows, int64_t group, uint16_t *tiles) {
    const __m512i table = _mm512_set_epi16(
        0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040, 0x4000, 0x3f80, 0x0000, 0xbf80, 0xc000, 0xc040, 0xc080, 0xc0a0, 0xc0c0,
        0xc0e0, 0xc100, 0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040, 0x4000, 0x3f80, 0x0000, 0xbf80, 0xc000, 0xc040, 0xc080,
        0xc0a0, 0xc0c0, 0xc0e0, 0xc100);
#pragma GCC unroll 8
    for (int r = 0; r < TWICE; r++) {
        __m512i codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(rows[r] + group * (GROUP / 2))));
        uint16_t *to = tiles + r / TILE_ROWS * 2 * TILE + r % TILE_ROWS * 32;
        _mm512_store_si512(to, _mm512_permutexvar_epi16(codes, table));
        _mm512_store_si512(to + TILE, _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), table));
    }
}

/* Adds a group's sums [32 rows][W], scaled, and its zeros; a vector holds 16 / W rows. */
TARGET_INLINE void add_scaled(const int W, const int *scales, const __m512i places[2], const float *sums,
                              __m512 token_sums, __m512 totals[2][8]) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i first = _mm512_srli_epi32(lanes, W == 1 ? 0 : W == 2 ? 1 : W == 4 ? 2 : 3);
    for (int half = 0; half < 2; half++) {
        __m512i pairs = _mm512_i32gather_epi32(places[half], scales, 4);
        __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
        __m512 zero = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
        for (int v = 0; v < W; v++) {
            __m512i of = _mm512_add_epi32(first, _mm512_set1_epi32(v * (16 / W)));
            __m512 sum = _mm512_load_ps(sums + (half * W + v) * 16);
            totals[half][v] = _mm512_fmadd_ps(_mm512_permutexvar_ps(of, zero), token_sums, totals[half][v]);
            totals[half][v] = _mm512_fmadd_ps(_mm512_permutexvar_ps(of, scale), sum, totals[half][v]);
        }
    }
}

/* 32 rows, of which those behind the last one repeat it. tokens: by group, two tiles [16][W] of 32-bit words;
 * token_sums: by group, as many as a vector holds. */
TARGET_INLINE void strip(const int W, const coterie_matrix *matrix, int64_t row, int64_t end, const uint32_t *tokens,
                         const float *token_sums, float *out) {
    _Alignas(64) uint16_t weights[2][4 * TILE];
    _Alignas(64) float sums[2][TWICE * 8];
    _Alignas(64) int32_t place[TWICE];
    const uint8_t *rows[TWICE];
    const int64_t groups = matrix->columns / GROUP;
    const int *scales = (const int *)(matrix->scales + row * groups * 2);
    for (int r = 0; r < TWICE; r++) {
        int64_t at = row + r < end ? row + r : end - 1;
        rows[r] = matrix->codes + at * (matrix->columns / 2);
        place[r] = (int32_t)((at - row) * groups);
    }
    const __m512i places[2] = {_mm512_load_si512(place), _mm512_load_si512(place + TILE_ROWS)};
    __m512 totals[2][8];
    for (int v = 0; v < W; v++) totals[0][v] = totals[1][v] = _mm512_setzero_ps();
    for (int64_t g = 0; g <= groups; g++) {
        if (g < groups) {
            uint16_t *tiles = weights[g & 1];
            /* 32 rows are more than the processor foresees by itself: their lines are asked for ahead of time, at the
             * end those of the next 32 rows. A line has two groups. */
            if (!(g & 1)) {
                int64_t ahead = g + AHEAD, bytes = matrix->columns / 2;
                int64_t offset = ahead < groups ? ahead * (GROUP / 2) : TWICE * bytes + (ahead - groups) * (GROUP / 2);
                for (int r = 0; r < TWICE; r++) _mm_prefetch(rows[r] + offset, _MM_HINT_T0);
            }
            decode(rows, g, tiles);
            written(tiles);
            _tile_zero(0);
            _tile_zero(1);
            _tile_loadd(2, tokens + g * 2 * TILE_ROWS * W, 4 * W);
            _tile_loadd(3, tokens + (g * 2 + 1) * TILE_ROWS * W, 4 * W);
            _tile_loadd(4, tiles, 64);
            _tile_dpbf16ps(0, 4, 2);
            _tile_loadd(5, tiles + TILE, 64);
            _tile_dpbf16ps(0, 5, 3);
            _tile_loadd(6, tiles + 2 * TILE, 64);
            _tile_dpbf16ps(1, 6, 2);
            _tile_loadd(7, tiles + 3 * TILE, 64);
            _tile_dpbf16ps(1, 7, 3);
            _tile_stored(0, sums[g & 1], 4 * W);
            _tile_stored(1, sums[g & 1] + TILE_ROWS * W, 4 * W);
        }
        /* One group behind: what a tile stores takes a while to be readable. */
        if (g > 0) {
            const float *of = token_sums + (g - 1) * (W == 1 ? 1 : 16);
            add_scaled(W, scales + (g - 1), places, sums[(g - 1) & 1], W == 1 ? _mm512_set1_ps(*of) : _mm512_load_ps(of),
                       totals);
        }
    }
    for (int half = 0; half < 2; half++)
        for (int v = 0; v < W; v++) _mm512_store_ps(out + (half * W + v) * 16, totals[half][v]);
}

/* Tokens beside each other, as their tiles are; the columns of a tile without a token are zero. */
static void interleave(int width, int64_t columns, const void *const *prepared, int count, uint32_t *tokens,
                       float *token_sums) {
    const int64_t words = columns / 2, groups = columns / GROUP;
    for (int t = 0; t < width; t++) {
        const uint32_t *from = t < count ? prepared[t] : NULL;
        for (int64_t i = 0; i < words; i++) tokens[i * width + t] = from ? from[i] : 0;
        for (int64_t g = 0; g < groups; g++)
            for (int i = t; i < 16; i += width)
                token_sums[g * 16 + i] = from ? ((const float *)(from + words))[g] : 0;
    }
}

#define STRIPS(width)                                                                                                  \
    TARGET static void strips_##width(const coterie_matrix *matrix, int64_t begin, int64_t end,                        \
                                      const void *const *prepared, int count, float *out, int64_t stride) {            \
        _Alignas(64) uint32_t tokens[width == 1 ? 16 : TOKENS_BYTES / 4];                                              \
        _Alignas(64) float token_sums[width == 1 ? 16 : TOKENS_BYTES / (2 * width) / GROUP * 16];                      \
        _Alignas(64) float totals[TWICE * width];                                                                      \
        const int64_t columns = matrix->columns;                                                                       \
        const uint32_t *from = width == 1 ? (const uint32_t *)prepared[0] : tokens;                                    \
        const float *from_sums = width == 1 ? (const float *)(from + columns / 2) : token_sums;                        \
        if (width > 1) interleave(width, columns, prepared, count, tokens, token_sums);                                \
        written(from);                                                                                                 \
        configure(width);                                                                                              \
        for (int64_t row = begin; row < end; row += TWICE) {                                                           \
            strip(width, matrix, row, end, from, from_sums, totals);                                                   \
            for (int t = 0; t < count; t++)                                                                            \
                for (int64_t r = 0; r < TWICE && row + r < end; r++)                                                   \
                    out[t * stride + row + r - begin] = totals[r * width + t];                                         \
        }                                                                                                              \
        _tile_release();                                                                                               \
    }

STRIPS(1)
STRIPS(2)
STRIPS(4)
STRIPS(8)

static void rows_int4(const coterie_matrix *matrix, int64_t begin, int64_t end, const void *const *prepared, int tokens,
                      float *out, int64_t stride) {
    if (tokens < FEWEST || matrix->group != GROUP) {
        coterie_avx512bf16[COTERIE_INT4].rows(matrix, begin, end, prepared, tokens, out, stride);
        return;
    }
    const void *tiled[COTERIE_TOKENS];
    for (int t = 0; t < tokens; t++) tiled[t] = (const char *)prepared[t] + vector_bytes(matrix->columns);
    for (int t = 0; t < tokens;) {
        int left = tokens - t, width = left > 4 ? 8 : left > 2 ? 4 : left;
        while (width > 1 && 2 * width * matrix->columns > TOKENS_BYTES) width /= 2;
        int count = left < width ? left : width;
        float *to = out + t * stride;
        if (width == 8) strips_8(matrix, begin, end, tiled + t, count, to, stride);
        if (width == 4) strips_4(matrix, begin, end, tiled + t, count, to, stride);
        if (width == 2) strips_2(matrix, begin, end, tiled + t, count, to, stride);
        if (width == 1) strips_1(matrix, begin, end, tiled + t, count, to, stride);
        t += count;
    }
}

const coterie_kernel coterie_amx_int4 = {prepared_int4, prepare_int4, rows_int4};
#endif
