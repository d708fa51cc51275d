/* The first process of every pod: holds its namespaces, reaps what it inherits, ends on a signal. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int sign) {
    (void)sign;
    _exit(0);
}

static void reap(int sign) {
    (void)sign;
    while (waitpid(-1, 0, WNOHANG) > 0) {}
}

int main(void) {
    signal(SIGCHLD, reap);
    signal(SIGINT, end);
    signal(SIGTERM, end);
    for (;;) pause();
}
