//! The filters that machines get unless they bring their own.

mod table;

use crate::spec::{Seccomp, SeccompAction, SeccompArg, SeccompOp, SeccompRule};

use super::Arch;

/// Who the filter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DefaultKind {
    /// Ordinary programs, and machines on ilot's own init: no mounts, no namespaces.
    Machine,
    /// An image's own init (systemd) inside a user namespace: may mount and make namespaces, nothing else more.
    Init,
}

/// Namespace flags of clone(2): NS, CGROUP, UTS, IPC, USER, PID, NET.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
/// Those of unshare(2): the same and TIME, whose bit is part of the exit signal in clone(2).
const UNSHARE_NAMESPACES: u64 = CLONE_NAMESPACES | 0x80;

/// What the kernel looks at of an `int` argument. It ignores the upper half of the register, so a filter that
/// compares all 64 bits with one forbidden value can be passed by setting a bit up there (CVE-2019-7303).
const INT: u64 = 0xffff_ffff;

/// Pushes bytes into a terminal's input, which its other side then runs.
const TIOCSTI: u64 = 0x5412;
/// Selects and pastes on a console, which comes to the same.
const TIOCLINUX: u64 = 0x541c;

const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
/// UNIX, INET, INET6, NETLINK, PACKET.
const FAMILIES: [u64; 5] = [1, 2, 10, 16, 17];

/// The flag-free execution domains that programs use: Linux and its 32-bit, short-inode and no-randomisation variants,
/// and the question for the present one.
const PERSONALITIES: [u64; 7] = [0, 0x8, 0x2_0000, 0x2_0008, 0x4_0000, 0x4_0008, 0xffff_ffff];

/// The call of socketcall(2) that makes a socket; the others, all greater, work on one that is there. (`SYS_SOCKETPAIR`
/// makes a pair, but only of families without harm.)
const SYS_SOCKET: u64 = 1;

/// The filter that a machine gets unless it brings its own.
///
/// An allowlist: what it does not name fails with `EPERM`, what is newer than it fails with `ENOSYS`. It covers what
/// ordinary software uses, and refuses what reaches the kernel's rarely used or host-wide parts: kernel keyrings, BPF,
/// modules, kexec, userfaultfd, io_uring, performance events, clocks, swap, quotas, ports, file handles, mounts and
/// namespaces (see [`DefaultKind`]), sockets beyond UNIX, IP, netlink and packet, `TIOCSTI`. The table and the reason for
/// each refusal are in `table.rs`; a test sees to it that every call of every architecture is in one of its lists.
///
/// `clone3` fails with `ENOSYS` for [`DefaultKind::Machine`]: its flags are behind a pointer, and libraries then use
/// `clone`, whose flags can be seen. Keyrings do so for [`DefaultKind::Init`].
///
/// 32-bit x86: `socketcall(SYS_SOCKET)` is refused, because the address family is behind a pointer too. A 32-bit
/// program makes sockets by the direct call, as musl and newer C libraries do; one built for kernels before 4.3 gets
/// `EPERM`.
#[must_use]
pub fn default_profile(kind: DefaultKind) -> Seccomp {
    profile(kind, socket_rules(), ioctl_rules().into())
}

/// The same for runtimes that use libseccomp, which refuses two rules of one call that overlap with different actions:
/// only what is allowed is said. An unknown family of sockets fails with `EPERM` there.
#[must_use]
pub fn portable_profile(kind: DefaultKind) -> Seccomp {
    let allowed = |rule: &SeccompRule| rule.action == SeccompAction::Allow;
    let ioctl = |(mask, want)| when(&["ioctl"], SeccompAction::Allow, None, masked(1, mask, want));
    let ioctls = all_but(&[TIOCSTI, TIOCLINUX]).into_iter().map(ioctl).collect();
    profile(kind, socket_rules().into_iter().filter(allowed).collect(), ioctls)
}

/// Every 32-bit number but these, as masks and the values under them: a number's bits are gone through from the highest,
/// and the half without any of these is one pair.
fn all_but(points: &[u64]) -> Vec<(u64, u64)> {
    fn halves(points: &[u64], bit: u32, want: u64, out: &mut Vec<(u64, u64)>) {
        let mask = INT & !((1 << bit) - 1);
        if !points.iter().any(|p| p & mask == want) {
            out.push((mask, want));
        } else if bit > 0 {
            halves(points, bit - 1, want, out);
            halves(points, bit - 1, want | 1 << (bit - 1), out);
        }
    }
    let mut out = Vec::new();
    halves(points, u32::BITS, 0, &mut out);
    out
}

fn profile(kind: DefaultKind, sockets: Vec<SeccompRule>, ioctls: Vec<SeccompRule>) -> Seccomp {
    let mut rules = vec![allow(table::ALLOWED)];
    rules.extend(sockets);
    rules.extend(ioctls);
    for value in PERSONALITIES {
        rules.push(when(&["personality"], SeccompAction::Allow, None, masked(0, INT, value)));
    }
    match kind {
        DefaultKind::Machine => {
            // On the architectures here the flags are clone's first argument.
            let allow = SeccompAction::Allow;
            rules.push(when(&["clone"], allow, None, masked(0, CLONE_NAMESPACES, 0)));
            rules.push(when(&["unshare"], allow, None, masked(0, UNSHARE_NAMESPACES, 0)));
            rules.push(rule(&["clone3"], SeccompAction::Errno, Some(libc::ENOSYS as u32)));
        }
        DefaultKind::Init => {
            rules.push(allow(table::INIT));
            // Container runtimes inside do without a keyring where there are none, and fail where they are refused one.
            rules.push(rule(&["add_key", "keyctl", "request_key"], SeccompAction::Errno, Some(libc::ENOSYS as u32)));
        }
    }
    Seccomp {
        default_action: SeccompAction::Errno,
        default_errno_ret: Some(libc::EPERM as u32),
        architectures: architectures(Arch::native()),
        syscalls: rules,
        ..Seccomp::default()
    }
}

/// The native architecture and its 32-bit one. Not x32, which distributions turn off: a third of the program's size and
/// of its loading time, and another way to every call.
fn architectures(native: Arch) -> Vec<String> {
    native.family().iter().filter(|a| **a != Arch::X32).map(|a| a.name().to_owned()).collect()
}

fn socket_rules() -> Vec<SeccompRule> {
    let names = &["socket", "socketpair"];
    let (errno, permitted) = (SeccompAction::Errno, SeccompAction::Allow);
    let eperm = Some(libc::EPERM as u32);
    let unknown = Some(libc::EAFNOSUPPORT as u32);
    let mut rules = Vec::new();
    for family in FAMILIES {
        rules.push(when(names, permitted, None, masked(0, INT, family)));
    }
    for family in [AF_ALG, AF_VSOCK] {
        rules.push(when(names, errno, eperm, masked(0, INT, family)));
    }
    // As a kernel without them would answer, so that programs go on.
    rules.push(when(names, errno, unknown, anything()));
    let others = SeccompArg { index: 0, value: SYS_SOCKET, value_two: 0, op: SeccompOp::GreaterThan };
    rules.push(when(&["socketcall"], permitted, None, others));
    rules
}

fn ioctl_rules() -> [SeccompRule; 3] {
    let refuse = |request| {
        let eperm = Some(libc::EPERM as u32);
        when(&["ioctl"], SeccompAction::Errno, eperm, masked(1, INT, request))
    };
    [refuse(TIOCSTI), refuse(TIOCLINUX), when(&["ioctl"], SeccompAction::Allow, None, anything())]
}

fn rule(names: &[&str], action: SeccompAction, errno_ret: Option<u32>) -> SeccompRule {
    let names = names.iter().map(|n| (*n).to_owned()).collect();
    SeccompRule { names, action, errno_ret, args: Vec::new() }
}

fn allow(names: &[&str]) -> SeccompRule {
    rule(names, SeccompAction::Allow, None)
}

fn when(names: &[&str], action: SeccompAction, errno_ret: Option<u32>, arg: SeccompArg) -> SeccompRule {
    SeccompRule { args: vec![arg], ..rule(names, action, errno_ret) }
}

fn masked(index: u32, mask: u64, want: u64) -> SeccompArg {
    SeccompArg { index, value: mask, value_two: want, op: SeccompOp::MaskedEqual }
}

/// Holds always; a rule without conditions would beat the conditional ones before it.
fn anything() -> SeccompArg {
    SeccompArg { index: 0, value: 0, value_two: 0, op: SeccompOp::GreaterOrEqual }
}

#[cfg(test)]
mod tests {
    use super::super::{Action, Call, Program, interpret, simulate};
    use super::*;

    const EPERM: Action = Action::Errno(1);

    fn call(arch: Arch, name: &str, args: &[u64]) -> Call {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        Call { nr: arch.number(name).unwrap(), arch: arch.audit(), ip: 0, args: all }
    }

    /// The profile with every architecture, and its program.
    fn compiled(kind: DefaultKind, native: Arch) -> (Seccomp, Program) {
        let mut profile = default_profile(kind);
        profile.architectures = native.family().iter().map(|a| a.name().to_owned()).collect();
        let program = Program::compile_for(&profile, native).unwrap();
        (profile, program)
    }

    fn outcome(kind: DefaultKind, native: Arch, call: &Call) -> Action {
        static ALL: std::sync::OnceLock<Vec<(DefaultKind, Arch, Seccomp, Program)>> = std::sync::OnceLock::new();
        let all = ALL.get_or_init(|| {
            let mut all = Vec::new();
            for kind in [DefaultKind::Machine, DefaultKind::Init] {
                for native in [Arch::X86_64, Arch::Aarch64] {
                    let (profile, program) = compiled(kind, native);
                    all.push((kind, native, profile, program));
                }
            }
            all
        });
        let (_, _, profile, program) = all.iter().find(|a| a.0 == kind && a.1 == native).unwrap();
        let by_program = simulate(program.instructions(), call).unwrap().0;
        assert_eq!(by_program, interpret(profile, native, call).unwrap(), "{call:?}");
        by_program
    }

    fn both(arch: Arch, name: &str, args: &[u64]) -> (Action, Action) {
        let native = if arch.family().contains(&Arch::X86) || arch == Arch::X86 { Arch::X86_64 } else { Arch::Aarch64 };
        let c = call(arch, name, args);
        (outcome(DefaultKind::Machine, native, &c), outcome(DefaultKind::Init, native, &c))
    }

    /// Nothing is allowed or refused by oversight.
    #[test]
    fn every_call_is_in_a_list() {
        let special = ["socket", "socketpair", "socketcall", "ioctl", "personality", "clone", "clone3", "unshare"];
        for arch in [Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64, Arch::Arm] {
            for (name, _) in arch.all() {
                let lists = [
                    table::ALLOWED.contains(&name),
                    table::INIT.contains(&name) && !special.contains(&name),
                    table::REFUSED.iter().any(|(names, _)| names.contains(&name)),
                    special.contains(&name),
                ];
                assert_eq!(lists.iter().filter(|x| **x).count(), 1, "{name}: {lists:?}");
            }
        }
    }

    #[test]
    fn names_are_real() {
        let all: Vec<_> = [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm].iter().flat_map(|a| a.all()).collect();
        for name in table::ALLOWED.iter().chain(table::INIT) {
            assert!(all.iter().any(|(n, _)| n == name), "{name}");
        }
        let mut sorted = table::ALLOWED.to_vec();
        sorted.sort_unstable();
        let before = sorted.len();
        sorted.dedup();
        assert_eq!(sorted.len(), before);
    }

    #[test]
    fn refused() {
        for arch in [Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64, Arch::Arm] {
            for (names, why) in table::REFUSED {
                assert!(!why.is_empty());
                for name in names.iter().filter(|n| !["usr26", "usr32"].contains(n)) {
                    if arch.number(name).is_some() {
                        let keys = ["add_key", "keyctl", "request_key"].contains(name);
                        let init = if keys { Action::Errno(libc::ENOSYS as u16) } else { EPERM };
                        assert_eq!(both(arch, name, &[]), (EPERM, init), "{arch:?} {name}");
                    }
                }
            }
            for name in table::INIT.iter().filter(|n| !["clone", "clone3", "unshare"].contains(n)) {
                if arch.number(name).is_some() {
                    assert_eq!(both(arch, name, &[]), (EPERM, Action::Allow), "{arch:?} {name}");
                }
            }
        }
    }

    #[test]
    fn arguments() {
        let allow = (Action::Allow, Action::Allow);
        let high = 1 << 32;
        for arch in [Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64, Arch::Arm] {
            let wide: &[u64] = if arch.wide() { &[0, high] } else { &[0] };
            for upper in wide {
                for family in FAMILIES {
                    assert_eq!(both(arch, "socket", &[family | upper]), allow);
                }
                for family in [AF_ALG, AF_VSOCK] {
                    assert_eq!(both(arch, "socket", &[family | upper]), (EPERM, EPERM));
                    assert_eq!(both(arch, "socketpair", &[family | upper]), (EPERM, EPERM));
                }
                let unknown = Action::Errno(97);
                assert_eq!(both(arch, "socket", &[21 | upper]), (unknown, unknown));
                assert_eq!(both(arch, "ioctl", &[0, TIOCSTI | upper]), (EPERM, EPERM));
                assert_eq!(both(arch, "ioctl", &[0, TIOCLINUX | upper]), (EPERM, EPERM));
                assert_eq!(both(arch, "ioctl", &[0, 0x5413 | upper]), allow);
                assert_eq!(both(arch, "personality", &[0x20_0000 | upper]), (EPERM, EPERM));
                assert_eq!(both(arch, "personality", &[0xffff_ffff | upper]), allow);
            }
            for flag in [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
                assert_eq!(both(arch, "clone", &[flag | 17]), (EPERM, Action::Allow));
                assert_eq!(both(arch, "unshare", &[flag]), (EPERM, Action::Allow));
            }
            assert_eq!(both(arch, "unshare", &[0x80]), (EPERM, Action::Allow));
            assert_eq!(both(arch, "clone", &[0x3d_0f00]), allow);
            assert_eq!(both(arch, "unshare", &[0x400]), allow);
            assert_eq!(both(arch, "clone3", &[]), (Action::Errno(38), Action::Allow));
        }
        assert_eq!(both(Arch::X86, "socketcall", &[1]), (EPERM, EPERM));
        assert_eq!(both(Arch::X86, "socketcall", &[3]), allow);
    }

    /// Nobody gets more by the portable profile, and less only in the number of an error.
    #[test]
    fn portable() {
        assert_eq!(all_but(&[]), [(0, 0)]);
        assert!(all_but(&[TIOCSTI, TIOCLINUX]).len() < 40);
        for native in [Arch::X86_64, Arch::Aarch64] {
            for kind in [DefaultKind::Machine, DefaultKind::Init] {
                let (ours, theirs) = (default_profile(kind), portable_profile(kind));
                let program = Program::compile_for(&theirs, native).unwrap();
                let mut calls = Vec::new();
                for upper in [0, 1 << 32, 1 << 63] {
                    let near = (0..0x40).chain(0x5400..0x5430).chain((0..32).map(|bit| 1 << bit));
                    for low in near.chain([INT, TIOCSTI ^ 0x8000_0000]) {
                        calls.extend(["socket", "socketpair"].map(|name| call(native, name, &[low | upper])));
                        calls.push(call(native, "ioctl", &[0, low | upper]));
                        calls.push(call(native, "personality", &[low | upper]));
                        calls.push(call(native, "clone", &[low | upper]));
                    }
                }
                for c in calls {
                    let wanted = match interpret(&ours, native, &c).unwrap() {
                        Action::Errno(97) => EPERM,
                        other => other,
                    };
                    assert_eq!(simulate(program.instructions(), &c).unwrap().0, wanted, "{c:?}");
                }
            }
        }
    }

    #[test]
    fn newer_and_foreign() {
        let newer = Call { nr: 600, arch: Arch::X86_64.audit(), ip: 0, args: [0; 6] };
        assert_eq!(outcome(DefaultKind::Machine, Arch::X86_64, &newer), Action::Errno(38));
        let newer = Call { nr: 0x4000_0400, ..newer };
        assert_eq!(outcome(DefaultKind::Machine, Arch::X86_64, &newer), Action::Errno(38));
        let x32 = Call { nr: 0x4000_0000, ..newer };
        let program = Program::compile_for(&default_profile(DefaultKind::Machine), Arch::X86_64).unwrap();
        if Arch::native() == Arch::X86_64 {
            assert_eq!(simulate(program.instructions(), &x32).unwrap().0, Action::KillProcess);
        }
        let foreign = Call { nr: 0, arch: Arch::Arm.audit(), ip: 0, args: [0; 6] };
        assert_eq!(outcome(DefaultKind::Machine, Arch::X86_64, &foreign), Action::KillProcess);
    }
}
