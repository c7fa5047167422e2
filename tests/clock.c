/* A clock that a test can move, for a redis-server: LD_PRELOAD this library, and the time of day is
 * what the kernel says plus the offset that the file $REELSERVE_TEST_CLOCK holds: one int64 of
 * milliseconds, native byte order. The file is mapped, so a change counts from the next look.
 *
 * Only the time of day moves. Monotonic clocks, by which Redis times its own events, are the
 * kernel's. Nothing here takes memory or a lock: an allocator may ask for the time before anything
 * else is set up. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset_ms;

__attribute__((constructor)) static void map_offset(void)
{
    const char *path = getenv("REELSERVE_TEST_CLOCK");
    int file = open(path ? path : "", O_RDONLY | O_CLOEXEC);
    void *map = mmap(NULL, sizeof *offset_ms, PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED) {
        perror("REELSERVE_TEST_CLOCK names no file that can be mapped");
        _exit(1);
    }
    close(file);
    offset_ms = map;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && offset_ms && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ns = now->tv_nsec + *offset_ms * 1000000;
        int64_t carry_s = (ns - (ns < 0 ? 999999999 : 0)) / 1000000000;
        now->tv_sec += carry_s;
        now->tv_nsec = ns - carry_s * 1000000000;
    }
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (at)
        *at = precise.tv_sec;
    return precise.tv_sec;
}
