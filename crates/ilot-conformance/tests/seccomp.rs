//! `config-linux.md`, "Seccomp": actions, conditions, flags, the listener.

use ilot_conformance::{Bundle, Value, conform, json, skip, terminal};
use std::os::fd::AsRawFd;

const X86: &str = "SCMP_ARCH_X86_64";

/// A container whose `mkdir` gets an action; it runs the probe, which says what the kernel answered.
fn mkdir_filtered(rule: Value) -> Bundle {
    let mut c = Bundle::new();
    c.need_probe();
    c.args(&["/bin/probe", "mkdir", "/new"]);
    c.config["linux"]["seccomp"] =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [X86], "syscalls": [rule]});
    c
}

#[test]
fn errno() {
    conform(|| {
        assert_eq!(mkdir_filtered(json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"})).run().ok(), "-1\n");
        let rule = json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71});
        assert_eq!(mkdir_filtered(rule).run().ok(), "-71\n");
    });
}

#[test]
fn allow_and_log() {
    conform(|| {
        for action in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG"] {
            // An allowed call in a filter that denies others.
            let c = mkdir_filtered(json!({"names": ["mkdir"], "action": action}));
            let output = c.run();
            // A rule whose action is the default one is allowed to be refused as useless.
            if output.code == 0 {
                assert_eq!(output.out, "0\n", "{action}");
            } else {
                assert_eq!(action, "SCMP_ACT_ALLOW", "{output:?}");
            }
        }
    });
}

/// The process dies of `SIGSYS`: 128 + 31 from a shell that runs it.
#[test]
fn kill_and_trap() {
    conform(|| {
        for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
            let mut c = mkdir_filtered(json!({"names": ["mkdir"], "action": action}));
            c.args(&["/bin/sh", "-c", "probe mkdir /new; echo code $?"]);
            assert!(c.run().ok().contains("code 159"), "{action}");
        }
    });
}

/// Without a tracer, `TRACE` fails with `ENOSYS`.
#[test]
fn trace() {
    conform(|| {
        assert_eq!(mkdir_filtered(json!({"names": ["mkdir"], "action": "SCMP_ACT_TRACE"})).run().ok(), "-38\n");
    });
}

/// Every comparison, on the first argument of `personality`, which fails in no way of its own.
#[test]
fn comparisons() {
    conform(|| {
        // personality(0xffffffff) only asks; the argument compared is the number given.
        let get = "4294967295";
        for (op, value, two, hit) in [
            ("SCMP_CMP_EQ", 0xffff_ffff_u64, 0, true),
            ("SCMP_CMP_EQ", 1, 0, false),
            ("SCMP_CMP_NE", 1, 0, true),
            ("SCMP_CMP_NE", 0xffff_ffff, 0, false),
            ("SCMP_CMP_LT", 0x1_0000_0000, 0, true),
            ("SCMP_CMP_LT", 0xffff_ffff, 0, false),
            ("SCMP_CMP_LE", 0xffff_ffff, 0, true),
            ("SCMP_CMP_LE", 0xffff_fffe, 0, false),
            ("SCMP_CMP_GT", 0xffff_fffe, 0, true),
            ("SCMP_CMP_GT", 0xffff_ffff, 0, false),
            ("SCMP_CMP_GE", 0xffff_ffff, 0, true),
            ("SCMP_CMP_GE", 0x1_0000_0000, 0, false),
            ("SCMP_CMP_MASKED_EQ", 0xf0, 0xf0, true),
            ("SCMP_CMP_MASKED_EQ", 0xf0, 0x10, false),
        ] {
            let mut c = mkdir_filtered(json!({
                "names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71,
                "args": [{"index": 0, "value": value, "valueTwo": two, "op": op}]
            }));
            c.args(&["/bin/probe", "sys", "135", get]);
            assert_eq!(c.run().ok().trim() == "-71", hit, "{op} {value:#x} {two:#x}");
        }
    });
}

/// Conditions on several arguments must all hold; several rules on one call are alternatives.
#[test]
fn conditions_together() {
    conform(|| {
        let arg = |index: u32, value: u32| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
        let rule = |args: Value| json!({"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71, "args": args});
        let run = |rules: Value, domain: &str, kind: &str| {
            let mut c = mkdir_filtered(json!({}));
            c.config["linux"]["seccomp"]["syscalls"] = rules;
            c.args(&["/bin/probe", "sys", "41", domain, kind, "0"]);
            c.run().ok().trim() == "-71"
        };
        let both = json!([rule(json!([arg(0, 1), arg(1, 2)]))]);
        assert!(run(both.clone(), "1", "2"));
        assert!(!run(both.clone(), "1", "1"));
        assert!(!run(both, "2", "2"));
        let either = json!([rule(json!([arg(0, 1)])), rule(json!([arg(1, 2)]))]);
        assert!(run(either.clone(), "1", "1"));
        assert!(run(either.clone(), "2", "2"));
        assert!(!run(either, "2", "1"));
    });
}

/// `defaultErrnoRet`, since 1.0.3.
#[test]
fn default_error_number() {
    conform(|| {
        let mut c = Bundle::new();
        c.need_probe();
        c.args(&["/bin/probe", "mkdir", "/new"]);
        let all: Vec<&str> = ALLOWED.to_vec();
        c.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 71, "architectures": [X86],
            "syscalls": [{"names": all, "action": "SCMP_ACT_ALLOW"}]
        });
        assert_eq!(c.run().ok(), "-71\n");
    });
}

/// What a static program and a runtime's last steps need.
const ALLOWED: &[&str] = &[
    "read",
    "write",
    "close",
    "fstat",
    "newfstatat",
    "mmap",
    "mprotect",
    "munmap",
    "brk",
    "rt_sigaction",
    "rt_sigprocmask",
    "ioctl",
    "exit",
    "exit_group",
    "execve",
    "execveat",
    "arch_prctl",
    "set_tid_address",
    "set_robust_list",
    "rseq",
    "prlimit64",
    "readlink",
    "readlinkat",
    "getrandom",
    "futex",
    "openat",
    "open",
    "fcntl",
    "capset",
    "capget",
    "prctl",
    "chdir",
    "fchdir",
    "setresuid",
    "setresgid",
    "setuid",
    "setgid",
    "setgroups",
    "getpid",
    "getppid",
    "gettid",
    "tgkill",
    "access",
    "faccessat",
    "stat",
    "lstat",
    "statfs",
    "fstatfs",
    "sigaltstack",
    "nanosleep",
    "epoll_ctl",
    "epoll_pwait",
    "sched_yield",
    "getdents64",
    "dup",
    "dup2",
    "dup3",
    "sendmsg",
    "recvmsg",
    "sendto",
    "recvfrom",
    "poll",
    "ppoll",
    "lseek",
    "close_range",
    "umask",
    "seccomp",
    "clone",
    "wait4",
    "madvise",
    "getcwd",
    "uname",
    "writev",
    "readv",
    "pread64",
    "clock_gettime",
    "statx",
    "openat2",
    "keyctl",
    "unlinkat",
    "unlink",
    "kill",
    "setsid",
    "rt_sigreturn",
    "eventfd2",
    "pipe2",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "mkdirat",
    "epoll_create1",
    "waitid",
    "clone3",
    "accept4",
    "accept",
    "shutdown",
    "connect",
    "socket",
    "getsockopt",
    "setrlimit",
    "getrlimit",
    "faccessat2",
    "pidfd_send_signal",
    "getxattr",
    "lgetxattr",
    "fgetxattr",
    "sched_getaffinity",
];

/// The 32-bit calls are another table: a filter for one architecture kills or refuses the others.
#[test]
fn other_architectures() {
    conform(|| {
        let mut c = mkdir_filtered(json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71}));
        c.config["linux"]["seccomp"]["architectures"] = json!([X86, "SCMP_ARCH_X86"]);
        // mkdir is 39 there; a null path would be EFAULT (-14) if it came through.
        c.args(&["/bin/probe", "sys32", "39", "0", "0", "0"]);
        let text = c.run().ok();
        if text.trim() == "-38" {
            skip("needs a kernel with 32-bit system calls");
        }
        assert_eq!(text, "-71\n");
    });
}

/// A call that this kernel or runtime does not know must be skipped; all known names of the profile are kept.
#[test]
fn unknown_calls_are_skipped() {
    conform(|| {
        let rule = json!({"names": ["no_such_call", "mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71});
        assert_eq!(mkdir_filtered(rule).run().ok(), "-71\n");
    });
}

#[test]
fn flags() {
    conform(|| {
        for flag in ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"] {
            let mut c = mkdir_filtered(json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71}));
            c.config["linux"]["seccomp"]["flags"] = json!([flag]);
            assert_eq!(c.run().ok(), "-71\n", "{flag}");
        }
        let mut c = mkdir_filtered(json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}));
        c.config["linux"]["seccomp"]["flags"] = json!(["SECCOMP_FILTER_FLAG_NONSENSE"]);
        assert!(c.run().code != 0);
    });
}

#[test]
fn unknown_actions_are_errors() {
    conform(|| {
        assert!(mkdir_filtered(json!({"names": ["mkdir"], "action": "SCMP_ACT_NONSENSE"})).run().code != 0);
    });
}

/// `exec`ed processes are filtered as the container is.
#[test]
fn holds_for_exec() {
    conform(|| {
        let mut c = Bundle::sleeper();
        c.need_probe();
        c.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [X86],
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71}]});
        c.up();
        assert_eq!(c.exec(&[], &["/bin/probe", "mkdir", "/new"]).ok(), "-71\n");
    });
}

/// "The Container Process State": the descriptor `seccompFd`, the metadata, the pid; then the answer is given.
#[test]
fn listener() {
    conform(|| {
        let receiver_dir = tempfile_dir();
        let receiver = terminal::Receiver::new(receiver_dir.path());
        let mut c = mkdir_filtered(json!({"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}));
        c.config["linux"]["seccomp"]["listenerPath"] = json!(receiver.text());
        c.config["linux"]["seccomp"]["listenerMetadata"] = json!("some data");
        let mut child = c.spawn(&[]);
        let (text, fds) = receiver.receive();
        let state: Value = serde_json::from_str(text.trim_end_matches('\0')).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(state["metadata"], "some data", "{state}");
        assert_eq!(state["state"]["id"], c.id.as_str());
        let names: Vec<&str> = state["fds"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let place = names.iter().position(|n| *n == "seccompFd").unwrap();
        assert!(state["pid"].as_i64().unwrap() > 0);
        answer(fds[place].as_raw_fd(), 73);
        let status = child.wait().unwrap();
        assert!(status.success(), "{}", c.log());
        assert_eq!(c.log().trim(), "-73");
    });
}

fn tempfile_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ilot-conform-s-").tempdir().unwrap()
}

/// Waits for one call and makes it fail with `errno` (`seccomp_unotify(2)`).
fn answer(fd: i32, errno: i32) {
    // SAFETY: structures of integers, zeroed as the kernel demands, given with the requests made for them.
    unsafe {
        let mut call: libc::seccomp_notif = std::mem::zeroed();
        let request = ioctl_rw(0, size_of::<libc::seccomp_notif>());
        assert_eq!(libc::ioctl(fd, request, &raw mut call), 0, "{}", std::io::Error::last_os_error());
        let mut reply: libc::seccomp_notif_resp = std::mem::zeroed();
        reply.id = call.id;
        reply.error = -errno;
        let request = ioctl_rw(1, size_of::<libc::seccomp_notif_resp>());
        assert_eq!(libc::ioctl(fd, request, &raw mut reply), 0, "{}", std::io::Error::last_os_error());
    }
}

/// `_IOWR('!', number, size)`
fn ioctl_rw(number: u64, size: usize) -> libc::Ioctl {
    (3 << 30 | (size as u64) << 16 | u64::from(b'!') << 8 | number) as libc::Ioctl
}

/// "If SCMP_ACT_NOTIFY is used, listenerPath must be set": never a filter that silently lacks the rule.
#[test]
fn notify_without_a_listener_is_an_error() {
    conform(|| {
        let c = mkdir_filtered(json!({"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}));
        let output = c.run();
        assert!(output.code != 0, "{output:?}");
        assert!(!c.rootfs().join("new").exists(), "the rule was dropped");
    });
}

/// A listener that nobody serves is an error too.
#[test]
fn notify_with_a_dead_listener_is_an_error() {
    conform(|| {
        let mut c = mkdir_filtered(json!({"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}));
        c.config["linux"]["seccomp"]["listenerPath"] = json!("/no/such/socket");
        assert!(c.run().code != 0);
        assert!(!c.rootfs().join("new").exists());
    });
}

/// Members that are required are not made up: a rule must say what it does, and about what.
#[test]
fn required_members() {
    conform(|| {
        for rule in [
            json!({"names": ["mkdir"]}),
            json!({"names": [], "action": "SCMP_ACT_ERRNO"}),
            json!({"names": ["mkdir"], "action": "SCMP_ACT_NONSENSE"}),
            json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_NONSENSE"}]}),
            json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}),
        ] {
            let output = mkdir_filtered(rule.clone()).run();
            assert!(output.code != 0, "{rule}: {output:?}");
        }
    });
}

/// "This field MUST NOT be set if `listenerPath` is not set."
#[test]
fn metadata_without_a_listener() {
    conform(|| {
        let mut c = mkdir_filtered(json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}));
        c.config["linux"]["seccomp"]["listenerMetadata"] = json!("for nobody");
        assert!(c.run().code != 0);
    });
}

/// An empty profile is no profile.
#[test]
fn without_rules() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        c.run().ok();
    });
}
