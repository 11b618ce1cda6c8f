/* The gate of an expert: act(gate) * up, from float32 to bfloat16. */
#include <math.h>

#include "bfloat16.h"
#include "coterie.h"

/* e^x to about two units in the last place, without a branch, so that loops over it become vectors (Cody and Waite's
 * reduction, the polynomial of Cephes). NaN stays NaN. */
COTERIE_INLINE float exponential(float x) {
    x = x < -87.33f ? -87.33f : x;
    x = x > 88.37f ? 88.37f : x;
    const float magic = 12582912.0f;
    float count = x * 1.44269504088896341f + magic;
    uint32_t power = coterie_to_bits(count) << 23;
    count -= magic;
    float r = x - count * 0.693359375f + count * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return coterie_from_bits(coterie_to_bits(p) + power);
}

COTERIE_INLINE float sigmoid_product(float x, float y) {
    return x / (1.0f + exponential(-y));
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
