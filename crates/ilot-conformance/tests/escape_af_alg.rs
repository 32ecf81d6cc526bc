//! The kernel's crypto sockets (`AF_ALG`) have been a way to root more than once: ilot's default profile refuses them in
//! both ABIs, through `socket` and through `socketcall`, whose arguments a filter cannot see.

use ilot_conformance::{Bundle, Kind, bundle, conform, json, skip};
use ilot_runtime::seccomp::{Action, Arch, Call, interpret};
use ilot_runtime::spec::Seccomp;

/// What the profile says to a call: an error that no kernel without these sockets gives by itself, so that it is the filter
/// who answers.
fn refusal(arch: Arch, nr: u32, args: [u64; 6]) -> i64 {
    const EAFNOSUPPORT: u16 = 97;
    let call = Call { nr, arch: arch.audit(), ip: 0, args };
    match interpret(&profile(), Arch::native(), &call) {
        Ok(Action::Errno(errno)) if errno != EAFNOSUPPORT => -i64::from(errno),
        other => panic!("the profile says {other:?}"),
    }
}

fn profile() -> Seccomp {
    let ids = ilot_runtime::spec::IdMapping { container_id: 0, host_id: 100_000, size: 65_536 };
    let spec = ilot_runtime::spec::machine_default(ids, false);
    spec.linux.and_then(|linux| linux.seccomp).unwrap_or_else(|| panic!("ilot has no default profile"))
}

fn filtered() -> Bundle {
    if !bundle::is(Kind::Ilot) {
        skip("the profile is ilot's own; libseccomp refuses to merge its rules");
    }
    let mut c = Bundle::new();
    c.need_probe();
    c.config["linux"]["seccomp"] = json!(profile());
    c
}

fn answer(c: &mut Bundle, args: &[&str]) -> i64 {
    let mut words = vec!["/bin/probe"];
    words.extend(args);
    c.args(&words);
    c.run().ok().trim().parse().unwrap()
}

#[test]
fn refused_in_64_bit_calls() {
    conform(|| {
        let mut c = filtered();
        let denied = answer(&mut c, &["sys", "41", "38", "5", "0"]);
        assert_eq!(denied, refusal(Arch::X86_64, 41, [38, 5, 0, 0, 0, 0]));
        assert!(answer(&mut c, &["sys", "41", "1", "1", "0"]) >= 0, "other sockets work");
    });
}

#[test]
fn refused_in_32_bit_calls() {
    conform(|| {
        let mut plain = Bundle::new();
        plain.need_probe();
        if answer(&mut plain, &["sys32", "20"]) == -38 {
            skip("needs a kernel with 32-bit system calls");
        }
        let mut c = filtered();
        let denied = answer(&mut c, &["sys32", "359", "38", "5", "0"]);
        assert_eq!(denied, refusal(Arch::X86, 359, [38, 5, 0, 0, 0, 0]), "socket");
        let denied = answer(&mut c, &["socketcall32", "38", "5", "0"]);
        assert_eq!(denied, refusal(Arch::X86, 102, [1, 0, 0, 0, 0, 0]), "socketcall");
    });
}
