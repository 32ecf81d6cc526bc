//! `ilot run`: one container without a file.

use std::time::Duration;

use ilot_tests::{eventually, in_world};

#[test]
fn in_the_foreground() {
    in_world(|world| {
        let got = world.ilot(["run", "--rm", "--net", "none", "busybox", "/bin/sh", "-c", "echo hello; exit 7"]).run();
        assert_eq!((got.code(), got.stdout.as_str()), (7, "hello\n"), "{got}");
        let got = world
            .ilot(["run", "--rm", "-i", "--net", "none", "-m", "64m", "--cpus", "0.5", "busybox", "cat"])
            .run_with_input(b"through\n");
        assert_eq!(got.stdout, "through\n", "{got}");
        assert_eq!(world.ilot(["run", "--rm", "--net", "none", "busybox", "/no/such/program"]).run().code(), 127);
        assert_eq!(world.ilot(["ps", "-a", "--json"]).ok().json().as_array().unwrap().len(), 0, "--rm leaves nothing");
        world.assert_clean();
    });
}

#[test]
fn detached_and_in_a_domain() {
    in_world(|world| {
        let file = world.write(
            "infra.yml",
            "project_name: p\nglobal: {addressing: {base_octet: 10, zone_base: 180, zone_step: 10}, default_os_image: busybox}\ndomains: {pond: {machines: {fish: {}}}}\n",
        );
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let name = world.ilot(["run", "-d", "--net", "pond", "--name", "frog", "busybox", "sleep", "1000"]).ok();
        assert_eq!(name.stdout.trim(), "frog");
        let taken = world.ilot(["run", "-d", "--net", "pond", "--name", "frog", "busybox", "true"]).fails();
        assert!(taken.stderr.contains("frog"), "{taken}");
        let both = world.exec("fish", "ping -c 1 -W 2 frog && echo yes");
        assert_eq!(both.stdout.lines().last(), Some("yes"), "{both}");
        let both = world.exec("frog", "ping -c 1 -W 2 fish && echo yes");
        assert_eq!(both.stdout.lines().last(), Some("yes"), "{both}");
        let plan = world.ilot(["plan", "-f", file, "--detailed-exitcode"]).run();
        assert!(plan.status.success(), "`ilot run` is no drift: {plan}");
        world.ilot(["rm", "--force", "frog"]).ok();
        world.ilot(["run", "-d", "--rm", "--net", "pond", "--name", "fly", "busybox", "sleep", "0.2"]).ok();
        let gone =
            eventually(Duration::from_secs(10), || !world.ilot(["ps", "-a", "--json"]).ok().stdout.contains("\"fly\""));
        assert!(gone, "--rm -d removes it at its end");
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn detached_survives_and_keeps_its_output() {
    in_world(|world| {
        world
            .ilot(["run", "-d", "--net", "none", "--name", "talker", "busybox", "/bin/sh", "-c", "echo one; echo two"])
            .ok();
        let ended = eventually(Duration::from_secs(10), || {
            let info = world.ilot(["inspect", "talker", "--json"]).ok().json();
            let info = if info.is_array() { info[0].clone() } else { info };
            info["state"] == "stopped" && info["exit"]["code"] == 0
        });
        assert!(ended, "its end and its status are known");
        let logs = world.ilot(["logs", "talker"]).ok().stdout;
        assert!(logs.contains("one") && logs.contains("two"), "{logs}");
        world.ilot(["rm", "talker"]).ok();
        world.assert_clean();
    });
}

#[test]
fn left_alone_it_removes_itself() {
    in_world(|world| {
        let script = "until [ -e /go ]; do sleep 0.05; done";
        let run = ["run", "--rm", "--net", "none", "--name", "orphan", "busybox", "/bin/sh", "-c", script];
        let mut child = world.ilot(run).spawn();
        let state = || {
            let got = world.ilot(["inspect", "orphan"]).run();
            if got.status.success() { got.json()[0]["state"].clone() } else { serde_json::Value::Null }
        };
        assert!(eventually(Duration::from_secs(10), || state() == "running"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(world.ilot(["ps", "--json"]).ok().json()[0]["name"], "orphan", "it goes on");
        world.ilot(["exec", "orphan", "--", "touch", "/go"]).ok();
        // No other command looks after it.
        let place = world.root().join("machines/orphan");
        assert!(eventually(Duration::from_secs(10), || !place.exists()), "it stays behind");
        assert!(eventually(Duration::from_secs(10), || !world.run_dir().join("machines/orphan").exists()));
        let locks = || std::fs::read_dir(world.run_dir().join("locks")).unwrap().flatten();
        let named = || locks().filter(|e| e.file_name().to_string_lossy().contains("orphan")).count();
        assert!(eventually(Duration::from_secs(10), || named() == 0), "its lock stays behind");
        world.assert_clean();
    });
}
