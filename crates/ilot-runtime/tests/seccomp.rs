//! The seccomp compiler against its reference on random profiles and calls.
// Helpers of tests may unwrap as tests do.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use ilot_runtime::seccomp::{Action, Arch, Call, Program, interpret, simulate};
use ilot_runtime::spec::{Seccomp, SeccompAction, SeccompArg, SeccompOp, SeccompRule};
use proptest::prelude::*;

/// Names on some, all or none of the architectures, close together and far apart.
const NAMES: [&str; 26] = [
    "read",
    "write",
    "open",
    "close",
    "openat",
    "socket",
    "socketcall",
    "ioctl",
    "clone",
    "clone3",
    "personality",
    "mseal",
    "futex_wake",
    "futex_wait",
    "futex_requeue",
    "epoll_wait_old",
    "set_tls",
    "cacheflush",
    "newfstatat",
    "execve",
    "preadv2",
    "uretprobe",
    "listns",
    "mmap2",
    "arch_prctl",
    "no_such_call",
];

const INTERESTING: [u64; 12] = [
    0,
    1,
    2,
    0xff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0001,
    0xffff_ffff_0000_0000,
    u64::MAX,
];

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![4 => prop::sample::select(&INTERESTING[..]), 1 => any::<u64>(), 1 => 0..16_u64]
}

fn action() -> impl Strategy<Value = (SeccompAction, Option<u32>)> {
    let errno = prop_oneof![Just(None), (0..4096_u32).prop_map(Some)];
    prop_oneof![
        3 => errno.clone().prop_map(|e| (SeccompAction::Errno, e)),
        3 => Just((SeccompAction::Allow, None)),
        1 => errno.prop_map(|e| (SeccompAction::Trace, e)),
        1 => prop::sample::select(vec![
            SeccompAction::KillProcess,
            SeccompAction::KillThread,
            SeccompAction::Trap,
            SeccompAction::Log,
        ])
        .prop_map(|a| (a, None)),
    ]
}

fn argument() -> impl Strategy<Value = SeccompArg> {
    let op = prop::sample::select(vec![
        SeccompOp::NotEqual,
        SeccompOp::LessThan,
        SeccompOp::LessOrEqual,
        SeccompOp::Equal,
        SeccompOp::GreaterOrEqual,
        SeccompOp::GreaterThan,
        SeccompOp::MaskedEqual,
    ]);
    (0..6_u32, value(), value(), op, any::<bool>()).prop_map(|(index, value, two, op, fits)| SeccompArg {
        index,
        value,
        // Half of the masks can match.
        value_two: if fits { two & value } else { two },
        op,
    })
}

fn rule() -> impl Strategy<Value = SeccompRule> {
    let names = prop::collection::vec(prop::sample::select(&NAMES[..]), 1..8);
    let args = prop_oneof![3 => Just(Vec::new()), 5 => prop::collection::vec(argument(), 1..4)];
    (names, action(), args).prop_map(|(names, (action, errno_ret), args)| SeccompRule {
        names: names.into_iter().map(Into::into).collect(),
        action,
        errno_ret,
        args,
    })
}

fn profile() -> impl Strategy<Value = (Seccomp, Arch)> {
    let arches = prop::sample::subsequence(
        vec![
            "SCMP_ARCH_X86",
            "SCMP_ARCH_X32",
            "SCMP_ARCH_X86_64",
            "SCMP_ARCH_ARM",
            "SCMP_ARCH_AARCH64",
            "SCMP_ARCH_S390X",
        ],
        0..6,
    );
    let native = prop::sample::select(vec![Arch::X86_64, Arch::Aarch64, Arch::X86, Arch::Arm]);
    (action(), arches, prop::collection::vec(rule(), 0..24), native).prop_map(|(default, arches, syscalls, native)| {
        let profile = Seccomp {
            default_action: default.0,
            default_errno_ret: default.1,
            architectures: arches.into_iter().map(Into::into).collect(),
            syscalls,
            ..Seccomp::default()
        };
        (profile, native)
    })
}

/// Calls that hit and just miss the rules: numbers of the names and their neighbours, values of the conditions.
fn call(profile: &Seccomp, arch: Arch, seed: [u64; 9]) -> Call {
    let names: Vec<&String> = profile.syscalls.iter().flat_map(|r| &r.names).collect();
    let pick = |n: u64, len: usize| usize::try_from(n % len.max(1) as u64).unwrap();
    let mut nr =
        names.get(pick(seed[0], names.len())).and_then(|n| arch.number(n)).unwrap_or((seed[0] >> 8) as u32 % 600);
    match seed[1] % 8 {
        0 => nr = nr.wrapping_add(1),
        1 => nr = nr.wrapping_sub(1),
        2 => nr = (seed[1] >> 8) as u32,
        3 => nr |= 0x4000_0000,
        _ => {}
    }
    let values: Vec<u64> = profile.syscalls.iter().flat_map(|r| &r.args).flat_map(|a| [a.value, a.value_two]).collect();
    let mut args = [0; 6];
    for (arg, n) in args.iter_mut().zip(&seed[3..]) {
        *arg = match n % 5 {
            0 => *n,
            1 => INTERESTING[pick(n >> 8, INTERESTING.len())],
            _ => values.get(pick(n >> 8, values.len())).copied().unwrap_or(0),
        };
        match (n >> 40) % 6 {
            0 => *arg = arg.wrapping_add(1),
            1 => *arg = arg.wrapping_sub(1),
            2 => *arg |= 1 << 32,
            _ => {}
        }
        if !arch.wide() {
            *arg &= 0xffff_ffff;
        }
    }
    Call { nr, arch: arch.audit(), ip: seed[2], args }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn program_and_meaning_agree(
        (profile, native) in profile(),
        seeds in prop::collection::vec(any::<[u64; 9]>(), 24),
    ) {
        let program = match Program::compile_for(&profile, native) {
            Ok(program) => program,
            Err(e) => return Err(TestCaseError::fail(e.to_string())),
        };
        prop_assert!(Program::from_bytes(&program.to_bytes()).is_some_and(|p| p == program));
        for (i, seed) in seeds.into_iter().enumerate() {
            let arches = [Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64, Arch::Arm];
            // Mostly the native architecture.
            let arch = if i % 3 == 0 { arches[i / 3 % 5] } else { native };
            let call = call(&profile, arch, seed);
            let (got, steps) = simulate(program.instructions(), &call).expect("a valid program");
            prop_assert_eq!(got, interpret(&profile, native, &call).unwrap(), "{:?}", call);
            prop_assert!(steps < 600);
        }
    }

    #[test]
    fn bytes_that_are_no_program_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), flags in any::<bool>()) {
        let mut bytes = bytes;
        if flags && bytes.len() > 8 {
            bytes.truncate(8 + (bytes.len() - 8) / 8 * 8);
            let count = (bytes.len() as u32 - 8) / 8;
            bytes[..4].fill(0);
            bytes[4..8].copy_from_slice(&count.to_le_bytes());
        }
        if let Some(program) = Program::from_bytes(&bytes) {
            let call = Call { nr: 0, arch: 0, ip: 0, args: [0; 6] };
            let _ = simulate(program.instructions(), &call);
        }
    }
}

fn parse(json: &str) -> Seccomp {
    serde_json::from_str(json).unwrap()
}

#[test]
fn long_jumps_are_handled() {
    // Some hundred conditions per call put leaves far beyond 255 instructions.
    let mut profile = parse(r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"]}"#);
    for (n, name) in ["read", "write", "ioctl", "clone", "mseal"].iter().enumerate() {
        for i in 0..60 {
            profile.syscalls.push(SeccompRule {
                names: vec![(*name).into()],
                action: SeccompAction::Errno,
                errno_ret: Some(n as u32 * 100 + i + 2),
                args: vec![SeccompArg { index: 1, value: u64::from(i) << 31, value_two: 0, op: SeccompOp::Equal }],
            });
        }
    }
    let program = Program::compile_for(&profile, Arch::X86_64).unwrap();
    assert!(program.instructions().len() > 1000);
    for arch in [Arch::X86_64, Arch::X86] {
        for (n, name) in ["read", "write", "ioctl", "clone", "mseal"].iter().enumerate() {
            for i in [0_u32, 1, 30, 59] {
                let value = u64::from(i) << 31;
                if !arch.wide() && value > 0xffff_ffff {
                    continue;
                }
                let args = [0, value, 0, 0, 0, 0];
                let call = Call { nr: arch.number(name).unwrap(), arch: arch.audit(), ip: 0, args };
                let (got, _) = simulate(program.instructions(), &call).unwrap();
                assert_eq!(got, interpret(&profile, Arch::X86_64, &call).unwrap());
                assert_eq!(got, Action::Errno((n as u32 * 100 + i + 2) as u16), "{name} {i}");
            }
        }
    }
}

#[test]
fn a_program_too_long_is_an_error() {
    let mut profile = parse(r#"{"defaultAction":"SCMP_ACT_ERRNO"}"#);
    for i in 0..1200 {
        profile.syscalls.push(SeccompRule {
            names: vec!["read".into()],
            action: SeccompAction::Allow,
            errno_ret: None,
            args: vec![SeccompArg { index: 0, value: i, value_two: 0, op: SeccompOp::Equal }],
        });
    }
    let error = Program::compile_for(&profile, Arch::X86_64).unwrap_err();
    assert!(error.to_string().contains("4096") && error.help().is_some());
}

#[test]
fn impossible_profiles_are_refused() {
    for (json, words) in [
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_Z80"]}"#, "SCMP_ARCH_Z80"),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_X"]}"#, "SECCOMP_FILTER_FLAG_X"),
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "NOTIFY"),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":1}"#, "errnoRet"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_TRAP","errnoRet":2}]}"#,
            "syscalls[0]",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "argument",
        ),
        (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":70000}"#, "16 bits"),
    ] {
        let error = Program::compile(&parse(json)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn rules_read_as_runc_reads_them() {
    let at = |json: &str, nr: u32, args: [u64; 6]| {
        let profile = parse(json);
        let call = Call { nr, arch: Arch::X86_64.audit(), ip: 0, args };
        let program = Program::compile_for(&profile, Arch::X86_64).unwrap();
        let got = simulate(program.instructions(), &call).unwrap().0;
        assert_eq!(got, interpret(&profile, Arch::X86_64, &call).unwrap());
        got
    };
    let eperm = Action::Errno(1);
    // The same argument twice: alternatives.
    let twice = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[
        {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":5,"op":"SCMP_CMP_EQ"}]}]}"#;
    assert_eq!(at(twice, 0, [5, 0, 0, 0, 0, 0]), Action::Allow);
    assert_eq!(at(twice, 0, [2, 0, 0, 0, 0, 0]), eperm);
    // Unconditional beats conditional, wherever it stands.
    let both = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":7,"args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]},
        {"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#;
    assert_eq!(at(both, 0, [1, 0, 0, 0, 0, 0]), Action::Allow);
    // Unless it only repeats the default.
    let default = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["read"],"action":"SCMP_ACT_ERRNO"},
        {"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#;
    assert_eq!(at(default, 0, [1, 0, 0, 0, 0, 0]), Action::Allow);
    assert_eq!(at(default, 0, [2, 0, 0, 0, 0, 0]), eperm);
    // Newer than the newest name: not there. Between the names: the default.
    assert_eq!(at(default, 1, [0; 6]), Action::Errno(38));
    let open = r#"{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"names":["close"],"action":"SCMP_ACT_ALLOW"}]}"#;
    assert_eq!(at(open, 2, [0; 6]), Action::Log);
    assert_eq!(at(open, 999, [0; 6]), Action::Log);
    // Number -1, which a tracer leaves behind, and x32 where it is not listed.
    assert_eq!(at(default, u32::MAX, [0; 6]), eperm);
    assert_eq!(at(default, 0x4000_0000, [0; 6]), Action::KillProcess);
}
