/* Memory is found by the kernel when it is first written to, and in a virtual machine by the host, too. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "coterie.h"

enum { SMALLEST_PAGE = 4096 };

typedef struct {
    volatile char *start;
    int64_t nbytes, spent_ns;
} stretch;

static int64_t thread_ns(void) {
    struct timespec now;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now)) return 0;
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void *touch(void *data) {
    stretch *touched = data;
    int64_t began = thread_ns();
    for (int64_t at = 0; at < touched->nbytes; at += SMALLEST_PAGE) touched->start[at] = 0;
    touched->spent_ns = thread_ns() - began;
    return NULL;
}

static void *touch_when_idle(void *data) {
#ifdef __linux__
    /* Of this thread alone. It holds no lock that others could wait for while it gets no time. */
    const struct sched_param none = {0};
    sched_setscheduler(0, SCHED_IDLE, &none);
#endif
    return touch(data);
}

/* Writes to every page of free memory, in time that no other thread wants; returns the processor time that it took. */
COTERIE_API int64_t coterie_touch_when_idle(void *start, int64_t nbytes) {
    stretch touched = {start, nbytes, 0};
    pthread_t thread;
    if (pthread_create(&thread, NULL, touch_when_idle, &touched)) {
        touch(&touched);
    } else {
        pthread_join(thread, NULL);
    }
    return touched.spent_ns;
}
