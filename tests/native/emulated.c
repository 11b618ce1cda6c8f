/* Calls functions of a library for somebody else, in the memory of the caller: pages are asked for when they are
 * touched, and what has changed in them is sent back when a call is over. See emulation.py.
 */
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, TOGETHER = 32, MOST = 1 << 16, ARGUMENTS = 16 };

typedef struct {
    char name[48];
    int64_t returns_text, arguments[ARGUMENTS];
    float number;
} call;

typedef struct {
    int64_t kind, at, size;
} message;

typedef struct {
    char *at;
    size_t size;
} piece;

typedef struct {
    char *page, *before;
} changed;

static piece pieces[MOST];
static changed changes[MOST];
static int piece_count, change_count;

/* In place of the C library's, for the library, too. That one clears long stretches with "dc zva", and where a page is
 * missing QEMU (7.2) does not go on there after on_fault(): it begins again at the block of code around it, with the
 * registers as they have become. The loop then misses its end, and clears all that follows.
 */
void *memset(void *to, int value, size_t size) {
    for (volatile char *at = to; size; size--) *at++ = (char)value;
    return to;
}

static void get(void *to, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t some = read(0, (char *)to + done, size - done);
        if (some <= 0) _exit(0);
        done += (size_t)some;
    }
}

static void put(const void *from, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t some = write(1, (const char *)from + done, size - done);
        if (some <= 0) _exit(0);
        done += (size_t)some;
    }
}

static void tell(char kind, int64_t at, int64_t size) {
    message told = {kind, at, size};
    put(&told, sizeof told);
}

static void *memory(void *at, size_t size) {
    return mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void give_up(char kind, const void *at) {
    tell(kind, (int64_t)(intptr_t)at, 0);
    _exit(1);
}

static void on_fault(int number, siginfo_t *about, void *context) {
    (void)number, (void)context;
    char *page = (char *)((uintptr_t)about->si_addr & ~(uintptr_t)(PAGE - 1));
    size_t size = TOGETHER * PAGE;
    if (piece_count == MOST || change_count == MOST) give_up('M', page);
    for (int i = 0; i < piece_count; i++) {
        if (page >= pieces[i].at && page < pieces[i].at + pieces[i].size) {
            /* Known, so it is written to now. */
            char *before = memory(NULL, PAGE);
            memcpy(before, page, PAGE);
            changes[change_count++] = (changed){page, before};
            mprotect(page, PAGE, PROT_READ | PROT_WRITE);
            return;
        }
        if (pieces[i].at > page && (size_t)(pieces[i].at - page) < size) size = (size_t)(pieces[i].at - page);
    }
    tell('R', (int64_t)(intptr_t)page, (int64_t)size);
    int64_t got;
    get(&got, sizeof got);
    if (got < PAGE) give_up('F', about->si_addr);
    size = (size_t)got / PAGE * PAGE;
    /* Never over what is there already: then this is not where it was asked for. */
    if (memory(page, size) != page) give_up('C', page);
    get(page, size);
    mprotect(page, size, PROT_READ);
    pieces[piece_count++] = (piece){page, size};
}

/* Only the bytes that differ: what lies beside them may be in use. */
static void send_back(const changed *one) {
    for (int begin = 0; begin < PAGE;) {
        int end = begin;
        while (end < PAGE && one->page[end] != one->before[end]) end++;
        if (end > begin) {
            tell('W', (int64_t)(intptr_t)(one->page + begin), end - begin);
            put(one->page + begin, (size_t)(end - begin));
        }
        begin = end + 1;
    }
}

int main(int count, char **arguments) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    void *library = count > 1 ? dlopen(arguments[1], RTLD_NOW) : NULL;
    if (!library) {
        const char *why = dlerror();
        put(why, why ? strlen(why) : 0);
        return 1;
    }
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    for (;;) {
        call now;
        get(&now, sizeof now);
        const int64_t *a = now.arguments;
        void *function = dlsym(library, now.name);
        if (!function) give_up('N', NULL);
        /* Whole numbers and floats go into registers of their own, whatever their order. */
        typedef int64_t (*any)(float, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                               int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
        int64_t result = ((any)function)(now.number, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10],
                                         a[11], a[12], a[13], a[14], a[15]);
        for (int i = 0; i < change_count; i++) {
            send_back(&changes[i]);
            munmap(changes[i].before, PAGE);
        }
        for (int i = 0; i < piece_count; i++) munmap(pieces[i].at, pieces[i].size);
        piece_count = change_count = 0;
        const char *text = now.returns_text ? (const char *)(intptr_t)result : NULL;
        tell('D', result, text ? (int64_t)strlen(text) : 0);
        if (text) put(text, strlen(text));
    }
}
