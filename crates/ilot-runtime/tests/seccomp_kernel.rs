//! Filters in the real kernel: a forked child loads one and tries calls.
#![cfg(target_arch = "x86_64")]
// Helpers of tests may unwrap as tests do.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::ffi::c_long;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::Instant;

use ilot_runtime::seccomp::{DefaultKind, Program, SockFilter, default_profile};
use ilot_runtime::spec::Seccomp;

const EPERM: c_long = -1;
const ENOSYS: c_long = -38;
const EAFNOSUPPORT: c_long = -97;

/// How a call is made.
#[derive(Clone, Copy)]
enum Try {
    /// As a 64-bit program.
    Wide(c_long, [u64; 4]),
    /// As a 32-bit program.
    Narrow(u32, [u32; 3]),
}

/// Makes a 32-bit call.
///
/// # Safety
/// As for the call.
unsafe fn int80(nr: u32, args: [u32; 3]) -> c_long {
    let mut ret: u64 = nr.into();
    // SAFETY: the kernel changes rax alone beside memory that the caller vouches for; rbx is put back.
    unsafe {
        std::arch::asm!(
            "xchg {b}, rbx",
            "int 0x80",
            "xchg {b}, rbx",
            b = inout(reg) u64::from(args[0]) => _,
            inout("rax") ret,
            in("rcx") u64::from(args[1]),
            in("rdx") u64::from(args[2]),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    c_long::from(ret as u32 as i32)
}

/// Results of the calls, `-errno` for failures, and the signal that ended the child.
fn results(program: Option<&Program>, tries: &[Try]) -> (Vec<c_long>, Option<i32>) {
    let mut pipe = [0; 2];
    // SAFETY: a valid array of two.
    assert_eq!(unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    // SAFETY: the child makes system calls only and ends without running anything of the test.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: calls with arguments that are values, null or invalid pointers; the write is from a local.
        unsafe {
            if let Some(program) = program {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                if program.load(0).is_err() {
                    libc::_exit(99);
                }
            }
            for t in tries {
                let r = match *t {
                    Try::Wide(nr, a) => {
                        let r = libc::syscall(nr, a[0], a[1], a[2], a[3], 0, 0);
                        if r == -1 { -c_long::from(*libc::__errno_location()) } else { r }
                    }
                    Try::Narrow(nr, a) => int80(nr, a),
                };
                libc::write(pipe[1], (&raw const r).cast(), 8);
            }
            libc::_exit(0);
        }
    }
    // SAFETY: own descriptors and child.
    unsafe {
        libc::close(pipe[1]);
        let mut out = Vec::new();
        let mut one: c_long = 0;
        while libc::read(pipe[0], (&raw mut one).cast(), 8) == 8 {
            out.push(one);
        }
        libc::close(pipe[0]);
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        assert!(!libc::WIFEXITED(status) || libc::WEXITSTATUS(status) == 0, "the filter was not loaded");
        (out, libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)))
    }
}

fn default(kind: DefaultKind) -> Program {
    Program::compile(&default_profile(kind)).unwrap()
}

fn expect(program: &Program, list: &[(Try, c_long)]) {
    let tries: Vec<Try> = list.iter().map(|(t, _)| *t).collect();
    let (got, signal) = results(Some(program), &tries);
    assert_eq!(signal, None);
    for (i, (t, want)) in list.iter().enumerate() {
        let name = match t {
            Try::Wide(nr, a) => format!("{nr} {a:x?}"),
            Try::Narrow(nr, a) => format!("32-bit {nr} {a:x?}"),
        };
        assert_eq!(got[i], *want, "call {name}");
    }
}

fn wide(nr: c_long, args: [u64; 4]) -> Try {
    Try::Wide(nr, args)
}

/// Arguments that do nothing even where the filter lets them through: bad pointers and flags.
const BAD: [u64; 4] = [1, 1, 1, u64::MAX];

#[test]
fn machine_refuses() {
    let program = default(DefaultKind::Machine);
    let high = 1_u64 << 32;
    let mut list = Vec::new();
    for family in [38, 40, 38 | high, 40 | high] {
        list.push((wide(libc::SYS_socket, [family, 5, 0, 0]), EPERM));
    }
    for family in [31, 21, 29 | high] {
        list.push((wide(libc::SYS_socket, [family, 2, 0, 0]), EAFNOSUPPORT));
    }
    for nr in [
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_bpf,
        libc::SYS_userfaultfd,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_kexec_file_load,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        libc::SYS_setns,
        libc::SYS_perf_event_open,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_open_by_handle_at,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_iopl,
        libc::SYS_ioperm,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_lookup_dcookie,
        libc::SYS_nfsservctl,
        libc::SYS_fanotify_init,
        libc::SYS_syslog,
    ] {
        list.push((wide(nr, BAD), EPERM));
    }
    for flag in [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        list.push((wide(libc::SYS_unshare, [flag, 0, 0, 0]), EPERM));
        list.push((wide(libc::SYS_clone, [flag | 17, 0, 0, 0]), EPERM));
    }
    list.push((wide(libc::SYS_unshare, [0x80, 0, 0, 0]), EPERM));
    list.push((wide(libc::SYS_clone3, [0, 0, 0, 0]), ENOSYS));
    list.push((wide(600, [0; 4]), ENOSYS));
    for request in [0x5412, 0x541c, 0x5412 | high, 0x541c | (7 << 40)] {
        list.push((wide(libc::SYS_ioctl, [0, request, 0, 0]), EPERM));
    }
    list.push((wide(libc::SYS_personality, [0x20_0000, 0, 0, 0]), EPERM));
    expect(&program, &list);
}

#[test]
fn machine_allows() {
    let tries = [
        wide(libc::SYS_socket, [1, 1, 0, 0]),
        wide(libc::SYS_socket, [2, 2, 0, 0]),
        wide(libc::SYS_socket, [16, 3, 0, 0]),
        wide(libc::SYS_personality, [0xffff_ffff, 0, 0, 0]),
        wide(libc::SYS_getpid, [0; 4]),
        wide(libc::SYS_unshare, [0x400, 0, 0, 0]),
        wide(libc::SYS_ptrace, [0, 0, 0, 0]),
        wide(libc::SYS_memfd_create, [c"x".as_ptr() as u64, 0, 0, 0]),
    ];
    for kind in [DefaultKind::Machine, DefaultKind::Init] {
        let (got, signal) = results(Some(&default(kind)), &tries);
        assert_eq!(signal, None);
        assert_eq!(got.len(), tries.len());
        assert!(got.iter().all(|r| *r >= 0), "{got:?}");
    }
    // A bad descriptor is the kernel's answer, not the filter's.
    expect(&default(DefaultKind::Machine), &[(wide(libc::SYS_ioctl, [u64::MAX, 0x5413, 0, 0]), -9)]);
}

/// Some of what is refused works without the filter, so it is the filter that refuses.
#[test]
fn the_filter_is_what_refuses() {
    let tries = [
        wide(libc::SYS_bpf, [9999, 0, 0, 0]),
        wide(libc::SYS_keyctl, [9999, 0, 0, 0]),
        wide(libc::SYS_mount, BAD),
        wide(libc::SYS_clone3, [0, 0, 0, 0]),
        wide(libc::SYS_ioctl, [u64::MAX, 0x5412, 0, 0]),
        wide(libc::SYS_clock_settime, BAD),
        wide(libc::SYS_setns, BAD),
    ];
    let (got, _) = results(None, &tries);
    assert!(got[..3].iter().all(|r| *r != EPERM), "{got:?}");
    assert!(got[3] != ENOSYS && got[4..].iter().all(|r| *r != EPERM), "{got:?}");
}

#[test]
fn init_may_mount_and_divide_itself() {
    let program = default(DefaultKind::Init);
    let tries = [
        wide(libc::SYS_mount, BAD),
        wide(libc::SYS_fsopen, BAD),
        wide(libc::SYS_setns, BAD),
        wide(libc::SYS_clone3, [0, 0, 0, 0]),
        wide(libc::SYS_unshare, [0x400_0000, 0, 0, 0]),
        wide(libc::SYS_umount2, BAD),
        wide(libc::SYS_open_tree, BAD),
    ];
    let (got, signal) = results(Some(&program), &tries);
    assert_eq!(signal, None);
    assert!(got.iter().all(|r| *r != EPERM && *r != ENOSYS), "{got:?}");
    assert_eq!(got[4], 0);
    expect(
        &program,
        &[
            (wide(libc::SYS_socket, [38, 5, 0, 0]), EPERM),
            (wide(libc::SYS_keyctl, BAD), ENOSYS),
            (wide(libc::SYS_bpf, BAD), EPERM),
            (wide(libc::SYS_userfaultfd, [0; 4]), EPERM),
            (wide(libc::SYS_finit_module, BAD), EPERM),
            (wide(libc::SYS_io_uring_setup, BAD), EPERM),
            (wide(libc::SYS_reboot, BAD), EPERM),
            (wide(libc::SYS_ioctl, [0, 0x5412, 0, 0]), EPERM),
        ],
    );
}

#[test]
fn calls_of_32_bit_programs_are_filtered_too() {
    let (_, signal) = results(None, &[Try::Narrow(20, [0; 3])]);
    if signal.is_some() {
        println!("skipped: this kernel takes no 32-bit calls");
        return;
    }
    for kind in [DefaultKind::Machine, DefaultKind::Init] {
        let program = default(kind);
        let keys = if kind == DefaultKind::Init { ENOSYS } else { EPERM };
        expect(
            &program,
            &[
                // socket(AF_ALG), socketcall(SYS_SOCKET), socketcall(SYS_BIND) with a bad pointer.
                (Try::Narrow(359, [38, 5, 0]), EPERM),
                (Try::Narrow(359, [40, 1, 0]), EPERM),
                (Try::Narrow(360, [38, 5, 0]), EPERM),
                (Try::Narrow(102, [1, 1, 0]), EPERM),
                (Try::Narrow(102, [2, 1, 0]), -14),
                // keyctl, add_key, bpf, userfaultfd, init_module, ioctl(TIOCSTI), a number too new.
                (Try::Narrow(288, [0; 3]), keys),
                (Try::Narrow(286, [0; 3]), keys),
                (Try::Narrow(357, [0; 3]), EPERM),
                (Try::Narrow(374, [0; 3]), EPERM),
                (Try::Narrow(128, [0; 3]), EPERM),
                (Try::Narrow(54, [0, 0x5412, 0]), EPERM),
                (Try::Narrow(600, [0; 3]), ENOSYS),
            ],
        );
        let (got, _) = results(Some(&program), &[Try::Narrow(20, [0; 3]), Try::Narrow(359, [1, 1, 0])]);
        assert!(got.iter().all(|r| *r > 0), "{got:?}");
    }
    expect(&default(DefaultKind::Machine), &[(Try::Narrow(21, [0; 3]), EPERM)]);
}

fn parse(json: &str) -> Program {
    Program::compile(&serde_json::from_str::<Seccomp>(json).unwrap()).unwrap()
}

#[test]
fn every_action() {
    let with = |action: &str, more: &str| {
        parse(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["getppid"],"action":"{action}"{more}}}]}}"#
        ))
    };
    let tries = [wide(libc::SYS_getppid, [0; 4])];
    let of = |p: &Program| results(Some(p), &tries);
    assert_eq!(of(&with("SCMP_ACT_ERRNO", r#","errnoRet":77"#)), (vec![-77], None));
    assert_eq!(of(&with("SCMP_ACT_ERRNO", "")), (vec![EPERM], None));
    assert_eq!(of(&with("SCMP_ACT_KILL_PROCESS", "")), (vec![], Some(libc::SIGSYS)));
    assert_eq!(of(&with("SCMP_ACT_KILL", "")), (vec![], Some(libc::SIGSYS)));
    assert_eq!(of(&with("SCMP_ACT_TRAP", "")), (vec![], Some(libc::SIGSYS)));
    // Nobody traces: the call is not there.
    assert_eq!(of(&with("SCMP_ACT_TRACE", "")), (vec![ENOSYS], None));
    let (got, _) = of(&with("SCMP_ACT_LOG", ""));
    assert!(got[0] > 0);
    let flags = parse(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_SPEC_ALLOW","SECCOMP_FILTER_FLAG_TSYNC"]}"#,
    );
    assert!(of(&flags).0[0] > 0);
}

#[test]
fn a_listener_answers() {
    #[repr(C)]
    struct Data {
        nr: i32,
        arch: u32,
        ip: u64,
        args: [u64; 6],
    }
    #[repr(C)]
    struct Notif {
        id: u64,
        pid: u32,
        flags: u32,
        data: Data,
    }
    #[repr(C)]
    struct Resp {
        id: u64,
        val: i64,
        error: i32,
        flags: u32,
    }
    const RECV: libc::c_ulong = 0xc050_2100;
    const SEND: libc::c_ulong = 0xc018_2101;
    let program =
        parse(r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["getppid"],"action":"SCMP_ACT_NOTIFY"}]}"#);
    assert!(program.listens());
    // SAFETY: the child and its child make system calls on locals only and end by `_exit`.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            let Ok(Some(listener)) = program.load(0) else { libc::_exit(1) };
            let fd = std::os::fd::AsRawFd::as_raw_fd(&listener);
            let asker = libc::fork();
            if asker == 0 {
                libc::_exit(if libc::syscall(libc::SYS_getppid) == 4242 { 7 } else { 1 });
            }
            let mut n: Notif = std::mem::zeroed();
            if libc::ioctl(fd, RECV, &raw mut n) != 0 || i64::from(n.data.nr) != libc::SYS_getppid {
                libc::_exit(2);
            }
            let r = Resp { id: n.id, val: 4242, error: 0, flags: 0 };
            if libc::ioctl(fd, SEND, &raw const r) != 0 {
                libc::_exit(3);
            }
            let mut status = 0;
            libc::waitpid(asker, &raw mut status, 0);
            libc::_exit(libc::WEXITSTATUS(status));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        assert_eq!(libc::WEXITSTATUS(status), 7);
    }
}

#[test]
fn ordinary_programs_run() {
    for kind in [DefaultKind::Machine, DefaultKind::Init] {
        for script in [
            "ls -la / | sort | head -3 && find /etc -maxdepth 1 >/dev/null && id && uname -a && date",
            "d=$(mktemp -d) && cd $d && tar cf t.tar /etc/passwd && gzip t.tar && cp -a t.tar.gz u && chmod 600 u && mv u v && rm -r $d",
            "command -v perl >/dev/null || exit 0; perl -e 'use Socket; socket(S, PF_INET, SOCK_STREAM, 0) or die; fork // die; print $$'",
            "command -v python3 >/dev/null || exit 0; python3 -c 'import threading,subprocess,socket,select,multiprocessing as m; \
             t=threading.Thread(target=print); t.start(); t.join(); subprocess.check_call([\"true\"]); socket.socketpair(); \
             p=m.Process(target=print); p.start(); p.join(); assert p.exitcode == 0'",
            "command -v timeout >/dev/null || exit 0; timeout 5 sh -c 'sleep 0.01 & wait'; nice -n 5 true",
        ] {
            let program = default(kind);
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdin(Stdio::null());
            // SAFETY: two system calls.
            unsafe {
                command.pre_exec(move || {
                    libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                    program.load(0).map(drop).map_err(|_| std::io::Error::last_os_error())
                });
            }
            let out = command.output().unwrap();
            assert!(
                out.status.success(),
                "{script}: {:?} {}",
                out.status.signal(),
                String::from_utf8_lossy(&out.stderr)
            );
        }
    }
}

/// The same filter as a list, as libseccomp makes it by default: one comparison per call, in order.
fn linear(profile: &Seccomp) -> Vec<SockFilter> {
    const ARCH: [(u32, ilot_runtime::seccomp::Arch); 2] =
        [(0xc000_003e, ilot_runtime::seccomp::Arch::X86_64), (0x4000_0003, ilot_runtime::seccomp::Arch::X86)];
    let op = |code, k, jt, jf| SockFilter { code, jt, jf, k };
    let mut out = vec![op(0x20, 4, 0, 0)];
    for (audit, arch) in ARCH {
        let mut numbers: Vec<u32> = profile
            .syscalls
            .iter()
            .filter(|r| r.args.is_empty())
            .flat_map(|r| &r.names)
            .filter_map(|n| arch.number(n))
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut block = vec![op(0x20, 0, 0, 0)];
        for nr in numbers {
            block.extend([op(0x15, nr, 0, 1), op(0x06, 0x7fff_0000, 0, 0)]);
        }
        block.push(op(0x06, 0x0005_0001, 0, 0));
        // Not this architecture: past its block.
        out.push(op(0x15, audit, 1, 0));
        out.push(op(0x05, block.len() as u32, 0, 0));
        out.extend(block);
    }
    out.push(op(0x06, 0x8000_0000, 0, 0));
    out
}

fn from_parts(filter: &[SockFilter]) -> Program {
    let mut bytes = vec![0; 4];
    bytes.extend((filter.len() as u32).to_le_bytes());
    for f in filter {
        bytes.extend(f.code.to_le_bytes());
        bytes.extend([f.jt, f.jf]);
        bytes.extend(f.k.to_le_bytes());
    }
    Program::from_bytes(&bytes).expect("a valid filter")
}

/// Median time of a load, and of a call, in nanoseconds.
fn measure(program: Option<&Program>, nr: c_long) -> (u64, u64) {
    let mut loads = Vec::new();
    let mut calls = Vec::new();
    for _ in 0..21 {
        let mut pipe = [0; 2];
        // SAFETY: as in `results`.
        unsafe {
            assert_eq!(libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC), 0);
            let pid = libc::fork();
            if pid == 0 {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                let start = Instant::now();
                if program.is_some_and(|p| p.load(0).is_err()) {
                    libc::_exit(1);
                }
                let load = start.elapsed().as_nanos() as u64;
                // A distinct call number per program: the kernel's cache of calls that are always allowed is in play too.
                let start = Instant::now();
                for _ in 0..200_000 {
                    libc::syscall(nr, -1, 0x1234, 0);
                }
                let times = [load, start.elapsed().as_nanos() as u64 / 200_000];
                libc::write(pipe[1], times.as_ptr().cast(), 16);
                libc::_exit(0);
            }
            libc::close(pipe[1]);
            let mut times = [0_u64; 2];
            assert_eq!(libc::read(pipe[0], times.as_mut_ptr().cast(), 16), 16);
            libc::close(pipe[0]);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
            loads.push(times[0]);
            calls.push(times[1]);
        }
    }
    loads.sort_unstable();
    calls.sort_unstable();
    (loads[10], calls[10])
}

/// `cargo test --release --test seccomp_kernel speed -- --ignored --nocapture`
#[test]
#[ignore = "prints times, asserts nothing that noise could break"]
fn speed() {
    let profile = default_profile(DefaultKind::Machine);
    let start = Instant::now();
    let tree = Program::compile(&profile).unwrap();
    println!("compile: {} µs, {} instructions", start.elapsed().as_micros(), tree.instructions().len());
    let mut best = u128::MAX;
    for _ in 0..50 {
        let start = Instant::now();
        Program::compile(&profile).unwrap();
        best = best.min(start.elapsed().as_micros());
    }
    println!("compile, best of 50: {best} µs");
    let tmp = tempfile::tempdir().unwrap();
    ilot_runtime::seccomp::cached(tmp.path(), &profile).unwrap();
    let mut best = u128::MAX;
    for _ in 0..50 {
        let start = Instant::now();
        ilot_runtime::seccomp::cached(tmp.path(), &profile).unwrap();
        best = best.min(start.elapsed().as_micros());
    }
    println!("from the cache, best of 50: {best} µs");
    let list = linear(&profile);
    println!("list: {} instructions", list.len());
    let list = from_parts(&list);
    // getppid is always allowed (the kernel remembers that since 5.11); ioctl depends on arguments in the tree.
    for (name, nr) in [("getppid", libc::SYS_getppid), ("ioctl", libc::SYS_ioctl)] {
        for (kind, program) in [("none", None), ("tree", Some(&tree)), ("list", Some(&list))] {
            let (load, call) = measure(program, nr);
            println!("{name}: {kind}: load {:.1} µs, call {call} ns", load as f64 / 1000.0);
        }
    }
}
