//! CVE-2022-0492: `release_agent` of a v1 hierarchy is a program that the host's kernel runs; whoever can write it in a
//! container owns the host.
//!
//! A runtime that has the problem mounts the hierarchies' roots writable (without a cgroup namespace or over the wrong
//! group), or hands out `CAP_SYS_ADMIN` in the host's user namespace together with a writable mount.

use ilot_conformance::{Bundle, conform, host, json, need};

fn agents() -> Vec<String> {
    let groups = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    groups.map(|e| host::read(e.path().join("release_agent"))).collect()
}

#[test]
fn release_agent_is_out_of_reach() {
    conform(|| {
        need(host::has_v1("memory"), "needs cgroup v1");
        let before = agents();
        for (user, namespace, access) in [
            (false, false, "ro"),
            (false, true, "ro"),
            (true, true, "ro"),
            (false, false, "rw"),
            (false, true, "rw"),
            (true, true, "rw"),
        ] {
            let mut c = Bundle::new();
            if user {
                c.user_namespace(200_000);
                c.all_capabilities();
            }
            if namespace {
                c.namespace("cgroup", Some(json!({"type": "cgroup"})));
            }
            c.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", access]}));
            let text = c.output(
                "for f in $(find /sys/fs/cgroup -maxdepth 3 -name release_agent); do (echo /tmp/evil >$f) 2>/dev/null && echo written $f; done
                 mkdir -p /tmp/cg
                 for o in memory rdma misc pids none,name=own; do
                   mount -t cgroup -o $o cgroup /tmp/cg 2>/dev/null || continue
                   (echo /tmp/evil >/tmp/cg/release_agent) 2>/dev/null && echo written $o; umount /tmp/cg
                 done; echo end",
            );
            let after = agents();
            assert_eq!(text, "end\n", "user namespace {user}, cgroup namespace {namespace}, {access}");
            assert_eq!(after, before);
        }
    });
}

/// That writing works at all for who has every right on the host: on a hierarchy that is this test's own.
#[test]
fn writing_works_with_every_capability() {
    conform(|| {
        need(host::has_v1("memory"), "needs cgroup v1");
        let mut c = Bundle::new();
        c.all_capabilities();
        let name = format!("conform{}", std::process::id());
        let text = c.output(&format!(
            "mkdir /tmp/cg; mount -t cgroup -o none,name={name} cgroup /tmp/cg && echo /tmp/evil >/tmp/cg/release_agent && echo written
             umount /tmp/cg; echo end"
        ));
        assert_eq!(text, "written\nend\n");
    });
}
