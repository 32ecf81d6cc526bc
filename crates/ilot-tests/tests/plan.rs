//! What a plan does to what runs: restarts only where they are allowed, and nothing lost on the way.

use ilot_tests::{World, in_world};

const PROJECT: &str = r#"
project_name: steps
global: {addressing: {base_octet: 10, zone_base: 190, zone_step: 10}, default_os_image: busybox}
domains:
  one:
    subnet_id: 4
    ephemeral: true
    machines:
      box:
        ip: 10.210.4.10
        config: {limits.memory: 64MiB, environment.COLOUR: green}
      idle: {}
"#;

fn inspect(world: &World, machine: &str) -> serde_json::Value {
    let info = world.ilot(["inspect", machine, "--json"]).ok().json();
    if info.is_array() { info[0].clone() } else { info }
}

fn pid(world: &World, machine: &str) -> i64 {
    inspect(world, machine)["pid"].as_i64().expect("it runs")
}

fn plan(world: &World, file: &str) -> serde_json::Value {
    world.ilot(["plan", "-f", file, "--json"]).ok().json()
}

#[test]
fn restarts_wait_until_they_are_allowed() {
    in_world(|world| {
        let file = world.write("infra.yml", PROJECT);
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let (box_pid, idle_pid) = (pid(world, "box"), pid(world, "idle"));
        let changed = PROJECT.replace("64MiB", "128MiB").replace("green", "blue").replace("4.10", "4.20");
        world.write("infra.yml", &changed);

        // The live part is done; the rest is named with its cure, and nothing was stopped for it.
        let held = world.ilot(["apply", "-f", file, "--yes"]).ok();
        assert!(held.stderr.contains("`box`") && held.stderr.contains("--allow-restart"), "{held}");
        assert_eq!((pid(world, "box"), pid(world, "idle")), (box_pid, idle_pid));
        assert_eq!(world.exec("box", "echo $COLOUR").stdout, "green\n");
        let info = inspect(world, "box");
        assert_eq!(info["limits"]["memory"], 128 << 20, "{info}");
        assert_eq!(info["ip"], "10.210.4.10");
        assert!(world.exec("box", "ping -c 1 -W 2 idle").status.success(), "its old address still works");
        let rest = plan(world, file);
        assert_eq!(rest["summary"]["restart"], 1, "{rest}");
        assert_eq!(world.ilot(["apply", "-f", file, "--yes", "--detailed-exitcode"]).run().code(), 2);
        let events = world.ilot(["apply", "-f", file, "--yes", "--json"]).ok();
        let last: serde_json::Value = serde_json::from_str(events.stdout.lines().last().unwrap()).unwrap();
        assert_eq!((&last["held"], &last["ok"]), (&1.into(), &true.into()), "{events}");

        let done = world.ilot(["apply", "-f", file, "--yes", "--allow-restart", "--detailed-exitcode"]).ok();
        assert!(!done.stderr.contains("held back"), "{done}");
        assert_ne!(pid(world, "box"), box_pid, "it was restarted");
        assert_eq!(pid(world, "idle"), idle_pid, "and only it");
        assert_eq!(world.exec("box", "echo $COLOUR").stdout, "blue\n");
        assert!(world.exec("idle", "ping -c 1 -W 2 10.210.4.20").status.success());
        assert!(world.exec("idle", "ping -c 1 -W 2 box").status.success(), "its name means the new address");
        assert_eq!(plan(world, file)["changes"], serde_json::json!([]));
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

/// Machines come and go in a domain that stays: so do their names, and the rules about their addresses.
#[test]
fn names_come_and_go_with_machines() {
    in_world(|world| {
        let file = world.write("infra.yml", PROJECT);
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let finds = |name: &str| world.exec("idle", &format!("ping -c 1 -W 2 {name}")).status.success();
        assert!(finds("box") && !finds("late"));
        let more = format!("{PROJECT}      late: {{ip: 10.210.4.77}}\n");
        world.write("infra.yml", &more);
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        assert!(finds("late") && finds("late.one.ilot"), "a new machine's name");
        world.write("infra.yml", PROJECT);
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let gone = world.exec("idle", "nslookup late.one.ilot");
        assert!(!gone.stdout.contains("10.210.4.77"), "a removed machine's name: {gone}");
        assert!(!ilot_tests::sh("nft list table bridge ilot").contains("10.210.4.77"), "a removed machine's address");
        // The same by `destroy --only`, and the others stay.
        world.ilot(["destroy", "-f", file, "--yes", "--force", "--only", "box"]).ok();
        let gone = world.exec("idle", "nslookup box.one.ilot");
        assert!(!gone.stdout.contains("10.210.4.10"), "{gone}");
        assert_eq!(plan(world, file)["changes"][0]["action"], "create");
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        assert!(finds("box"));
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn a_subnet_moves_only_with_its_machines() {
    in_world(|world| {
        let file = world.write("infra.yml", &PROJECT.replace("        ip: 10.210.4.10\n", ""));
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let text = PROJECT.replace("        ip: 10.210.4.10\n", "").replace("subnet_id: 4", "subnet_id: 5");
        world.write("infra.yml", &format!("{text}      late: {{}}\n"));
        let held = world.ilot(["apply", "-f", file, "--yes"]).ok();
        for name in ["domain `one`", "machine `box`", "machine `late`"] {
            assert!(held.stderr.contains(name), "{name}: {held}");
        }
        assert!(world.exec("box", "ping -c 1 -W 2 idle").status.success());
        world.ilot(["apply", "-f", file, "--yes", "--allow-restart"]).ok();
        assert!(world.exec("box", "ping -c 1 -W 2 late").status.success());
        assert_eq!(plan(world, file)["changes"], serde_json::json!([]));
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn a_replacement_keeps_address_mac_and_volumes() {
    in_world(|world| {
        let data = world.path("data");
        let text = PROJECT.replace("      idle: {}", "      idle: {persistent_data: {home: {path: /home}}}");
        let text = text.replace("global: {", &format!("global: {{persistent_data_base: {}, ", data.display()));
        let file = world.write("infra.yml", &text);
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let card = "cat /sys/class/net/eth0/address; ip -4 -o addr show dev eth0 | awk '{print $4}'";
        let before = world.exec("idle", card).stdout;
        assert!(world.exec("idle", "echo kept > /home/file; echo gone > /root/file").status.success());
        // Another image by another name: the same files, but the plan cannot know.
        let digest = inspect(world, "idle")["image_digest"].as_str().expect("the image's digest").to_owned();
        let other = text.replace("      idle: {", &format!("      idle: {{os_image: \"{digest}\", "));
        world.write("infra.yml", &other);
        assert_eq!(plan(world, file)["changes"][0]["how"], "replacement");
        let held = world.ilot(["apply", "-f", file, "--yes"]).ok();
        assert!(held.stderr.contains("machine `idle`"), "{held}");
        assert_eq!(world.exec("idle", "cat /root/file").stdout, "gone\n", "not replaced");
        assert_eq!(plan(world, file)["changes"][0]["how"], "replacement", "what was held back is not forgotten");
        world.ilot(["apply", "-f", file, "--yes", "--allow-restart"]).ok();
        let after = world.exec("idle", card).stdout;
        assert_eq!(after, before);
        assert!(before.contains("10.210.4."), "{before}");
        assert_eq!(world.exec("idle", "cat /home/file; ls /root/file").stdout, "kept\n");
        assert_eq!(plan(world, file)["changes"], serde_json::json!([]));
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        assert!(data.join("one/idle/home/file").exists(), "data outlives the machine");
        world.assert_clean();
    });
}

/// One machine's lock is held here: what else there is to do is told as done before that one can be.
#[test]
fn events_come_as_they_happen() {
    use std::io::{BufRead, BufReader};
    in_world(|world| {
        let file = world.write("infra.yml", &PROJECT.replace("      idle: {}\n", ""));
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        world.write("infra.yml", &format!("{PROJECT}      third: {{}}\n"));
        let lock = std::fs::File::create(world.run_dir().join("locks/machine-third.lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let mut child = world.ilot(["apply", "-f", file, "--yes", "--json"]).spawn();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut next = || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
        let plan = next();
        assert_eq!((&plan["event"], plan["changes"].as_array().unwrap().len()), (&"plan".into(), 2), "{plan}");
        let mut started = Vec::new();
        let finished = loop {
            let event = next();
            match event["event"].as_str().unwrap() {
                "started" => started.push(event["name"].clone()),
                "finished" => break event,
                _ => {}
            }
        };
        assert_eq!((&finished["name"], &finished["result"]), (&"idle".into(), &"done".into()), "{finished}");
        assert!(child.try_wait().unwrap().is_none(), "it still waits for the other one");
        drop(lock);
        let rest: Vec<serde_json::Value> = std::iter::from_fn(|| {
            let event = next();
            (event["event"] != "summary").then_some(event)
        })
        .collect();
        assert!(rest.iter().any(|e| e["event"] == "finished" && e["name"] == "third"), "{rest:?}");
        assert!(child.wait().unwrap().success());
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn a_part_of_the_project_is_applied_by_itself() {
    in_world(|world| {
        let text = format!("{PROJECT}  two:\n    ephemeral: true\n    machines: {{far: {{}}}}\n");
        let file = world.write("infra.yml", &text);
        let file = file.to_str().unwrap();
        let state = |machine: &str| world.ilot(["inspect", machine]).run().status.success();
        world.ilot(["apply", "-f", file, "--yes", "--only", "idle"]).ok();
        assert_eq!((state("idle"), state("box"), state("far")), (true, false, false));
        world.ilot(["apply", "-f", file, "--yes", "--only", "two"]).ok();
        assert_eq!((state("box"), state("far")), (false, true));
        let wrong = world.ilot(["apply", "-f", file, "--yes", "--only", "idel"]).fails();
        assert!(wrong.stderr.contains("did you mean `idle`"), "{wrong}");
        assert_eq!(plan(world, file)["changes"].as_array().unwrap().len(), 1);
        world.ilot(["destroy", "-f", file, "--yes", "--force", "--only", "two"]).ok();
        assert_eq!((state("idle"), state("far")), (true, false));
        // The same project from another directory, by another spelling of its path, is no change.
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let other = format!(
            "{}/../{}/./infra.yml",
            world.dir.path().display(),
            world.dir.path().file_name().unwrap().to_str().unwrap()
        );
        assert_eq!(plan(world, &other)["changes"], serde_json::json!([]));
        assert_eq!(plan(world, "infra.yml")["changes"], serde_json::json!([]));
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

/// A domain whose name sorts before the others' takes the first subnet, and the others move on: each into the next one's.
#[test]
fn a_new_domain_may_move_the_others() {
    in_world(|world| {
        let text = |names: &[&str]| {
            let domains: String = names
                .iter()
                .map(|name| format!("  {name}: {{ephemeral: true, machines: {{{name}-1: {{}}, {name}-2: {{}}}}}}\n"))
                .collect();
            // A machine of another zone with a leg in one of them.
            let leg = "  far: {trust_level: trusted, ephemeral: true, machines: {spy: {devices: {eth1: {type: nic, network: cow}}}}}\n";
            let domains = domains + leg;
            format!(
                "project_name: moves\nglobal: {{addressing: {{base_octet: 10, zone_base: 150, zone_step: 10}}, default_os_image: busybox}}\ndomains:\n{domains}"
            )
        };
        let file = world.write("infra.yml", &text(&["bee", "cow", "dog"]));
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let reaches =
            |name: &str| world.exec(&format!("{name}-1"), &format!("ping -c 1 -W 2 {name}-2")).status.success();
        world.write("infra.yml", &text(&["ant", "bee", "cow", "dog"]));
        let spy = pid(world, "spy");
        let leg = || {
            world
                .exec("spy", "ping -c 1 -W 2 -I eth1 $(ip -4 route show dev eth1 | tail -n 1 | sed 's/0.24 .*/1/')")
                .status
                .success()
        };
        assert!(leg());
        // Nothing may stop: the new domain waits for its subnet, and says for whom.
        let held = world.ilot(["apply", "-f", file, "--yes"]).ok();
        assert!(held.stderr.contains("domain `ant`") && held.stderr.contains("--allow-restart"), "{held}");
        let rest = world.ilot(["apply", "-f", file, "--yes", "--json"]).ok();
        let plan: serde_json::Value = serde_json::from_str(rest.stdout.lines().next().unwrap()).unwrap();
        let ant =
            plan["kept"].as_array().unwrap().iter().find(|k| k["kind"] == "domain" && k["name"] == "ant").unwrap();
        assert_eq!(ant["because"], "its subnet is domain `bee`'s until a restart is allowed", "{plan}");
        assert!(["bee", "cow", "dog"].into_iter().all(reaches));
        world.ilot(["apply", "-f", file, "--yes", "--allow-restart"]).ok();
        assert_eq!(self::plan(world, file)["changes"], serde_json::json!([]));
        for name in ["ant", "bee", "cow", "dog"] {
            assert!(reaches(name), "{name}");
        }
        assert_eq!(inspect(world, "ant-1")["ip"], "10.170.0.1");
        assert_eq!(inspect(world, "dog-1")["ip"], "10.170.3.1");
        assert!(leg() && pid(world, "spy") == spy, "its leg moved with the domain, without a restart");
        // And back again.
        world.write("infra.yml", &text(&["bee", "cow", "dog"]));
        world.ilot(["apply", "-f", file, "--yes", "--allow-restart"]).ok();
        assert!(["bee", "cow", "dog"].into_iter().all(reaches));
        assert_eq!(inspect(world, "dog-1")["ip"], "10.170.2.1");
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}
