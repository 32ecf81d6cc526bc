//! `ilot image build`: the cache, stages, secrets, reproducible images, hostile contexts, interrupted builds.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ilot_tests::{OUTSIDE, Output, World, eventually, in_world, sh, skip};
use serde_json::Value;

/// A context with this Containerfile.
fn context(world: &World, text: &str) -> PathBuf {
    world.write("ctx/Containerfile", text);
    world.path("ctx")
}

fn build(world: &World, args: &[&str]) -> Output {
    let mut all = vec!["image", "build", "--json"];
    if !args.contains(&"--net") {
        all.extend(["--net", "none"]);
    }
    all.extend(args);
    all.push("ctx");
    world.ilot(all).run()
}

fn events(output: &Output) -> Vec<Value> {
    output.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {output}"))).collect()
}

/// The image that came of a build.
fn built(output: &Output) -> Value {
    assert!(output.status.success(), "{output}");
    let last = events(output).pop().expect("an event");
    assert_eq!(last["event"], "built", "{output}");
    last
}

fn digest(output: &Output) -> String {
    built(output)["image"]["digest"].as_str().unwrap().to_owned()
}

/// The instructions that the cache had.
fn cached(output: &Output) -> Vec<String> {
    let hit = |event: &&Value| event["event"] == "finished" && event["result"] == "cached";
    events(output).iter().filter(hit).map(|e| e["instruction"].as_str().unwrap().to_owned()).collect()
}

fn failed(output: &Output) -> (String, String) {
    assert_eq!(output.code(), 1, "{output}");
    let last = events(output).pop().expect("an event");
    assert_eq!(last["event"], "failed", "{output}");
    let text = |key: &str| last[key].as_str().unwrap_or_default().to_owned();
    (format!("{}:{}: {}", last["line"], last["column"], text("error")), text("help"))
}

fn said(world: &World, image: &str, command: &str) -> String {
    world.ilot(["run", "--rm", image, "/bin/sh", "-c", command]).ok().stdout.trim().to_owned()
}

/// Nothing half-made is in the store.
fn assert_no_remains(world: &World) {
    let left: Vec<_> = fs::read_dir(world.root().join("images/.tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    for folder in ["ids", "domains"] {
        let left: Vec<_> = fs::read_dir(world.root().join(folder)).unwrap().collect();
        assert!(left.is_empty(), "{folder}: {left:?}");
    }
    let left: Vec<_> = fs::read_dir(world.run_dir().join("machines")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_step_is_done_once_for_the_same_inputs() {
    in_world(|world| {
        let text = "FROM busybox\nARG V=1\nCOPY a /a\nRUN cat /a /proc/sys/kernel/random/uuid > /b\nLABEL v=$V\nCMD [\"cat\", \"/b\"]\n";
        let ctx = context(world, text);
        world.write("ctx/a", "one\n");
        let first = build(world, &["-t", "app"]);
        assert_eq!(cached(&first), Vec::<String>::new());
        let content = said(world, "app", "cat /b");
        let again = build(world, &["-t", "app"]);
        assert_eq!((digest(&again), cached(&again).len()), (digest(&first), 2), "{again}");
        // A time and the file's other lines change nothing.
        sh(&format!("touch -d 2001-01-01 {}/a", ctx.display()));
        fs::write(ctx.join("Containerfile"), text.replace("LABEL v=$V", "ENV X=1")).unwrap();
        let touched = build(world, &["-t", "app"]);
        assert_eq!(cached(&touched).len(), 2, "{touched}");
        assert_ne!(digest(&touched), digest(&first));
        // An argument is in the environment of steps, and so is an input.
        let argued = build(world, &["--build-arg", "V=2"]);
        assert_eq!(cached(&argued), ["COPY a /a"], "{argued}");
        // Another mode is another input, another content too.
        sh(&format!("chmod 600 {}/a", ctx.display()));
        assert_eq!(cached(&build(world, &[])), Vec::<String>::new());
        fs::write(ctx.join("a"), "two\n").unwrap();
        assert_eq!(cached(&build(world, &[])), Vec::<String>::new());
        // What is not copied is none.
        world.write("ctx/other", "x");
        assert_eq!(cached(&build(world, &["-t", "app"])).len(), 2);
        let anew = build(world, &["--no-cache", "-t", "app"]);
        assert_eq!(cached(&anew), Vec::<String>::new());
        assert_ne!(said(world, "app", "cat /b"), content);
        // A collection keeps what the cache has; `prune --all` does not.
        world.ilot(["image", "rm", "app"]).ok();
        world.ilot(["image", "prune"]).ok();
        assert_eq!(cached(&build(world, &[])).len(), 2);
        world.ilot(["image", "prune", "--all", "--yes"]).ok();
        assert_eq!(fs::read_dir(world.root().join("blobs/sha256")).unwrap().count(), 0);
        assert_eq!(cached(&build(world, &[])), Vec::<String>::new());
        assert_no_remains(world);
        world.assert_clean();
    });
}

#[test]
fn stages_are_built_side_by_side_and_only_those_needed() {
    in_world(|world| {
        // Each waits for the other: one after the other they would not end.
        let meet = |own: &str, other: &str| {
            format!(
                "RUN --mount=type=cache,id=meet,target=/m touch /m/{own}; i=0; \
                 while [ ! -e /m/{other} ]; do i=$((i+1)); [ $i -lt 400 ] || exit 3; sleep 0.05; done; echo {own} > /{own}"
            )
        };
        let text = format!(
            "FROM busybox AS a\n{}\nFROM busybox AS b\n{}\nFROM nowhere.example/none AS unneeded\nRUN false\n\
             FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n",
            meet("a", "b"),
            meet("b", "a")
        );
        context(world, &text);
        let output = build(world, &["-t", "both", "--jobs", "2"]);
        assert_eq!(built(&output)["steps"], 8 - 1, "{output}");
        let target = build(world, &["--target", "a"]);
        assert_eq!(built(&target)["steps"], 2, "{target}");
        assert!(failed(&build(world, &["--target", "unneeded"])).0.contains("nowhere.example"));
        world.assert_clean();
    });
}

#[test]
fn secrets_are_seen_by_the_step_alone() {
    in_world(|world| {
        let secret = "hunter2-hunter2-hunter2";
        let text = "FROM busybox\nRUN --mount=type=secret,id=file test \"$(cat /run/secrets/file)\" = \"$(cat /wanted)\" || exit 0\n\
                    RUN --mount=type=secret,id=file,target=/etc/token,mode=0444,uid=5 \\\n  stat -c '%a %u' /etc/token > /mode && wc -c < /etc/token > /size\n\
                    RUN --mount=type=secret,id=var,env=TOKEN echo ${#TOKEN} > /length\nRUN --mount=type=secret,id=absent test ! -e /run/secrets/absent\n\
                    RUN ls -a /run /etc > /left\n";
        context(world, text);
        let file = world.write("secret.txt", secret);
        let spec = format!("id=file,src={}", file.display());
        let args = [
            "image",
            "build",
            "--net",
            "none",
            "-t",
            "app",
            "--secret",
            &spec,
            "--secret",
            "id=var,env=MY_TOKEN",
            "ctx",
        ];
        let output = world.ilot(args).env("MY_TOKEN", secret).ok();
        assert!(!output.stdout.contains(secret) && !output.stderr.contains(secret), "{output}");
        assert_eq!(said(world, "app", "cat /mode /size /length"), "444 5\n23\n23");
        let left = said(world, "app", "cat /left");
        assert!(!left.contains("token") && !left.contains("secrets"), "what was mounted over is gone: {left}");
        // Another secret is no other input.
        fs::write(&file, "another").unwrap();
        let again = build(world, &["--secret", &spec, "--secret", "id=var,env=PATH", "-t", "app"]);
        assert_eq!(cached(&again).len(), 5, "{again}");
        // Neither in the store, unpacked and cached, nor in the live state.
        for folder in [world.root(), world.run_dir()] {
            let found = sh(&format!("grep -rl {secret} {} || true", folder.display()));
            assert_eq!(found, "");
        }
        for blob in fs::read_dir(world.root().join("blobs/sha256")).unwrap() {
            let plain =
                sh(&format!("zstd -dcq < {0} 2>/dev/null | grep -c {secret} || true", blob.unwrap().path().display()));
            assert_ne!(plain.trim(), "1");
        }
        context(world, "FROM busybox\nRUN --mount=type=secret,id=must,required=true true\n");
        let (error, help) = failed(&build(world, &[]));
        assert!(error.contains("the secret `must`") && help.contains("--secret id=must"), "{error} {help}");
        assert_no_remains(world);
    });
}

#[test]
fn the_same_inputs_give_the_same_digest() {
    let text = "FROM scratch\nCOPY --from=busybox /bin /bin\nCOPY tree /tree/\nWORKDIR /new\n\
                RUN echo x > /file && mkdir -p /deep/er && ln -s x /link && ln /file /hard\nCOPY <<E /here\nhi\nE\nENV A=1\nCMD [\"sh\"]\n";
    let mut digests = Vec::new();
    for round in 0..2 {
        in_world(|world| {
            context(world, text);
            world.write("ctx/tree/b", "b");
            world.write("ctx/tree/sub/c", "c");
            if round == 1 {
                sh(&format!("touch -d 2031-01-01 {}", world.path("ctx/tree/b").display()));
            } else {
                sh(&format!("touch -d 2033-01-01 {}", world.path("ctx/tree/b").display()));
            }
            let output = build(world, &["-t", "app", "--source-date-epoch", "1700000000"]);
            digests.push(digest(&output));
            assert_eq!(said(world, "app", "stat -c %Y /tree/b /file /deep /new | sort -u"), "1700000000");
            let image = &world.ilot(["image", "inspect", "app"]).ok().json()[0]["configuration"];
            assert_eq!(image["created"], "2023-11-14T22:13:20Z", "{image}");
            assert!(image["history"].as_array().unwrap().iter().all(|h| h["created"] == image["created"]), "{image}");
        });
    }
    // Both are skipped where there is no world.
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{digests:?}");
}

#[test]
fn mistakes_are_told_with_their_place_and_cure() {
    in_world(|world| {
        world.write("ctx/main.c", "");
        world.write("ctx/.containerignore", "hidden\n");
        world.write("ctx/hidden", "");
        for (text, place, error, help) in [
            ("FROM busybox\nRNU x", "2:1: ", "unknown instruction `RNU`", "is `RUN` meant?"),
            ("FROM busybox\nCOPY mian.c /", "2:1: ", "`mian.c` is not in the context", "is `main.c` meant?"),
            ("FROM busybox\nCOPY hidden /", "2:1: ", "`hidden` is not in the context", "hides it"),
            ("FROM busybox\nCOPY $NONE /", "2:1: ", "a source is empty", "not set"),
            ("FROM busybox\nCOPY ../x /", "2:1: ", "leads out of the context", "context only"),
            ("FROM busybox\nCOPY main.c hidden* /x", "2:1: ", "is not in the context", ""),
            ("FROM busybox\nCOPY main.c Containerfile /x", "2:1: ", "several files", "`/x/`"),
            (
                "FROM busybox AS a\nCOPY --from=later /x /\nFROM busybox AS later\nFROM a",
                "2:1: ",
                "not built before",
                "move it up",
            ),
            ("FROM busybox\nCOPY --chown=nobody:none main.c /", "2:1: ", "no group `none`", "number"),
            ("FROM busybox\n\nRUN exit 7", "3:1: ", "it ended with status 7", ""),
            ("FROM busybox\nRUN not-there", "2:1: ", "status 127", "no such command"),
            ("FROM busybox\nRUN [\"/not-there\"]", "2:1: ", "not-there", ""),
            ("FROM busybox\nENV A=\"${B:?must be given}\"", "2:1: ", "`B`: must be given", ""),
            ("FROM busybox\nSTOPSIGNAL SIGNONE", "2:1: ", "no signal `SIGNONE`", ""),
            ("FROM busybox\nRUN --network=host true", "2:1: ", "the host's network", "--allow network.host"),
            ("FROM busybox\nRUN --security=insecure true", "2:1: ", "more rights", "--allow security.insecure"),
            ("FROM busybox\nADD https://127.0.0.1:1/x /", "2:1: ", "https://127.0.0.1:1/x", "check the address"),
            ("FROM --platform=linux/s390x busybox", "1:1: ", "is for amd64", ""),
        ] {
            context(world, text);
            let output = build(world, &[]);
            let (told, cure) = failed(&output);
            assert!(told.starts_with(place) && told.contains(error), "{text}: {told}");
            assert!(cure.contains(help), "{text}: {told} / {cure}");
        }
        context(world, "FROM busybox\n  RNU x\n");
        let told = world.ilot(["image", "build", "ctx"]).fails().stderr;
        assert!(told.contains("Containerfile:2:3: unknown instruction `RNU`\n 2 |   RNU x\n   |   ^^^"), "{told}");
        assert!(told.contains("hint: is `RUN` meant?"), "{told}");
        context(world, "FROM busybox\nRUN printf '\\033[31mred\\033]0;title\\007\\rx\\n'; false\n");
        let told = world.ilot(["image", "build", "--net", "none", "ctx"]).fails().stderr;
        assert!(told.contains("#2 redx") && !told.contains('\u{1b}') && !told.contains('\u{7}'), "{told}");
        let none = world.ilot(["image", "build", "store"]).fails().stderr;
        assert!(none.contains("no Containerfile and no Dockerfile"), "{none}");
        let unused = build(world, &["--build-arg", "NOBODY=1", "--target", "x"]);
        assert_eq!(unused.code(), 1);
        assert_no_remains(world);
        world.assert_clean();
    });
}

#[test]
fn a_hostile_context_stays_inside() {
    in_world(|world| {
        let outside = world.write("outside/secret", "not for images");
        let ctx = context(world, "FROM busybox\nCOPY link /x\n");
        let folder = outside.parent().unwrap();
        symlink(&outside, ctx.join("link")).unwrap();
        symlink(folder, ctx.join("folder")).unwrap();
        symlink("../outside/secret", ctx.join("up")).unwrap();
        symlink("/proc/self/root", ctx.join("magic")).unwrap();
        let names = format!("{}/secret", folder.display());
        for source in ["link", "folder", "folder/secret", "up", "magic", "magic/etc/passwd", "li[n]k", &names] {
            for instruction in [
                format!("COPY {source} /x"),
                format!("ADD {source} /x"),
                format!("RUN --mount=source={source},target=/x cat /x"),
            ] {
                context(world, &format!("FROM busybox\n{instruction}\n"));
                let (error, _) = failed(&build(world, &[]));
                assert!(error.contains("is not in the context"), "{instruction}: {error}");
            }
        }
        // As what they are they can be copied.
        context(world, "FROM busybox\nCOPY . /all/\n");
        build(world, &["-t", "links"]);
        assert_eq!(said(world, "links", "readlink /all/up"), "../outside/secret");
        // Devices are refused, FIFOs and sockets hold nobody up.
        sh(&format!("mkdir {0}/d; mknod {0}/d/null c 1 3", ctx.display()));
        context(world, "FROM busybox\nCOPY d /d\n");
        assert!(failed(&build(world, &[])).0.contains("is a device"));
        sh(&format!("rm {0}/d/null; mkfifo {0}/d/fifo", ctx.display()));
        let _socket = std::os::unix::net::UnixListener::bind(ctx.join("d/socket")).unwrap();
        build(world, &["-t", "fifo"]);
        assert_eq!(said(world, "fifo", "cd /d; for f in *; do [ -p $f ] && echo $f; done"), "fifo");
        // A name that would hide a file of the image.
        fs::write(ctx.join("d/.wh.etc"), "").unwrap();
        assert!(failed(&build(world, &[])).0.contains(".wh.etc"));
        context(world, "FROM busybox\nRUN touch /.wh.etc\n");
        assert!(failed(&build(world, &[])).0.contains(".wh."));
        // Links of the image lead nowhere but into it.
        let target = world.path("outside");
        context(
            world,
            &format!(
                "FROM busybox\nRUN ln -s / /root-link && ln -s /../../../.. /up && ln -s {0} /out && mkdir -p {0}\n\
                 COPY Containerfile /root-link/one\nCOPY Containerfile /up/two\nCOPY Containerfile /out/three\n\
                 COPY Containerfile /../../four\nWORKDIR /out/five\n",
                target.display()
            ),
        );
        build(world, &["-t", "inside"]);
        let seen =
            said(world, "inside", &format!("ls -d /one /two /four {0}/three {0}/five | wc -l", target.display()));
        assert_eq!(seen, "5");
        let names: Vec<_> = fs::read_dir(&target).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"]);
        assert!(!Path::new("/one").exists() && !Path::new("/two").exists() && !Path::new("/four").exists());
        assert_no_remains(world);
    });
}

#[test]
fn archives_links_and_layers_of_hostile_steps() {
    in_world(|world| {
        let ctx = context(world, "FROM busybox\nADD evil.tar /x/\n");
        let target = world.path("target");
        fs::create_dir_all(&target).unwrap();
        // An archive that writes through a link of its own, and one with `..`.
        sh(&format!(
            "cd {0}; mkdir w; ln -s {1} w/l; tar -C w -cf evil.tar l; rm w/l; mkdir w/l; echo x > w/l/f; tar -C w -rf evil.tar l/f; rm -r w",
            ctx.display(),
            target.display()
        ));
        build(world, &[]);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        sh(&format!("cd {}; echo x > f; tar -P --transform 's,^,../../,' -cf evil.tar f", ctx.display()));
        let (error, _) = failed(&build(world, &[]));
        assert!(error.contains("`..` in a path"), "{error}");
        // What a step leaves in its tree is not followed when its layer is packed, nor when mounts are taken away.
        context(
            world,
            &format!(
                "FROM scratch\nCOPY --from=busybox /bin /bin\n\
                 RUN --mount=type=tmpfs,target=/a/b rm -rf /etc; ln -s {0} /etc2; ln -s {0} /a/link; ln -s {0} /shm\n\
                 RUN ls -la / > /listing\n",
                target.display()
            ),
        );
        build(world, &["-t", "left"]);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        assert_no_remains(world);
        world.assert_clean();
    });
}

#[test]
fn steps_reach_the_outside_and_no_more_by_default() {
    in_world(|world| {
        context(
            world,
            &format!(
                "FROM busybox\nRUN ping -c 1 -W 5 {OUTSIDE} > /out && nslookup outside.test >> /out || true\n\
                 RUN --network=none ! ip addr | grep -q eth0 && touch /none\nRUN ! nc -w 1 \"$(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p')\" 7777 && touch /walled\n"
            ),
        );
        let listener = TcpListener::bind("0.0.0.0:7777").unwrap();
        listener.set_nonblocking(true).unwrap();
        let output = build(world, &["--net", "default", "-t", "app"]);
        built(&output);
        assert!(said(world, "app", "cat /out").contains("1 packets received"), "{output}");
        assert_eq!(said(world, "app", "ls /none /walled | wc -l"), "2");
        assert!(listener.accept().is_err(), "nobody came in");
        assert_no_remains(world);
        world.assert_clean();
    });
}

#[test]
fn a_killed_build_is_cleaned_up_by_the_next() {
    in_world(|world| {
        context(world, "FROM busybox\nRUN echo begun; sleep 1000\n");
        let mut child = world.ilot(["image", "build", "ctx"]).spawn();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("#2 begun")), "the step runs");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(fs::read_dir(world.root().join("images/.tmp")).unwrap().count() > 0, "something is left to clean up");
        context(world, "FROM busybox\nRUN true\n");
        built(&build(world, &[]));
        assert_no_remains(world);
        world.assert_clean();
        // One that is asked to stop leaves nothing itself.
        context(world, "FROM busybox\nRUN echo begun again; sleep 1000\n");
        let mut child = world.ilot(["image", "build", "ctx"]).spawn();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("#2 begun again")), "the step runs");
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
        let mut status = None;
        assert!(eventually(Duration::from_secs(20), || {
            status = child.try_wait().unwrap();
            status.is_some()
        }));
        assert_eq!(status.unwrap().code(), Some(1));
        assert_no_remains(world);
        world.assert_clean();
    });
}

#[test]
fn a_full_disk_leaves_the_store_whole() {
    in_world(|world| {
        let root = world.root();
        fs::create_dir_all(&root).unwrap();
        sh(&format!("mount -t tmpfs -o size=24m,mode=700 tmpfs {}", root.display()));
        context(world, "FROM busybox\nRUN echo small > /small\nRUN dd if=/dev/urandom of=/large bs=1M count=64\n");
        let output = build(world, &["-t", "app"]);
        assert_eq!(output.code(), 1, "{output}");
        assert_no_remains(world);
        assert!(world.ilot(["image", "inspect", "app"]).run().code() != 0, "no half image");
        world.ilot(["image", "verify"]).ok();
        context(world, "FROM busybox\nRUN echo small > /small\n");
        assert_eq!(cached(&build(world, &["-t", "app"])).len(), 1);
        assert_no_remains(world);
        sh(&format!("umount {}", root.display()));
    });
}

/// Serves files of a folder over HTTP, and counts the requests.
fn serve(folder: PathBuf) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut request = String::new();
            let _ = reader.read_line(&mut request);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) < 3 {
                    break;
                }
            }
            counted.fetch_add(1, Ordering::Relaxed);
            let path = request.split(' ').nth(1).unwrap_or("/").split('?').next().unwrap_or("/").to_owned();
            let answer = match fs::read(folder.join(path.trim_start_matches('/'))) {
                Ok(body) => {
                    let mut head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nConnection: close\r\n\r\n",
                        body.len()
                    )
                    .into_bytes();
                    head.extend(body);
                    head
                }
                Err(_) => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
            };
            let _ = stream.write_all(&answer);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read(&mut [0; 64]);
        }
    });
    (address, count)
}

#[test]
fn addresses_and_repositories_are_added() {
    in_world(|world| {
        let folder = world.path("www");
        world.write("www/a file.txt", "from afar\n");
        sh(&format!("cd {}; mkdir t; echo in > t/in; tar -C t -czf t.tar.gz .; rm -r t", folder.display()));
        let (address, _) = serve(folder.clone());
        let sum = sh(&format!("sha256sum '{}/a file.txt' | cut -d' ' -f1", folder.display()));
        let sum = sum.trim();
        fs::rename(folder.join("a file.txt"), folder.join("a%20file.txt")).unwrap();
        context(
            world,
            &format!(
                "FROM busybox\nADD {address}/a%20file.txt /into/\nADD --chmod=644 {address}/a%20file.txt /as\n\
                 ADD {address}/t.tar.gz /packed.tar.gz\nADD --unpack=true {address}/t.tar.gz /unpacked/\n\
                 ADD --checksum=sha256:{sum} {address}/a%20file.txt /sure\n"
            ),
        );
        built(&build(world, &["-t", "app"]));
        assert_eq!(said(world, "app", "stat -c '%a %Y' '/into/a file.txt' /as"), "600 1445412480\n644 1445412480");
        assert_eq!(said(world, "app", "cat /unpacked/in /sure; tar -tzf /packed.tar.gz | wc -l"), "in\nfrom afar\n2");
        assert_eq!(cached(&build(world, &[])).len(), 5);
        // Another content under the same address is another input.
        fs::write(folder.join("a%20file.txt"), "changed\n").unwrap();
        let changed = build(world, &[]);
        let (error, help) = failed(&changed);
        assert!(error.contains("not sha256:") && help.contains("changed it"), "{error} {help}");
        assert_eq!(cached(&changed).len(), 0);
        context(world, &format!("FROM busybox\nADD {address}/none /x\n"));
        assert!(failed(&build(world, &[])).0.contains("404"));
        context(world, &format!("FROM busybox\nADD {address}/ /x/\n"));
        assert_eq!(build(world, &[]).code(), 1);

        let git = std::process::Command::new("git").arg("--version").output();
        if git.is_err() {
            skip("repositories: needs `git`");
            return;
        }
        sh(&format!(
            "cd {0}; export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b; \
             git init -q -b main r; cd r; mkdir sub; echo one > file; echo two > sub/two; ln -s / sub/root; \
             printf 'FROM busybox\\nCOPY two /two\\n' > sub/Containerfile; git add .; git commit -qm x; git tag v1; \
             echo later > file; git commit -qam y; cd ..; git clone -q --bare r r.git; cd r.git; git update-server-info",
            folder.display()
        ));
        context(
            world,
            &format!(
                "FROM busybox\nADD {address}/r.git /head\nADD {address}/r.git#v1 /v1\nADD {address}/r.git#main:sub /sub\n\
                 ADD --keep-git-dir=true {address}/r.git /kept\n"
            ),
        );
        built(&build(world, &["-t", "git"]));
        let seen =
            said(world, "git", "cat /head/file /v1/file /sub/two; ls -d /head/.git /kept/.git 2>/dev/null; true");
        assert_eq!(seen, "later\none\ntwo\n/kept/.git");
        let remote = format!("{address}/r.git#main:sub");
        world.ilot(["image", "build", "-q", "-t", "remote", &remote]).ok();
        assert_eq!(said(world, "remote", "cat /two"), "two");
        for wrong in ["#nothing", "#main:none", "#--upload-pack=x"] {
            context(world, &format!("FROM busybox\nADD {address}/r.git{wrong} /x\n"));
            assert_eq!(build(world, &[]).code(), 1, "{wrong}");
        }
        assert_no_remains(world);
    });
}

#[test]
fn mounts_heredocs_and_contexts_from_standard_input() {
    in_world(|world| {
        context(
            world,
            "FROM busybox\nRUN --mount=type=cache,target=/c,sharing=locked,mode=0700,uid=5 echo x >> /c/n; stat -c '%a %u' /c > /mode\n\
             RUN --mount=type=cache,target=/c cat /c/n > /n; test ! -w /nope\nRUN --mount=type=bind,target=/ctx,rw touch /ctx/written && test -e /ctx/Containerfile\n\
             RUN test ! -e /c && test ! -e /ctx\nRUN <<EOF\n#!/bin/sh -e\nfalse | true\necho \"$0\" > /script\nEOF\n\
             RUN --mount=type=tmpfs,target=/t,size=1m ! dd if=/dev/zero of=/t/x bs=1M count=2 2>/dev/null\n",
        );
        built(&build(world, &["-t", "app"]));
        assert_eq!(said(world, "app", "cat /mode /n /script"), "700 5\nx\n/dev/pipes/EOF");
        assert!(!world.path("ctx/written").exists(), "the host's files are not written to");
        let text = b"FROM busybox\nRUN echo stdin > /s\n";
        let output = world.ilot(["image", "build", "-q", "--net", "none", "-t", "input", "-"]).run_with_input(text);
        assert!(output.status.success(), "{output}");
        assert_eq!(said(world, "input", "cat /s"), "stdin");
        let output = world
            .ilot(["image", "build", "-q", "--net", "none", "-t", "file", "-f", "-", "ctx"])
            .run_with_input(b"FROM busybox\nCOPY . /x/\n");
        assert!(output.status.success(), "{output}");
        sh(&format!(
            "cd {}; echo packed > p; printf 'FROM busybox\\nCOPY p /p\\n' > Containerfile; tar -czf ../ctx.tgz .",
            world.path("ctx").display()
        ));
        let tar = fs::read(world.path("ctx.tgz")).unwrap();
        let output = world.ilot(["image", "build", "-q", "-t", "tar", "-"]).run_with_input(&tar);
        assert!(output.status.success(), "{output}");
        assert_eq!(said(world, "tar", "cat /p"), "packed");
        // More rights only where the user allows them, and never the host's.
        context(world, "FROM busybox\nRUN --security=insecure mount -t tmpfs x /mnt && id -u > /uid\n");
        built(&build(world, &["--allow", "security.insecure", "-t", "rights"]));
        context(world, "FROM busybox\nRUN mount -t tmpfs x /mnt\n");
        assert_eq!(build(world, &[]).code(), 1);
        let iid = world.path("iid");
        context(world, "FROM busybox\nLABEL a=b\n");
        let output = build(
            world,
            &["--iidfile", iid.to_str().unwrap(), "--label", "c=d", "--annotation", "e=f", "-t", "x", "-t", "y:2"],
        );
        assert_eq!(fs::read_to_string(&iid).unwrap(), digest(&output));
        let image = &world.ilot(["image", "inspect", "y:2"]).ok().json()[0];
        assert_eq!(image["configuration"]["config"]["Labels"], serde_json::json!({ "a": "b", "c": "d" }));
        assert_eq!(image["manifest"]["annotations"]["e"], "f");
        assert_eq!(image["names"].as_array().unwrap().len(), 2);
        let owner = fs::metadata(world.root().join("build")).unwrap();
        assert_eq!(owner.mode() & 0o7777, 0o700);
        assert_no_remains(world);
        world.assert_clean();
    });
}

#[test]
fn what_is_built_runs_under_podman() {
    let found = |tool: &str| std::process::Command::new(tool).arg("--version").output().is_ok();
    if !found("podman") {
        skip("needs `podman`");
        return;
    }
    in_world(|world| {
        context(
            world,
            "FROM busybox\nWORKDIR /work\nRUN echo made > file && chown www-data file && chmod 400 file\nUSER www-data\nENV A=b\nENTRYPOINT [\"/bin/sh\", \"-c\"]\nCMD [\"cat file; id -un; echo $A; pwd\"]\n",
        );
        built(&build(world, &["-t", "app"]));
        let wanted = "made\nwww-data\nb\n/work";
        assert_eq!(world.ilot(["run", "--rm", "app"]).ok().stdout.trim(), wanted);
        // The mount namespace is the test's own: podman sees nothing of the host's containers.
        sh("for d in /run /var/lib/containers /etc/containers; do [ ! -d $d ] || mount -t tmpfs tmpfs $d; done; \
            mkdir -p /etc/containers; echo '{\"default\": [{\"type\": \"insecureAcceptAnything\"}]}' > /etc/containers/policy.json");
        let archive = world.path("app.tar");
        world.ilot(["image", "export", "app", &format!("oci-archive:{}:app:1", archive.display())]).ok();
        let podman = format!(
            "podman --storage-driver vfs --root {0}/p --runroot {0}/r --tmpdir {0}/t --cgroup-manager cgroupfs --runtime {1}",
            world.path("podman").display(),
            ilot_tests::source_dir().join("target/dist/libexec/ilot/ilot-oci").display()
        );
        sh(&format!("{podman} load -q -i {}", archive.display()));
        let image = sh(&format!("{podman} images -q | head -n 1"));
        let said = sh(&format!(
            "{podman} run --rm --network none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --security-opt seccomp=unconfined {}",
            image.trim()
        ));
        assert_eq!(said.trim(), wanted);
    });
}

#[test]
fn networks_of_the_users_choice() {
    in_world(|world| {
        world.write(
            "infra.yml",
            "project_name: net\nglobal: {default_os_image: busybox}\ndomains:\n  pond:\n    subnet_id: 5\n    machines: {frog: {}}\n",
        );
        world.ilot(["apply", "-f", "infra.yml", "--yes"]).ok();
        context(world, "FROM busybox\nRUN ping -c 1 -W 5 frog && ip addr show eth0 > /addr; hostname -i\n");
        built(&build(world, &["--net", "pond", "-t", "app"]));
        let address = said(world, "app", "cat /addr");
        let gateway = world.ilot(["inspect", "frog"]).ok().json()[0]["ip"].as_str().unwrap().to_owned();
        let prefix = gateway.rsplit_once('.').unwrap().0.to_owned();
        assert!(address.contains(&format!("inet {prefix}.")), "{address}: {prefix}");
        // Nothing of the build stays in the domain.
        let record = fs::read_to_string(world.root().join("domains/pond.json")).unwrap();
        assert!(!record.contains("build-"), "{record}");
        let plan = world.ilot(["plan", "-f", "infra.yml", "--detailed-exitcode"]).run();
        assert_eq!(plan.code(), 0, "{plan}");
        assert!(build(world, &["--net", "swamp"]).stderr.contains("swamp"));
        world.ilot(["destroy", "-f", "infra.yml", "--yes", "--force"]).ok();
        // The host's, where the user says so.
        context(world, "FROM busybox\nRUN ip -o link > /own\nRUN --network=none ls /sys/class/net > /none\n");
        built(&build(world, &["--net", "host", "-t", "host"]));
        let seen = said(world, "host", "cat /own");
        assert!(seen.contains("up0"), "the uplink: {seen}");
        assert_eq!(said(world, "host", "cat /none"), "lo");
        assert_no_remains(world);
        world.assert_clean();
    });
}

/// A client of a unix socket: says hello, and writes the answer to a file.
const CLIENT: &str = "#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n#include <fcntl.h>\n#include <sys/socket.h>\n#include <sys/un.h>\n\
int main(void) { struct sockaddr_un a = { .sun_family = AF_UNIX }; char b[64]; ssize_t n;\n\
strncpy(a.sun_path, getenv(\"SSH_AUTH_SOCK\"), sizeof a.sun_path - 1); int s = socket(AF_UNIX, SOCK_STREAM, 0);\n\
if (connect(s, (void *)&a, sizeof a)) return 1; if (write(s, \"hello\", 5) != 5) return 2; n = read(s, b, 64);\n\
int f = open(\"/reply\", O_WRONLY | O_CREAT, 0644); return n > 0 && write(f, b, n) == n ? 0 : 3; }\n";

#[test]
fn an_agent_answers_a_step_that_may_ask_it() {
    if std::process::Command::new("gcc").arg("--version").output().is_err() {
        skip("needs `gcc`");
        return;
    }
    in_world(|world| {
        let ctx = context(
            world,
            "FROM busybox\nCOPY client /client\nRUN --mount=type=ssh,required=true /client && test -S $SSH_AUTH_SOCK\nRUN test -z \"$SSH_AUTH_SOCK\" && test ! -e /run/ilot\n",
        );
        let source = world.write("client.c", CLIENT);
        sh(&format!("gcc -static -o {}/client {}", ctx.display(), source.display()));
        let (error, help) = failed(&build(world, &[]));
        assert!(error.contains("the ssh agent `default`") && help.contains("--ssh default"), "{error} {help}");
        let socket = world.path("agent");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let mut said = [0; 5];
                if stream.read_exact(&mut said).is_ok() {
                    let _ = stream.write_all(&said.to_ascii_uppercase());
                }
            }
        });
        built(&build(world, &["--ssh", &format!("default={}", socket.display()), "-t", "app"]));
        assert_eq!(said(world, "app", "cat /reply"), "HELLO");
        assert_no_remains(world);
    });
}
