/* The gate of an expert: act(gate) * up, from float32 to bfloat16. */
#include <math.h>

#include "elementary.h"

COTERIE_INLINE float sigmoid_product(float x, float y) {
    return x / (1.0f + coterie_exponential(-y));
}

COTERIE_INLINE void gate_rows(int activation, const float *restrict gate, const float *restrict up,
                              uint16_t *restrict out, int64_t count) {
    switch (activation) {
    case COTERIE_SILU:
        for (int64_t i = 0; i < count; i++) out[i] = coterie_to_bf16(sigmoid_product(gate[i], gate[i]) * up[i]);
        break;
    case COTERIE_GELU:
        for (int64_t i = 0; i < count; i++)
            out[i] = coterie_to_bf16(0.5f * gate[i] * (1.0f + erff(gate[i] * 0.70710678118654752f)) * up[i]);
        break;
    case COTERIE_GELU_TANH:
        /* (1 + tanh y) / 2 is the sigmoid of 2y. */
        for (int64_t i = 0; i < count; i++) {
            float y = 1.5957691216057308f * (gate[i] + 0.044715f * gate[i] * gate[i] * gate[i]);
            out[i] = coterie_to_bf16(sigmoid_product(gate[i], y) * up[i]);
        }
        break;
    default:
        for (int64_t i = 0; i < count; i++) out[i] = coterie_to_bf16((gate[i] < 0 ? 0.0f : gate[i]) * up[i]);
    }
}

static void gate_portable(int activation, const float *gate, const float *up, uint16_t *out, int64_t count) {
    gate_rows(activation, gate, up, out, count);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void gate_avx2(int activation, const float *gate, const float *up,
                                                      uint16_t *out, int64_t count) {
    gate_rows(activation, gate, up, out, count);
}

__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) static void
gate_avx512(int activation, const float *gate, const float *up, uint16_t *out, int64_t count) {
    gate_rows(activation, gate, up, out, count);
}
#endif

coterie_gate coterie_gate_of(int level) {
#if defined(__x86_64__)
    if (level >= COTERIE_AVX512BF16) return gate_avx512;
    if (level >= COTERIE_AVX2) return gate_avx2;
#endif
    (void)level;
    return gate_portable;
}
