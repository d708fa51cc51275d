/* A network file system on a bad day, for the processes that preload this library (bad_files.py).

   Below the folder $PDS_BAD_FS, and nowhere else:

   - A name that was looked for in vain stays unknown to this process for some ms, whoever makes it
     meanwhile; opening its folder forgets that (NFS: negative dentries, close-to-open consistency).
   - A name that another process has just made is unknown for some ms, in listings too. What this
     process has made it knows, but not the names in a folder that it renamed.
   - mkdir of a name that is unknown and there: EEXIST, for that is decided by the server.
   - rmdir: EBUSY, one time in two.
   - open of a file in whose place this process had seen another one: ESTALE, once.
   - read from a file that was removed since: ESTALE.

   The clock on the wall of each process is up to an hour off; that of the files is not.

   Each fault adds one to its counter in the file $PDS_BAD_FS_COUNTS, as uint64 in the order of
   `enum fault`. $PDS_BAD_FS_SEED varies the delays, of up to $PDS_BAD_FS_MS. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define FAIL(error, bad) do { errno = (error); return (bad); } while (0)
#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

enum fault { NEGATIVE, LATE, EXISTS, BUSY, STALE_OPEN, STALE_READ, FAULTS };
#define NAMES (1 << 16)
#define FILES (1 << 16)
#define PATH 4096

struct name {
    uint64_t hash;
    ino_t seen, mine;
    int64_t looked, until; /* looked for in vain; unknown until then, unless its folder is opened */
    int64_t opened;        /* of a folder: when this process opened it last */
};

static struct name names[NAMES];
static bool below[FILES];
static char root[PATH];
static size_t root_length;
static uint64_t nothing[FAULTS], *counts = nothing, seed, draws;
static int64_t most;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("PDS_BAD_FS"), *file = getenv("PDS_BAD_FS_COUNTS");
    const char *number = getenv("PDS_BAD_FS_SEED"), *ms = getenv("PDS_BAD_FS_MS");
    if (!folder || !file) return;
    int fd = syscall(SYS_openat, AT_FDCWD, file, O_RDWR, 0);
    void *mapped = mmap(NULL, sizeof nothing, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) abort();
    counts = mapped;
    seed = number ? strtoull(number, NULL, 10) : 0;
    most = (ms ? atoll(ms) : 50) * 1000000;
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
}

static void count(enum fault fault) { __atomic_add_fetch(&counts[fault], 1, __ATOMIC_RELAXED); }
static uint64_t mixed(uint64_t x) { /* splitmix64 */
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t draw(void) {
    uint64_t n = __atomic_add_fetch(&draws, 1, __ATOMIC_RELAXED);
    return mixed(seed ^ mixed((uint64_t)getpid() << 32 ^ n));
}

static int64_t now(void) { /* the clock of ctime */
    struct timespec t;
    clock_gettime(CLOCK_REALTIME_COARSE, &t);
    return t.tv_sec * 1000000000 + t.tv_nsec;
}

int clock_gettime(clockid_t clock, struct timespec *into) {
    REAL(clock_gettime);
    int rc = real(clock, into);
    if (!rc && clock == CLOCK_REALTIME && root_length)
        into->tv_sec += (int64_t)(mixed(seed ^ mixed(getpid())) % 7200) - 3600;
    return rc;
}

static bool look(const char *path, struct stat *found) {
    int before = errno, rc = syscall(SYS_newfstatat, AT_FDCWD, path, found, AT_SYMLINK_NOFOLLOW);
    errno = before;
    return rc == 0;
}

/* Writes the absolute `path` to `out`; whether it lies below the root. */
static bool ours(int dir, const char *path, char *out) {
    if (!root_length || !path) return false;
    if (path[0] == '/') {
        snprintf(out, PATH, "%s", path);
    } else {
        char link[64];
        snprintf(link, sizeof link, dir == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dir);
        int before = errno;
        ssize_t length = readlink(link, out, PATH - 1);
        errno = before;
        if (length < 0) return false;
        snprintf(out + length, PATH - length, "%s%s", *path ? "/" : "", path);
    }
    size_t length = strlen(out);
    while (length > 1 && out[length - 1] == '/') out[--length] = 0;
    return !strncmp(out, root, root_length) && (out[root_length] == '/' || !out[root_length]);
}

static struct name *entry(const char *path, size_t length) { /* with the lock held */
    uint64_t hash = 1469598103934665603u;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)path[i]) * 1099511628211u;
    for (size_t i = hash % NAMES, tried = 0; tried < NAMES; i = (i + 1) % NAMES, tried++) {
        if (!names[i].hash) names[i].hash = hash;
        if (names[i].hash == hash) return &names[i];
    }
    abort(); /* a test with so many names */
}

static size_t parent(const char *path) { return strrchr(path, '/') - path; }

/* Whether this process does not know yet that `path` is there. */
static bool unknown(const char *path) {
    struct stat found;
    bool there = look(path, &found), hidden = false;
    int64_t time = now();
    pthread_mutex_lock(&lock);
    struct name *at = entry(path, strlen(path));
    int64_t opened = entry(path, parent(path))->opened;
    if (!there) {
        at->looked = time;
        at->until = time + (int64_t)(draw() % (most + 1));
    } else if (at->mine != found.st_ino) {
        int64_t age = time - (found.st_ctim.tv_sec * 1000000000 + found.st_ctim.tv_nsec);
        uint64_t kind = mixed(seed ^ at->hash ^ mixed((uint64_t)getpid() << 32 ^ found.st_ino));
        if (time < at->until && opened <= at->looked) {
            count(NEGATIVE), hidden = true;
        } else if (at->seen != found.st_ino && kind % 2 && age < (int64_t)(kind % most)) {
            count(LATE), hidden = true;
        } else {
            at->seen = found.st_ino;
        }
    }
    pthread_mutex_unlock(&lock);
    return hidden;
}

/* The same of `path` or, without `last`, of its folder; and of all folders around it. */
static bool hidden(const char *path, bool last) {
    char part[PATH];
    for (size_t i = root_length + 1; path[root_length]; i++) {
        if ((path[i] == '/' || (!path[i] && last)) && path[i - 1] != '/') {
            memcpy(part, path, i);
            part[i] = 0;
            if (unknown(part)) return true;
        }
        if (!path[i]) return false;
    }
    return false;
}

static void made(const char *path) {
    struct stat found;
    if (!look(path, &found)) return;
    pthread_mutex_lock(&lock);
    struct name *at = entry(path, strlen(path));
    at->mine = found.st_ino, at->until = 0;
    pthread_mutex_unlock(&lock);
}

/* Whether this process has seen another file at `path`, and has not been told so. */
static bool replaced(const char *path) {
    struct stat found;
    if (!look(path, &found) || !S_ISREG(found.st_mode)) return false;
    pthread_mutex_lock(&lock);
    struct name *at = entry(path, strlen(path));
    ino_t last = at->mine ? at->mine : at->seen;
    bool other = last && last != found.st_ino && at->seen != found.st_ino;
    if (other) at->seen = found.st_ino, at->mine = 0;
    pthread_mutex_unlock(&lock);
    if (other) count(STALE_OPEN);
    return other;
}

static void opened(const char *path, int fd) {
    struct stat found;
    if (fd < 0 || syscall(SYS_newfstatat, fd, "", &found, AT_EMPTY_PATH)) return;
    if (S_ISREG(found.st_mode) && fd < FILES) below[fd] = true;
    if (!S_ISDIR(found.st_mode)) return;
    pthread_mutex_lock(&lock);
    entry(path, strlen(path))->opened = now() + 1;
    pthread_mutex_unlock(&lock);
}

static int opening(int dir, const char *path, int flags, mode_t mode) {
    char full[PATH];
    bool is = ours(dir, path, full), makes = flags & O_CREAT;
    struct stat before;
    if (is && hidden(full, false)) FAIL(ENOENT, -1);
    if (is && !makes && replaced(full)) FAIL(ESTALE, -1);
    if (is && !makes && hidden(full, true)) FAIL(ENOENT, -1);
    bool new = is && makes && !look(full, &before);
    int fd = syscall(SYS_openat, dir, path, flags, mode);
    if (is && fd >= 0) {
        if (new) made(full);
        opened(full, fd);
    }
    return fd;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

#define OPENING(name, dir, ...) \
    int name(__VA_ARGS__, int flags, ...) { \
        MODE(flags) \
        return opening(dir, path, flags, mode); \
    }
OPENING(open, AT_FDCWD, const char *path)
OPENING(open64, AT_FDCWD, const char *path)
OPENING(openat, dir, int dir, const char *path)
OPENING(openat64, dir, int dir, const char *path)

int close(int fd) {
    REAL(close);
    if (fd >= 0 && fd < FILES) below[fd] = false;
    return real(fd);
}

static bool removed(int fd) {
    struct stat found;
    if (fd < 0 || fd >= FILES || !below[fd]) return false;
    if (syscall(SYS_newfstatat, fd, "", &found, AT_EMPTY_PATH) || found.st_nlink) return false;
    count(STALE_READ);
    return true;
}

ssize_t read(int fd, void *into, size_t size) {
    REAL(read);
    if (removed(fd)) FAIL(ESTALE, -1);
    return real(fd, into, size);
}

/* Calls that only look at `path`: with it alone, with a folder before it, and as programs for glibc
   before 2.33 call stat, with a version before all. */
#define LOOKING(name, dir, given, ...) \
    int name(__VA_ARGS__) { \
        REAL(name); \
        char full[PATH]; \
        if (ours(dir, path, full) && hidden(full, true)) FAIL(ENOENT, -1); \
        return real given; \
    }
#define FIRST const char *path
#define AT int dir, FIRST
typedef struct stat S;
typedef struct stat64 S64;
int __xstat64(int, FIRST, S64 *), __lxstat64(int, FIRST, S64 *), __fxstatat64(int, AT, S64 *, int);

LOOKING(stat, AT_FDCWD, (path, into), FIRST, S *into)
LOOKING(stat64, AT_FDCWD, (path, into), FIRST, S64 *into)
LOOKING(lstat, AT_FDCWD, (path, into), FIRST, S *into)
LOOKING(lstat64, AT_FDCWD, (path, into), FIRST, S64 *into)
LOOKING(fstatat, dir, (dir, path, into, flags), AT, S *into, int flags)
LOOKING(fstatat64, dir, (dir, path, into, flags), AT, S64 *into, int flags)
LOOKING(access, AT_FDCWD, (path, mode), FIRST, int mode)
LOOKING(faccessat, dir, (dir, path, mode, flags), AT, int mode, int flags)
LOOKING(utimensat, dir, (dir, path, times, flags), AT, const struct timespec times[2], int flags)
LOOKING(__xstat64, AT_FDCWD, (version, path, into), int version, FIRST, S64 *into)
LOOKING(__lxstat64, AT_FDCWD, (version, path, into), int version, FIRST, S64 *into)
LOOKING(__fxstatat64, dir, (version, dir, path, into, flags), int version, AT, S64 *into, int flags)

DIR *opendir(const char *path) {
    REAL(opendir);
    char full[PATH];
    bool is = ours(AT_FDCWD, path, full);
    if (is && hidden(full, true)) FAIL(ENOENT, NULL);
    DIR *folder = real(path);
    if (is && folder) opened(full, dirfd(folder));
    return folder;
}

#define LISTING(type, name) \
    type *name(DIR *folder) { \
        REAL(name); \
        char full[PATH]; \
        type *next; \
        do { \
            next = real(folder); \
            if (!next || !strcmp(next->d_name, ".") || !strcmp(next->d_name, "..")) break; \
            if (!ours(dirfd(folder), next->d_name, full)) break; \
        } while (unknown(full)); \
        return next; \
    }
LISTING(struct dirent, readdir)
LISTING(struct dirent64, readdir64)

int mkdirat(int dir, const char *path, mode_t mode) {
    REAL(mkdirat);
    char full[PATH];
    bool is = ours(dir, path, full);
    if (is && hidden(full, false)) FAIL(ENOENT, -1);
    int rc = real(dir, path, mode);
    if (is && !rc) made(full);
    if (is && rc && errno == EEXIST && unknown(full)) count(EXISTS), errno = EEXIST;
    return rc;
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

static bool busy(int dir, const char *path) {
    char full[PATH];
    if (!ours(dir, path, full) || draw() % 2) return false;
    count(BUSY);
    return true;
}

int unlinkat(int dir, const char *path, int flags) {
    REAL(unlinkat);
    char full[PATH];
    if (ours(dir, path, full) && hidden(full, true)) FAIL(ENOENT, -1);
    if (flags & AT_REMOVEDIR && busy(dir, path)) FAIL(EBUSY, -1);
    return real(dir, path, flags);
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int renameat(int from, const char *path, int to, const char *target) {
    REAL(renameat);
    char source[PATH], full[PATH];
    bool is = ours(to, target, full);
    if (ours(from, path, source) && hidden(source, true)) FAIL(ENOENT, -1);
    if (is && hidden(full, false)) FAIL(ENOENT, -1);
    int rc = real(from, path, to, target);
    if (is && !rc) made(full);
    return rc;
}

int rename(const char *path, const char *target) {
    return renameat(AT_FDCWD, path, AT_FDCWD, target);
}

int linkat(int from, const char *path, int to, const char *target, int flags) {
    REAL(linkat);
    char source[PATH], full[PATH];
    bool is = ours(to, target, full);
    if (ours(from, path, source) && hidden(source, true)) FAIL(ENOENT, -1);
    if (is && hidden(full, false)) FAIL(ENOENT, -1);
    int rc = real(from, path, to, target, flags);
    if (is && !rc) made(full);
    return rc;
}

int link(const char *path, const char *target) {
    return linkat(AT_FDCWD, path, AT_FDCWD, target, 0);
}
