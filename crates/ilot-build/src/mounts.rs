//! `RUN --mount`: what a step sees and its layer has not.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ilot_image::BuiltLayer;
use ilot_runtime::spec::Mount;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use crate::copy::{Target, absolute};
use crate::error::{Error, Result};
use crate::ignore::Ignore;
use crate::options::Secret;
use crate::tree::Tree;
use crate::work::{Key, Work, hex, make};

/// How often a step that waits for a cache looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// One `--mount`, as it is written.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    kind: Kind,
    target: Option<String>,
    source: Option<String>,
    pub(crate) from: Option<String>,
    id: Option<String>,
    readonly: Option<bool>,
    sharing: String,
    mode: Option<u32>,
    uid: u32,
    gid: u32,
    size: Option<u64>,
    required: bool,
    env: Option<String>,
}

/// The mounts of a step, ready.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    pub(crate) mounts: Vec<Mount>,
    pub(crate) env: Vec<String>,
    /// Where they are, below the root.
    pub(crate) targets: Vec<Vec<u8>>,
    /// Caches that nobody else uses meanwhile.
    locks: Vec<File>,
    relays: Vec<Relay>,
}

impl Wanted {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let wrong = |message: String| Error::invalid(message, "for example `--mount=type=cache,target=/var/cache/apt`");
        let mut this = Self {
            kind: Kind::Bind,
            target: None,
            source: None,
            from: None,
            id: None,
            readonly: None,
            sharing: "shared".to_owned(),
            mode: None,
            uid: 0,
            gid: 0,
            size: None,
            required: false,
            env: None,
        };
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').map_or((part, None), |(key, value)| (key, Some(value)));
            let text = value.unwrap_or_default().to_owned();
            let flag = || matches!(value, None | Some("true" | "1"));
            let number = |text: &str| text.parse::<u32>().ok().filter(|id| *id < 65_536);
            let bad = || wrong(format!("`{part}` makes no sense in `--mount`"));
            match key {
                "type" => {
                    this.kind = match text.as_str() {
                        "bind" => Kind::Bind,
                        "cache" => Kind::Cache,
                        "tmpfs" => Kind::Tmpfs,
                        "secret" => Kind::Secret,
                        "ssh" => Kind::Ssh,
                        _ => return Err(wrong(format!("there is no mount of type `{text}`"))),
                    }
                }
                "target" | "dst" | "destination" => this.target = Some(text),
                "source" | "src" => this.source = Some(text),
                "from" => this.from = Some(text),
                "id" => this.id = Some(text),
                "ro" | "readonly" => this.readonly = Some(flag()),
                "rw" | "readwrite" => this.readonly = Some(!flag()),
                "sharing" if matches!(text.as_str(), "shared" | "private" | "locked") => this.sharing = text,
                "mode" => this.mode = Some(u32::from_str_radix(&text, 8).map_err(|_| bad())?),
                "uid" => this.uid = number(&text).ok_or_else(bad)?,
                "gid" => this.gid = number(&text).ok_or_else(bad)?,
                "size" => this.size = Some(size(&text).ok_or_else(bad)?),
                "required" => this.required = flag(),
                "env" => this.env = Some(text),
                // Of SELinux hosts; the label is the runtime's to choose here.
                "z" | "Z" | "relabel" => {}
                _ => return Err(bad()),
            }
        }
        if matches!(this.kind, Kind::Bind | Kind::Cache | Kind::Tmpfs) && this.target.is_none() {
            return Err(wrong(format!("`{text}` says no target")));
        }
        Ok(this)
    }

    /// Adds what the step depends on to its key: never what a secret or a cache holds.
    pub(crate) fn key(&self, work: &Work<'_>, from: Option<&From>, key: &mut Key) -> Result<()> {
        let shape = format!(
            "{:?} {:?} {:?} {:?} {:?} {:?} {} {} {:?} {:?}",
            self.kind,
            self.target,
            self.source,
            self.id,
            self.readonly,
            self.mode,
            self.uid,
            self.gid,
            self.size,
            self.env
        );
        key.add("mount", &shape);
        if self.kind == Kind::Bind {
            match from {
                Some(from) => {
                    key.on(&from.layers);
                }
                None => {
                    let tree = work.context;
                    for source in tree.find(self.source.as_deref().unwrap_or("."))? {
                        tree.hash(&tree.list(&source, &Ignore::default())?, key.hash())?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes the mount.
    pub(crate) fn ready(&self, work: &Work<'_>, from: Option<&From>, workdir: &str, ready: &mut Ready) -> Result<()> {
        match self.kind {
            Kind::Tmpfs => {
                let mut options = vec!["nosuid".to_owned(), "nodev".to_owned(), "mode=1777".to_owned()];
                options.extend(self.size.map(|size| format!("size={size}")));
                ready.add(workdir, self.target(), "tmpfs", "tmpfs", options);
                Ok(())
            }
            Kind::Bind => self.bind(work, from, workdir, ready),
            Kind::Cache => self.cache(work, from, workdir, ready),
            Kind::Secret => self.secret(work, workdir, ready),
            Kind::Ssh => self.ssh(work, workdir, ready),
        }
    }

    fn target(&self) -> &str {
        self.target.as_deref().unwrap_or_default()
    }

    /// A copy of what is bound: the ignore file holds, and what a step writes to it is nobody else's.
    fn bind(&self, work: &Work<'_>, from: Option<&From>, workdir: &str, ready: &mut Ready) -> Result<()> {
        let folder = work.folder("bind")?;
        let path = copied(work, from, self.source.as_deref().unwrap_or("."), &folder)?;
        let access = if self.readonly.unwrap_or(true) { "ro" } else { "rw" };
        ready.add_bind(workdir, self.target(), &path, &[access, "nosuid", "nodev"]);
        Ok(())
    }

    fn cache(&self, work: &Work<'_>, from: Option<&From>, workdir: &str, ready: &mut Ready) -> Result<()> {
        let target = String::from_utf8_lossy(&absolute(workdir, self.target())).into_owned();
        let id = self.id.clone().unwrap_or(target);
        // Never shared between trust levels.
        let name = hex(&Sha256::digest(format!("{}\0{id}", work.builder.trust())));
        let all = work.workshop.store().root().join("build/mounts");
        let failed = |operation| move |path: &Path, e| Error::file(operation, path, e);
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&all).map_err(|e| failed("make folder")(&all, e))?;
        let lock_path = all.join(format!("{name}.lock"));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|e| failed("open lock")(&lock_path, e))?;
        let mut folder = all.join(&name);
        match self.sharing.as_str() {
            "shared" => {}
            "locked" => {
                while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                    if work.cancelled() {
                        return Err(Error::Cancelled);
                    }
                    std::thread::sleep(LOOK_AGAIN);
                }
                ready.locks.push(lock);
            }
            // One that somebody else has is not waited for: this step gets an empty one.
            _ => match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => ready.locks.push(lock),
                Err(_) => folder = work.folder("cache")?.join("own"),
            },
        }
        if !folder.is_dir() {
            self.new_cache(work, from, &folder)?;
        }
        let access = if self.readonly.unwrap_or(false) { "ro" } else { "rw" };
        ready.add_bind(workdir, self.target(), &folder, &[access, "nosuid", "nodev"]);
        Ok(())
    }

    /// Made aside and renamed: a step that begins at the same time sees it whole.
    fn new_cache(&self, work: &Work<'_>, from: Option<&From>, folder: &Path) -> Result<()> {
        let mut path = work.folder("cache")?;
        match from {
            Some(_) => {
                let copied = copied(work, from, self.source.as_deref().unwrap_or("."), &path)?;
                if !copied.is_dir() {
                    return Err(Error::invalid("a cache begins with a folder", "name a folder as its `source`"));
                }
                path = copied;
            }
            None => path = make(path.join("new"))?,
        }
        chown(&path, Some(self.uid), Some(self.gid)).map_err(|e| Error::file("chown", &path, e))?;
        let mode = fs::Permissions::from_mode(self.mode.unwrap_or(0o755));
        fs::set_permissions(&path, mode).map_err(|e| Error::file("chmod", &path, e))?;
        match fs::rename(&path, folder) {
            Err(_) if folder.is_dir() => Ok(()),
            other => other.map_err(|e| Error::file("make folder", folder, e)),
        }
    }

    fn secret(&self, work: &Work<'_>, workdir: &str, ready: &mut Ready) -> Result<()> {
        let name = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
        let id = self.id.clone().or_else(|| self.target.as_ref().map(name)).or_else(|| self.env.clone());
        let id = id.ok_or_else(|| Error::invalid("a secret has no id", "write `--mount=type=secret,id=NAME`"))?;
        let content = match work.options.secrets.get(&id) {
            Some(Secret::File(path)) => fs::read(path).map_err(|e| Error::file("read secret", path, e))?,
            Some(Secret::Variable(name)) => {
                let value = std::env::var_os(name).ok_or_else(|| {
                    Error::invalid(format!("secret `{id}`: the variable `{name}` is not set"), "set it, or name a file")
                })?;
                value.into_encoded_bytes()
            }
            None if self.required => {
                let help = format!("give it: `--secret id={id},src=FILE` or `--secret id={id},env=NAME`");
                return Err(Error::invalid(format!("the step needs the secret `{id}`"), help));
            }
            None => return Ok(()),
        };
        if let Some(env) = &self.env {
            let text = String::from_utf8(content.clone())
                .map_err(|_| Error::invalid(format!("secret `{id}` is no text"), "mount it as a file"))?;
            ready.env.push(format!("{env}={text}"));
            if self.target.is_none() {
                return Ok(());
            }
        }
        let path = unique(&work.builder.private_folder()?, "secret");
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(&path)
            .map_err(|e| Error::file("create", &path, e))?;
        std::io::Write::write_all(&mut file, &content).map_err(|e| Error::file("write", &path, e))?;
        self.owned(&path, 0o400)?;
        let target = self.target.clone().unwrap_or_else(|| format!("/run/secrets/{id}"));
        ready.add_bind(workdir, &target, &path, &["ro", "nosuid", "nodev", "noexec"]);
        Ok(())
    }

    fn owned(&self, path: &Path, mode: u32) -> Result<()> {
        chown(path, Some(self.uid), Some(self.gid)).map_err(|e| Error::file("chown", path, e))?;
        let mode = fs::Permissions::from_mode(self.mode.unwrap_or(mode));
        fs::set_permissions(path, mode).map_err(|e| Error::file("chmod", path, e))
    }

    fn ssh(&self, work: &Work<'_>, workdir: &str, ready: &mut Ready) -> Result<()> {
        let id = self.id.clone().unwrap_or_else(|| "default".to_owned());
        let Some(agent) = work.options.agents.get(&id) else {
            if self.required {
                let help = format!("give it: `--ssh {id}` with SSH_AUTH_SOCK set, or `--ssh {id}=SOCKET`");
                return Err(Error::invalid(format!("the step needs the ssh agent `{id}`"), help));
            }
            return Ok(());
        };
        let path = unique(&work.builder.private_folder()?, "agent");
        ready.relays.push(Relay::new(&path, agent)?);
        self.owned(&path, 0o600)?;
        let target = self.target.clone().unwrap_or_else(|| format!("/run/ilot/ssh_agent.{}", ready.relays.len() - 1));
        ready.env.push(format!("SSH_AUTH_SOCK={target}"));
        ready.add_bind(workdir, &target, &path, &["rw", "nosuid", "nodev", "noexec"]);
        Ok(())
    }
}

/// The tree that `from=` names.
#[derive(Debug)]
pub(crate) struct From {
    pub(crate) tree: Tree,
    pub(crate) layers: Vec<BuiltLayer>,
}

impl Ready {
    fn add(&mut self, workdir: &str, target: &str, kind: &str, source: &str, options: Vec<String>) {
        let inside = absolute(workdir, target);
        self.mounts.push(Mount {
            destination: format!("/{}", String::from_utf8_lossy(&inside)),
            kind: Some(kind.to_owned()),
            source: Some(source.to_owned()),
            options,
            ..Mount::default()
        });
        self.targets.push(inside);
    }

    fn add_bind(&mut self, workdir: &str, target: &str, source: &Path, options: &[&str]) {
        let options = ["bind", "idmap"].iter().chain(options).map(|s| (*s).to_owned()).collect();
        self.add(workdir, target, "bind", &source.to_string_lossy(), options);
    }

    /// A script that the step runs.
    pub(crate) fn add_script(&mut self, name: &str, path: &Path) -> String {
        let target = format!("/dev/pipes/{name}");
        self.add_bind("/", &target, path, &["ro", "nosuid", "nodev"]);
        // It lies in the step's own `/dev`.
        self.targets.pop();
        target
    }
}

/// Copies something of a tree into a folder, and says where it is.
fn copied(work: &Work<'_>, from: Option<&From>, source: &str, folder: &Path) -> Result<PathBuf> {
    let tree = from.map_or(work.context, |from| &from.tree);
    let found = tree.find(source)?;
    let [source] = &found[..] else {
        return Err(Error::invalid(format!("`{source}` is more than one file"), "a mount takes one file or folder"));
    };
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let root =
        rustix::fs::open(folder, flags, rustix::fs::Mode::empty()).map_err(|e| Error::file("open", folder, e))?;
    let target = Target { root: &root, first_id: 0, owner: None, mode: None, now: None };
    let items = tree.list(source, &Ignore::default())?;
    target.copy(tree, &items, b"it")?;
    Ok(folder.join("it"))
}

fn unique(folder: &Path, what: &str) -> PathBuf {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    folder.join(format!("{what}-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// `64m`, `1g`, `4096`.
fn size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let factor = match lower[digits..].trim_end_matches("ib").trim_end_matches('b') {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    lower[..digits].parse::<u64>().ok()?.checked_mul(factor)
}

/// A socket beside which an agent of the host answers, as long as a step runs: the agent's own belongs to somebody whom
/// the step cannot be.
#[derive(Debug)]
struct Relay {
    path: PathBuf,
    ended: std::sync::Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Relay {
    fn new(path: &Path, agent: &Path) -> Result<Self> {
        use std::os::unix::net::{UnixListener, UnixStream};
        let listener = UnixListener::bind(path).map_err(|e| Error::file("listen on", path, e))?;
        listener.set_nonblocking(true).map_err(|e| Error::file("listen on", path, e))?;
        // Told now rather than in the middle of a step.
        UnixStream::connect(agent).map_err(|e| Error::file("connect to the ssh agent", agent, e))?;
        let ended = std::sync::Arc::new(AtomicBool::new(false));
        let (agent, is_ended) = (agent.to_owned(), std::sync::Arc::clone(&ended));
        let serve = move |client: UnixStream| {
            let (Ok(server), Ok(from)) = (UnixStream::connect(&agent), client.try_clone()) else { return };
            let Ok(to) = server.try_clone() else { return };
            let copy = |mut from: UnixStream, mut to: UnixStream| {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Write);
            };
            std::thread::spawn(move || copy(from, to));
            std::thread::spawn(move || copy(server, client));
        };
        let thread = std::thread::spawn(move || {
            while !is_ended.load(Ordering::Relaxed) {
                let entry = rustix::event::PollFd::new(&listener, rustix::event::PollFlags::IN);
                let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                let _ = rustix::event::poll(&mut [entry], Some(&wait));
                if let Ok((client, _)) = listener.accept() {
                    let _ = client.set_nonblocking(false);
                    serve(client);
                }
            }
        });
        Ok(Self { path: path.to_owned(), ended, thread: Some(thread) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read() {
        let cache = Wanted::parse("type=cache,id=x,target=/c,sharing=locked,mode=0700,uid=5").unwrap();
        assert_eq!(
            (cache.kind, cache.mode, cache.uid, cache.sharing.as_str()),
            (Kind::Cache, Some(0o700), 5, "locked")
        );
        let bind = Wanted::parse("from=a,source=/x,dst=/y,rw").unwrap();
        assert_eq!((bind.kind, bind.readonly, bind.from.as_deref()), (Kind::Bind, Some(false), Some("a")));
        assert_eq!(Wanted::parse("type=tmpfs,target=/t,size=1m").unwrap().size, Some(1 << 20));
        for wrong in [
            "type=x,target=/",
            "target=/x,bad",
            "type=cache",
            "type=cache,target=/x,sharing=y",
            "type=tmpfs,target=/t,size=lots",
        ] {
            assert!(Wanted::parse(wrong).is_err(), "{wrong}");
        }
    }
}
