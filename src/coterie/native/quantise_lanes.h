/* One group of LANES rows at a time: the arithmetic of coterie.quant, operation for operation, a row in each lane.
 *
 * Included once for each instruction set, with LANES, TARGET, NAME(x) and VMAX, VMIN defined. VMAX(a, b) is a > b ? a : b
 * and VMIN(a, b) is a < b ? a : b, so b where one is not a number. No operation may be contracted or reordered
 * (-ffp-contract=off, no -ffast-math): the bytes must be those of the reference.
 */

typedef float NAME(floats) __attribute__((vector_size(4 * LANES)));
typedef int32_t NAME(ints) __attribute__((vector_size(4 * LANES)));
#define F NAME(floats)
#define I NAME(ints)
#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE F NAME(all)(float x) { return (F){0} + x; }

INLINE F NAME(select)(I mask, F a, F b) { return (F)(((I)a & mask) | ((I)b & ~mask)); }

/* To bfloat16 and back: to nearest, halves to even; infinity where it overflows. */
INLINE F NAME(rounded)(F x) {
    I bits = (I)x;
    return (F)((bits + 0x7fff + ((bits >> 16) & 1)) & (int32_t)0xffff0000);
}

INLINE I NAME(finite)(F x) { return ((I)x & 0x7f800000) != 0x7f800000; }

/* Sum of x[0..count) in the order of `total`: halves onto each other, what is left over onto the first. Overwrites x. */
INLINE F NAME(total)(F *x, int count) {
    while (count > 1) {
        int half = count / 2;
        for (int i = 0; i < half; i++) x[i] += x[i + half];
        if (count % 2) x[0] += x[2 * half];
        count = half;
    }
    return x[0];
}

typedef struct {
    F x[COTERIE_GROUP], codes[COTERIE_GROUP];
    F unit, mean;
    F error, scales, zeros;        /* the best so far; scales and zeros as stored */
    F sum, squares, products;      /* of the codes last tried; products with x */
} NAME(search);

/* One weight with a scale and zero: its code and the square of its error. */
#define TRY(i, square, product)                              \
    do {                                                     \
        F rest = s->x[i] - zero;                             \
        F code = VMIN(high, VMAX(low, rest * inverse));      \
        code = (code + rounding) - rounding;                 \
        s->codes[i] = code;                                  \
        sum += code;                                         \
        squares += code * code;                              \
        product = code * s->x[i];                            \
        rest = rest - code * step;                           \
        square = rest * rest;                                \
    } while (0)

/* Codes for a scale and zero; returns the sum of squared errors. */
INLINE F NAME(encode)(NAME(search) *s, const affine_codes *range, int size, F scales, F zeros) {
    F errors[COTERIE_GROUP / 2 + 1], with_x[COTERIE_GROUP / 2 + 1];
    const F low = NAME(all)(range->lowest), high = NAME(all)(range->highest), rounding = NAME(all)(12582912.0f);
    F step = scales / s->unit, zero = zeros / s->unit - s->mean;
    F inverse = NAME(select)(step == 0, (F){0}, 1 / step);
    F sum = {0}, squares = {0};  /* of whole numbers: exact in any order */
    int half = size / 2;
    for (int i = 0; i < half; i++) {
        F square, other_square, product, other_product;
        TRY(i, square, product);
        TRY(i + half, other_square, other_product);
        errors[i] = square + other_square;
        with_x[i] = product + other_product;
    }
    if (size % 2) {
        F square, product;
        TRY(size - 1, square, product);
        errors[0] = half ? errors[0] + square : square;
        with_x[0] = half ? with_x[0] + product : product;
    }
    s->sum = sum;
    s->squares = squares;
    s->products = NAME(total)(with_x, half ? half : 1);
    return NAME(total)(errors, half ? half : 1);
}

INLINE void NAME(offer)(NAME(search) *s, const affine_codes *range, int size, F scale, F zero) {
    F scales = NAME(rounded)(scale * s->unit), zeros = NAME(rounded)((zero + s->mean) * s->unit);
    F error = NAME(encode)(s, range, size, scales, zeros);
    I better = (error < s->error) & NAME(finite)(scales) & NAME(finite)(zeros);
    s->error = NAME(select)(better, error, s->error);
    s->scales = NAME(select)(better, scales, s->scales);
    s->zeros = NAME(select)(better, zeros, s->zeros);
}

/* Fills s->codes, scales and zeros for the weights in s->x. */
INLINE void NAME(find)(NAME(search) *s, const affine_codes *range, int size) {
    F scratch[COTERIE_GROUP];
    I largest = {0};
    for (int i = 0; i < size; i++) {
        I magnitude = (I)s->x[i] & 0x7fffffff;
        I is_more = magnitude > largest;
        largest = (magnitude & is_more) | (largest & ~is_more);
    }
    s->unit = NAME(select)(largest > 0, (F)largest, NAME(all)(1));
    for (int i = 0; i < size; i++) scratch[i] = s->x[i] = s->x[i] / s->unit;
    s->mean = NAME(total)(scratch, size) / (float)size;
    F low = NAME(all)(INFINITY), high = NAME(all)(-INFINITY);
    for (int i = 0; i < size; i++) {
        s->x[i] -= s->mean;
        low = VMIN(s->x[i], low);
        high = VMAX(s->x[i], high);
    }
    F extent = high - low;
    s->error = NAME(all)(INFINITY);
    s->scales = s->zeros = (F){0};
    for (int clip = 0; clip < range->clips; clip++) {
        F scale = extent * range->scale_of_range[clip];
        NAME(offer)(s, range, size, scale, (low + extent * range->margin_of_range[clip]) - range->lowest * scale);
        for (int turn = 0; turn < TURNS; turn++) {
            F mean = s->sum / (float)size;
            F spread = s->squares - (mean * mean) * (float)size;
            spread = NAME(select)(spread < 1e-6f, NAME(all)(1e-6f), spread);
            F slope = s->products / spread;
            NAME(offer)(s, range, size, slope, -slope * mean);
        }
    }
    NAME(encode)(s, range, size, s->scales, s->zeros);
}

/* LANES rows at column `first`, a column in each vector; the last row stands in for rows past the end.
 * Sets the bits of rows with a weight that bfloat16 has no room for. */
INLINE uint32_t NAME(load)(F *x, const source *w, int64_t row, int count, int64_t first, int size) {
    float *lanes = (float *)x;
    for (int r = 0; r < LANES; r++) {
        int64_t start = (row + (r < count ? r : count - 1)) * w->row_stride + first * w->column_stride;
        if (w->is_bf16) {
            const uint16_t *from = (const uint16_t *)w->values + start;
            uint32_t *bits = (uint32_t *)lanes;
            for (int c = 0; c < size; c++) bits[c * LANES + r] = (uint32_t)from[c * w->column_stride] << 16;
        } else {
            const float *from = (const float *)w->values + start;
            for (int c = 0; c < size; c++) lanes[c * LANES + r] = from[c * w->column_stride];
        }
    }
    I wrong = {0};
    for (int c = 0; c < size; c++) wrong |= ((I)x[c] & 0x7fffffff) > 0x7f7f0000;
    uint32_t rows = 0;
    for (int r = 0; r < LANES; r++) rows |= (uint32_t)(wrong[r] & 1) << r;
    return rows;
}

/* The codes of the group that begins with column `first`, in their planes. The zeros that a row is filled with come with
 * the last group. */
INLINE void NAME(store_affine)(const NAME(search) *s, const affine_codes *range, int count, int64_t first, int size,
                               int64_t columns, uint8_t *codes) {
    int32_t bytes[(COTERIE_GROUP / 2) * LANES] __attribute__((aligned(64)));
    const int64_t filled = coterie_filled(COTERIE_INT2 + range->bits - 2, columns), stride = filled * range->bits / 8;
    const int held = first + size == columns ? (int)(filled - first) : size;
    I stored[COTERIE_GROUP];
    for (int c = 0; c < held; c++)
        stored[c] = c < size ? __builtin_convertvector(s->codes[c] - range->lowest, I) : (I){0};
    for (int width = 4, below = 0; width; width /= 2) {
        if (!(range->bits & width)) continue;
        const int per_byte = 8 / width, mask = (1 << width) - 1, used = held / per_byte;
        for (int j = 0; j < used; j++) {
            I byte = {0};
            for (int k = 0; k < per_byte; k++) byte |= (stored[j * per_byte + k] >> below & mask) << (k * width);
            *(I *)(bytes + j * LANES) = byte;
        }
        uint8_t *to = codes + (filled * below + first * width) / 8;
        for (int r = 0; r < count; r++)
            for (int j = 0; j < used; j++) to[r * stride + j] = (uint8_t)bytes[j * LANES + r];
        below += width;
    }
}

INLINE uint32_t NAME(one_affine)(
    const source *w, int64_t row, int count, const affine_codes *range, int64_t first, int size, uint8_t *codes,
    uint16_t *scales, int64_t groups
) {
    NAME(search) s;
    uint32_t wrong = NAME(load)(s.x, w, row, count, first, size);
    NAME(find)(&s, range, size);
    NAME(store_affine)(&s, range, count, first, size, w->columns, codes);
    for (int r = 0; r < count; r++) {
        scales[r * groups * 2] = (uint16_t)((uint32_t)((I)s.scales)[r] >> 16);
        scales[r * groups * 2 + 1] = (uint16_t)((uint32_t)((I)s.zeros)[r] >> 16);
    }
    return wrong;
}

INLINE uint32_t NAME(one_int8)(
    const source *w, int64_t row, int count, int64_t first, int size, uint8_t *codes, uint16_t *scales,
    int64_t groups
) {
    F x[COTERIE_GROUP];
    uint32_t wrong = NAME(load)(x, w, row, count, first, size);
    const F most = NAME(all)(INT8_LARGEST), rounding = NAME(all)(12582912.0f);
    F largest = {0};
    for (int c = 0; c < size; c++) largest = VMAX((F)((I)x[c] & 0x7fffffff), largest);
    F scale = NAME(rounded)(largest / most);
    F divisor = NAME(select)(scale > 0, scale, NAME(all)(1));
    int32_t found[COTERIE_GROUP * LANES] __attribute__((aligned(64)));
    for (int c = 0; c < size; c++) {
        F code = VMIN(most, VMAX(-most, x[c] / divisor));
        code = (code + rounding) - rounding;
        *(I *)(found + c * LANES) = __builtin_convertvector(code, I) & (scale > 0);
    }
    for (int r = 0; r < count; r++) {
        for (int c = 0; c < size; c++) codes[r * w->columns + c] = (uint8_t)found[c * LANES + r];
        scales[r * groups] = (uint16_t)((uint32_t)((I)scale)[r] >> 16);
    }
    return wrong;
}

/* Up to LANES rows; returns the bits of rows that cannot be stored. The usual sizes are constants for the compiler. */
static TARGET uint32_t NAME(rows_affine)(
    const source *w, int64_t row, int count, const affine_codes *range, int size, uint8_t *codes, uint16_t *scales
) {
    int64_t groups = (w->columns + size - 1) / size;
    uint32_t wrong = 0;
    for (int64_t first = 0; first < w->columns; first += size, scales += 2) {
        if (first + size > w->columns)
            wrong |= NAME(one_affine)(w, row, count, range, first, (int)(w->columns - first), codes, scales, groups);
        else if (size == 128)
            wrong |= NAME(one_affine)(w, row, count, range, first, 128, codes, scales, groups);
        else if (size == 64)
            wrong |= NAME(one_affine)(w, row, count, range, first, 64, codes, scales, groups);
        else
            wrong |= NAME(one_affine)(w, row, count, range, first, 32, codes, scales, groups);
    }
    return wrong;
}

static TARGET uint32_t NAME(rows_int8)(
    const source *w, int64_t row, int count, int size, uint8_t *codes, uint16_t *scales
) {
    int64_t groups = (w->columns + size - 1) / size;
    uint32_t wrong = 0;
    for (int64_t first = 0; first < w->columns; first += size, scales++) {
        if (first + size > w->columns)
            wrong |= NAME(one_int8)(w, row, count, first, (int)(w->columns - first), codes + first, scales, groups);
        else if (size == 128)
            wrong |= NAME(one_int8)(w, row, count, first, 128, codes + first, scales, groups);
        else if (size == 64)
            wrong |= NAME(one_int8)(w, row, count, first, 64, codes + first, scales, groups);
        else
            wrong |= NAME(one_int8)(w, row, count, first, 32, codes + first, scales, groups);
    }
    return wrong;
}

#undef TRY
#undef INLINE
#undef I
#undef F
