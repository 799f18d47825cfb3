/* A bad disk, for the processes that have this library preloaded: below the folder FAULTS_UNDER files are written slowly
   or not at all, and the clock is behind, as the integers in the file FAULTS_CONTROL say (tests/soak/faults.py). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct control {
    volatile int slow; /* microseconds that each write, fsync and rename takes */
    volatile int full; /* 1: the disk is full: of a write the first half gets through, then nothing; 2: for checkpoints */
    volatile int back; /* seconds by which the clock of the day is behind */
};

static struct control nothing, *control = &nothing;
static char under[PATH_MAX];
static size_t length;
static atomic_int turn;

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("FAULTS_UNDER"), *file = getenv("FAULTS_CONTROL");
    if (!folder || !file || strlen(folder) >= sizeof under) return;
    strcpy(under, folder);
    length = strlen(under);
    int descriptor = open(file, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return;
    void *shared = mmap(NULL, sizeof(struct control), PROT_READ, MAP_SHARED, descriptor, 0);
    if (shared != MAP_FAILED) control = shared;
    close(descriptor);
}

static int concerns(const char *path) { return length && path && strncmp(path, under, length) == 0; }

static int concerns_open(int descriptor, char path[PATH_MAX]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return concerns(path);
}

#define REAL(name) (__extension__({ static typeof(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name); real; }))

ssize_t write(int descriptor, const void *data, size_t count) {
    char path[PATH_MAX];
    if ((control->slow || control->full) && concerns_open(descriptor, path)) {
        if (control->slow) usleep(control->slow);
        if (control->full == 1 || (control->full && strstr(path, "/checkpoints/"))) {
            if (count < 2 || atomic_fetch_add(&turn, 1) % 2) {
                errno = ENOSPC;
                return -1;
            }
            count /= 2;
        }
    }
    return REAL(write)(descriptor, data, count);
}

int fsync(int descriptor) {
    char path[PATH_MAX];
    if (control->slow && concerns_open(descriptor, path)) usleep(control->slow);
    return REAL(fsync)(descriptor);
}

int rename(const char *from, const char *to) {
    if (control->slow && concerns(to)) usleep(control->slow);
    return REAL(rename)(from, to);
}

int clock_gettime(clockid_t clock, struct timespec *out) {
    int result = REAL(clock_gettime)(clock, out);
    if (!result && clock == CLOCK_REALTIME) out->tv_sec -= control->back;
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *out, void *zone) {
    int result = REAL(gettimeofday)(out, zone);
    if (!result && out) out->tv_sec -= control->back;
    return result;
}
