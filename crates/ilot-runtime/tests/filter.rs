//! The default filter on a real kernel: what a container's process cannot call.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Machine, host_can};
use std::process::Command;

/// The helper program, static, in the container's layer.
fn install(machine: &Machine) {
    let status = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "-C", "target-feature=+crt-static", "-o"])
        .arg(machine.lower().join("bin/syscall"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/helpers/syscall.rs"))
        .env_remove("RUSTFLAGS")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn dangerous_calls_are_refused() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    install(&machine);
    machine.up();
    let refused = [
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_bpf,
        libc::SYS_userfaultfd,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_mount_setattr,
        libc::SYS_setns,
        libc::SYS_kexec_load,
        libc::SYS_perf_event_open,
        libc::SYS_open_by_handle_at,
        libc::SYS_swapon,
        libc::SYS_reboot,
        libc::SYS_settimeofday,
        libc::SYS_acct,
    ];
    let mut args: Vec<String> = refused.iter().map(ToString::to_string).collect();
    // socket(AF_ALG, SOCK_SEQPACKET, 0); unshare(CLONE_NEWUSER); clone(CLONE_NEWUSER | SIGCHLD)
    args.push(format!("{},38,5,0", libc::SYS_socket));
    args.push(format!("{},{}", libc::SYS_unshare, libc::CLONE_NEWUSER));
    let mut command = vec!["/bin/syscall"];
    command.extend(args.iter().map(String::as_str));
    let (code, text) = machine.exec(&command);
    assert_eq!(code, 0, "{text}");
    assert_eq!(text.lines().count(), args.len());
    for line in text.lines() {
        let fields: Vec<i64> = line.split(' ').map(|f| f.parse().unwrap()).collect();
        let known = [libc::EPERM, libc::ENOSYS, libc::EAFNOSUPPORT, libc::EACCES].map(i64::from);
        assert!(fields[1] == -1 && known.contains(&fields[2]), "call {line}");
    }
    // Ordinary ones pass: getpid, socket(AF_INET, SOCK_STREAM, 0).
    let inet = format!("{},2,1,0", libc::SYS_socket);
    let (_, text) = machine.exec(&["/bin/syscall", &libc::SYS_getpid.to_string(), &inet]);
    assert!(text.lines().all(|l| !l.contains(" -1 ")), "{text}");
}
