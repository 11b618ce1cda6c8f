/* What attention does for one token between its linear layers: rotation of query and key, and the weighted sum over the
 * cache. Rotation has the bits of torch's operations; the sum is float32 throughout, and rounded once.
 */
#include <math.h>

#include "elementary.h"
#include "token.h"

enum { MOST_WIDTH = 512, SHARING = 4 };

#define LEVELLED "attention_lanes.h"
#include "each_level.h"

void coterie_rotate_head(int level, uint16_t *head, int64_t width, const uint16_t *cosine, const uint16_t *sine) {
    COTERIE_BY_LEVEL(level, rotate, head, width, cosine, sine);
}

void coterie_attend(int level, const coterie_attention *task, int64_t kv_head) {
    COTERIE_BY_LEVEL(level, attend, task, kv_head);
}

/* Rotates heads of one token in place.
 *
 * heads:  bfloat16 [count, width], an even width.
 * cosine, sine: bfloat16 [width].
 */
COTERIE_API void coterie_rotate(int level, uint16_t *heads, int64_t count, int64_t width, const uint16_t *cosine,
                                const uint16_t *sine) {
    for (int64_t head = 0; head < count; head++) coterie_rotate_head(level, heads + head * width, width, cosine, sine);
}

typedef struct {
    coterie_attention task;
    int level;
} attention;

static void attend_some(void *context, int thread, int threads) {
    const attention *own = context;
    int64_t begin, end;
    coterie_share(own->task.kv_heads, 1, thread, threads, &begin, &end);
    coterie_attention task = own->task;
    for (int64_t head = begin; head < end; head++) {
        task.scores = own->task.scores + head * (task.heads / task.kv_heads) * task.length;
        coterie_attend(own->level, &task, head);
    }
}

/* One token's attention over all tokens of a cache: softmax(query keys scale) values.
 *
 * query:  bfloat16 [heads, width]; width a multiple of 16 up to 512.
 * keys, values: bfloat16 [kv_heads, length, width], heads `key_stride` and `value_stride` elements apart.
 * scores: float32 [heads, length], for intermediate results.
 * out:    bfloat16 [heads, width].
 */
COTERIE_API void coterie_token_attention(int level, int threads, const uint16_t *query, const uint16_t *keys,
                                         const uint16_t *values, int64_t heads, int64_t kv_heads, int64_t width,
                                         int64_t length, int64_t key_stride, int64_t value_stride, float scale,
                                         float *scores, uint16_t *out) {
    attention own = {{query, keys, values, heads, kv_heads, width, length, key_stride, value_stride, scale, scores, out},
                     level};
    /* Waking threads takes longer than a short cache does. */
    coterie_parallel(attend_some, &own, heads * length * width < 1 << 20 ? 1 : threads);
}
