//! Machines on native layers: one mount for a trust level, none for nobody, and the same files as on unpacked ones.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use ilot_tests::{World, in_world, sh, skip};

const PROJECT: &str = "\
project_name: native
global: {addressing: {base_octet: 10, zone_base: 180, zone_step: 10}, default_os_image: busybox}
domains:
  inner: {trust_level: trusted, machines: {one: {}, two: {}}}
  outer: {trust_level: untrusted, machines: {three: {}}}
";

/// The mounted layers, by trust level.
fn mounted(world: &World) -> Vec<PathBuf> {
    let at = world.run_dir().join("layers");
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let mut all: Vec<PathBuf> =
        table.lines().filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from).filter(|p| p.starts_with(&at)).collect();
    all.sort();
    all
}

/// As if the last machine had been started an hour ago.
fn forget_use(world: &World) {
    for level in fs::read_dir(world.run_dir().join("layers")).unwrap() {
        for file in fs::read_dir(level.unwrap().path()).unwrap().map(|e| e.unwrap().path()) {
            if file.extension().is_some_and(|e| e == "used") {
                let hour = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
                fs::File::options().write(true).open(file).unwrap().set_modified(hour).unwrap();
            }
        }
    }
}

/// Has busybox, native; false where the kernel mounts no EROFS at all.
fn native(world: &World) -> bool {
    world.ilot(["image", "pull", "-q", "busybox"]).ok();
    world.ilot(["image", "convert", "--native", "busybox"]).ok();
    world.ilot(["run", "--rm", "busybox", "true"]).ok();
    if world.run_dir().join("layers.unsupported").exists() {
        skip("this kernel mounts no EROFS");
        return false;
    }
    true
}

#[test]
fn a_trust_level_has_one_mount_and_shares_nothing() {
    in_world(|world| {
        if !native(world) {
            return;
        }
        assert_eq!(mounted(world).len(), 1, "for the next machine");
        world.ilot(["image", "prune"]).ok();
        assert_eq!(mounted(world), Vec::<PathBuf>::new());
        let file = world.write("infra.yml", PROJECT);
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let mounts = mounted(world);
        assert_eq!(mounts.len(), 2, "{mounts:?}");
        let look = |at: &PathBuf| fs::metadata(at.join("bin/busybox")).unwrap();
        assert_ne!(look(&mounts[0]).dev(), look(&mounts[1]).dev(), "two levels, two file systems");
        let files: Vec<u64> = fs::read_dir(world.root().join("layers"))
            .unwrap()
            .flat_map(|level| fs::read_dir(level.unwrap().path()).unwrap())
            .map(|file| file.unwrap().metadata().unwrap())
            .inspect(|meta| assert!(meta.is_file() && meta.nlink() == 1, "nothing is unpacked"))
            .map(|meta| meta.ino())
            .collect();
        assert!(files.len() >= 2 && files[0] != files[1], "{files:?}");
        // What a machine writes is its own.
        assert!(
            world
                .exec("one", "rm /bin/vi && echo mine > /etc/passwd && su root -c true 2>/dev/null; true")
                .status
                .success()
        );
        assert_eq!(world.exec("one", "cat /etc/passwd; ls /bin/vi 2>/dev/null; true").stdout, "mine\n");
        for machine in ["two", "three"] {
            let seen = world.exec(machine, "grep -c mine /etc/passwd; ls /bin/vi; stat -c %u:%g /bin/busybox; id -u");
            assert_eq!(seen.stdout, "0\n/bin/vi\n0:0\n0\n", "{machine}: {seen}");
        }
        // A machine that ends leaves the others' mount alone; after the last it waits ten minutes for another one.
        world.ilot(["stop", "-t", "0", "one"]).ok();
        forget_use(world);
        world.ilot(["stop", "-t", "0", "two"]).ok();
        assert_eq!(mounted(world).len(), 1, "nobody used the one; the other has a machine");
        assert!(world.exec("three", "/bin/busybox true").status.success());
        world.ilot(["start", "one"]).ok();
        assert_eq!(mounted(world), mounts);
        assert_eq!(world.exec("one", "cat /etc/passwd").stdout, "mine\n", "what it wrote is still there");
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        assert_eq!(mounted(world), Vec::<PathBuf>::new());
        world.assert_clean();
    });
}

#[test]
fn what_a_killed_keeper_leaves_is_taken_away() {
    in_world(|world| {
        if !native(world) {
            return;
        }
        world.ilot(["run", "-d", "--name", "web", "busybox", "sleep", "1000"]).ok();
        assert_eq!(mounted(world).len(), 1);
        let keeper = world.ilot(["inspect", "web"]).ok().json()[0]["keeper_pid"].as_i64().unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(keeper).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        world.ilot(["rm", "-f", "web"]).ok();
        assert_eq!(mounted(world).len(), 1);
        world.ilot(["image", "prune"]).ok();
        assert_eq!(mounted(world), Vec::<PathBuf>::new());
        // As after a restart of the host: the run directory is empty, the store is not.
        fs::remove_dir_all(world.run_dir()).unwrap();
        world.ilot(["run", "--rm", "busybox", "true"]).ok();
        world.assert_clean();
    });
}

#[test]
fn both_forms_are_the_same_for_a_machine_and_for_what_is_made_of_it() {
    in_world(|world| {
        if !native(world) {
            return;
        }
        world.ilot(["run", "-d", "--name", "web", "busybox", "sleep", "1000"]).ok();
        let changes =
            "mkdir -p /usr/share/x && rm -r /usr/share && mkdir /usr/share && echo new > /usr/share/new; rm /bin/vi
            mkdir /data; echo x > /data/x; chown 7:8 /data/x; ln /data/x /data/y; mkfifo /data/p; ln -s x /data/l";
        assert!(world.exec("web", changes).status.success());
        world.ilot(["image", "commit", "web", "golden"]).ok();
        world.ilot(["rm", "-f", "web"]).ok();
        let look = "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /run \\) -prune -o -type f \\
            -exec md5sum {} + | grep -v -e /etc/host -e /etc/resolv | sort
            find /usr /bin /data /etc -exec stat -c '%n %F %a %u:%g %h' {} + | grep -v directory | sort";
        let seen = |form: &str| {
            let run = world.ilot(["run", "--rm", "golden", "sh", "-c", look]).env("ILOT_LAYERS", form).ok();
            let at = if form == "native" { ".erofs" } else { "" };
            let levels = fs::read_dir(world.root().join("layers")).unwrap();
            let files = levels.flat_map(|l| fs::read_dir(l.unwrap().path()).unwrap()).map(|e| e.unwrap().file_name());
            assert!(files.filter(|f| f.to_string_lossy().ends_with(at)).count() >= 2, "{form}");
            run.stdout
        };
        let (native, unpacked) = (seen("native"), seen("unpacked"));
        assert!(
            native.contains("/data/p") && native.contains("/usr/share/new") && !native.contains("/bin/vi"),
            "{native}"
        );
        assert_eq!(native, unpacked);
        // A stopped machine's files are copied from both.
        world.ilot(["run", "-d", "--name", "web", "golden", "true"]).env("ILOT_LAYERS", "native").ok();
        world.ilot(["stop", "-t", "0", "web"]).ok();
        world.ilot(["cp", "web:/data/x", world.path("x").to_str().unwrap()]).env("ILOT_LAYERS", "native").ok();
        assert_eq!(fs::read_to_string(world.path("x")).unwrap(), "x\n");
        world.ilot(["rm", "-f", "web"]).ok();
        world.ilot(["image", "verify"]).ok();
        world.ilot(["image", "convert", "--unpacked", "busybox"]).ok();
        let json = world.ilot(["image", "convert", "--native", "--trust", "admin", "golden", "--json"]).ok().json();
        assert_eq!(json["native"], true, "{json}");
        assert!(json["layers"].as_array().unwrap().iter().any(|l| l["trust"] == "admin"), "{json}");
        world.ilot(["image", "rm", "golden", "busybox"]).ok();
        for level in fs::read_dir(world.root().join("layers")).unwrap() {
            assert_eq!(fs::read_dir(level.unwrap().path()).unwrap().count(), 0, "gone with the images");
        }
        world.assert_clean();
    });
}

/// In which form a trust level has layers: names that end in `.erofs`, and others.
fn forms(world: &World, trust: &str) -> (usize, usize) {
    let names = fs::read_dir(world.root().join("layers").join(trust)).into_iter().flatten();
    let (native, folders): (Vec<_>, Vec<_>) =
        names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).partition(|name| name.ends_with(".erofs"));
    (native.len(), folders.len())
}

/// Whether this kernel mounts EROFS from a file, past its page cache: asked of mount(2), with a layer that was asked for.
fn mounts_directly(world: &World) -> bool {
    world.ilot(["image", "convert", "--native", "--trust", "asked", "busybox"]).ok();
    let level = world.root().join("layers/asked");
    let file = fs::read_dir(&level).unwrap().next().unwrap().unwrap().path();
    let at = world.path("asked");
    fs::create_dir(&at).unwrap();
    let option = Some(c"directio");
    let tried = rustix::mount::mount(&file, &at, c"erofs", rustix::mount::MountFlags::RDONLY, option);
    if tried.is_ok() {
        rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
    }
    world.ilot(["image", "convert", "--auto", "busybox"]).ok();
    fs::remove_dir_all(&level).unwrap();
    tried.is_ok()
}

#[test]
fn the_form_is_chosen_by_what_the_kernel_can_and_by_what_somebody_said() {
    in_world(|world| {
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        let directly = mounts_directly(world);
        println!("this kernel mounts native layers directly: {directly}");
        let run = |form: Option<&str>| {
            let program = world.ilot(["run", "--rm", "busybox", "true"]);
            match form {
                Some(form) => program.env("ILOT_LAYERS", form).ok(),
                None => program.ok(),
            };
            let seen = forms(world, "semi-trusted");
            world.ilot(["image", "prune", "-q"]).ok();
            let level = world.root().join("layers/semi-trusted");
            fs::remove_dir_all(level).unwrap();
            seen
        };
        let (native, folder) = ((1, 0), (0, 1));
        assert_eq!(run(None), if directly { native } else { folder }, "as the kernel can");
        assert_eq!(run(Some("unpacked")), folder);
        assert_eq!(run(Some("auto")), if directly { native } else { folder });
        // The level, the image, the call: each has the say over those before.
        fs::write(world.root().join("layers.json"), r#"{"*": "native", "semi-trusted": "unpacked"}"#).unwrap();
        assert_eq!(run(None), folder);
        assert_eq!(run(Some("auto")), if directly { native } else { folder });
        world.ilot(["image", "convert", "--native", "busybox"]).ok();
        if directly {
            assert_eq!(run(None), native);
        }
        assert_eq!(run(Some("unpacked")), folder);
        fs::write(world.root().join("layers.json"), r#"{"*": "native"}"#).unwrap();
        world.ilot(["image", "convert", "--unpacked", "busybox"]).ok();
        assert_eq!(run(None), folder);
        let json = world.ilot(["image", "convert", "--auto", "busybox", "--json"]).ok().json();
        assert_eq!((json["form"].as_str(), json["native"].as_bool()), (Some("auto"), Some(false)), "{json}");
        if directly {
            assert_eq!(run(None), native);
        }
        // What is there is used, in whichever form.
        fs::remove_file(world.root().join("layers.json")).unwrap();
        world.ilot(["run", "--rm", "busybox", "true"]).env("ILOT_LAYERS", "unpacked").ok();
        world.ilot(["run", "--rm", "busybox", "true"]).ok();
        assert_eq!(forms(world, "semi-trusted"), folder, "nothing is made twice");
        // Nonsense is told, with what would be sense.
        let wrong = world.ilot(["run", "--rm", "busybox", "true"]).env("ILOT_LAYERS", "folders").fails();
        assert!(wrong.stderr.contains("`folders`") && wrong.stderr.contains("`unpacked`"), "{wrong}");
        fs::write(world.root().join("layers.json"), r#"{"*": "folders"}"#).unwrap();
        let wrong = world.ilot(["run", "--rm", "busybox", "true"]).fails();
        assert!(wrong.stderr.contains("layers.json") && wrong.stderr.contains("`folders`"), "{wrong}");
        fs::remove_file(world.root().join("layers.json")).unwrap();
        // A file system that the kernel mounts nothing from (a tmpfs): folders, without a word.
        let store = world.path("memory");
        fs::create_dir(&store).unwrap();
        sh(&format!("mount -t tmpfs tmpfs {}", store.display()));
        let said = world.ilot(["run", "--rm", "busybox", "true"]).env("ILOT_ROOT", &store).ok();
        assert!(!said.stderr.contains("mount") && !said.stderr.contains("unpacked"), "{said}");
        let level = store.join("layers/semi-trusted");
        assert!(fs::read_dir(level).unwrap().all(|e| e.unwrap().path().is_dir()));
        sh(&format!("umount {}", store.display()));
        world.assert_clean();
    });
}
