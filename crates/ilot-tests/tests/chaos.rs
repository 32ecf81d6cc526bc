//! Killed at any instant: what comes next finds it, repairs it, and leaves nothing.

use std::time::Duration;

use ilot_tests::{World, eventually, in_world};

/// How often `apply` is killed. `ILOT_CHAOS_ROUNDS` makes it more.
const ROUNDS: u32 = 50;

fn project() -> String {
    let mut text = String::from(
        "project_name: chaos\nglobal: {addressing: {base_octet: 10, zone_base: 180, zone_step: 10}, default_os_image: busybox}\ndomains:\n",
    );
    for domain in 1..=4 {
        text.push_str(&format!("  d{domain}:\n    machines:\n"));
        for machine in 1..=2 {
            text.push_str(&format!("      d{domain}-m{machine}: {{}}\n"));
        }
    }
    text
}

/// A number that differs from round to round and is the same in every run of the same seed.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn apply_killed_at_random_moments() {
    in_world(|world| {
        let file = world.write("infra.yml", &project());
        let file = file.to_str().unwrap();
        // Once undisturbed, to know how long it takes; the image is at hand from here on.
        let whole = world.ilot(["apply", "-f", file, "--yes"]).ok().took;
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
        let seed = std::env::var("ILOT_CHAOS_SEED").ok().and_then(|s| s.parse().ok());
        let mut state = seed.unwrap_or_else(|| u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        eprintln!("seed {state}, a whole apply takes {whole:?}");
        let rounds = std::env::var("ILOT_CHAOS_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(ROUNDS);
        for round in 0..rounds {
            let moment = whole.mul_f64((random(&mut state) % 1000) as f64 / 1000.0);
            kill_after(world, &["apply", "-f", file, "--yes"], moment);
            match round % 3 {
                // Repaired by the next apply,
                0 => {
                    converges(world, file, round, moment);
                    world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
                    world.assert_clean();
                }
                // removed by destroy as it is,
                1 => {
                    world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
                    world.assert_clean();
                }
                // or torn down by a destroy that is killed too.
                _ => {
                    let moment = whole.mul_f64((random(&mut state) % 1000) as f64 / 2000.0);
                    kill_after(world, &["destroy", "-f", file, "--yes", "--force"], moment);
                }
            }
        }
        converges(world, file, rounds, Duration::ZERO);
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

fn kill_after(world: &World, args: &[&str], moment: Duration) {
    let mut child = world.ilot(args).spawn();
    std::thread::sleep(moment);
    let _ = child.kill();
    let _ = child.wait();
}

fn converges(world: &World, file: &str, round: u32, moment: Duration) {
    let output = world.ilot(["apply", "-f", file, "--yes"]).run();
    assert!(output.status.success(), "round {round}, killed after {moment:?}: {output}");
    let plan = world.ilot(["plan", "-f", file, "--detailed-exitcode"]).run();
    assert!(plan.status.success(), "round {round}, killed after {moment:?}: not empty: {plan}");
    let answer = world.exec("d1-m1", "ping -c 1 -W 2 d1-m2");
    assert!(answer.status.success(), "round {round}: {answer}");
}

#[test]
fn run_killed_at_random_moments() {
    in_world(|world| {
        let file = world.write("infra.yml", &project());
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let run = |name| ["run", "--rm", "--net", name, "-m", "64MiB", "busybox", "true"];
        let whole = world.ilot(run("d1")).ok().took;
        let mut state = u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        eprintln!("seed {state}, a whole run takes {whole:?}");
        for round in 0..ROUNDS {
            let moment = whole.mul_f64((random(&mut state) % 1200) as f64 / 1000.0);
            kill_after(world, &run(if round % 3 == 0 { "none" } else { "d1" }), moment);
            // Its keeper may still be busy with it; what was not its to remove, the next look finds.
            let only_the_project = || {
                let all = world.ilot(["ps", "-a", "--json"]).ok().json();
                all.as_array().unwrap().iter().all(|machine| machine["project"] == "chaos")
            };
            assert!(eventually(Duration::from_secs(20), only_the_project), "round {round}, killed after {moment:?}");
            let plan = world.ilot(["plan", "-f", file, "--detailed-exitcode"]).run();
            assert!(plan.status.success(), "round {round}, killed after {moment:?}: not empty: {plan}");
        }
        let ranges = std::fs::read_dir(world.root().join("ids")).unwrap().count();
        assert_eq!(ranges, 4, "each domain has a range, and nobody else");
        let answer = world.ilot(["run", "--rm", "--net", "d1", "busybox", "ping", "-c", "1", "-W", "2", "d1-m1"]).run();
        assert!(answer.status.success(), "{answer}");
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}
