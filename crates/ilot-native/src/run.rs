//! `ilot run`: one container without any file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ilot_image::Progress;
use ilot_runtime::{Created, Exit, Stdio};
use ilot_spec::{Isolation, Limits, MachineName, TrustLevel};

use crate::error::{Error, Result};
use crate::paths::Lock;
use crate::record::{DomainRecord, MachineRecord};
use crate::{Native, actual, desired, ids, network};

/// Which network a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetChoice {
    /// Loopback only.
    None,
    /// A port in a domain that stands on this host.
    Domain(String),
}

/// What `ilot run` is asked for.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The image's name.
    pub image: String,
    /// The command; the image's own when empty.
    pub command: Vec<String>,
    /// The container's name; one is made up when not given.
    pub name: Option<String>,
    /// Its network.
    pub net: NetChoice,
    /// Its limits.
    pub limits: Limits,
    /// Environment, over the image's.
    pub environment: BTreeMap<String, String>,
    /// `name`, `uid`, `name:group` or `uid:gid`.
    pub user: Option<String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Remove it when it ends.
    pub remove: bool,
    /// With a terminal.
    pub terminal: bool,
    /// Do not stay with it.
    pub detach: bool,
    /// ilot's init as process 1, the command its child.
    pub init: bool,
}

/// A container that was started.
#[derive(Debug)]
pub struct Started {
    /// Its name.
    pub name: String,
    /// What the runtime says.
    pub created: Created,
}

impl Native {
    /// Makes and starts a container.
    ///
    /// # Errors
    /// When the name is taken, the image cannot be had, or it cannot be started; nothing is left then.
    pub fn run(&self, options: &RunOptions, progress: &dyn Progress) -> Result<Started> {
        let name = match &options.name {
            Some(name) => MachineName::new(name.as_str())
                .map_err(|e| Error::Invalid { message: e.to_string(), help: None })?
                .to_string(),
            None => self.invent_name(),
        };
        let image = self.wanted_image(&options.image, progress)?;
        let has_command =
            !options.command.is_empty() || !image.config.entrypoint.is_empty() || !image.config.cmd.is_empty();
        if !has_command && image.init.is_none() {
            return Err(Error::Invalid {
                message: format!("image `{}` says no command to run", options.image),
                help: Some(format!("give one: `ilot run {} /bin/sh`", options.image)),
            });
        }
        let lock = self.lock_machine(&name)?;
        if self.paths.machine_record(&name).exists() {
            let record = self.machine(&name)?;
            return Err(Error::Exists {
                name,
                owner: record.project.map_or_else(|| "`ilot run`".to_owned(), |p| format!("project {p}")),
            });
        }
        let record = match self.new_record(&name, options, &image.digest.to_string(), has_command) {
            Ok(record) => record,
            Err(error) => {
                lock.forget();
                return Err(error);
            }
        };
        let started = self.start_new(&record, options, progress);
        if started.is_err() {
            // The error above is the one to report; what this leaves, the next command repairs.
            let _ = self.clear(&record);
            lock.forget();
        }
        started.map(|created| Started { name, created })
    }

    /// Gets the image that [`Native::run`] needs, if the store has it not; asked for again it is at hand.
    ///
    /// # Errors
    /// When the image cannot be had.
    pub fn obtain(&self, image: &str, progress: &dyn Progress) -> Result<()> {
        self.wanted_image(image, progress).map(drop)
    }

    fn wanted_image(&self, image: &str, progress: &dyn Progress) -> Result<std::sync::Arc<ilot_image::Image>> {
        let image =
            self.image(image, progress).map_err(|e| Error::Invalid { message: e.to_string(), help: e.help() })?;
        progress.finished();
        Ok(image)
    }

    fn start_new(&self, record: &MachineRecord, options: &RunOptions, progress: &dyn Progress) -> Result<Created> {
        let stdio = match (options.detach, options.terminal) {
            (_, true) => Stdio::Terminal { log: self.log_file(record) },
            (true, false) => self.log_stdio(record),
            (false, false) => Stdio::Inherit,
        };
        // Who stays with it removes it; a container that is left alone, from the start or by one who was killed, removes
        // itself.
        let removes = record.remove_on_exit;
        let exit_command = removes.then(|| self.removal_command(&record.name, !options.detach)).flatten();
        // Its domain is told of it while it is built; it does not start before both are done.
        let announce = || record.domain.as_deref().map_or(Ok(()), |domain| self.announce_port(record, domain));
        self.start_machine_while(record, stdio, exit_command, progress, record.domain.is_some().then_some(announce))?
            .ok_or_else(|| Error::Exists { name: record.name.clone(), owner: "a running container".to_owned() })
    }

    fn new_record(&self, name: &str, options: &RunOptions, digest: &str, has_command: bool) -> Result<MachineRecord> {
        if let NetChoice::Domain(domain) = &options.net {
            self.domain(domain)?;
        }
        // Held until the record stands: no two containers take one address.
        let _addresses = match &options.net {
            NetChoice::Domain(domain) => Some(Lock::take(&self.paths, &format!("addresses-{domain}"), &|_| {})?),
            NetChoice::None => None,
        };
        let (domain, ip, trust, id_base) = match &options.net {
            NetChoice::None => {
                (None, None, TrustLevel::SemiTrusted, ids::claim(&self.paths, &format!("machine:{name}"))?)
            }
            NetChoice::Domain(domain) => {
                let record = self.domain(domain)?;
                let mut taken: BTreeSet<Ipv4Addr> = record.hosts.values().copied().collect();
                let machines = actual::machine_records(&self.paths)?;
                // Those that a killed command left have addresses and rules.
                self.sweep_among(&machines)?;
                taken.extend(
                    machines.into_values().filter(|m| m.domain.as_deref() == Some(domain)).filter_map(|m| m.ip),
                );
                let ip =
                    desired::free_dynamic(record.subnet, &taken).ok_or_else(|| desired::no_address(name, domain))?;
                (Some(domain.clone()), Some(ip), record.trust, record.id_base)
            }
        };
        let record = MachineRecord {
            name: name.to_owned(),
            project: None,
            mac: domain.as_ref().map(|_| ilot_net::mac_for(name).to_string()),
            domain,
            description: String::new(),
            image: options.image.clone(),
            image_digest: digest.to_owned(),
            trust,
            id_base,
            ip,
            limits: options.limits.clone(),
            environment: options.environment.clone(),
            command: (!options.command.is_empty()).then(|| options.command.clone()),
            user: options.user.clone(),
            cwd: options.cwd.clone(),
            ephemeral: true,
            boot_autostart: false,
            boot_priority: 0,
            roles: Vec::new(),
            volumes: Vec::new(),
            devices: BTreeMap::new(),
            isolation: Isolation::Basic,
            privileged: false,
            amnesic: false,
            nested_ids: None,
            remove_on_exit: options.remove,
            terminal: options.terminal,
            command_is_init: has_command && !options.init,
            created_at: jiff::Timestamp::now(),
        };
        self.make_machine(&record)?;
        Ok(record)
    }

    /// Lets the domain know of one more machine: its port may send, its name resolves.
    fn announce_port(&self, record: &MachineRecord, domain: &str) -> Result<()> {
        let _lock = self.lock_network()?;
        let domain = self.domain(domain)?;
        let ruleset = network::ruleset(&self.paths)?;
        ilot_net::firewall::add_port(&self.paths.run, &ruleset, &ilot_net::port_name(&record.name))?;
        ilot_net::names::ensure(&self.paths.run, &network::names_config(&self.paths, &domain)?)?;
        Ok(())
    }

    /// Everything of a container of `ilot run`, what its domain knows of it included. That goes first: killed in between,
    /// the container still stands in the store, and whoever finds it ended removes all of it again.
    pub(crate) fn clear(&self, record: &MachineRecord) -> Result<()> {
        let domain = record.domain.as_deref().filter(|_| record.ip.is_some() && record.project.is_none());
        let Some(domain) = domain.and_then(|domain| self.domain(domain).ok()) else {
            return self.remove_for_good(&record.name);
        };
        // Nothing of it may run when its port is no longer looked at.
        ilot_runtime::delete(&self.paths.machine_run(&record.name), true)?;
        // Until its record is gone too: whoever looks in between would let it in again.
        let _lock = self.lock_network()?;
        self.forget_port(record, &domain)?;
        self.remove_for_good(&record.name)
    }

    /// Rules and names as if the machine were gone, whether its record is or not.
    fn forget_port(&self, record: &MachineRecord, domain: &DomainRecord) -> Result<()> {
        let rules = network::ruleset(&self.paths)?;
        let with = network::with_port_of(&rules, record).unwrap_or(rules);
        let port = ilot_net::port_name(&record.name);
        // One port less, not all rules anew: that is many times quicker.
        let stands = ilot_net::firewall::remove_port(&self.paths.run, &with, &port).unwrap_or_else(|error| {
            tracing::debug!(port, %error, "its elements are not there: the rules are installed anew");
            false
        });
        if !stands {
            self.ensure_rules(&ilot_net::firewall::without(&with, &port))?;
        }
        let mut names = network::names_config(&self.paths, domain)?;
        names.hosts.remove(&record.name);
        names.hosts6.remove(&record.name);
        // A name that is gone may be answered for a moment more.
        ilot_net::names::ensure_soon(&self.paths.run, &names)?;
        Ok(())
    }

    fn invent_name(&self) -> String {
        let mut seed = [0_u8; 8];
        // Any eight bytes do: a name that is taken is tried again.
        let _ = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
        let mut number = u64::from_ne_bytes(seed);
        loop {
            let name = format!("run-{:08x}", number & 0xffff_ffff);
            if !self.paths.machine(&name).exists() {
                return name;
            }
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        }
    }

    /// Waits for the end of a container that was started here.
    ///
    /// # Errors
    /// When its end cannot be seen.
    pub fn wait(&self, name: &str) -> Result<Exit> {
        let exit = ilot_runtime::wait(&self.paths.machine_run(name), None)?;
        Ok(exit.unwrap_or_default())
    }

    /// Joins the caller's terminal to that of a container that was just started, until it ends.
    ///
    /// # Errors
    /// When it has no terminal.
    pub fn attach(&self, started: &Started) -> Result<Exit> {
        Ok(ilot_runtime::attach(&self.paths.machine_run(&started.name), &started.created)?)
    }

    /// Sends a signal to a machine's process 1.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, name: &str, signal: i32) -> Result<()> {
        Ok(ilot_runtime::signal(&self.paths.machine_run(name), signal)?)
    }

    pub(crate) fn log_stdio(&self, record: &MachineRecord) -> Stdio {
        match self.log_file(record) {
            Some(path) => Stdio::Log { path, max_bytes: LOG_BYTES },
            None => Stdio::Log { path: "/dev/null".into(), max_bytes: 0 },
        }
    }

    /// Where a machine's output is kept; an amnesic one's only in memory.
    pub(crate) fn log_file(&self, record: &MachineRecord) -> Option<PathBuf> {
        if !record.amnesic {
            return Some(self.paths.log(&record.name));
        }
        let dir = self.paths.machine_run(&record.name);
        crate::memory::is_memory(&self.paths.run).then(|| dir.join("console.log"))
    }
}

/// Output kept of a machine before the log is turned over, in bytes; the one before is kept beside it.
const LOG_BYTES: u64 = 10 * 1024 * 1024;
