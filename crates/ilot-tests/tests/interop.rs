//! Images of ours in other programs, and theirs here: umoci, skopeo, buildah and podman of the distribution.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ilot_tests::{World, in_world, sh, skip};

/// A policy that takes everything, where the programs look for it, and their folders covered: the world has its own mounts.
fn cover(world: &World) {
    fs::create_dir_all("/var/lib/containers").unwrap();
    for dir in ["/run/containers", "/run/crun", "/run/libpod", "/var/lib/containers", "/etc/containers", "/etc/cni"] {
        if Path::new(dir).is_dir() {
            sh(&format!("mount -t tmpfs tmpfs {dir}"));
        }
    }
    fs::create_dir_all("/etc/containers").unwrap();
    fs::write("/etc/containers/policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    // Podman's own limits may be above what this host can give.
    let limits = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n";
    world.write("containers.conf", limits);
}

fn missing(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        skip(&format!("needs `{program}`"));
    }
    !found
}

/// `golden`: busybox, and a layer with what layers can have.
fn golden(world: &World, holes: bool) {
    world.ilot(["run", "-d", "--name", "web", "busybox", "sleep", "1000"]).ok();
    let changes = "set -e; mkdir -p /data/deep; echo x > /data/deep/x; chown 1000:1001 /data/deep/x
        chmod 4750 /data/deep/x; ln /data/deep/x /data/hard; ln -s deep/x /data/soft; mkfifo /data/pipe
        rm /bin/vi; rm -r /var/spool 2>/dev/null || true; mkdir -p /usr/share; rm -r /usr/share; mkdir /usr/share
        echo new > /usr/share/new; touch -d '2001-02-03 04:05:06' /data/deep; mkdir /data/sticky; chmod 1777 /data/sticky
        dd if=/dev/zero of=/data/sparse bs=1 count=1 seek=1000000 2>/dev/null";
    // podman 4 cannot write a layer again that has a file with holes (its storage takes archives apart and joins them).
    let changes = if holes { changes.to_owned() } else { changes.rsplit_once("dd ").unwrap().0.to_owned() };
    let done = world.exec("web", &changes);
    assert!(done.status.success(), "{done}");
    world.ilot(["stop", "-t", "0", "web"]).ok();
    world.ilot(["image", "commit", "web", "golden"]).ok();
    world.ilot(["rm", "-f", "web"]).ok();
}

/// Every entry of a tree with all that an image says of it.
fn entries(root: &Path) -> String {
    sh(&format!(
        "cd {} && find . -mindepth 1 \\( -type d -printf '%P %y %m %U:%G %TY%Tm%Td%TH%TM\\n' \\
            -o -printf '%P %y %m %U:%G %n %l %s %TY%Tm%Td%TH%TM\\n' \\) | sort; find . -type f -exec sha256sum {{}} + | sort",
        root.display()
    ))
}

/// The image as machines see it: its unpacked layers in an overlay, read-only.
fn ours(world: &World, image: &str) -> PathBuf {
    let inspected = world.ilot(["image", "inspect", image]).ok().json();
    let ids = inspected[0]["configuration"]["rootfs"]["diff_ids"].as_array().unwrap().clone();
    world.ilot(["run", "--rm", image, "true"]).env("ILOT_LAYERS", "unpacked").ok();
    let level = fs::read_dir(world.root().join("layers")).unwrap().next().unwrap().unwrap().path();
    let lowers: Vec<String> = ids
        .iter()
        .rev()
        .map(|id| level.join(id.as_str().unwrap().trim_start_matches("sha256:")).display().to_string())
        .collect();
    let target = world.path("seen");
    fs::create_dir_all(&target).unwrap();
    sh(&format!("mount -t overlay -o ro,lowerdir={} none {}", lowers.join(":"), target.display()));
    target
}

#[test]
fn umoci_unpacks_what_we_have() {
    in_world(|world| {
        if missing("umoci") {
            return;
        }
        golden(world, true);
        // umoci 0.4 knows gzip alone.
        world.ilot(["image", "convert", "--layers", "gzip", "golden", "golden:gzip"]).ok();
        assert_eq!(world.ilot(["image", "diff", "golden", "golden:gzip"]).ok().stdout, "");
        world.ilot(["image", "verify", "golden:gzip"]).ok();
        let again =
            world.ilot(["image", "convert", "--layers", "gzip", "golden", "golden:again", "--json"]).ok().json();
        let first = world.ilot(["image", "inspect", "golden:gzip"]).ok().json();
        assert_eq!(again["digest"], first[0]["digest"], "the same image gives the same bytes");
        world.ilot(["image", "export", "golden:gzip", "oci:layout:golden"]).ok();
        let seen = entries(&ours(world, "golden"));
        assert!(seen.contains("data/deep/x f 4750 1000:1001 2") && !seen.contains("bin/vi "), "{seen}");
        let store = format!("{}:local:golden:gzip", world.root().display());
        let layout = format!("{}:golden", world.path("layout").display());
        for (name, image) in [("store", store), ("layout", layout)] {
            let bundle = world.path(format!("bundle-{name}"));
            sh(&format!("umoci unpack --image {image} {}", bundle.display()));
            let theirs = entries(&bundle.join("rootfs"));
            assert_eq!(theirs, seen, "{name}");
        }
        sh(&format!("umount {}", world.path("seen").display()));
        for how in ["zstd", "plain"] {
            world.ilot(["image", "convert", "--layers", how, "golden:gzip", "golden:back"]).ok();
            assert_eq!(world.ilot(["image", "diff", "golden", "golden:back"]).ok().stdout, "", "{how}");
        }
    });
}

#[test]
fn buildah_reads_our_store_and_we_run_what_it_builds() {
    in_world(|world| {
        if missing("buildah") {
            return;
        }
        cover(world);
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        let (root, run) = (world.path("b"), world.path("n"));
        let buildah = |line: &str| {
            let place = format!("--root {} --runroot {} --storage-driver vfs", root.display(), run.display());
            sh(&format!("buildah {place} {line}"))
        };
        // buildah makes a name of the path, and its names have no capitals.
        let store = Path::new("/var/lib/containers/ilot");
        fs::create_dir_all(store).unwrap();
        sh(&format!("mount --bind {} {}", world.root().display(), store.display()));
        let from = format!("oci:{}:busybox", store.display());
        let container = buildah(&format!("from --pull-never=false {from}")).trim().to_owned();
        let tree = buildah(&format!("mount {container}")).trim().to_owned();
        assert!(Path::new(&tree).join("bin/busybox").exists());
        fs::write(Path::new(&tree).join("made-by"), "buildah\n").unwrap();
        fs::remove_file(Path::new(&tree).join("bin/vi")).unwrap();
        buildah(&format!("umount {container}"));
        buildah(&format!("config --env WHO=buildah --cmd '[\"cat\",\"/made-by\"]' --workingdir /tmp {container}"));
        for (target, source) in [
            (format!("oci:{}:x", world.path("oci").display()), world.path("oci")),
            (format!("oci-archive:{}:x", world.path("oci.tar").display()), world.path("oci.tar")),
            (format!("docker-archive:{}:x:1", world.path("docker.tar").display()), world.path("docker.tar")),
        ] {
            buildah(&format!("commit -q {container} {target}"));
            world.ilot(["image", "import", source.to_str().unwrap(), "built"]).ok();
            assert_eq!(world.ilot(["run", "--rm", "built"]).ok().stdout, "buildah\n", "{target}");
            let seen = world.ilot(["run", "--rm", "built", "sh", "-c", "echo $WHO; pwd; ls /bin/vi; true"]).ok();
            assert_eq!(seen.stdout, "buildah\n/tmp\n", "{target}: {seen}");
        }
        buildah(&format!("rm {container}"));
    });
}

#[test]
fn podman_runs_our_images_and_we_run_its() {
    in_world(|world| {
        if missing("podman") {
            return;
        }
        let Some(runtime) = runtime() else { return skip("needs `ilot-oci` (`cargo xtask build`)") };
        cover(world);
        golden(world, false);
        world.ilot(["image", "export", "golden", "golden.tar"]).ok();
        let podman = |line: &str| {
            let place = |name: &str| world.path(name).display().to_string();
            let flags = "--storage-driver vfs --cgroup-manager cgroupfs --events-backend file";
            sh(&format!(
                "CONTAINERS_CONF={} podman --root {} --runroot {} --tmpdir {} {flags} --runtime {} {line}",
                place("containers.conf"),
                place("r"),
                place("n"),
                place("t"),
                runtime.display()
            ))
        };
        let loaded = podman(&format!("load -q -i {}", world.path("golden.tar").display()));
        let image = loaded.trim().rsplit(' ').next().unwrap().to_owned();
        let name = world.dir.path().file_name().unwrap().display().to_string();
        let run = format!("run --rm --network none --cgroup-parent /{name}");
        let look = "'cat /usr/share/new; ls /usr/share /bin/vi 2>/dev/null; stat -c \"%a %u:%g %h\" /data/hard'";
        let seen = podman(&format!("{run} {image} sh -c {look}"));
        assert_eq!(seen, "new\n/usr/share:\nnew\n4750 1000:1001 2\n");
        // And what podman makes of it comes back.
        podman(&format!("{run} --name c -d {image} sleep 1000"));
        podman("exec c sh -c 'echo podman > /made-by; rm -r /data'");
        podman("commit -q c localhost/made:1");
        podman("rm -f -t 0 c");
        podman(&format!("save -q --format oci-archive -o {} localhost/made:1", world.path("made.tar").display()));
        world.ilot(["image", "import", world.path("made.tar").to_str().unwrap(), "made"]).ok();
        let seen = world.ilot(["run", "--rm", "made", "sh", "-c", "cat /made-by; ls -d /data 2>/dev/null; true"]).ok();
        assert_eq!(seen.stdout, "podman\n");
        forget_groups(&name);
    });
}

/// `ilot-oci` of the build.
fn runtime() -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/dist/libexec/ilot");
    let dirs = std::env::var_os("ILOT_LIBEXEC").map(PathBuf::from).into_iter().chain([own]);
    dirs.map(|dir| dir.join("ilot-oci")).find(|path| path.is_file()).and_then(|path| path.canonicalize().ok())
}

/// podman leaves the parent of its containers' groups.
fn forget_groups(name: &str) {
    let groups = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for parent in groups.chain([PathBuf::from("/sys/fs/cgroup")]) {
        let group = parent.join(name);
        ilot_tests::eventually(std::time::Duration::from_secs(10), || {
            for below in fs::read_dir(&group).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(below.path());
            }
            fs::remove_dir(&group).is_ok() || !group.exists()
        });
    }
}
