/* For LD_PRELOAD: the wall clock reads an hour behind and an hour ahead by turns, as if it were set
 * between any two looks. Other clocks are left alone. */
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    static atomic_uint looks;
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME) {
        time->tv_sec += atomic_fetch_add(&looks, 1) % 2 == 0 ? -3600 : 3600;
    }
    return result;
}
