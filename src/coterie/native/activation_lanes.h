/* Activation functions on vectors of float32; included once for each instruction set.
 *
 * Before: `floats` and `ints`, vectors of LANES, and INLINE. e^x is that of Cephes: reduction to |r| <= ln 2 / 2 and a
 * polynomial, off by two units in the last place at most.
 */

INLINE floats exponential(floats x) {
    const floats zero = {0};
    floats low = zero - 87.0f, high = zero + 88.0f;
    ints below = x < low, above = x > high;
    x = (floats)(((ints)low & below) | ((ints)x & ~below));
    x = (floats)(((ints)high & above) | ((ints)x & ~above));
    floats n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
    floats r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (floats)((__builtin_convertvector(n, ints) + 127) << 23);
}

INLINE floats activated(int activation, floats x) {
    if (activation == COTERIE_SILU) return x / (1.0f + exponential(-x));
    if (activation == COTERIE_GELU_TANH) {
        /* x / 2 * (1 + tanh(y)) = x / (1 + e^(-2y)) */
        floats y = 0.79788456080286536f * (x + 0.044715f * x * x * x);
        return x / (1.0f + exponential(-2.0f * y));
    }
    if (activation == COTERIE_GELU) {
        for (int i = 0; i < LANES; i++) x[i] = x[i] * 0.5f * (1.0f + erff(x[i] * 0.70710678118654752f));
        return x;
    }
    ints negative = x < 0.0f;
    return (floats)((ints)x & ~negative);
}
