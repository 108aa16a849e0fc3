/* Counts the calls by which a process changes files under one folder, and kills it, or fails, at the one asked for.
 *
 * Preloaded into Python, whose every write goes through these functions of the C library. FAULTS_ROOT names the folder;
 * faults_arm(at, error) chooses the call (from 1; 0 for none) and what happens before it: error 0 is SIGKILL, anything
 * else the errno it fails with, once. faults_trace() names the calls so far, a line each.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long n_calls, armed_at;
static atomic_int armed_error;
static char trace[1 << 18];
static atomic_long trace_length;

void faults_arm(long at, int error) {
    n_calls = 0;
    trace_length = 0;
    armed_error = error;
    armed_at = at;
}

/* For what another program does meanwhile: it is not counted. */
static atomic_int is_paused;
void faults_pause(void) { is_paused = 1; }
void faults_resume(void) { is_paused = 0; }

const char *faults_trace(void) {
    trace[trace_length] = 0;
    return trace;
}

static int is_inside(const char *path) {
    const char *root = getenv("FAULTS_ROOT");
    return root && path && strncmp(path, root, strlen(root)) == 0;
}

/* Whether the call is to fail; does not come back if it is to kill. */
static int strikes(const char *name, const char *path) {
    if (is_paused || !is_inside(path)) return 0;
    long number = atomic_fetch_add(&n_calls, 1) + 1;
    char line[8600];
    int length = snprintf(line, sizeof line, "%s %s\n", name, path);
    long place = atomic_fetch_add(&trace_length, length);
    if (place + length < (long)sizeof trace - 1) memcpy(trace + place, line, length);
    else trace_length = place;
    if (number != armed_at) return 0;
    if (armed_error == 0) kill(getpid(), SIGKILL);
    errno = armed_error;
    return 1;
}

static int strikes_fd(const char *name, int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strikes(name, path);
}

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

/* The same for a name relative to the handle of a folder. */
static int strikes_at(const char *name, int folder, const char *path) {
    if (folder == AT_FDCWD || path[0] == '/') return strikes(name, path);
    char link[64], whole[8400];
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, whole, 4096);
    if (length < 0) return 0;
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    return strikes(name, whole);
}

#define OPENS(name)                                                          \
    int name(const char *path, int flags, ...) {                             \
        va_list more;                                                        \
        va_start(more, flags);                                               \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                        \
        if (flags & (O_CREAT | O_WRONLY | O_RDWR) && strikes("open", path)) return -1; \
        return REAL(name)(path, flags, mode);                                \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                       \
    int name(int folder, const char *path, int flags, ...) {                 \
        va_list more;                                                        \
        va_start(more, flags);                                               \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                        \
        if (flags & (O_CREAT | O_WRONLY | O_RDWR) && strikes_at("open", folder, path)) return -1; \
        return REAL(name)(folder, path, flags, mode);                        \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

#define ON_FD(type, name, takes, gives)                  \
    type name takes {                                    \
        if (strikes_fd(#name, fd)) return -1;            \
        return REAL(name) gives;                         \
    }
ON_FD(ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n))
ON_FD(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n))
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at))
ON_FD(int, fsync, (int fd), (fd))
ON_FD(int, fdatasync, (int fd), (fd))
ON_FD(int, ftruncate, (int fd, off_t n), (fd, n))
ON_FD(int, ftruncate64, (int fd, off64_t n), (fd, n))
ON_FD(ssize_t, sendfile, (int fd, int from, off_t *at, size_t n), (fd, from, at, n))
ON_FD(ssize_t, sendfile64, (int fd, int from, off64_t *at, size_t n), (fd, from, at, n))

ON_FD(int, fchmod, (int fd, mode_t m), (fd, m))
ON_FD(int, fchown, (int fd, uid_t u, gid_t g), (fd, u, g))
ON_FD(int, futimens, (int fd, const struct timespec t[2]), (fd, t))

#define ON_PATH(name, takes, path, gives)                \
    int name takes {                                     \
        if (strikes(#name, path)) return -1;             \
        return REAL(name) gives;                         \
    }
ON_PATH(rename, (const char *a, const char *b), b, (a, b))
ON_PATH(link, (const char *a, const char *b), b, (a, b))
ON_PATH(unlink, (const char *a), a, (a))
ON_PATH(rmdir, (const char *a), a, (a))
ON_PATH(mkdir, (const char *a, mode_t m), a, (a, m))
ON_PATH(chmod, (const char *a, mode_t m), a, (a, m))
ON_PATH(chown, (const char *a, uid_t u, gid_t g), a, (a, u, g))

#define ON_NAME(name, takes, folder, path, gives)        \
    int name takes {                                     \
        if (strikes_at(#name, folder, path)) return -1;  \
        return REAL(name) gives;                         \
    }
ON_NAME(renameat, (int x, const char *a, int y, const char *b), y, b, (x, a, y, b))
ON_NAME(renameat2, (int x, const char *a, int y, const char *b, unsigned f), y, b, (x, a, y, b, f))
ON_NAME(linkat, (int x, const char *a, int y, const char *b, int f), y, b, (x, a, y, b, f))
ON_NAME(unlinkat, (int x, const char *a, int f), x, a, (x, a, f))
ON_NAME(mkdirat, (int x, const char *a, mode_t m), x, a, (x, a, m))
