/* What the C files share: instruction-set levels, schemes, the table of kernels, threads.
 *
 * A file holds one thing and is compiled by itself; every *.c of this folder becomes part of the library. Code for an
 * instruction set carries __attribute__((target(...))), never a compiler flag, so that one library serves every
 * machine. Nothing here allocates memory, keeps state between calls, or knows Python.
 */
#ifndef COTERIE_H
#define COTERIE_H

#include <stddef.h>
#include <stdint.h>

#define COTERIE_API __attribute__((visibility("default")))
#define COTERIE_INLINE static inline __attribute__((always_inline))

/* Lowest first: each can run what those before it can. Their names are in level.c. */
#if defined(__x86_64__)
enum { COTERIE_PORTABLE, COTERIE_AVX2, COTERIE_AVX512BF16, COTERIE_AMX, COTERIE_LEVELS };
#elif defined(__aarch64__)
enum { COTERIE_PORTABLE, COTERIE_NEON, COTERIE_DOTPROD, COTERIE_LEVELS };
#else
enum { COTERIE_PORTABLE, COTERIE_LEVELS };
#endif

/* Older compilers have the instructions only where they are told that every processor has them. */
#if defined(__ARM_FEATURE_DOTPROD) || \
    (defined(__aarch64__) && (defined(__clang__) ? __clang_major__ >= 17 : __GNUC__ >= 8))
#define COTERIE_HAS_DOTPROD
#endif

/* How codes are packed, which is the lowest four bits of a scheme (numbers.h has the others). Planes of few bits come
 * first, by their bits, and bfloat16 as it is comes last. Mirrored in schemes.py. */
enum {
    COTERIE_INT2,
    COTERIE_INT3,
    COTERIE_INT4,
    COTERIE_INT5,
    COTERIE_INT6,
    COTERIE_INT8,
    COTERIE_BF16,
    COTERIE_SCHEMES
};

COTERIE_INLINE int coterie_packing(int scheme) {
    return scheme & 15;
}

/* Whether codes are from 0 on, in planes (planes.h). */
COTERIE_INLINE int coterie_is_affine(int scheme) {
    return coterie_packing(scheme) < COTERIE_INT8;
}

COTERIE_INLINE int coterie_code_bits(int scheme) {
    const int packing = coterie_packing(scheme);
    return coterie_is_affine(scheme) ? packing - COTERIE_INT2 + 2 : packing == COTERIE_INT8 ? 8 : 16;
}

/* Tokens of one call of a kernel. */
#define COTERIE_TOKENS 8

/* Rows of a decode step, at the most: tokens of different sequences. Mirrored in token_state.py. */
#define COTERIE_ROWS 16

/* A kernel's tokens had better stay in the first-level cache. */
#define COTERIE_NEAR_BYTES (40 * 1024)

/* Bytes on a thread's stack for the tokens of a pass as a kernel wants them. */
#define COTERIE_PREPARED_BYTES (256 * 1024)

/* Codes and scales are read in the order in which they lie in memory, and asked for so many bytes before they are used:
 * processors read ahead of few streams by themselves, not far, and not beyond a page. On an AMD EPYC of two cores that
 * is what takes products of one token from half to nearly all of the speed at which memory can be read. */
#define COTERIE_CODES_AHEAD 4096
#define COTERIE_SCALES_AHEAD 1024

/* A quantised matrix as it is stored; its rows are outputs.
 *
 * int2 to int6: codes [rows, columns * bits / 8] in the planes of planes.h, plus half their range.
 * int8: codes [rows, columns], signed.
 * bf16: weights [rows, columns] instead of codes, and no scales.
 * Scales are what numbers.h says, usually bfloat16: [rows, groups, 2], scale and zero, and of int8 [rows, groups].
 * Groups divide the columns. Nothing need be aligned. Made by coterie_matrix_of.
 */
typedef struct {
    const uint8_t *codes;
    const uint8_t *scales;
    int64_t columns;
    /* Values of a token that share a scale: 64 or 32. */
    int64_t group;
    int scheme;
    /* Whether two such groups have one scale here. */
    int doubled;
} coterie_matrix;

/* Products of a scheme's rows with a few tokens, for one level. */
typedef struct {
    /* Bytes of one prepared token, a multiple of 64. */
    int64_t (*prepared_bytes)(int64_t columns);
    /* A token, bfloat16 [columns], in the order in which `rows` reads it. `prepared` is aligned to 64 bytes. */
    void (*prepare)(const uint16_t *token, int64_t columns, int64_t group, void *prepared);
    /* out[t * stride + row - begin] = row · token t, for rows [begin, end) and 1 to COTERIE_TOKENS tokens. The bits of
     * a product depend neither on the other rows nor on the other tokens of the call. */
    void (*rows)(const coterie_matrix *matrix, int64_t begin, int64_t end, const void *const *prepared, int tokens,
                 float *out, int64_t stride);
} coterie_kernel;

const coterie_kernel *coterie_kernel_of(int scheme, int level);

extern const coterie_kernel coterie_portable[COTERIE_SCHEMES];
#if defined(__x86_64__)
extern const coterie_kernel coterie_avx2[COTERIE_SCHEMES];
extern const coterie_kernel coterie_avx512bf16[COTERIE_SCHEMES];
#elif defined(__aarch64__)
extern const coterie_kernel coterie_neon[COTERIE_SCHEMES];
extern const coterie_kernel coterie_dotprod[COTERIE_SCHEMES];
#endif

/* As many tokens as fit a thread's stack. */
COTERIE_INLINE int coterie_tokens_that_fit(const coterie_kernel *kernel, int64_t columns) {
    int64_t fit = COTERIE_PREPARED_BYTES / kernel->prepared_bytes(columns);
    return fit < COTERIE_ROWS ? (int)fit : COTERIE_ROWS;
}

/* A kernel's rows for any number of tokens, a few at a time. */
COTERIE_INLINE void coterie_rows(const coterie_kernel *kernel, const coterie_matrix *matrix, int64_t begin, int64_t end,
                                 const void *const *prepared, int tokens, float *out, int64_t stride) {
    int few = COTERIE_TOKENS * kernel->prepared_bytes(matrix->columns) > COTERIE_NEAR_BYTES ? 4 : COTERIE_TOKENS;
    for (int t = 0; t < tokens; t += few)
        kernel->rows(matrix, begin, end, prepared + t, tokens - t < few ? tokens - t : few, out + t * stride, stride);
}

enum { COTERIE_SILU, COTERIE_GELU, COTERIE_GELU_TANH, COTERIE_RELU };

/* out = act(gate) * up, rounded to bfloat16. */
typedef void (*coterie_gate)(int activation, const float *gate, const float *up, uint16_t *out, int64_t count);

coterie_gate coterie_gate_of(int level);

/* Bytes of one row's codes. */
COTERIE_INLINE int64_t coterie_code_bytes(int scheme, int64_t columns) {
    return columns / 8 * coterie_code_bits(scheme);
}

/* Threads are those of the OpenMP runtime that torch uses: a second pool would spin against the first. */
typedef void (*coterie_body)(void *context, int thread, int threads);

/* Runs `body` once on each of up to `threads` threads; tells each its number and how many there really are. */
void coterie_parallel(coterie_body body, void *context, int threads);

/* Waits for all threads of the region; `threads` as the body was told. */
void coterie_barrier(int threads);

/* The part [begin, end) of `count` that falls to a thread, in multiples of `grain`. */
COTERIE_INLINE void coterie_share(int64_t count, int64_t grain, int thread, int threads, int64_t *begin,
                                  int64_t *end) {
    int64_t grains = (count + grain - 1) / grain;
    int64_t first = grains * thread / threads * grain, last = grains * (thread + 1) / threads * grain;
    *begin = first < count ? first : count;
    *end = last < count ? last : count;
}

#endif
