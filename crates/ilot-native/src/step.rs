//! Steps of an image build: short containers on layers of the store, of one id range, each with an upper layer of its own.
//!
//! A build holds the lock `machine-build-<n>` and one for each of its places; what stands below such a name and has no
//! holder is a dead build's, and the next build removes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ilot_net::PortSpec;
use ilot_runtime::cgroup::Layout;
use ilot_runtime::seccomp::{DefaultKind, default_profile};
use ilot_runtime::spec::{self, IdMapping, Mount, NamespaceKind, Spec};
use ilot_runtime::{CreateRequest, Exit, Init, Rootfs, Stdio};
use ilot_spec::TrustLevel;
use ipnet::Ipv4Net;

use crate::error::{Error, Result};
use crate::paths::{Lock, make_dir, remove_file, remove_tree, write_json_unsynced};
use crate::record::DomainRecord;
use crate::{Native, actual, ids, network};

/// Whom the domain of a running build belongs to: no project can have such a name.
const PROJECT: &str = "ilot image build";
/// Addresses for machines in a build's subnet of 32.
const ADDRESSES: usize = 29;
/// How often a waiting build looks whether it was cancelled.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Which network the steps of a build have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildNet {
    /// A domain of the build's own that stands as long as it runs: out to the internet, and to nothing else.
    Own,
    /// Loopback only.
    None,
    /// The host's.
    Host,
    /// A domain that stands on this host, with its rules and its trust level.
    Domain(String),
}

/// One command.
#[derive(Debug)]
pub struct Step<'a> {
    /// Layers below, top first.
    pub lowers: Vec<PathBuf>,
    /// Its writable layer.
    pub upper: PathBuf,
    /// Overlay's work folder, beside it.
    pub work: PathBuf,
    /// The command.
    pub args: Vec<String>,
    /// Its whole environment, `NAME=value`.
    pub env: Vec<String>,
    /// Where it starts.
    pub cwd: String,
    /// As whom; root when not given.
    pub user: Option<String>,
    /// Further mounts.
    pub mounts: Vec<Mount>,
    /// Its network, where it is not the build's.
    pub net: Option<BuildNet>,
    /// With every capability of its user namespace, and the filter that a booting machine has.
    pub insecure: bool,
    /// Standard output and error.
    pub streams: [BorrowedFd<'a>; 2],
}

/// A build: its ids, its network and its places.
#[derive(Debug)]
pub struct Builder<'a> {
    native: &'a Native,
    name: String,
    id_base: u32,
    trust: TrustLevel,
    net: BuildNet,
    free: Mutex<Vec<usize>>,
    freed: Condvar,
    /// The build's own domain, once a step needed it.
    domain: Mutex<Option<DomainRecord>>,
    /// The build's own, and one for each place.
    locks: Vec<Lock>,
}

/// `build-` and eight hexadecimal digits.
fn is_build(name: &str) -> bool {
    name.strip_prefix("build-").is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Native {
    /// Begins a build of which at most `places` steps run at once, and removes what dead builds left.
    ///
    /// # Errors
    /// When there is no such domain, and when no ids are left.
    pub fn begin_build(&self, net: BuildNet, places: usize) -> Result<Builder<'_>> {
        self.sweep_builds()?;
        let trust = match &net {
            BuildNet::Domain(domain) => self.domain(domain)?.trust,
            _ => TrustLevel::SemiTrusted,
        };
        let places = places.clamp(1, ADDRESSES);
        let (name, mut locks) = loop {
            let mut seed = [0_u8; 4];
            // Any four bytes do: a name that is taken is tried again.
            let _ = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
            let name = format!("build-{:08x}", u32::from_ne_bytes(seed));
            if let Some(lock) = Lock::try_take(&self.paths, &format!("machine-{name}"))? {
                break (name, vec![lock]);
            }
        };
        for place in 1..=places {
            locks.push(Lock::take(&self.paths, &format!("machine-{name}-{place}"), &|_| {})?);
        }
        let id_base = ids::claim(&self.paths, &format!("machine:{name}"))?;
        let free = Mutex::new((1..=places).rev().collect());
        let domain = Mutex::new(None);
        Ok(Builder { native: self, name, id_base, trust, net, free, freed: Condvar::new(), domain, locks })
    }

    /// Ends the steps of builds whose command is dead, and gives back what these held.
    ///
    /// # Errors
    /// When something of them cannot be removed.
    pub fn sweep_builds(&self) -> Result<()> {
        let live = self.paths.run.join("machines");
        for entry in fs::read_dir(&live).map_err(Error::file("read", &live))?.flatten() {
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if !name.starts_with("build-") || self.paths.machine(&name).exists() {
                continue;
            }
            if let Some(_lock) = Lock::try_take(&self.paths, &format!("machine-{name}"))? {
                tracing::info!(name, "removing what is left of a build");
                ilot_runtime::delete(&entry.path(), true)?;
                remove_tree(&entry.path())?;
            }
        }
        for holder in ids::holders(&self.paths)? {
            let Some(name) = holder.strip_prefix("machine:").filter(|name| name.starts_with("build-")) else {
                continue;
            };
            if self.paths.machine(name).exists() {
                continue;
            }
            if let Some(_lock) = Lock::try_take(&self.paths, &format!("machine-{name}"))? {
                ids::release(&self.paths, &holder)?;
            }
        }
        for domain in actual::domain_records(&self.paths)?.into_values() {
            if domain.project != PROJECT {
                self.forget_dead_places(&domain)?;
                continue;
            }
            if let Some(_lock) = Lock::try_take(&self.paths, &format!("machine-{}", domain.name))? {
                self.remove_build_domain(&domain)?;
            }
        }
        Ok(())
    }

    /// Addresses of dead builds in a domain of the user's.
    fn forget_dead_places(&self, domain: &DomainRecord) -> Result<()> {
        for place in domain.hosts.keys().filter(|host| host.starts_with("build-")) {
            if self.paths.machine(place).exists() {
                continue;
            }
            let Some(_lock) = Lock::try_take(&self.paths, &format!("machine-{place}"))? else { continue };
            let _addresses = Lock::take(&self.paths, &format!("addresses-{}", domain.name), &|_| {})?;
            let mut record = self.domain(&domain.name)?;
            // A machine of the user's file can have such a name; it has a record then, or is about to.
            if record.hosts.remove(place).is_some() && place.rsplit_once('-').is_some_and(|(name, _)| is_build(name)) {
                write_json_unsynced(&self.paths.domain_record(&domain.name), &record)?;
            }
        }
        Ok(())
    }

    fn remove_build_domain(&self, domain: &DomainRecord) -> Result<()> {
        ilot_net::names::stop(&self.paths.run, &domain.name)?;
        ilot_net::remove_bridge(&domain.bridge)?;
        remove_file(&self.paths.domain_record(&domain.name))?;
        remove_file(&self.paths.run.join("locks").join(format!("domain-{}.lock", domain.name)))?;
        self.settle_network(!actual::domain_records(&self.paths)?.is_empty())
    }

    /// A subnet of 32 that nobody has, from 10.254.0.0/16.
    fn free_subnet(&self) -> Result<Ipv4Net> {
        let mut taken: Vec<Ipv4Net> =
            ilot_net::host_subnets(&self.paths.store_id)?.into_iter().map(|(_, net)| net).collect();
        taken.extend(actual::domain_records(&self.paths)?.into_values().map(|d| d.subnet));
        let all = (0..=255_u8).flat_map(|c| (0..8_u8).map(move |d| Ipv4Addr::new(10, 254, c, d * 32)));
        all.filter_map(|ip| Ipv4Net::new(ip, 27).ok())
            .find(|net| !taken.iter().any(|t| t.contains(net) || net.contains(t)))
            .ok_or_else(|| Error::Exhausted("no subnet of 10.254.0.0/16 is left for a build".to_owned()))
    }
}

impl Builder<'_> {
    /// The host's id of user 0 of every step.
    #[must_use]
    pub fn id_base(&self) -> u32 {
        self.id_base
    }

    /// How many ids a step has.
    #[must_use]
    pub fn ids(&self) -> u32 {
        ids::SIZE
    }

    /// Whose layers the steps run on.
    #[must_use]
    pub fn trust(&self) -> &str {
        self.trust.as_str()
    }

    /// The tree of some layers with a writable one on top, owners as on the host (user 0 is [`Builder::id_base`]).
    ///
    /// # Errors
    /// Whatever the kernel refuses.
    pub fn mount(&self, lowers: Vec<PathBuf>, upper: PathBuf, work: PathBuf) -> Result<OwnedFd> {
        let rootfs = Rootfs::Overlay { lowers, upper, work, volatile: true };
        Ok(ilot_runtime::mount_rootfs(&rootfs, &[self.mapping()])?)
    }

    fn mapping(&self) -> IdMapping {
        IdMapping { container_id: 0, host_id: self.id_base, size: ids::SIZE }
    }

    /// A folder in the live state for what must not reach the disk; it goes with the build.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn private_folder(&self) -> Result<PathBuf> {
        let folder = self.native.paths.machine_run(&self.name);
        make_dir(&folder, 0o700)?;
        Ok(folder)
    }

    /// Runs a step to its end; `None` when it was cancelled, and then nothing of it runs any more.
    ///
    /// # Errors
    /// When it cannot be started, or its end cannot be seen.
    pub fn run(&self, step: &Step<'_>, cancelled: &dyn Fn() -> bool) -> Result<Option<Exit>> {
        let Some(place) = self.take_place(cancelled) else { return Ok(None) };
        let name = format!("{}-{place}", self.name);
        let run_dir = self.native.paths.machine_run(&name);
        let result = self.run_at(step, place, &name, &run_dir, cancelled);
        let removed = ilot_runtime::delete(&run_dir, true).map_err(Error::from).and_then(|()| remove_tree(&run_dir));
        held(&self.free).push(place);
        self.freed.notify_one();
        let exit = result?;
        removed?;
        Ok(exit)
    }

    fn take_place(&self, cancelled: &dyn Fn() -> bool) -> Option<usize> {
        let mut free = held(&self.free);
        loop {
            if let Some(place) = free.pop() {
                return Some(place);
            }
            if cancelled() {
                return None;
            }
            free = self.freed.wait_timeout(free, LOOK_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn run_at(
        &self,
        step: &Step<'_>,
        place: usize,
        name: &str,
        run_dir: &Path,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Exit>> {
        let net = step.net.as_ref().unwrap_or(&self.net);
        let port = self.port(net, place, name)?;
        make_dir(run_dir, 0o700)?;
        let mut spec = self.spec(step, name, net);
        spec.mounts.extend(self.names(name, port.as_ref(), net, run_dir)?);
        spec.mounts.extend(step.mounts.iter().cloned());
        let null = fs::File::open("/dev/null").map_err(Error::file("open", "/dev/null"))?;
        let request = CreateRequest {
            id: name,
            run_dir,
            spec: &spec,
            rootfs: Rootfs::Overlay {
                lowers: step.lowers.clone(),
                upper: step.upper.clone(),
                work: step.work.clone(),
                volatile: true,
            },
            init: Init::Image,
            stdio: Stdio::Inherit,
            files: Vec::new(),
            exit_command: None,
        };
        ilot_runtime::create_with(&request, [null.as_fd(), step.streams[0], step.streams[1]])?;
        if let Some(port) = &port {
            ilot_net::attach(port, ilot_runtime::netns(run_dir)?.as_fd())?;
        }
        ilot_runtime::start(run_dir)?;
        loop {
            if let Some(exit) = ilot_runtime::wait(run_dir, Some(LOOK_AGAIN))? {
                return Ok(Some(exit));
            }
            if cancelled() {
                return Ok(None);
            }
        }
    }

    /// What every step has: the safe defaults of a machine, but `/run` is the image's and set-user-id programs work.
    fn spec(&self, step: &Step<'_>, name: &str, net: &BuildNet) -> Spec {
        let mut spec = spec::machine_default(self.mapping(), false);
        spec.mounts.retain(|mount| mount.destination != "/run");
        if *net == BuildNet::Host {
            // A sysfs shows the network of whoever mounts it, and that one is not this user namespace's.
            for mount in spec.mounts.iter_mut().filter(|mount| mount.destination == "/sys") {
                mount.kind = Some("bind".to_owned());
                mount.source = Some("/sys".to_owned());
                mount.options = ["bind", "ro", "nosuid", "noexec", "nodev"].map(str::to_owned).into();
            }
        }
        spec.hostname = Some("build".to_owned());
        if let Some(process) = &mut spec.process {
            process.args.clone_from(&step.args);
            process.env.clone_from(&step.env);
            process.cwd.clone_from(&step.cwd);
            process.user.username.clone_from(&step.user);
            process.no_new_privileges = false;
            if step.insecure {
                process.capabilities = Some(spec::capabilities_for_image_init());
            }
        }
        if let Some(linux) = &mut spec.linux {
            if let Ok(layout) = Layout::detect() {
                let path = format!("{}/{name}", self.native.paths.cgroup_parent());
                linux.cgroups_path = Some(layout.suggest_path(&path));
            }
            if step.insecure {
                linux.seccomp = Some(default_profile(DefaultKind::Init));
            }
            if *net == BuildNet::Host {
                linux.namespaces.retain(|n| n.kind != NamespaceKind::Network);
                linux.sysctl.clear();
            }
        }
        spec
    }

    /// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`, mounted over the image's for as long as the step runs.
    fn names(&self, name: &str, port: Option<&PortSpec>, net: &BuildNet, run_dir: &Path) -> Result<Vec<Mount>> {
        let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
        let address = port.map_or_else(|| "127.0.1.1".to_owned(), |p| p.address.addr().to_string());
        hosts.push_str(&format!("{address}\tbuild\n"));
        let resolver = match (port, net) {
            (Some(port), _) => format!("nameserver {}\n", port.gateway),
            (None, BuildNet::Host) => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            (None, _) => String::new(),
        };
        let folder = run_dir.join("etc");
        make_dir(&folder, 0o755)?;
        let mut mounts = Vec::new();
        for (file, text) in [("hosts", hosts), ("hostname", "build\n".to_owned()), ("resolv.conf", resolver)] {
            let path = folder.join(file);
            fs::write(&path, text).map_err(Error::file("write", &path))?;
            mounts.push(Mount {
                destination: format!("/etc/{file}"),
                kind: Some("bind".to_owned()),
                source: Some(path.to_string_lossy().into_owned()),
                options: ["bind", "ro", "nosuid", "nodev", "noexec", "idmap"].map(str::to_owned).into(),
                ..Mount::default()
            });
        }
        tracing::debug!(name, "step");
        Ok(mounts)
    }

    /// The port of a place; none without a network of the step's own.
    fn port(&self, net: &BuildNet, place: usize, name: &str) -> Result<Option<PortSpec>> {
        let record = match net {
            BuildNet::None | BuildNet::Host => return Ok(None),
            BuildNet::Own => self.own_domain()?,
            BuildNet::Domain(domain) => self.foreign_domain(domain, name)?,
        };
        let Some(ip) = record.hosts.get(name).copied() else {
            return Err(Error::Exhausted(format!("no address for place {place} of the build")));
        };
        let paths = &self.native.paths;
        let machine = (name.to_owned(), ip);
        network::port_of(paths, &machine.0, machine.1, &record).map(Some)
    }

    fn places(&self) -> impl Iterator<Item = String> {
        let name = self.name.clone();
        (1..self.locks.len()).map(move |place| format!("{name}-{place}"))
    }

    /// The build's own domain: made when the first step needs it.
    fn own_domain(&self) -> Result<DomainRecord> {
        let mut own = held(&self.domain);
        if let Some(record) = own.as_ref() {
            return Ok(record.clone());
        }
        let native = self.native;
        let record = {
            let _subnets = Lock::take(&native.paths, "build-subnet", &|_| {})?;
            let subnet = native.free_subnet()?;
            let mut hosts = subnet.hosts();
            let gateway = hosts.next().unwrap_or(subnet.network());
            let record = DomainRecord {
                name: self.name.clone(),
                project: PROJECT.to_owned(),
                description: "an image being built".to_owned(),
                trust: self.trust,
                bridge: ilot_net::bridge_name(&self.name),
                subnet,
                gateway,
                id_base: self.id_base,
                ephemeral: true,
                egress: None,
                machine_egress: BTreeMap::new(),
                hosts: self.places().zip(hosts).collect(),
                ipv6: false,
            };
            write_json_unsynced(&native.paths.domain_record(&record.name), &record)?;
            record
        };
        let made = native.ensure_network(&record.name);
        if let Err(error) = made {
            // The error above is the one to report.
            let _ = native.remove_build_domain(&record);
            return Err(error);
        }
        *own = Some(record.clone());
        Ok(record)
    }

    /// A domain of the user's, with an address in it for a place of this build.
    fn foreign_domain(&self, domain: &str, name: &str) -> Result<DomainRecord> {
        let native = self.native;
        native.ensure_network(domain)?;
        let _addresses = Lock::take(&native.paths, &format!("addresses-{domain}"), &|_| {})?;
        let mut record = native.domain(domain)?;
        if !record.hosts.contains_key(name) {
            let mut taken: BTreeSet<Ipv4Addr> = record.hosts.values().copied().collect();
            taken.extend(
                actual::machine_records(&native.paths)?
                    .into_values()
                    .filter(|m| m.domain.as_deref() == Some(domain))
                    .filter_map(|m| m.ip),
            );
            let ip = crate::desired::free_dynamic(record.subnet, &taken)
                .ok_or_else(|| crate::desired::no_address(name, domain))?;
            record.hosts.insert(name.to_owned(), ip);
            write_json_unsynced(&native.paths.domain_record(domain), &record)?;
            native.settle_network(true)?;
        }
        Ok(record)
    }

    /// Takes this build's addresses out of a domain of the user's.
    fn leave(&self, domain: &str) -> Result<()> {
        let native = self.native;
        let _addresses = Lock::take(&native.paths, &format!("addresses-{domain}"), &|_| {})?;
        let mut record = native.domain(domain)?;
        let before = record.hosts.len();
        for place in self.places() {
            record.hosts.remove(&place);
        }
        if record.hosts.len() != before {
            write_json_unsynced(&native.paths.domain_record(domain), &record)?;
            native.settle_network(true)?;
        }
        Ok(())
    }
}

impl Drop for Builder<'_> {
    fn drop(&mut self) {
        let native = self.native;
        let mut problems = Vec::new();
        problems.extend(remove_tree(&native.paths.machine_run(&self.name)).err());
        if let Some(domain) = held(&self.domain).take() {
            problems.extend(native.remove_build_domain(&domain).err());
        }
        if let BuildNet::Domain(domain) = &self.net {
            problems.extend(self.leave(domain).err());
        }
        problems.extend(ids::give_back(&native.paths, self.id_base, &format!("machine:{}", self.name)).err());
        for name in self.places().chain([self.name.clone()]) {
            let lock = native.paths.run.join("locks").join(format!("machine-{name}.lock"));
            problems.extend(remove_file(&lock).err());
        }
        for error in problems {
            tracing::warn!(%error, "something of the build stays until the next one");
        }
    }
}
