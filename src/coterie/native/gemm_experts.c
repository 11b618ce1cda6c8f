/* Experts that many tokens chose: gate and up, then down, as matrix products.
 *
 * Rows are packed a few hundred at a time, each expert's from a block of its own on; then threads take panels of all
 * these experts as they come. Gate and up are the halves of one panel, so what goes into down never leaves the cache
 * in float32: it is packed as it is computed.
 */
#include "experts.h"

enum { MOST_BLOCKS = COTERIE_MOST_ROWS / COTERIE_BLOCK };

/* A scheme in which blocks and panels take most: affine ones are filled up the most, all alike. */
enum { LARGEST = COTERIE_INT4 };

/* Some rows of one expert. */
typedef struct {
    const int64_t *entry;
    int64_t row, count, block;
} segment;

/* What is computed together. */
typedef struct {
    segment segments[MOST_BLOCKS];
    int64_t count, blocks;
} batch;

/* How far the batches have come: an expert of the table, and a row of it. */
typedef struct {
    int64_t expert, row;
} position;

typedef struct {
    const experts_call *call;
    const coterie_gemm *gemm;
    char *own, *inputs, *hidden;
    /* Bytes between the blocks of two segments: what a block takes in the scheme in which it takes most. */
    int64_t own_bytes, input_bytes, hidden_bytes;
    coterie_queue queue;
} many_call;

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* The next batch, the same on every thread; 0 if there is none. */
static int next_batch(const experts_call *call, position *from, batch *found) {
    found->count = found->blocks = 0;
    while (from->expert < call->count && found->blocks < MOST_BLOCKS) {
        const int64_t *entry = call->table + from->expert * TABLE_WIDTH;
        int64_t at = position_of(call, entry[TABLE_ID]), first = call->offsets[at];
        int64_t rows = call->offsets[at + 1] - first, left = rows >= call->many ? rows - from->row : 0;
        int64_t count = least(left, (MOST_BLOCKS - found->blocks) * COTERIE_BLOCK);
        if (count) {
            found->segments[found->count++] = (segment){entry, first + from->row, count, found->blocks};
            found->blocks += coterie_blocks(count);
        }
        from->row += count;
        if (count == left) *from = (position){from->expert + 1, 0};
    }
    return found->blocks > 0;
}

/* The block of some rows of a segment, which is packed for the matrix at `fields`, of so many columns. */
static char *block_of(const many_call *many, char *all, int64_t apart, const segment *one, const int64_t *fields,
                      int64_t columns, int64_t block) {
    return all + one->block * apart + block * many->gemm->block_bytes(scheme_at(fields), columns);
}

static void pack_part(const many_call *many, const batch *now, int64_t task) {
    const experts_call *call = many->call;
    const int64_t parts = coterie_pack_parts(call->width), block = task / parts;
    const int64_t begin = task % parts * COTERIE_PACKED_PART, end = least(begin + COTERIE_PACKED_PART, call->width);
    const uint16_t *tokens[COTERIE_BLOCK];
    const segment *one = now->segments;
    while (one + 1 < now->segments + now->count && one[1].block <= block) one++;
    for (int t = 0; t < COTERIE_BLOCK; t++) {
        int64_t row = (block - one->block) * COTERIE_BLOCK + t;
        tokens[t] = row < one->count ? call->x + call->row_token[one->row + row] * call->width : NULL;
    }
    const int64_t *gate_up = one->entry + TABLE_GATE_UP, *down = one->entry + TABLE_DOWN;
    many->gemm->pack(scheme_at(gate_up), tokens, begin, end, call->width,
                     block_of(many, many->inputs, many->input_bytes, one, gate_up, call->width, block - one->block));
    if (begin || call->inner % 128 == 0) return;
    /* What fills the last columns of the hidden ones up. */
    for (int t = 0; t < COTERIE_BLOCK; t++) tokens[t] = NULL;
    many->gemm->pack(scheme_at(down), tokens, call->inner / 128 * 128, call->inner, call->inner,
                     block_of(many, many->hidden, many->hidden_bytes, one, down, call->inner, block - one->block));
}

/* Sixteen hidden columns of a segment. */
static void gate_and_up(const many_call *many, const segment *one, int64_t column, char *own) {
    const experts_call *call = many->call;
    const int64_t *gate_up = one->entry + TABLE_GATE_UP, *next = one->entry + TABLE_DOWN;
    const int scheme = scheme_at(gate_up);
    const coterie_matrix matrix = matrix_at(gate_up, call->width);
    const int64_t halves[2] = {column, call->inner + column}, blocks = coterie_blocks(one->count);
    const char *inputs = many->inputs + one->block * many->input_bytes;
    float *products = (float *)own;
    for (int64_t block = 0; block < blocks; block += 2) {
        coterie_panel_product(many->gemm, scheme, &matrix, halves, 2 * call->inner, own + COTERIE_PRODUCTS_BYTES, inputs,
                              many->gemm->block_bytes(scheme, call->width), blocks, block, products);
        for (int64_t b = block; b < least(block + 2, blocks); b++)
            many->gemm->activate((int)call->activation, products + (b - block) * COTERIE_PRODUCTS, scheme_at(next),
                                 column, call->inner,
                                 block_of(many, many->hidden, many->hidden_bytes, one, next, call->inner, b));
    }
}

/* A panel of outputs of a segment. */
static void down(const many_call *many, const segment *one, int64_t first, char *own) {
    const experts_call *call = many->call;
    const int scheme = scheme_at(one->entry + TABLE_DOWN);
    const coterie_matrix matrix = matrix_at(one->entry + TABLE_DOWN, call->inner);
    const int64_t halves[2] = {first, first + COTERIE_HALF}, blocks = coterie_blocks(one->count);
    const int outputs = (int)least(call->width - first, COTERIE_PANEL);
    const char *hidden = many->hidden + one->block * many->hidden_bytes;
    float *products = (float *)own;
    for (int64_t block = 0; block < blocks; block += 2) {
        coterie_panel_product(many->gemm, scheme, &matrix, halves, call->width, own + COTERIE_PRODUCTS_BYTES, hidden,
                              many->gemm->block_bytes(scheme, call->inner), blocks, block, products);
        for (int64_t b = block; b < least(block + 2, blocks); b++) {
            int64_t row = one->row + b * COTERIE_BLOCK;
            many->gemm->scale(products + (b - block) * COTERIE_PRODUCTS, call->row_weight + row,
                              (int)least(one->count - b * COTERIE_BLOCK, COTERIE_BLOCK), outputs,
                              call->rows + row * call->width + first, call->width);
        }
    }
}

static void part_of_many(void *context, int thread, int threads) {
    many_call *many = context;
    const experts_call *call = many->call;
    const int64_t parts = coterie_pack_parts(call->width), columns = call->inner / COTERIE_HALF;
    const int64_t panels = (call->width + COTERIE_PANEL - 1) / COTERIE_PANEL;
    char *own = many->own + thread * many->own_bytes;
    position from = {0, 0};
    batch now;
    int64_t task;
    int phase = 0;
    if (many->gemm->enter) many->gemm->enter();
    while (next_batch(call, &from, &now)) {
        coterie_begin(&many->queue, ++phase, thread);
        while ((task = coterie_take(&many->queue, phase)) < now.blocks * parts) pack_part(many, &now, task);
        coterie_barrier(threads);
        coterie_begin(&many->queue, ++phase, thread);
        while ((task = coterie_take(&many->queue, phase)) < now.count * columns)
            gate_and_up(many, &now.segments[task / columns], task % columns * COTERIE_HALF, own);
        coterie_barrier(threads);
        coterie_begin(&many->queue, ++phase, thread);
        while ((task = coterie_take(&many->queue, phase)) < now.count * panels)
            down(many, &now.segments[task / panels], task % panels * COTERIE_PANEL, own);
        coterie_barrier(threads);
    }
    if (many->gemm->leave) many->gemm->leave();
}

static int64_t own_bytes(const coterie_gemm *gemm, const experts_call *call) {
    int64_t first = gemm->panel_bytes(LARGEST, call->width);
    int64_t second = gemm->panel_bytes(LARGEST, call->inner);
    return COTERIE_PRODUCTS_BYTES + (first > second ? first : second);
}

/* Blocks of the largest batch that the experts chosen can make. */
static int64_t many_blocks(const experts_call *call, const coterie_gemm *gemm) {
    int64_t blocks = 0;
    for (int64_t at = 0; at < call->used; at++) {
        int64_t rows = call->offsets[at + 1] - call->offsets[at];
        if (rows >= gemm->least_rows) blocks += coterie_blocks(rows);
    }
    return least(blocks, MOST_BLOCKS);
}

/* Bytes of scratch for the experts that the router chose and the threads of the call; 0 if none has many rows. */
COTERIE_API int64_t coterie_experts_scratch(const experts_call *call) {
    const coterie_gemm *gemm = coterie_gemm_of((int)call->level);
    int64_t blocks = many_blocks(call, gemm);
    if (!blocks) return 0;
    int64_t inputs = gemm->block_bytes(LARGEST, call->width);
    int64_t hidden = gemm->block_bytes(LARGEST, call->inner);
    return call->threads * own_bytes(gemm, call) + blocks * (inputs + hidden);
}

int64_t coterie_many_experts(experts_call *call) {
    int64_t experts = 0;
    for (int64_t e = 0; e < call->count; e++) {
        int64_t at = position_of(call, call->table[e * TABLE_WIDTH + TABLE_ID]);
        experts += call->offsets[at + 1] - call->offsets[at] >= call->many;
    }
    if (!experts) return 0;
    const coterie_gemm *gemm = coterie_gemm_of((int)call->level);
    many_call many = {.call = call,
                      .gemm = gemm,
                      .own = call->scratch,
                      .own_bytes = own_bytes(gemm, call),
                      .input_bytes = gemm->block_bytes(LARGEST, call->width),
                      .hidden_bytes = gemm->block_bytes(LARGEST, call->inner)};
    many.inputs = many.own + call->threads * many.own_bytes;
    many.hidden = many.inputs + many_blocks(call, gemm) * many.input_bytes;
    coterie_parallel(part_of_many, &many, (int)call->threads);
    return experts;
}
