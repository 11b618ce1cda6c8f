/* Threads of the OpenMP runtime that is loaded already.
 *
 * The library is not linked with an OpenMP runtime, and no compiler support for OpenMP is needed: the three functions
 * that a compiler would call are handed over when the library is loaded. Without them everything runs on one thread.
 */
#include "coterie.h"

typedef void (*parallel_function)(void (*)(void *), void *, unsigned, unsigned);

static parallel_function openmp_parallel;
static int (*openmp_thread)(void);
static int (*openmp_threads)(void);
static void (*openmp_barrier)(void);

/* GOMP_parallel, omp_get_thread_num, omp_get_num_threads and GOMP_barrier of the runtime. */
COTERIE_API void coterie_use_threads(void *parallel, void *thread, void *threads, void *barrier) {
    openmp_thread = (int (*)(void))thread;
    openmp_threads = (int (*)(void))threads;
    openmp_barrier = (void (*)(void))barrier;
    openmp_parallel = (parallel_function)parallel;
}

typedef struct {
    coterie_body body;
    void *context;
} region;

static void enter(void *data) {
    const region *entered = data;
    entered->body(entered->context, openmp_thread(), openmp_threads());
}

void coterie_parallel(coterie_body body, void *context, int threads) {
    /* One thread never touches the runtime: its pool does not survive a fork. */
    if (threads <= 1 || !openmp_parallel) {
        body(context, 0, 1);
        return;
    }
    region entered = {body, context};
    openmp_parallel(enter, &entered, (unsigned)threads, 0);
}

void coterie_barrier(int threads) {
    if (threads > 1) openmp_barrier();
}
