//! What no file declares any more: listed, removed, kept where it is protected. And two projects on one host.

use ilot_tests::{World, in_world};

fn project(name: &str, zone: u32, domain: &str, machines: &[(&str, bool)]) -> String {
    let machines: String =
        machines.iter().map(|(name, ephemeral)| format!("      {name}: {{ephemeral: {ephemeral}}}\n")).collect();
    format!(
        "project_name: {name}\nglobal: {{addressing: {{base_octet: 10, zone_base: {zone}, zone_step: 10}}, default_os_image: busybox}}\n\
         domains:\n  {domain}:\n    ephemeral: true\n    machines:\n{machines}"
    )
}

fn names(world: &World) -> Vec<String> {
    let found = world.ilot(["orphans", "--json"]).ok().json();
    found["orphans"].as_array().unwrap().iter().map(|o| o["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn orphans_are_listed_and_removed() {
    in_world(|world| {
        let file = world
            .write("a/infra.yml", &project("first", 150, "one", &[("kept", true), ("dropped", true), ("safe", false)]));
        let other = world.write("b/infra.yml", &project("second", 130, "two", &[("lost", true)]));
        let (file, other) = (file.to_str().unwrap(), other.to_str().unwrap());
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        world.ilot(["apply", "-f", other, "--yes"]).ok();
        assert_eq!(world.ilot(["orphans"]).ok().stdout, "no orphans\n");
        // Two machines out of one file, and the other file gone.
        world.write("a/infra.yml", &project("first", 150, "one", &[("kept", true)]));
        std::fs::remove_file(other).unwrap();
        let mut found = names(world);
        found.sort();
        assert_eq!(found, ["dropped", "lost", "safe", "second", "two"]);
        let nobody = world.ilot(["orphans", "--clean"]).fails();
        assert!(nobody.stderr.contains("--yes"), "{nobody}");
        let cleaned = world.ilot(["orphans", "--clean", "--yes"]).ok();
        assert!(!cleaned.stderr.contains("error"), "{cleaned}");
        assert_eq!(names(world), ["safe"], "what is protected is kept");
        assert!(world.exec("kept", "true").status.success() && world.exec("safe", "true").status.success());
        world.ilot(["orphans", "--clean", "--force", "--yes"]).ok();
        assert_eq!(names(world), Vec::<String>::new());
        // A file with errors says nothing about orphans.
        world.write("a/infra.yml", "project_name: first\nglobal: {}\ndomains: 7\n");
        assert_eq!(names(world), Vec::<String>::new());
        let unknown = world.ilot(["destroy", "--project", "nothing", "--yes"]).fails();
        assert!(unknown.stderr.contains("first"), "{unknown}");
        world.ilot(["destroy", "--project", "first", "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn projects_that_collide_are_told() {
    in_world(|world| {
        let first = world.write("a/infra.yml", &project("first", 150, "one", &[("box", true)]));
        let first = first.to_str().unwrap();
        let second = world.write("b/infra.yml", &project("second", 150, "two", &[("box", true)]));
        let second = second.to_str().unwrap();
        world.ilot(["check", "-f", second]).ok();
        world.ilot(["apply", "-f", first, "--yes"]).ok();
        world.ilot(["check", "-f", first]).ok();
        let told = world.ilot(["check", "-f", second]).fails();
        for part in ["the machine `box` is project `first`", "subnet 10.170.0.0/24", "infra.yml:4"] {
            assert!(told.stderr.contains(part), "{part}: {told}");
        }
        world.write("b/infra.yml", &project("second", 150, "one", &[("other", true)]));
        let told = world.ilot(["check", "-f", second]).fails();
        assert!(told.stderr.contains("the domain `one` is project `first`"), "{told}");
        world.ilot(["destroy", "-f", first, "--yes", "--force"]).ok();
        world.ilot(["check", "-f", second]).ok();
        world.assert_clean();
    });
}
