//! Every system call of the supported architectures, in one of three lists. Names as the kernel's tables have them.

/// For everybody, whatever the arguments.
#[rustfmt::skip]
pub(super) const ALLOWED: &[&str] = &[
    // Files: open, read, write, close.
    "open", "openat", "openat2", "creat", "close", "close_range", "read", "write", "readv", "writev", "pread64",
    "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "lseek", "_llseek", "sendfile", "sendfile64", "splice",
    "tee", "vmsplice", "copy_file_range", "dup", "dup2", "dup3", "fcntl", "fcntl64", "flock", "fsync", "fdatasync",
    "sync", "syncfs", "sync_file_range", "arm_sync_file_range", "fallocate", "fadvise64", "fadvise64_64",
    "arm_fadvise64_64", "readahead", "truncate", "truncate64", "ftruncate", "ftruncate64", "pipe", "pipe2", "cachestat",
    // Files: what they are.
    "stat", "stat64", "oldstat", "lstat", "lstat64", "oldlstat", "fstat", "fstat64", "oldfstat", "fstatat64",
    "newfstatat", "statx", "statfs", "statfs64", "fstatfs", "fstatfs64", "access", "faccessat", "faccessat2",
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "chown32", "fchown", "fchown32", "lchown", "lchown32",
    "fchownat", "utime", "utimes", "futimesat", "utimensat", "utimensat_time64", "umask", "getxattr", "lgetxattr",
    "fgetxattr", "setxattr", "lsetxattr", "fsetxattr", "listxattr", "llistxattr", "flistxattr", "removexattr",
    "lremovexattr", "fremovexattr", "setxattrat", "getxattrat", "listxattrat", "removexattrat", "file_getattr",
    "file_setattr", "name_to_handle_at",
    // Files: directories and links.
    "mkdir", "mkdirat", "rmdir", "mknod", "mknodat", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat",
    "rename", "renameat", "renameat2", "readlink", "readlinkat", "readdir", "getdents", "getdents64", "getcwd", "chdir",
    "fchdir", "chroot",
    // Files: being told.
    "inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch", "fanotify_mark",
    // Waiting for descriptors.
    "poll", "ppoll", "ppoll_time64", "select", "_newselect", "pselect6", "pselect6_time64", "epoll_create",
    "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_wait", "epoll_wait_old", "epoll_pwait", "epoll_pwait2",
    "eventfd", "eventfd2", "signalfd", "signalfd4", "io_setup", "io_submit", "io_getevents", "io_pgetevents",
    "io_pgetevents_time64", "io_cancel", "io_destroy",
    // Sockets, once they are there.
    "bind", "listen", "accept", "accept4", "connect", "shutdown", "getsockname", "getpeername", "getsockopt",
    "setsockopt", "send", "sendto", "sendmsg", "sendmmsg", "recv", "recvfrom", "recvmsg", "recvmmsg",
    "recvmmsg_time64",
    // System V and POSIX messages, semaphores, shared memory.
    "ipc", "msgctl", "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop", "semtimedop", "semtimedop_time64",
    "shmat", "shmctl", "shmdt", "shmget", "mq_open", "mq_unlink", "mq_timedsend", "mq_timedsend_time64",
    "mq_timedreceive", "mq_timedreceive_time64", "mq_notify", "mq_getsetattr",
    // Memory.
    "brk", "mmap", "mmap2", "munmap", "mremap", "mprotect", "madvise", "process_madvise", "msync", "mincore", "mlock",
    "mlock2", "mlockall", "munlock", "munlockall", "memfd_create", "memfd_secret", "remap_file_pages", "membarrier",
    "pkey_alloc", "pkey_free", "pkey_mprotect", "mseal", "map_shadow_stack",
    // Processes and threads. Their making, clone, is below with its flags.
    "fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "waitpid", "process_mrelease",
    "pidfd_open", "pidfd_send_signal", "getpid", "getppid", "gettid", "getpgid", "getpgrp", "setpgid", "getsid",
    "setsid", "set_tid_address", "set_robust_list", "get_robust_list", "rseq", "futex", "futex_time64", "futex_wait",
    "futex_waitv", "futex_wake", "futex_requeue", "prctl", "arch_prctl", "set_thread_area", "get_thread_area", "set_tls",
    "get_tls", "modify_ldt", "breakpoint", "cacheflush", "restart_syscall", "uretprobe", "uprobe",
    // Looking at own children: safe for a filter since 4.8, and debuggers in machines need them.
    "ptrace", "process_vm_readv", "process_vm_writev",
    // Signals.
    "kill", "tkill", "tgkill", "pause", "signal", "sigaction", "sigaltstack", "sigpending", "sigprocmask", "sigreturn",
    "sigsuspend", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend",
    "rt_sigtimedwait", "rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "sgetmask", "ssetmask",
    // Users and capabilities.
    "getuid", "getuid32", "geteuid", "geteuid32", "getgid", "getgid32", "getegid", "getegid32", "getresuid",
    "getresuid32", "getresgid", "getresgid32", "getgroups", "getgroups32", "setuid", "setuid32", "setgid", "setgid32",
    "setreuid", "setreuid32", "setregid", "setregid32", "setresuid", "setresuid32", "setresgid", "setresgid32",
    "setgroups", "setgroups32", "setfsuid", "setfsuid32", "setfsgid", "setfsgid32", "capget", "capset",
    // A machine's own confinement.
    "seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "lsm_get_self_attr",
    "lsm_set_self_attr", "lsm_list_modules",
    // Scheduling and limits.
    "sched_yield", "sched_getaffinity", "sched_setaffinity", "sched_getattr", "sched_setattr", "sched_getparam",
    "sched_setparam", "sched_getscheduler", "sched_setscheduler", "sched_get_priority_max", "sched_get_priority_min",
    "sched_rr_get_interval", "sched_rr_get_interval_time64", "getpriority", "setpriority", "nice", "ioprio_get",
    "ioprio_set", "getcpu", "getrlimit", "ugetrlimit", "setrlimit", "prlimit64", "getrusage", "times",
    // Time. Setting the clock is refused; these ask, and adjust only with a capability of the host.
    "time", "gettimeofday", "clock_gettime", "clock_gettime64", "clock_getres", "clock_getres_time64",
    "clock_nanosleep", "clock_nanosleep_time64", "nanosleep", "adjtimex", "clock_adjtime", "clock_adjtime64", "alarm",
    "getitimer", "setitimer", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64",
    "timer_settime", "timer_settime64", "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime",
    "timerfd_settime64",
    // The system.
    "uname", "olduname", "oldolduname", "sysinfo", "getrandom", "statmount", "listmount", "listns",
];

/// For an init of the image's own, inside its user namespace, beside the above. (`clone`, `clone3` and `unshare` are
/// conditional or refused for everybody else.)
#[rustfmt::skip]
pub(super) const INIT: &[&str] = &[
    // It builds the sandboxes of its services.
    "mount", "umount", "umount2", "pivot_root", "open_tree", "open_tree_attr", "move_mount", "fsopen", "fsconfig",
    "fsmount", "fspick", "mount_setattr", "unshare", "setns", "clone", "clone3",
    // It names its machine, within its UTS namespace.
    "sethostname", "setdomainname",
    // It hangs up its terminals.
    "vhangup",
];

/// For nobody, with the reason.
#[cfg(test)]
#[rustfmt::skip]
pub(super) const REFUSED: &[(&[&str], &str)] = &[
    (&["add_key", "keyctl", "request_key"],
        "keyrings are not namespaced by user alone, and a long list of kernel errors"),
    (&["bpf"], "programs in the kernel"),
    (&["userfaultfd"], "stops the kernel where an exploit wants it stopped"),
    (&["io_uring_setup", "io_uring_enter", "io_uring_register"],
        "does what other calls do without passing this filter, and a long list of kernel errors"),
    (&["perf_event_open"], "watches other machines, and a long list of kernel errors"),
    (&["init_module", "finit_module", "delete_module", "create_module", "get_kernel_syms", "query_module"],
        "the kernel's code is the host's"),
    (&["kexec_load", "kexec_file_load", "reboot"], "the host's kernel keeps running"),
    (&["open_by_handle_at"], "opens files by number, outside of the machine's tree too"),
    (&["kcmp", "pidfd_getfd"], "reach into other processes' descriptors; nothing ordinary needs them"),
    (&["swapon", "swapoff", "acct", "quotactl", "quotactl_fd"], "the host's resources"),
    (&["settimeofday", "clock_settime", "clock_settime64", "stime"], "the host's clock"),
    (&["iopl", "ioperm", "pciconfig_iobase", "pciconfig_read", "pciconfig_write"], "the host's devices"),
    (&["syslog"], "the host's kernel log"),
    (&["fanotify_init"], "permission events stop other machines' file accesses"),
    (&["get_mempolicy", "set_mempolicy", "set_mempolicy_home_node", "mbind", "migrate_pages", "move_pages"],
        "memory placement is the host's, and a list of kernel errors"),
    (&["lookup_dcookie", "nfsservctl", "uselib", "ustat", "sysfs", "_sysctl", "bdflush", "vm86", "vm86old"],
        "obsolete; some are holes"),
    (&["afs_syscall", "break", "ftime", "getpmsg", "gtty", "idle", "lock", "mpx", "prof", "profil", "putpmsg",
       "security", "stty", "tuxcall", "ulimit", "vserver", "usr26", "usr32"],
        "never made or gone"),
];
