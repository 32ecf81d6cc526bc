//! `ilot registry serve`, and pushes and pulls through it: ours, skopeo's, podman's.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command};

use ilot_tests::{World, in_world, sh, skip};
use serde_json::Value;

/// `htpasswd -nbB u p`, at the lowest cost.
const USERS: &str = "u:$2b$04$OhVRgi560K5274N/YI5CcelI4ub7r2y6.NVrlXyzvE63lNUY/wg7y\n";

/// A registry in the world's network.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    fn start(world: &World, options: &[&str]) -> Self {
        Self::start_with(world, options, &[])
    }

    fn start_with(world: &World, options: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut args = vec!["registry", "serve", "--json", "--listen", "127.0.0.1:0"];
        args.extend(options);
        let program = environment.iter().fold(world.ilot(args), |program, (key, value)| program.env(key, value));
        let mut child = program.spawn();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        assert_eq!(event["event"], "listening");
        let address = event["address"].as_str().unwrap().to_owned();
        Self { child, address }
    }

    /// Asks it to end, as a service manager would.
    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "it ends well");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A certificate for 127.0.0.1, its own authority.
struct Tls {
    folder: PathBuf,
}

impl Tls {
    fn new(world: &World) -> Self {
        let folder = world.path("certs");
        fs::create_dir_all(&folder).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(folder.join("ca.crt"), certificate.pem()).unwrap();
        fs::create_dir_all(folder.join("private")).unwrap();
        fs::write(folder.join("private/key.pem"), key.serialize_pem()).unwrap();
        Self { folder }
    }

    fn certificate(&self) -> String {
        self.folder.join("ca.crt").display().to_string()
    }

    fn key(&self) -> String {
        self.folder.join("private/key.pem").display().to_string()
    }
}

fn digest(world: &World, name: &str) -> String {
    world.ilot(["image", "inspect", name]).ok().json()[0]["digest"].as_str().unwrap().to_owned()
}

fn missing(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        skip(&format!("needs `{program}`"));
    }
    !found
}

#[test]
fn push_and_pull_without_tls() {
    in_world(|world| {
        let registry = Registry::start(world, &[]);
        let at = |name: &str| format!("{}/{name}", registry.address);
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        let before = digest(world, "busybox");
        let refused = world.ilot(["image", "push", "busybox", &at("team/tool:1")]).fails();
        assert!(refused.stderr.contains("https://"), "{refused}");
        let pushed =
            world.ilot(["image", "push", "busybox", &at("team/tool:1"), "--tls-verify=false", "--json"]).ok().json();
        assert_eq!((pushed["sent"].as_u64(), pushed["digest"].as_str()), (Some(2), Some(before.as_str())), "{pushed}");
        // Again: nothing is sent. Elsewhere: mounted, where another name says that the registry has it.
        let again =
            world.ilot(["image", "push", "busybox", &at("team/tool:2"), "--tls-verify=false", "--json"]).ok().json();
        assert_eq!((again["sent"].as_u64(), again["present"].as_u64()), (Some(0), Some(2)), "{again}");
        world.ilot(["image", "tag", "busybox", &at("team/tool:1")]).ok();
        let other =
            world.ilot(["image", "push", "busybox", &at("other:1"), "--tls-verify=false", "--json"]).ok().json();
        assert_eq!((other["sent"].as_u64(), other["mounted"].as_u64()), (Some(0), Some(2)), "{other}");
        world.ilot(["image", "rm", "busybox", &at("team/tool:1")]).ok();
        let pulled =
            world.ilot(["image", "pull", "-q", &at("other:1")]).env("ILOT_INSECURE_REGISTRIES", &registry.address).ok();
        assert_eq!(pulled.stdout.trim(), before);
        world.ilot(["run", "--rm", &at("other:1"), "true"]).ok();
        // In pieces.
        world
            .ilot(["image", "push", "-q", &at("other:1"), &at("pieces:1"), "--tls-verify=false"])
            .env("ILOT_PUSH_CHUNK", "100000")
            .ok();
        world.ilot(["image", "verify"]).ok();
        registry.stop();
        let gone = world.ilot(["image", "push", &at_of(world), "127.0.0.1:1/x:1", "--tls-verify=false"]).fails();
        assert_eq!(gone.code(), 1, "{gone}");
    });
}

fn at_of(world: &World) -> String {
    world.ilot(["image", "ls", "-q"]).ok().stdout.lines().next().unwrap().to_owned()
}

#[test]
fn push_and_pull_with_tls_and_a_login() {
    in_world(|world| {
        let tls = Tls::new(world);
        let users = world.write("users", USERS);
        let registry = Registry::start(
            world,
            &["--htpasswd", users.to_str().unwrap(), "--tls-cert", &tls.certificate(), "--tls-key", &tls.key()],
        );
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        let name = format!("{}/team/tool:1", registry.address);
        let push = || world.ilot(["image", "push", "busybox", &name]);
        let stranger = push().fails();
        assert!(stranger.stderr.contains("TLS"), "{stranger}");
        let trusted = |program: ilot_tests::Program| program.env("SSL_CERT_FILE", tls.certificate());
        let nobody = trusted(push()).fails();
        assert!(nobody.stderr.contains("401"), "{nobody}");
        let auth = |login: &str| {
            let text = format!(r#"{{"auths":{{"{}":{{"auth":"{login}"}}}}}}"#, registry.address);
            world.write("auth.json", &text)
        };
        let wrong = trusted(push()).env("REGISTRY_AUTH_FILE", auth("dTpx")).fails();
        assert!(wrong.stderr.contains("401"), "{wrong}");
        trusted(push()).env("REGISTRY_AUTH_FILE", auth("dTpw")).ok();
        // Without verification the certificate does not matter, the login does.
        let pull = world.ilot(["image", "pull", "-q", &name, "--tls-verify=false"]);
        pull.env("REGISTRY_AUTH_FILE", auth("dTpw")).ok();
        let pull = world.ilot(["image", "pull", "-q", &name, "--tls-verify=false"]);
        pull.env("REGISTRY_AUTH_FILE", auth("dTpx")).fails();
        // An authority for this registry alone.
        let certs = world.path(format!("home/.config/containers/certs.d/{}", registry.address));
        fs::create_dir_all(&certs).unwrap();
        fs::copy(tls.certificate(), certs.join("ca.crt")).unwrap();
        let pull = world.ilot(["image", "pull", "-q", &name]).env("HOME", world.path("home"));
        pull.env("REGISTRY_AUTH_FILE", auth("dTpw")).ok();
        // As podman has it: on the command line, or in a file that is named there.
        let pull = |options: &[&str]| {
            let mut args = vec!["image", "pull", "-q", &name];
            args.extend(options);
            trusted(world.ilot(args)).env("REGISTRY_AUTH_FILE", auth("dTpx"))
        };
        pull(&["--creds", "u:p"]).ok();
        let wrong = pull(&["--creds", "u:x"]).fails();
        assert!(wrong.stderr.contains("401"), "{wrong}");
        let nobody = pull(&["--creds", "u"]).run();
        assert!(nobody.code() == 2 && nobody.stderr.contains("no password"), "{nobody}");
        let named = world.write("named.json", &format!(r#"{{"auths":{{"{}":{{"auth":"dTpw"}}}}}}"#, registry.address));
        pull(&["--authfile", named.to_str().unwrap()]).ok();
        trusted(world.ilot(["image", "push", "-q", "busybox", &name, "--creds", "u:p"])).ok();
        registry.stop();
    });
}

#[test]
fn skopeo_copies_both_ways() {
    in_world(|world| {
        if missing("skopeo") {
            return;
        }
        let tls = Tls::new(world);
        let users = world.write("users", USERS);
        let registry = Registry::start(
            world,
            &["--htpasswd", users.to_str().unwrap(), "--tls-cert", &tls.certificate(), "--tls-key", &tls.key()],
        );
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        let before = digest(world, "busybox");
        let store = world.root();
        let (address, certs) = (&registry.address, tls.folder.display());
        let skopeo = |line: &str| sh(&format!("skopeo --insecure-policy {line}"));
        // From our store to our registry and back into a layout, the digest the same all the way.
        skopeo(&format!(
            "copy --preserve-digests --dest-creds u:p --dest-cert-dir {certs} oci:{}:busybox docker://{address}/a/b:1",
            store.display()
        ));
        let layout = world.path("layout");
        skopeo(&format!(
            "copy --preserve-digests --src-creds u:p --src-cert-dir {certs} docker://{address}/a/b:1 oci:{}:x",
            layout.display()
        ));
        world.ilot(["image", "import", layout.to_str().unwrap(), "back"]).ok();
        assert_eq!(digest(world, "back"), before);
        // Into our store, where it has the name that skopeo was told; what was there stays.
        world.ilot(["image", "tag", "busybox", "mine"]).ok();
        skopeo(&format!(
            "copy --preserve-digests --src-creds u:p --src-cert-dir {certs} docker://{address}/a/b:1 oci:{}:local:theirs:1",
            store.display()
        ));
        assert_eq!((digest(world, "theirs:1"), digest(world, "mine")), (before.clone(), before.clone()));
        assert_eq!(world.ilot(["run", "--rm", "theirs:1", "echo", "runs"]).ok().stdout, "runs\n");
        world.ilot(["image", "prune"]).ok();
        world.ilot(["image", "verify"]).ok();
        world.ilot(["image", "rm", "theirs:1", "mine"]).ok();
        let seen = skopeo(&format!("inspect --creds u:p --cert-dir {certs} docker://{address}/a/b:1"));
        let seen: Value = serde_json::from_str(&seen).unwrap();
        assert_eq!((seen["Digest"].as_str(), seen["RepoTags"][0].as_str()), (Some(before.as_str()), Some("1")));
        let tags = skopeo(&format!("list-tags --creds u:p --cert-dir {certs} docker://{address}/a/b"));
        assert!(tags.contains("\"1\""), "{tags}");
        // From one repository to another, which mounts.
        let both = format!("--src-creds u:p --src-cert-dir {certs} --dest-creds u:p --dest-cert-dir {certs}");
        skopeo(&format!("copy {both} docker://{address}/a/b:1 docker://{address}/a/c:1"));
        // Docker's own form, which skopeo converts to.
        skopeo(&format!(
            "copy --format v2s2 --dest-creds u:p --dest-cert-dir {certs} oci:{}:busybox docker://{address}/docker:1",
            store.display()
        ));
        let auth = world.write("auth.json", &format!(r#"{{"auths":{{"{address}":{{"auth":"dTpw"}}}}}}"#));
        let pull = world.ilot(["image", "pull", "-q", &format!("{address}/docker:1")]);
        pull.env("SSL_CERT_FILE", tls.certificate()).env("REGISTRY_AUTH_FILE", &auth).ok();
        let diff = world.ilot(["image", "diff", "busybox", &format!("{address}/docker:1")]).ok();
        assert_eq!(diff.stdout, "");
        skopeo(&format!("delete --creds u:p --cert-dir {certs} docker://{address}/a/b:1"));
        let wrong = Command::new("skopeo")
            .args(["inspect", "--creds", "u:x", "--cert-dir"])
            .arg(&tls.folder)
            .arg(format!("docker://{address}/docker:1"))
            .output()
            .unwrap();
        assert!(!wrong.status.success());
        registry.stop();
        // Without the server: each repository is a layout.
        let repository = world.root().join("registry/repositories/a+c");
        skopeo(&format!("inspect oci:{}:1", repository.display()));
    });
}

#[test]
fn podman_pushes_and_pulls() {
    in_world(|world| {
        if missing("podman") {
            return;
        }
        let tls = Tls::new(world);
        let users = world.write("users", USERS);
        let registry = Registry::start(
            world,
            &["--htpasswd", users.to_str().unwrap(), "--tls-cert", &tls.certificate(), "--tls-key", &tls.key()],
        );
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        world.ilot(["image", "export", "busybox", "docker-archive:in.tar:localhost/in:1"]).ok();
        let policy = world.write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
        let (address, certs) = (&registry.address, tls.folder.display());
        let place = |name: &str| world.path(name).display().to_string();
        let podman = |line: &str| podman(&place("podman"), &place("podman-run"), line);
        let policy = policy.display();
        podman(&format!("load -q --signature-policy {policy} -i {}", place("in.tar")));
        let login = format!("--creds u:p --cert-dir {certs} --signature-policy {policy}");
        podman(&format!("push -q {login} localhost/in:1 docker://{address}/from/podman:1"));
        let auth = world.write("auth.json", &format!(r#"{{"auths":{{"{address}":{{"auth":"dTpw"}}}}}}"#));
        let name = format!("{address}/from/podman:1");
        let pull = world.ilot(["image", "pull", "-q", &name]);
        pull.env("SSL_CERT_FILE", tls.certificate()).env("REGISTRY_AUTH_FILE", &auth).ok();
        assert_eq!(world.ilot(["image", "diff", "busybox", &name]).ok().stdout, "");
        let ours = format!("{address}/from/ilot:1");
        let push = world.ilot(["image", "push", "-q", "busybox", &ours]);
        push.env("SSL_CERT_FILE", tls.certificate()).env("REGISTRY_AUTH_FILE", &auth).ok();
        podman(&format!("pull -q {login} docker://{ours}"));
        let seen = podman(&format!("image inspect --format '{{{{.RepoDigests}}}}' {ours}"));
        assert!(seen.contains(&digest(world, "busybox")), "{seen}");
        registry.stop();
    });
}

/// podman on a storage of the test's own.
fn podman(root: &str, run: &str, line: &str) -> String {
    sh(&format!("podman --root {root} --runroot {run} --storage-driver vfs --cgroup-manager cgroupfs {line}"))
}

#[test]
fn a_central_registry_and_a_mirror_of_it() {
    in_world(|world| {
        let tls = Tls::new(world);
        let users = world.write("users", USERS);
        let access = world.write("access", "* public/** pull\nu ** pull,push,delete\n");
        let (certificate, key) = (tls.certificate(), tls.key());
        let mut central = vec!["--type", "central", "--htpasswd", users.to_str().unwrap()];
        central.extend(["--access", access.to_str().unwrap(), "--tls-cert", &certificate, "--tls-key", &key]);
        let central = Registry::start(world, &central);
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        let name = format!("{}/public/tool:1", central.address);
        let auth = world.write("auth.json", &format!(r#"{{"auths":{{"{}":{{"auth":"dTpw"}}}}}}"#, central.address));
        let trusted = |program: ilot_tests::Program| program.env("SSL_CERT_FILE", &certificate);
        // By a token, both where a login is needed and where none is.
        trusted(world.ilot(["image", "push", "busybox", &name])).fails();
        trusted(world.ilot(["image", "push", "-q", "busybox", &name])).env("REGISTRY_AUTH_FILE", &auth).ok();
        trusted(world.ilot(["image", "pull", "-q", &name])).ok();
        let secret = format!("{}/secret/tool:1", central.address);
        trusted(world.ilot(["image", "push", "-q", "busybox", &secret])).env("REGISTRY_AUTH_FILE", &auth).ok();
        let refused = trusted(world.ilot(["image", "pull", &secret])).fails();
        assert!(refused.stderr.contains("401"), "{refused}");
        let upstream = central.address.clone();
        let options =
            ["--type", "mirror", "--upstream", &upstream, "--root", &world.path("mirror").display().to_string()];
        let environment = [("SSL_CERT_FILE", certificate.as_str()), ("REGISTRY_AUTH_FILE", "/dev/null")];
        let mirror = Registry::start_with(world, &options, &environment);
        let through = format!("{}/public/tool:1", mirror.address);
        let pull = || world.ilot(["image", "pull", "-q", &through, "--tls-verify=false"]);
        let pulled = pull().ok();
        let refused = world.ilot(["image", "push", "busybox", &through, "--tls-verify=false"]).fails();
        assert!(refused.stderr.contains("a mirror of"), "{refused}");
        if !missing("skopeo") {
            let (certs, address) = (tls.folder.display(), &central.address);
            sh(&format!("skopeo inspect --no-creds --cert-dir {certs} docker://{address}/public/tool:1"));
            let both = format!("--src-no-creds --src-cert-dir {certs} --dest-creds u:p --dest-cert-dir {certs}");
            sh(&format!(
                "skopeo --insecure-policy copy {both} docker://{address}/public/tool:1 docker://{address}/team/copy:1"
            ));
            sh(&format!("skopeo inspect --tls-verify=false docker://{through}"));
        }
        // The central one away, the mirror goes on with what it has.
        central.stop();
        world.ilot(["image", "rm", &through]).ok();
        assert_eq!(pull().ok().stdout, pulled.stdout);
        mirror.stop();
    });
}

#[test]
fn wrong_options_are_told() {
    in_world(|world| {
        let serve = |args: &[&str]| {
            let all = ["registry", "serve", "--listen", "127.0.0.1:0"].iter().chain(args);
            world.ilot(all.copied()).fails()
        };
        assert_eq!(serve(&["--tls-cert", "x"]).code(), 2, "a certificate needs its key");
        assert_eq!(serve(&["--type", "mirror"]).code(), 2, "a mirror needs an upstream");
        assert_eq!(serve(&["--upstream", "docker.io"]).code(), 2, "only a mirror has one");
        let got = serve(&["--type", "central"]);
        assert!(got.code() == 2 && got.stderr.contains("--htpasswd"), "{got}");
        let got = serve(&["--htpasswd", "/no/such/file"]);
        assert!(got.stderr.contains("password file") && got.stderr.contains("htpasswd -B"), "{got}");
        let got = serve(&["--tls-cert", "/no/such/file", "--tls-key", "/no/such/file"]);
        assert!(got.stderr.contains("certificate") && got.stderr.contains("hint"), "{got}");
        let registry = Registry::start(world, &[]);
        let got = serve(&[]);
        assert!(got.stderr.contains("another registry serves it"), "{got}");
        registry.stop();
    });
}
