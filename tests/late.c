/* A network file system that shows late what other machines wrote, for the processes that have this library preloaded:
   below the folder LATE_UNDER whatever a process of another LATE_NODE made is not there for LATE_SECONDS, neither by its
   name nor in a listing. Who made what stands in a table that all share, the file LATE_TABLE (tests/late.py). */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define ENTRIES 65536

struct table {
    atomic_int count;
    atomic_int hidden; /* how often something was not shown */
    struct { ino64_t inode; int node, made; double when; } known[ENTRIES]; /* who made it, and who was told of it */
};

static struct table *table;
static char under[PATH_MAX];
static size_t length;
static int node;
static double seconds;

#define REAL(name) (__extension__({ static typeof(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name); real; }))

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("LATE_UNDER"), *file = getenv("LATE_TABLE");
    if (!folder || !file || strlen(folder) >= sizeof under) return;
    node = atoi(getenv("LATE_NODE"));
    seconds = atof(getenv("LATE_SECONDS"));
    int descriptor = REAL(open64)(file, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return;
    void *shared = mmap(NULL, sizeof(struct table), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (shared == MAP_FAILED) return;
    table = shared;
    strcpy(under, folder);
    length = strlen(under);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

/* The absolute path of `name` in the folder that `descriptor` is, if it lies below `under`. */
static const char *placed(int descriptor, const char *name, char path[PATH_MAX]) {
    if (!table || !name) return NULL;
    if (*name != '/') {
        char link[64] = "/proc/self/cwd";
        if (descriptor != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
        ssize_t size = readlink(link, path, PATH_MAX - 1);
        if (size < 0 || size + strlen(name) + 2 > PATH_MAX) return NULL;
        path[size] = '/';
        strcpy(path + size + 1, name);
        name = path;
    }
    return strncmp(name, under, length) == 0 ? name : NULL;
}

static int late(ino64_t inode) {
    int count = atomic_load(&table->count);
    for (int at = (count < ENTRIES ? count : ENTRIES) - 1; at >= 0; at--) {
        if (table->known[at].inode != inode) continue;
        if (table->known[at].node == node) return 0;
        if (!table->known[at].made) continue;
        /* Whatever stands further up is of a file that had this number before. */
        int hide = now() - table->known[at].when < seconds;
        if (hide) atomic_fetch_add(&table->hidden, 1);
        return hide;
    }
    return 0;
}

/* Whether a folder on the way to a name is not shown yet, or with `itself` the name. */
static int hides(int descriptor, const char *name, int itself) {
    char absolute[PATH_MAX], part[PATH_MAX];
    const char *path = placed(descriptor, name, absolute);
    if (!path) return 0;
    for (size_t end = length + 1; end <= strlen(path); end++) {
        if (path[end] != '/' && (path[end] || !itself)) continue;
        memcpy(part, path, end);
        part[end] = 0;
        struct stat64 there;
        if (REAL(lstat64)(part, &there)) return 0;
        if (late(there.st_ino)) return 1;
    }
    return 0;
}

/* This node made it, or was told by the server that it is there. */
static void note(int descriptor, const char *name, int made) {
    char absolute[PATH_MAX];
    const char *path = placed(descriptor, name, absolute);
    struct stat64 there;
    if (!path || REAL(lstat64)(path, &there)) return;
    int at = atomic_fetch_add(&table->count, 1);
    if (at >= ENTRIES) return;
    table->known[at].node = node;
    table->known[at].made = made;
    table->known[at].when = now();
    table->known[at].inode = there.st_ino;
}

#define UNSEEN(descriptor, name) if (hides(descriptor, name, 1)) { errno = ENOENT; return -1; }

static int opened(int descriptor, const char *name, int flags, mode_t mode) {
    struct stat64 there;
    int makes = flags & O_CREAT, is = !makes || !REAL(fstatat64)(descriptor, name, &there, 0);
    if (hides(descriptor, name, !makes)) {
        errno = ENOENT;
        return -1;
    }
    int result = REAL(openat64)(descriptor, name, flags, mode), problem = errno;
    if (makes && (is ? hides(descriptor, name, 1) : result >= 0)) note(descriptor, name, !is);
    errno = problem;
    return result;
}

#define MODE(flags) mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { \
    va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }

int open(const char *name, int flags, ...) { MODE(flags) return opened(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE(flags) return opened(AT_FDCWD, name, flags, mode); }
int openat(int at, const char *name, int flags, ...) { MODE(flags) return opened(at, name, flags, mode); }
int openat64(int at, const char *name, int flags, ...) { MODE(flags) return opened(at, name, flags, mode); }

int mkdir(const char *name, mode_t mode) {
    if (hides(AT_FDCWD, name, 0)) {
        errno = ENOENT;
        return -1;
    }
    int result = REAL(mkdir)(name, mode), problem = errno;
    if (!result || (problem == EEXIST && hides(AT_FDCWD, name, 1))) note(AT_FDCWD, name, !result);
    errno = problem;
    return result;
}

int stat64(const char *name, struct stat64 *out) { UNSEEN(AT_FDCWD, name) return REAL(stat64)(name, out); }
int lstat64(const char *name, struct stat64 *out) { UNSEEN(AT_FDCWD, name) return REAL(lstat64)(name, out); }
int fstatat64(int at, const char *name, struct stat64 *out, int flags) {
    if (*name) UNSEEN(at, name)
    return REAL(fstatat64)(at, name, out, flags);
}
int statx(int at, const char *name, int flags, unsigned mask, struct statx *out) {
    if (*name) UNSEEN(at, name)
    return REAL(statx)(at, name, flags, mask, out);
}
int access(const char *name, int mode) { UNSEEN(AT_FDCWD, name) return REAL(access)(name, mode); }

DIR *opendir(const char *name) {
    if (hides(AT_FDCWD, name, 1)) {
        errno = ENOENT;
        return NULL;
    }
    return REAL(opendir)(name);
}

struct dirent64 *readdir64(DIR *folder) {
    char path[PATH_MAX];
    struct dirent64 *entry = REAL(readdir64)(folder);
    while (entry && placed(dirfd(folder), entry->d_name, path) && late(entry->d_ino)) entry = REAL(readdir64)(folder);
    return entry;
}
