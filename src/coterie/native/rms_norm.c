/* Root-mean-square normalisation with the bits of torch's operations.
 *
 * torch computes it by six operations, each of which rounds; all but one round element by element. The mean of the
 * squares depends on the order of adding, which is that of torch's sum over a contiguous row (cascade_sum in
 * aten/src/ATen/native/cpu/SumKernel.cpp): 4 vectors of `lanes` floats side by side, added up in four levels so that
 * errors grow slowly. How many lanes torch was built with is for the caller to find out.
 */
#include <math.h>

#include "token.h"

enum { VECTORS = 4, CASCADE = 4, MOST_LANES = 16 };

/* How scale and weight are applied. */
enum { ROUND_THEN_SCALE, SCALE_THEN_ROUND, SCALE_BY_ONE_MORE };

COTERIE_INLINE float load(const void *values, int64_t index, int is_bf16) {
    return is_bf16 ? coterie_from_bf16(((const uint16_t *)values)[index]) : ((const float *)values)[index];
}

COTERIE_INLINE void add_squares(float *sums, const void *values, int64_t start, int count, int is_bf16) {
    for (int k = 0; k < count; k++) {
        float value = load(values, start + k, is_bf16);
        sums[k] += value * value;
    }
}

COTERIE_INLINE int ceil_log2(int64_t value) {
    int power = 0;
    while ((int64_t)1 << power < value) power++;
    return power;
}

COTERIE_INLINE float sum_of_squares(const void *values, int64_t start, int64_t columns, int is_bf16, const int lanes) {
    const int width = VECTORS * lanes;
    int64_t vectors = columns / lanes, steps = vectors / VECTORS;
    float level[CASCADE][VECTORS * MOST_LANES] = {{0}};
    int power = ceil_log2(steps) / CASCADE;
    if (power < 4) power = 4;
    int64_t run = (int64_t)1 << power, i = 0;
    while (i + run <= steps) {
        for (int64_t end = i + run; i < end; i++) add_squares(level[0], values, start + i * width, width, is_bf16);
        for (int j = 1; j < CASCADE; j++) {
            for (int k = 0; k < width; k++) {
                level[j][k] += level[j - 1][k];
                level[j - 1][k] = 0;
            }
            if (i & (run - 1) << j * power) break;
        }
    }
    for (; i < steps; i++) add_squares(level[0], values, start + i * width, width, is_bf16);
    for (int j = 1; j < CASCADE; j++)
        for (int k = 0; k < width; k++) level[0][k] += level[j][k];
    for (int64_t v = steps * VECTORS; v < vectors; v++)
        add_squares(level[0], values, start + v * lanes, lanes, is_bf16);
    for (int v = 1; v < VECTORS; v++)
        for (int k = 0; k < lanes; k++) level[0][k] += level[0][v * lanes + k];
    float sum = 0;
    for (int64_t column = vectors * lanes; column < columns; column++)
        add_squares(&sum, values, start + column, 1, is_bf16);
    for (int k = 0; k < lanes; k++) sum += level[0][k];
    return sum;
}

COTERIE_INLINE void normalise(const coterie_normalisation *task, const int is_bf16, const int form, const int lanes) {
    int64_t columns = task->columns;
    for (int64_t row = 0; row < task->rows; row++) {
        int64_t start = row * columns;
        float mean = sum_of_squares(task->values, start, columns, is_bf16, lanes) / (float)columns;
        float scale = 1.0f / sqrtf(mean + task->epsilon);
        for (int64_t i = 0; i < columns; i++) {
            float value = load(task->values, start + i, is_bf16) * scale, weight = load(task->weight, i, is_bf16);
            if (is_bf16 && form == ROUND_THEN_SCALE) value = coterie_from_bf16(coterie_to_bf16(value));
            value *= form == SCALE_BY_ONE_MORE ? 1.0f + weight : weight;
            if (is_bf16)
                ((uint16_t *)task->out)[start + i] = coterie_to_bf16(value);
            else
                ((float *)task->out)[start + i] = value;
        }
    }
}

COTERIE_INLINE void choose_form(const coterie_normalisation *task, const int is_bf16, const int lanes) {
    if (task->form == ROUND_THEN_SCALE)
        normalise(task, is_bf16, ROUND_THEN_SCALE, lanes);
    else if (task->form == SCALE_THEN_ROUND)
        normalise(task, is_bf16, SCALE_THEN_ROUND, lanes);
    else
        normalise(task, is_bf16, SCALE_BY_ONE_MORE, lanes);
}

COTERIE_INLINE void choose(const coterie_normalisation *task, int lanes) {
    if (task->is_bf16)
        lanes == 16 ? choose_form(task, 1, 16) : lanes == 8 ? choose_form(task, 1, 8) : choose_form(task, 1, 4);
    else
        lanes == 16 ? choose_form(task, 0, 16) : lanes == 8 ? choose_form(task, 0, 8) : choose_form(task, 0, 4);
}

static void rows_portable(const coterie_normalisation *task, int lanes) {
    choose(task, lanes);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void rows_avx2(const coterie_normalisation *task, int lanes) {
    choose(task, lanes);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))) static void rows_avx512(const coterie_normalisation *task,
                                                                                 int lanes) {
    choose(task, lanes);
}
#endif

void coterie_normalise(int level, int lanes, const coterie_normalisation *task) {
    COTERIE_BY_LEVEL(level, rows, task, lanes);
}

/* Normalises rows.
 *
 * level:   Instruction set; the bits do not depend on it.
 * lanes:   4, 8 or 16.
 * form:    0: rounded to the output's type, then times the weight; 1: times the weight, then rounded;
 *          2: times one more than the weight, then rounded.
 * is_bf16: Whether values, weight and out are bfloat16; else float32.
 * values:  [rows, columns]; weight: [columns]; out: [rows, columns].
 */
COTERIE_API void coterie_rms_norm(int level, int lanes, int form, int is_bf16, const void *values, const void *weight,
                                  int64_t rows, int64_t columns, float epsilon, void *out) {
    coterie_normalisation task = {values, weight, out, rows, columns, epsilon, form, is_bf16};
    coterie_normalise(level, lanes, &task);
}
