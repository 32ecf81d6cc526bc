//! The same domains and machines with Incus: its own daemon on a directory of the bench's, so that a user's is never touched.
//!
//! Its containers must be able to reach that directory: a project in a home that nobody may enter (0700) keeps them from it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bench::{Series, Stand, checked};
use crate::bench_peers::{busybox_rootfs, installed};

/// Where distributions put the daemon when it is not on the path.
const DAEMONS: [&str; 3] = ["/usr/libexec/incus/incusd", "/usr/lib/incus/incusd", "/opt/incus/bin/incusd"];

/// A sysfs of this network namespace, for the daemon looks for its bridges there; the cgroups as they were.
const SYSFS: &str = "mkdir -p \"$INCUS_DIR/cg\" && mount --rbind /sys/fs/cgroup \"$INCUS_DIR/cg\" && \
    mount -t sysfs sysfs /sys && mount --rbind \"$INCUS_DIR/cg\" /sys/fs/cgroup && exec \"$@\"";

/// What a domain of the project is to Incus.
#[derive(Debug, Default)]
struct Domain {
    gateway: String,
    prefix: String,
    /// Name and address.
    machines: Vec<(String, String)>,
}

/// Up and destroy, as often as asked. `Err` holds the reason why it was left out, or what went wrong.
pub fn run(stand: &Stand, file: &str, rounds: usize) -> Result<(Vec<Series>, String), String> {
    let client = installed("incus").ok_or("not installed")?;
    let daemon = installed("incusd")
        .or_else(|| DAEMONS.iter().map(PathBuf::from).find(|path| path.is_file()))
        .ok_or("its daemon, incusd, was not found")?;
    if installed("dnsmasq").is_none() {
        return Err("dnsmasq is not installed, and its networks need it (package dnsmasq-base)".to_owned());
    }
    let domains = domains(stand, file)?;
    let incus = Incus::start(&stand.dir, client, &daemon)?;
    incus.prepare(&stand.dir)?;
    let mut series = vec![Series::new("Incus: up"), Series::new("Incus: destroy")];
    for _ in 0..rounds {
        let start = Instant::now();
        // Networks apart and one by one: making or removing one fails while other interfaces come and go.
        let up = incus.each(1, &domains, Incus::network).and_then(|()| incus.each(8, &domains, Incus::machines));
        let took = start.elapsed();
        let running = up.and_then(|()| incus.running());
        let start = Instant::now();
        let gone = incus.each(8, &domains, Incus::remove_machines).and_then(|()| {
            no_ports_left()?;
            incus.each(1, &domains, Incus::remove_network)
        });
        let running = running?;
        gone?;
        let wanted: usize = domains.values().map(|d| d.machines.len()).sum();
        if running != wanted {
            return Err(format!("{running} of {wanted} machines ran"));
        }
        series[0].samples.push(took);
        series[1].samples.push(start.elapsed());
    }
    let version = incus.call(&["query", "/1.0"]).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let version = version.and_then(|v| v["environment"]["server_version"].as_str().map(str::to_owned));
    let note = format!(
        "Incus {}: storage pool `dir`, a command per network, one by one; a command per machine and a start per domain, eight domains at a time; \
         idle processes and no policies between the domains",
        version.unwrap_or_default()
    );
    Ok((series, note))
}

/// Waits for the kernel to remove the machines' interfaces: Incus trips over one that goes while it makes a bridge.
fn no_ports_left() -> Result<(), String> {
    let end = Instant::now() + Duration::from_secs(30);
    while !checked(Command::new("ip").args(["-o", "link", "show", "type", "veth"]))?.is_empty() {
        if Instant::now() > end {
            return Err("interfaces of removed machines are still there".to_owned());
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Addresses as `ilot check` gives them.
fn domains(stand: &Stand, file: &str) -> Result<BTreeMap<String, Domain>, String> {
    let text = checked(&mut stand.ilot(&["check", "--json", "-f", file]))?;
    let project: Value = serde_json::from_str(&text).map_err(|e| format!("`ilot check --json`: {e}"))?;
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut domains: BTreeMap<String, Domain> = BTreeMap::new();
    for (name, domain) in project["domains"].as_object().into_iter().flatten() {
        let subnet = word(&domain["subnet"]);
        let prefix = subnet.rsplit_once('/').map_or("24", |(_, prefix)| prefix).to_owned();
        domains.insert(name.clone(), Domain { gateway: word(&domain["gateway"]), prefix, machines: Vec::new() });
    }
    for (name, machine) in project["machines"].as_object().into_iter().flatten() {
        let domain = domains.get_mut(&word(&machine["domain"])).ok_or("a machine without its domain")?;
        domain.machines.push((name.clone(), word(&machine["ip"])));
    }
    Ok(domains)
}

/// A daemon of the bench's own; it ends with the value.
struct Incus {
    client: PathBuf,
    dir: PathBuf,
    daemon: Child,
}

impl Incus {
    fn start(dir: &Path, client: PathBuf, daemon: &Path) -> Result<Self, String> {
        let dir = dir.join("incus");
        fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--", "sh", "-c", SYSFS, "sh"])
            .arg(daemon)
            .args(["--group", "root"])
            .env("INCUS_DIR", &dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("cannot run unshare: {e}"))?;
        let incus = Self { client, dir, daemon: child };
        let end = Instant::now() + Duration::from_secs(30);
        while let Err(error) = incus.call(&["query", "/1.0"]) {
            if Instant::now() > end {
                return Err(format!("its daemon does not answer: {error}"));
            }
            sleep(Duration::from_millis(100));
        }
        Ok(incus)
    }

    fn call(&self, args: &[&str]) -> Result<String, String> {
        checked(Command::new(&self.client).args(args).env("INCUS_DIR", &self.dir).stdin(Stdio::null()))
    }

    /// A storage pool, and an image of the host's busybox.
    fn prepare(&self, dir: &Path) -> Result<(), String> {
        self.call(&["storage", "create", "default", "dir"])?;
        self.call(&["profile", "device", "add", "default", "root", "disk", "path=/", "pool=default"])?;
        let dir = &dir.join("incus-image");
        busybox_rootfs(dir)?;
        let metadata = "{\"architecture\":\"x86_64\",\"creation_date\":1,\"properties\":{\"os\":\"busybox\"}}\n";
        let path = dir.join("metadata.yaml");
        fs::write(&path, metadata).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        let image = dir.join("image.tar").to_string_lossy().into_owned();
        checked(Command::new("tar").arg("-C").arg(dir).args(["-cf", &image, "metadata.yaml", "rootfs"]))?;
        self.call(&["image", "import", &image, "--alias", "busybox"]).map(drop)
    }

    /// One step for each domain, so many at a time; the first error.
    fn each(
        &self,
        width: usize,
        domains: &BTreeMap<String, Domain>,
        step: fn(&Self, &str, &Domain) -> Result<(), String>,
    ) -> Result<(), String> {
        let queue = Mutex::new(domains.iter());
        let next = || queue.lock().ok().and_then(|mut queue| queue.next());
        std::thread::scope(|scope| {
            let work = || -> Result<(), String> {
                let mut result = Ok(());
                while let Some((name, domain)) = next() {
                    result = result.and(step(self, name, domain));
                }
                result
            };
            let workers: Vec<_> = (0..width).map(|_| scope.spawn(work)).collect();
            let results =
                workers.into_iter().map(|worker| worker.join().map_err(|_| "a thread panicked".to_owned())?);
            // Each is waited for, whatever the first says.
            results.fold(Ok(()), Result::and)
        })
    }

    fn network(&self, name: &str, domain: &Domain) -> Result<(), String> {
        let address = format!("ipv4.address={}/{}", domain.gateway, domain.prefix);
        self.call(&["network", "create", &bridge(name), &address, "ipv6.address=none"]).map(drop)
    }

    fn machines(&self, name: &str, domain: &Domain) -> Result<(), String> {
        let network = bridge(name);
        let mut start = vec!["start"];
        for (machine, ip) in &domain.machines {
            let address = format!("eth0,ipv4.address={ip}");
            self.call(&[
                "init",
                "busybox",
                machine,
                "--quiet",
                "--network",
                &network,
                "--device",
                &address,
                "--config",
                "limits.memory=64MiB",
                "--config",
                "limits.processes=64",
                "--config",
                "raw.lxc=lxc.init.cmd=/bin/sleep infinity",
            ])?;
            start.push(machine);
        }
        self.call(&start).map(drop)
    }

    fn remove_machines(&self, _name: &str, domain: &Domain) -> Result<(), String> {
        let mut delete = vec!["delete", "--force"];
        delete.extend(domain.machines.iter().map(|(machine, _)| machine.as_str()));
        self.call(&delete).map(drop)
    }

    fn remove_network(&self, name: &str, _domain: &Domain) -> Result<(), String> {
        self.call(&["network", "delete", &bridge(name)]).map(drop)
    }

    fn running(&self) -> Result<usize, String> {
        let list = self.call(&["list", "--format", "csv", "--columns", "s"])?;
        Ok(list.lines().filter(|line| *line == "RUNNING").count())
    }
}

impl Drop for Incus {
    fn drop(&mut self) {
        // It stops what runs and ends; what an error left over is removed with the bench's directory.
        if self.call(&["admin", "shutdown", "--force"]).is_err() {
            let _ = self.daemon.kill();
        }
        let _ = self.daemon.wait();
    }
}

/// Names of interfaces have at most 15 characters.
fn bridge(domain: &str) -> String {
    domain.chars().take(15).collect()
}
