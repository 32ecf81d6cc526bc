//! The teacher's lab: 31 domains, 61 machines, up, isolated, gone.

use std::time::Duration;

use ilot_tests::{OUTSIDE, OUTSIDE_NAME, UPLINK, World, in_world};

/// A bound that only a broken build misses; the promise (3 s) is the benchmark's to watch.
const UP: Duration = Duration::from_secs(30);

fn addresses(world: &World) -> Vec<(String, String)> {
    let example = world.example("teacher-lab");
    let check = world.ilot(["check", "--json", "-f", example.to_str().unwrap()]).ok().json();
    check["machines"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, m)| (name.clone(), m["ip"].as_str().unwrap().to_owned()))
        .collect()
}

#[test]
fn sixty_one_machines_up_isolated_and_gone() {
    in_world(|world| {
        let example = world.example("teacher-lab");
        let file = example.to_str().unwrap();
        let addresses = addresses(world);
        assert_eq!(addresses.len(), 61);

        let up = world.ilot(["apply", "-f", file, "--yes"]).ok();
        eprintln!("apply: {:?}", up.took);
        assert!(up.took < UP, "{:?}", up.took);

        let again = world.ilot(["plan", "-f", file, "--detailed-exitcode"]).ok();
        assert_eq!(again.stdout.trim().lines().count(), 1, "one line when nothing is to do: {again}");
        let again = world.ilot(["apply", "-f", file, "--yes"]).ok();
        eprintln!("second apply: {:?}", again.took);

        isolated(world, &addresses);
        outside(world);

        let gone = world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        eprintln!("destroy: {:?}", gone.took);
        world.assert_clean();
    });
}

/// From a student's client: its own web server by name and address, nobody else's anything.
fn isolated(world: &World, addresses: &[(String, String)]) {
    let own = &addresses.iter().find(|(n, _)| n == "s01-web").expect("s01-web").1;
    for target in ["s01-web", own.as_str(), "s01-web.s01.ilot"] {
        let got =
            world.exec("s01-client", &format!("ping -c 1 -W 2 {target} && timeout 5 wget -q -O - http://{target}/"));
        assert!(got.status.success(), "own web server as {target}: {got}");
    }
    let others: Vec<&str> =
        addresses.iter().filter(|(name, _)| !name.starts_with("s01-")).map(|(_, ip)| ip.as_str()).collect();
    assert_eq!(others.len(), 59);
    let script = format!(
        "for ip in {}; do (ping -c 1 -W 1 $ip >/dev/null 2>&1 && echo ping $ip; \
         timeout 1 wget -q -O /dev/null http://$ip/ 2>/dev/null && echo web $ip) & done; wait",
        others.join(" ")
    );
    let reached = world.exec("s01-client", &script);
    assert_eq!(reached.stdout.trim(), "", "reached machines of others: {reached}");
    let by_name = world.exec("s01-client", "nslookup s02-web; ping -c 1 -W 1 s02-web");
    assert!(!by_name.status.success(), "another domain's name resolves: {by_name}");
}

/// The outside answers, by address and by name, and sees the host's address only.
fn outside(world: &World) {
    for target in [OUTSIDE, OUTSIDE_NAME] {
        let got = world.exec("s01-client", &format!("timeout 5 wget -q -O - http://{target}/"));
        assert_eq!(got.stdout, "outside\n", "{got}");
    }
    let seen = world.outside.seen();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [UPLINK]);
}
