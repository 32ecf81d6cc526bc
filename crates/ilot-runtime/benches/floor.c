/* The physical floor of a container's life: the groups, namespaces, mounts, nodes, masks, filter, execution and wait of
 * `ilot-oci run`, made with constant strings, no configuration, no state and no care for who could turn a path elsewhere. Only for
 * measuring (docs/performance.md), on a host with cgroup v1 hierarchies for memory, pids and cpu.
 *
 *     gcc -O2 -static -DROOT='"/path/of/rootfs"' -o floor floor.c && ./floor seccomp.bpf
 *
 * `seccomp.bpf` is from the state folder of a container that was created with the filter. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define GROUPS 3
#define COUNT(list) (int)(sizeof(list) / sizeof((list)[0]))

static const char *groups[GROUPS] = {
    "/sys/fs/cgroup/memory/floor", "/sys/fs/cgroup/pids/floor", "/sys/fs/cgroup/cpu/floor"};
static char filter[65536];
static int filter_size;

static void put(const char *path, const char *value)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, value, strlen(value)) < 0)
        perror(path);
    close(fd);
}

static void mounts(void)
{
    static const char *names[] = {"null", "zero", "full", "random", "urandom", "tty"};
    static const int minors[] = {3, 5, 7, 8, 9, 0};
    char path[256];
    unsigned long strict = MS_NOSUID | MS_NOEXEC | MS_NODEV;

    mount(0, "/", 0, MS_REC | MS_PRIVATE, 0);
    mount(ROOT, ROOT, 0, MS_BIND | MS_REC, 0);
    mount("proc", ROOT "/proc", "proc", 0, 0);
    mount("tmpfs", ROOT "/dev", "tmpfs", MS_NOSUID, "mode=755,size=65536k");
    mkdir(ROOT "/dev/pts", 0755);
    mkdir(ROOT "/dev/shm", 01777);
    mkdir(ROOT "/dev/mqueue", 0755);
    mount("devpts", ROOT "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620");
    mount("shm", ROOT "/dev/shm", "tmpfs", strict, "mode=1777,size=65536k");
    mount("mqueue", ROOT "/dev/mqueue", "mqueue", strict, 0);
    mount("sysfs", ROOT "/sys", "sysfs", strict | MS_RDONLY, 0);
    umask(0);
    for (int i = 0; i < COUNT(names); i++) {
        snprintf(path, sizeof path, ROOT "/dev/%s", names[i]);
        mknod(path, S_IFCHR | 0666, makedev(i == 5 ? 5 : 1, minors[i]));
    }
    symlink("/proc/self/fd", ROOT "/dev/fd");
    symlink("/proc/self/fd/0", ROOT "/dev/stdin");
    symlink("/proc/self/fd/1", ROOT "/dev/stdout");
    symlink("/proc/self/fd/2", ROOT "/dev/stderr");
    symlink("pts/ptmx", ROOT "/dev/ptmx");
}

static void protect(void)
{
    static const char *read_only[] = {"bus", "fs", "irq", "sys", "sysrq-trigger"};
    static const char *masked[] = {"kcore", "keys", "latency_stats", "timer_list"};
    char path[256];

    for (int i = 0; i < COUNT(read_only); i++) {
        snprintf(path, sizeof path, ROOT "/proc/%s", read_only[i]);
        mount(path, path, 0, MS_BIND | MS_REC, 0);
        mount(0, path, 0, MS_BIND | MS_REMOUNT | MS_RDONLY, 0);
    }
    for (int i = 0; i < COUNT(masked); i++) {
        snprintf(path, sizeof path, ROOT "/proc/%s", masked[i]);
        mount("/dev/null", path, 0, MS_BIND, 0);
    }
    mount("tmpfs", ROOT "/proc/acpi", "tmpfs", MS_RDONLY, "size=0");
    mount("tmpfs", ROOT "/sys/firmware", "tmpfs", MS_RDONLY, "size=0");
}

static void inside(const int *tasks)
{
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    struct sock_fprog program = {(filter_size - 8) / 8, (void *)(filter + 8)};
    char *args[] = {"/bin/true", 0}, *env[] = {"PATH=/bin", 0};

    mounts();
    sethostname("bench", 5);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ioctl(fd, SIOCSIFFLAGS, &lo);
    close(fd);
    for (int i = 0; i < GROUPS; i++)
        if (write(tasks[i], "0", 1) < 0)
            _exit(3);
    unshare(CLONE_NEWCGROUP);
    protect();
    chdir(ROOT);
    syscall(SYS_pivot_root, ".", ".");
    umount2(".", MNT_DETACH);
    chdir("/");
    mount(0, "/", 0, MS_REMOUNT | MS_BIND | MS_RDONLY, 0);
    setsid();
    syscall(SYS_keyctl, 1, 0);
    for (int capability = 0; capability < 41; capability++)
        if (capability != 5 && capability != 10 && capability != 29)
            prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
    execve(args[0], args, env);
    _exit(9);
}

int main(int argc, char **argv)
{
    struct clone_args clone = {
        .flags = CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS, .exit_signal = SIGCHLD};
    int tasks[GROUPS], status = 0;
    char path[256];

    if (argc != 2)
        return 2;
    for (int i = 0; i < GROUPS; i++) {
        mkdir(groups[i], 0755);
        snprintf(path, sizeof path, "%s/tasks", groups[i]);
        tasks[i] = open(path, O_WRONLY | O_CLOEXEC);
    }
    put("/sys/fs/cgroup/memory/floor/memory.limit_in_bytes", "536870912");
    put("/sys/fs/cgroup/pids/floor/pids.max", "100");
    int fd = open(argv[1], O_RDONLY);
    filter_size = read(fd, filter, sizeof filter);
    close(fd);
    long pid = syscall(SYS_clone3, &clone, sizeof clone);
    if (pid == 0)
        inside(tasks);
    waitpid(pid, &status, 0);
    for (int i = 0; i < GROUPS; i++)
        rmdir(groups[i]);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
