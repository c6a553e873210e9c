/* A slow disk: every sync takes as many microseconds more as INVITED_BENCH_SYNC says. Preloaded into `invited` alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static int slowly(const char *name, int fd) {
    int (*sync)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    const char *more = getenv("INVITED_BENCH_SYNC");
    usleep(more ? (useconds_t)atoi(more) : 0);
    return sync(fd);
}

int fdatasync(int fd) { return slowly("fdatasync", fd); }
int fsync(int fd) { return slowly("fsync", fd); }
