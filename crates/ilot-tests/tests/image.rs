//! `ilot image`: the images of the store.

use std::fs;

use ilot_tests::{World, in_world, sh};
use serde_json::Value;

/// A root file system in a tar archive, from what a shell makes below it.
fn archive(world: &World, name: &str, script: &str) -> String {
    let root = world.path(format!("{name}-root"));
    fs::create_dir_all(&root).unwrap();
    let file = world.path(format!("{name}.tar"));
    sh(&format!("cd {}; {script}; tar -cf {} .", root.display(), file.display()));
    file.to_str().unwrap().to_owned()
}

fn names(world: &World) -> Vec<String> {
    let list = world.ilot(["image", "ls", "--json"]).ok().json();
    list.as_array().unwrap().iter().map(|i| i["reference"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn pulled_named_looked_at_and_removed() {
    in_world(|world| {
        assert_eq!(world.ilot(["image", "ls", "--json"]).ok().json().as_array().unwrap().len(), 0);
        let got = world.ilot(["image", "pull", "busybox", "--json"]).ok().json();
        assert_eq!(got["images"][0]["result"], "pulled", "{got}");
        let digest = got["images"][0]["image"]["digest"].as_str().unwrap().to_owned();
        let again = world.ilot(["image", "pull", "busybox", "--json"]).ok().json();
        assert_eq!(again["images"][0]["result"], "unchanged", "{again}");
        let quiet = world.ilot(["image", "pull", "-q", "--missing", "busybox"]).ok();
        assert_eq!((quiet.stdout.trim(), quiet.stderr.as_str()), (digest.as_str(), ""), "{quiet}");
        world.ilot(["image", "tag", "busybox", "golden:2"]).ok();
        world.ilot(["image", "tag", "busybox", "localhost:5000/team/tool:1"]).ok();
        assert_eq!(names(world), ["busybox", "docker://localhost:5000/team/tool:1", "local:golden:2"]);
        let said = world.ilot(["image", "ls", "golden"]).ok().stdout;
        assert!(said.contains("local:golden:2") && !said.contains("tool"), "{said}");
        let inspected = world.ilot(["image", "inspect", "golden:2"]).ok().json();
        assert_eq!(inspected[0]["names"].as_array().unwrap().len(), 3, "{inspected}");
        assert_eq!(inspected[0]["digest"], digest.as_str());
        assert_eq!(inspected[0]["manifest"]["schemaVersion"], 2);
        assert_eq!(inspected[0]["configuration"]["os"], "linux");
        let history = world.ilot(["image", "history", "golden:2", "--json"]).ok().json();
        assert!(history[0]["layer"].as_str().unwrap().starts_with("sha256:"), "{history}");
        assert!(world.ilot(["image", "history", "golden:2"]).ok().stdout.contains("LAYER"));
        // A machine stands on it: the last name stays.
        world.ilot(["run", "-d", "--name", "user", "golden:2", "sleep", "1000"]).ok();
        world.ilot(["image", "rm", "localhost:5000/team/tool:1", "golden:2"]).ok();
        let refused = world.ilot(["image", "rm", "busybox"]).fails();
        assert_eq!(refused.code(), 1, "{refused}");
        assert!(refused.stderr.contains("in use") && refused.stderr.contains("ilot ps"), "{refused}");
        let refused = world.ilot(["image", "rm", "--json", &digest]).fails().json();
        assert_eq!(refused["images"][0]["result"], "failed", "{refused}");
        let kept = world.ilot(["image", "prune", "--all", "--yes", "--json"]).ok().json();
        assert_eq!(kept["images"].as_array().unwrap().len(), 0, "{kept}");
        let list = world.ilot(["image", "ls", "--json"]).ok().json();
        assert_eq!(list[0]["in_use"], true, "{list}");
        world.ilot(["rm", "-f", "user"]).ok();
        world.ilot(["image", "rm", "busybox"]).ok();
        assert!(fs::read_dir(world.root().join("blobs/sha256")).unwrap().next().is_none(), "blobs are gone");
        let missing = world.ilot(["image", "inspect", "busybox"]).fails();
        assert!(missing.stderr.contains("not in the store"), "{missing}");
        world.assert_clean();
    });
}

#[test]
fn wrong_names_and_places() {
    in_world(|world| {
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        for (args, wanted) in [
            (["image", "tag", "busybox", "images:debian/13"], "belongs to a source"),
            (["image", "tag", "busybox", "Golden!"], "Golden!"),
            (["image", "tag", "nothing", "golden"], "nothing"),
            (["image", "export", "busybox", "http://example.org/x"], "not a place for an image"),
            (["image", "push", "busybox", "golden"], "golden"),
            (["image", "push", "busybox", "busybox"], "not a registry"),
        ] {
            let got = world.ilot(args).fails();
            assert!(got.stderr.contains(wanted), "{wanted}: {got}");
            assert!(got.stderr.contains("hint"), "{got}");
        }
        assert_eq!(world.ilot(["image"]).run().code(), 2);
        assert_eq!(world.ilot(["image", "prune", "--all"]).run().code(), 2, "nobody to ask");
        let some = world.ilot(["image", "pull", "--json", "nothing", "busybox"]).run();
        assert_eq!(some.code(), 1);
        let report = some.json();
        assert_eq!(report["images"][0]["result"], "failed", "{report}");
        assert_eq!(report["images"][1]["result"], "unchanged", "{report}");
    });
}

#[test]
fn goes_out_and_comes_back() {
    in_world(|world| {
        let file = archive(world, "small", "mkdir etc; echo one > etc/one; ln -s one etc/link");
        world.ilot(["image", "import", &file, "small:1"]).ok();
        let digest =
            |name: &str| world.ilot(["image", "inspect", name]).ok().json()[0]["digest"].as_str().unwrap().to_owned();
        let before = digest("small:1");
        for (destination, source) in [
            ("out.tar".to_owned(), "./out.tar"),
            ("oci:layout:small".to_owned(), "./layout"),
            ("docker-archive:docker.tar:small:1".to_owned(), "./docker.tar"),
        ] {
            world.ilot(["image", "export", "small:1", &destination]).ok();
            let back = world.ilot(["image", "import", source, "back", "--json"]).ok().json();
            assert_eq!(back["reference"], "local:back", "{back}");
            // Docker's archive has no manifest: another one is made, its files are the same.
            if !destination.starts_with("docker") {
                assert_eq!(back["digest"], before.as_str(), "{destination}");
            }
            let diff = world.ilot(["image", "diff", "small:1", "back", "--json"]).ok().json();
            assert_eq!(diff, Value::Array(Vec::new()), "{destination}");
        }
        let folder = world.path("small-root");
        world.ilot(["image", "import", folder.to_str().unwrap(), "folder"]).ok();
        let diff = world.ilot(["image", "diff", "small:1", "folder"]).ok().stdout;
        assert_eq!(diff, "");
        let other = archive(world, "other", "mkdir etc; echo two > etc/one; chmod 700 etc; echo > new");
        world.ilot(["image", "import", &other, "other"]).ok();
        let diff = world.ilot(["image", "diff", "small:1", "other"]).ok().stdout;
        assert_eq!(diff, "C /etc (mode)\nD /etc/link\nC /etc/one (content)\nA /new\n");
        let top = world.ilot(["image", "diff", "other", "--json"]).ok().json();
        assert_eq!(top.as_array().unwrap().len(), 3, "{top}");
    });
}

#[test]
fn damage_is_found_and_cured() {
    in_world(|world| {
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        let fine = world.ilot(["image", "verify"]).ok();
        assert!(fine.stderr.contains("all is well"), "{fine}");
        let inspected = world.ilot(["image", "inspect", "busybox"]).ok().json();
        let layer = inspected[0]["manifest"]["layers"][0]["digest"].as_str().unwrap();
        let blob = world.root().join("blobs/sha256").join(layer.trim_start_matches("sha256:"));
        let mut bytes = fs::read(&blob).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&blob, bytes).unwrap();
        let bad = world.ilot(["image", "verify", "busybox"]).fails();
        assert!(bad.stderr.contains("its content is sha256:") && bad.stderr.contains("hint"), "{bad}");
        let bad = world.ilot(["image", "verify", "--json"]).fails().json();
        assert_eq!(bad["findings"].as_array().unwrap().len(), 1, "{bad}");
        let refused = world.ilot(["image", "export", "busybox", "out.tar"]).fails();
        assert!(refused.stderr.contains("its content is"), "{refused}");
        assert!(!world.path("out.tar").exists(), "nothing half-written");
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        world.ilot(["image", "verify", "busybox"]).ok();
    });
}

#[test]
fn golden_images_of_machines() {
    in_world(|world| {
        world.ilot(["run", "-d", "--name", "web", "busybox", "sleep", "1000"]).ok();
        let changes =
            "echo golden > /srv-file; mkdir -p /data/deep; echo x > /data/deep/x; chown 1000:1001 /data/deep/x
            chmod 4750 /data/deep/x; ln /srv-file /hard; ln -s srv-file /soft; rm /bin/vi; rm -r /etc/init.d 2>/dev/null
            mkdir -p /usr/share/udhcpc; rm -r /usr/share; mkdir /usr/share; echo new > /usr/share/new
            echo 0123456789abcdef0123456789abcdef > /etc/machine-id";
        let done = world.exec("web", changes);
        assert!(done.status.success(), "{done}");
        let image = world.ilot(["image", "commit", "-m", "with data", "web", "golden", "--json"]).ok().json();
        assert_eq!(image["reference"], "local:golden", "{image}");
        assert_eq!(world.exec("web", "cat /srv-file").stdout, "golden\n", "it goes on");
        let history = world.ilot(["image", "history", "golden", "--json"]).ok().json();
        assert_eq!((history[0]["comment"].as_str(), history.as_array().unwrap().len()), (Some("with data"), 2));
        world.ilot(["image", "verify", "golden"]).ok();
        let diff = world.ilot(["image", "diff", "golden"]).ok().stdout;
        for line in ["A /srv-file", "A /hard", "A /soft", "A /data/deep/x", "D /bin/vi", "A /usr/share/new"] {
            assert!(diff.lines().any(|l| l == line), "{line}: {diff}");
        }
        assert!(!diff.contains("/etc/hostname") && !diff.contains("/etc/hosts"), "{diff}");
        // Machines made from it, two at once, have it all and share it.
        for name in ["one", "two"] {
            world.ilot(["run", "-d", "--name", name, "golden", "sleep", "1000"]).ok();
            let seen = world.exec(
                name,
                "cat /srv-file /hard /soft /usr/share/new /etc/hostname; stat -c '%u:%g %a' /data/deep/x
                stat -c %h /hard; ls /bin/vi 2>/dev/null; ls /usr/share; wc -c < /etc/machine-id",
            );
            let wanted = format!("golden\ngolden\ngolden\nnew\n{name}\n1000:1001 4750\n2\nnew\n0\n");
            assert_eq!(seen.stdout, wanted, "{seen}");
        }
        let layers: usize = fs::read_dir(world.root().join("layers"))
            .unwrap()
            .map(|level| fs::read_dir(level.unwrap().path()).unwrap().count())
            .sum();
        assert_eq!(layers, 2, "one for the base, one for what was added");
        // Paused it stays, stopped it works too; the name moves.
        world.ilot(["pause", "web"]).ok();
        world.ilot(["image", "commit", "web", "golden"]).ok();
        assert_eq!(world.ilot(["inspect", "web"]).ok().json()[0]["state"], "paused");
        world.ilot(["stop", "-t", "0", "web"]).ok();
        let second = world.ilot(["image", "commit", "web", "golden:stopped", "--json"]).ok().json();
        let same = world.ilot(["image", "diff", "golden", "golden:stopped"]).ok().stdout;
        assert_eq!(same, "", "{second}");
        // On top of itself.
        world.ilot(["image", "commit", "one", "third"]).ok();
        let inspected = world.ilot(["image", "inspect", "third"]).ok().json();
        assert_eq!(inspected[0]["manifest"]["layers"].as_array().unwrap().len(), 3);
        for (machine, name, wanted) in
            [("nobody", "x", "no machine `nobody`"), ("web", "images:debian/13", "belongs to a source")]
        {
            let got = world.ilot(["image", "commit", machine, name]).fails();
            assert!(got.stderr.contains(wanted), "{got}");
        }
        world.ilot(["rm", "-f", "web", "one", "two"]).ok();
        world.assert_clean();
    });
}

/// A path in a file is seen from the file's folder, wherever the command runs; the same words elsewhere are another image.
#[test]
fn a_files_own_images_are_beside_it() {
    in_world(|world| {
        let busybox = "mkdir bin dev proc sys tmp etc; cp $(command -v busybox) bin/; ln -s busybox bin/sh";
        let project = |name: &str, subnet: u8| {
            archive(world, name, &format!("{busybox}; ln -s busybox bin/cat; echo {name} > etc/which"));
            let dir = world.path(name);
            fs::create_dir_all(&dir).unwrap();
            fs::rename(world.path(format!("{name}.tar")), dir.join("root.tar")).unwrap();
            fs::rename(world.path(format!("{name}-root")), dir.join("rootfs")).unwrap();
            let text = format!(
                "project_name: {name}
global: {{}}
domains:
  {name}:
    subnet_id: {subnet}
    ephemeral: true
    machines:
      {name}-tar: {{ephemeral: true, ilot: {{image: ./root.tar, command: [/bin/sh, -c, 'while :; do sleep 9; done']}}}}
      {name}-dir: {{ephemeral: true, ilot: {{image: './rootfs', command: [/bin/sh, -c, 'while :; do sleep 9; done']}}}}
"
            );
            world.write(&format!("{name}/infra.yml"), &text)
        };
        let files = [project("one", 1), project("two", 2)];
        world.ilot(["apply", "--yes", "-f", files[0].to_str().unwrap()]).ok();
        world.ilot(["apply", "--yes", "-f", "two/infra.yml"]).ok();
        for name in ["one", "two"] {
            for kind in ["tar", "dir"] {
                let seen = world.exec(&format!("{name}-{kind}"), "cat /etc/which");
                assert_eq!(seen.stdout, format!("{name}\n"), "{seen}");
            }
            // Nothing to do, whichever way the file is named.
            for file in [format!("{name}/infra.yml"), world.path(name).display().to_string()] {
                let plan = world.ilot(["plan", "--detailed-exitcode", "-f", &file]).run();
                assert!(plan.status.success(), "{plan}");
            }
        }
        for file in files {
            world.ilot(["destroy", "--yes", "-f", file.to_str().unwrap()]).ok();
        }
        world.assert_clean();
    });
}
