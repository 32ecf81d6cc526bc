//! The engine trait over the store: one project made real.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ilot_image::Progress;
use ilot_plan::{Action, Change, Engine, EngineError, Events, Kind, Plan, Resource};
use ilot_spec::{Domain, Machine, Project};

use crate::error::{Error, Result};
use crate::paths::{Lock, remove_file, write_json};
use crate::record::{DomainRecord, MachineRecord, PolicyRecord, ProjectRecord};
use crate::{Native, actual, desired, devices, ids, network, refuse};

/// How long a machine may take to end when the plan restarts it.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the kernel may take to remove what belonged to a dead network namespace before we do it, port by port.
const NAMESPACE_END: Duration = Duration::from_millis(500);

/// A project being worked on: nobody else changes it meanwhile.
#[derive(Debug)]
pub struct Session {
    _lock: Lock,
}

impl Native {
    /// Takes the lock of changing commands and repairs what a killed one left. `waiting` is told who holds it.
    ///
    /// # Errors
    /// When the lock cannot be taken, or what was left cannot be repaired.
    pub fn begin(&self, waiting: &dyn Fn(&str)) -> Result<Session> {
        let lock = Lock::take(&self.paths, "apply", waiting)?;
        self.repair()?;
        Ok(Session { _lock: lock })
    }

    /// Ends a run of changes: rules, name services and records agree with what is there now, and what nobody needs any
    /// more is gone.
    ///
    /// # Errors
    /// The first thing that could not be settled; the rest is settled all the same.
    pub fn finish(&self, project: &str) -> Result<()> {
        let domains = actual::domain_records(&self.paths)?;
        let machines = actual::machine_records(&self.paths)?;
        let unused = !domains.values().any(|d| d.project == project)
            && !machines.values().any(|m| m.project.as_deref() == Some(project));
        if unused {
            remove_file(&self.paths.project_record(project))?;
        }
        // With its machines goes what was kept for them.
        if unused {
            self.collect_layers(Duration::ZERO)?;
        }
        self.forget_hosts(project, &domains, &machines)?;
        self.settle_network(!domains.is_empty())?;
        let told = self.tell_names(project);
        self.remove_stray_ports(&machines)?;
        self.settle_shortcuts();
        told
    }

    /// Frames within domains pass from port to port, for the ports that stand now. Without that they take longer, which is no
    /// error.
    pub fn settle_shortcuts(&self) {
        let settle = || -> Result<()> {
            let _lock = self.lock_network()?;
            let rules = network::ruleset(&self.paths)?;
            if ilot_net::shortcut::settle(&rules)? {
                // A transaction more: what stands beside it is looked at now, not by the next command.
                ilot_net::firewall::is_installed(&self.paths.run, &rules)?;
            }
            Ok(())
        };
        if let Err(error) = settle() {
            tracing::warn!(%error, "frames within domains take the way through their bridges");
        }
    }

    /// Ports of machines that are gone. The kernel removes them with their namespace, a moment after its last process; one
    /// that somebody else holds open (a descriptor is enough) would stay.
    fn remove_stray_ports(&self, machines: &BTreeMap<String, MachineRecord>) -> Result<()> {
        let end = Instant::now() + NAMESPACE_END;
        loop {
            let mut stray: Vec<String> = Vec::new();
            for port in ilot_net::ports(&self.paths.store_id)? {
                if !machines.contains_key(&port.machine) {
                    stray.push(port.host_if);
                }
            }
            if stray.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                return stray.iter().try_for_each(|port| ilot_net::detach(port).map(drop)).map_err(Error::from);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Rules as the records say; none, and forwarding as it was, when no domain is left.
    pub(crate) fn settle_network(&self, any: bool) -> Result<()> {
        let _lock = self.lock_network()?;
        if any {
            self.install_rules()?;
        } else {
            ilot_net::firewall::remove(&self.paths.run)?;
            ilot_net::disable_forwarding(&self.paths.run)?;
        }
        Ok(())
    }

    /// Held around "read the records, compare, install": of two commands the later one's rules must be the newer ones.
    pub(crate) fn lock_network(&self) -> Result<Lock> {
        Lock::take(&self.paths, "network", &|_| {})
    }

    pub(crate) fn install_rules(&self) -> Result<()> {
        self.ensure_rules(&network::ruleset(&self.paths)?)
    }

    pub(crate) fn ensure_rules(&self, ruleset: &ilot_net::firewall::Ruleset) -> Result<()> {
        if !ilot_net::firewall::is_installed(&self.paths.run, ruleset)? {
            ilot_net::firewall::install(&self.paths.run, ruleset)?;
        }
        Ok(())
    }

    /// Bridge, name service and rules of a domain, repaired where the kernel lost them (a reboot, a careless hand).
    pub(crate) fn ensure_network(&self, domain: &str) -> Result<()> {
        let record = self.domain(domain)?;
        self.settle_network(true)?;
        self.ensure_domain(&record)
    }

    pub(crate) fn ensure_domain(&self, record: &DomainRecord) -> Result<()> {
        // A machine with a leg in it may need it before its own turn has come.
        let _lock = Lock::take(&self.paths, &format!("domain-{}", record.name), &|_| {})?;
        let bridge = network::bridge_spec(&self.paths, record)?;
        ilot_net::enable_forwarding(&self.paths.run)?;
        if bridge.gateway6.is_some() {
            ilot_net::enable_forwarding6(&self.paths.run)?;
        }
        ilot_net::ensure_bridge(&bridge)?;
        ilot_net::names::ensure(&self.paths.run, &network::names_config(&self.paths, record)?)?;
        Ok(())
    }

    /// Writes the records of the domains that the plan touches, with every host that the file gives, so that one ruleset
    /// fits before, while and after machines come and go.
    fn prepare_domains(&self, project: &Project, plan: &Plan, known: &desired::Known) -> Result<bool> {
        let addresses = desired::addresses(project, known)?;
        let deleted: BTreeSet<&str> = plan
            .changes
            .iter()
            .filter(|c| c.kind == Kind::Machine && c.action == Action::Delete)
            .map(|c| c.name.as_str())
            .collect();
        let legs = devices::choose_addresses(project, known, &addresses)?;
        let mut touched: BTreeSet<&str> = plan.changes.iter().filter_map(Change::belongs_to).collect();
        touched.extend(legs.keys().map(String::as_str));
        // What waits for a restart keeps its address until then.
        let held = |kind: Kind, name: &str| plan.kept.iter().find(|k| k.held && k.kind == kind && k.name == name);
        let mut changed = false;
        for domain in project.enabled_domains().filter(|d| touched.contains(d.name.as_str())) {
            let name = domain.name.as_str();
            if let Some(other) = known.domains.get(name).filter(|d| d.project != project.name) {
                return Err(Error::Exists { name: name.to_owned(), owner: format!("project {}", other.project) });
            }
            let mut hosts: BTreeMap<String, Ipv4Addr> = BTreeMap::new();
            // What is kept although the file no longer has it stays reachable.
            for machine in known.machines.values() {
                if machine.domain.as_deref() == Some(name)
                    && machine.project.is_some()
                    && !deleted.contains(machine.name.as_str())
                    && let Some(ip) = machine.ip
                {
                    hosts.insert(machine.name.clone(), ip);
                }
            }
            for machine in &domain.machines {
                let kept = || known.machines.get(machine.name.as_str()).and_then(|m| m.ip);
                let ip = match held(Kind::Machine, machine.name.as_str()) {
                    Some(held) if held.action == Action::Create => None,
                    Some(held) if held.reasons.iter().any(|r| r.field == "ip") => kept(),
                    _ => addresses.get(machine.name.as_str()).copied(),
                };
                if let Some(ip) = ip {
                    hosts.insert(machine.name.to_string(), ip);
                }
            }
            hosts.extend(legs.get(name).into_iter().flatten().map(|(leg, ip)| (leg.clone(), *ip)));
            let id_base = match known.domains.get(name) {
                Some(existing) => existing.id_base,
                None => ids::allocate(&self.paths, &format!("domain:{name}"))?,
            };
            let mut record = desired::domain_record(project, domain, id_base, hosts);
            if let (Some(existing), Some(_)) = (known.domains.get(name), held(Kind::Domain, name)) {
                record.subnet = existing.subnet;
                record.gateway = existing.gateway;
                record.trust = existing.trust;
            }
            if known.domains.get(name) != Some(&record) {
                write_json(&self.paths.domain_record(name), &record)?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Domains whose subnet changes leave the old one before anybody comes up: it may be the new one of another.
    fn move_domains(&self, before: &desired::Known) -> Result<()> {
        let moved = |record: &DomainRecord| before.domains.get(&record.name).is_some_and(|d| d.subnet != record.subnet);
        let moved: Vec<DomainRecord> = actual::domain_records(&self.paths)?.into_values().filter(moved).collect();
        for record in &moved {
            ilot_net::names::stop(&self.paths.run, &record.name)?;
        }
        for record in &moved {
            ilot_net::ensure_bridge(&network::bridge_spec(&self.paths, record)?)?;
        }
        Ok(())
    }

    fn write_project(&self, project: &Project) -> Result<()> {
        let record = ProjectRecord {
            name: project.name.clone(),
            source: std::path::absolute(&project.source).unwrap_or_else(|_| project.source.clone()),
            policies: project.policies.iter().map(PolicyRecord::from).collect(),
        };
        write_json(&self.paths.project_record(&project.name), &record)
    }

    fn perform_change(&self, project: &Project, change: &Change, events: &dyn Events) -> Result<()> {
        match change.kind {
            // `prepare` put the rules in place, before anything could run without them.
            Kind::Firewall => Ok(()),
            Kind::Domain => self.perform_domain(project, change),
            Kind::Machine => {
                let lock = self.lock_machine(&change.name)?;
                if change.action != Action::Delete {
                    return self.perform_machine(project, change, events);
                }
                self.remove_for_good(&change.name)?;
                lock.forget();
                Ok(())
            }
        }
    }

    fn perform_domain(&self, project: &Project, change: &Change) -> Result<()> {
        let record = self.domain(&change.name)?;
        if change.action != Action::Delete {
            // A bridge's subnet that changed: the old address must not stay beside the new one; ensure_bridge sees to it.
            let _ = project;
            self.ensure_domain(&record)?;
            let ipv6 = |field: &str| matches!(field, "ilot.ipv6" | "link");
            let switched = change.action == Action::Update && change.reasons.iter().any(|r| ipv6(&r.field));
            // The domain's own machines are restarted when it moves; those of others with a leg in it are not.
            let moved = change.action != Action::Create && change.reasons.iter().any(|r| r.field == "subnet");
            return if switched || moved { self.reattach_all(&record, switched) } else { Ok(()) };
        }
        ilot_net::names::stop(&self.paths.run, &record.name)?;
        ilot_net::remove_bridge(&record.bridge)?;
        remove_file(&self.paths.domain_record(&record.name))?;
        ids::release(&self.paths, &format!("domain:{}", record.name))
    }

    fn perform_machine(&self, project: &Project, change: &Change, events: &dyn Events) -> Result<()> {
        let (domain, machine) = find(project, &change.name).ok_or_else(|| Error::NoMachine(change.name.clone()))?;
        refuse::machine(project, machine)?;
        let existing: Option<MachineRecord> = crate::paths::read_json(&self.paths.machine_record(&change.name))?;
        if let Some(other) = existing.as_ref().filter(|e| e.project.as_deref() != Some(project.name.as_str())) {
            return Err(Error::Exists {
                name: change.name.clone(),
                owner: other.project.as_ref().map_or_else(|| "`ilot run`".to_owned(), |p| format!("project {p}")),
            });
        }
        let domain_record = self.domain(domain.name.as_str())?;
        let ip = domain_record.hosts.get(machine.name.as_str()).copied();
        let mut record =
            desired::machine_record(project, domain, machine, domain_record.id_base, ip, existing.as_ref());
        if let Some(existing) = &existing {
            record.keep_of(existing, change.action);
        }
        let progress = ImageProgress { change, events };
        match (change.action, existing.is_some()) {
            (Action::Create, false) | (Action::Replace, _) => {
                let image = self.image(&record.image, &progress).map_err(|e| unshare(&e))?;
                record.image_digest = image.digest.to_string();
                if existing.is_some() {
                    self.remove_machine(&record.name)?;
                }
                record.nested_ids = self.nested_ids(machine, None)?;
                self.make_machine(&record)?;
                self.start_logged(&record, &progress)
            }
            (Action::Update, true) => {
                if self.is_running(&record.name)? {
                    let run_dir = self.paths.machine_run(&record.name);
                    let before = existing.as_ref().map(|e| &e.limits);
                    ilot_runtime::update(&run_dir, &crate::spec::resources_live(&record.limits, before)?)?;
                    self.reattach(&record, &domain_record)?;
                }
                write_json(&self.paths.machine_record(&record.name), &record)?;
                self.settle_relays(&record)
            }
            (Action::Restart, true) => {
                self.stop_machine(&record, STOP_TIMEOUT)?;
                record.nested_ids = self.nested_ids(machine, existing.as_ref())?;
                write_json(&self.paths.machine_record(&record.name), &record)?;
                self.start_logged(&record, &progress)
            }
            _ => {
                record.nested_ids = self.nested_ids(machine, existing.as_ref())?;
                if existing.as_ref() != Some(&record) {
                    write_json(&self.paths.machine_record(&record.name), &record)?;
                }
                self.start_logged(&record, &progress)
            }
        }
    }

    /// The ids for what is nested in a machine that does not run: those it has, new ones, or none any more.
    fn nested_ids(&self, machine: &Machine, existing: Option<&MachineRecord>) -> Result<Option<(u32, u32)>> {
        let held = existing.and_then(|e| e.nested_ids);
        match (desired::is_true(machine, "security.nesting"), held) {
            (true, None) => crate::nesting::allocate(&self.paths, machine.name.as_str()).map(Some),
            (true, held) => Ok(held),
            (false, None) => Ok(None),
            (false, Some(_)) => crate::nesting::release(&self.paths, machine.name.as_str()).map(|()| None),
        }
    }

    fn start_logged(&self, record: &MachineRecord, progress: &dyn Progress) -> Result<()> {
        let stdio = self.log_stdio(record);
        self.start_machine(record, stdio, None, progress).map(drop)
    }

    /// Gives the running machines with a leg in a domain, and its own ones `with_own`, what changed in it: its addresses,
    /// or whether there is IPv6, by the file or by the host.
    fn reattach_all(&self, domain: &DomainRecord, with_own: bool) -> Result<()> {
        for machine in actual::machine_records(&self.paths)?.into_values() {
            let own = with_own && machine.domain.as_deref() == Some(domain.name.as_str());
            if !own && !devices::legs(&machine).any(|(_, other, ..)| other == domain.name) {
                continue;
            }
            let _lock = self.lock_machine(&machine.name)?;
            if self.is_running(&machine.name)? {
                let home = machine.domain.as_ref().map(|home| self.domain(home)).transpose()?;
                home.map_or(Ok(()), |home| self.reattach(&machine, &home))?;
            }
        }
        Ok(())
    }

    /// Gives a running machine its port back when somebody removed it.
    fn reattach(&self, record: &MachineRecord, domain: &DomainRecord) -> Result<()> {
        use std::os::fd::AsFd;
        if let Some(port) = network::port_spec(&self.paths, record, domain)? {
            let netns = ilot_runtime::netns(&self.paths.machine_run(&record.name))?;
            ilot_net::attach(&port, netns.as_fd())?;
        }
        self.attach_nics(record)
    }
}

impl Engine for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn desired(&self, project: &Project) -> Result<Vec<Resource>, EngineError> {
        let known = actual::known(&self.paths, &project.name).map_err(engine_error)?;
        desired::resources(project, &known).map_err(engine_error)
    }

    fn actual(&self, project: &Project) -> Result<Vec<Resource>, EngineError> {
        let known = actual::known(&self.paths, &project.name).map_err(engine_error)?;
        actual::resources(self, &project.name, &known).map_err(engine_error)
    }

    fn prepare(&self, project: &Project, plan: &Plan, events: &dyn Events) -> Result<(), EngineError> {
        (|| {
            for note in self.notes(project) {
                events.note(&note);
            }
            let known = actual::known(&self.paths, &project.name)?;
            if plan.is_empty() {
                return Ok(());
            }
            // The project's record comes first: what is made from here on has somebody who removes it.
            let destroying = plan.changes.iter().all(|c| c.action == Action::Delete);
            if !destroying {
                self.write_project(project)?;
                self.prepare_domains(project, plan, &known)?;
                self.settle_network(true)?;
                self.move_domains(&known)?;
                // A machine that comes finds the others by name at once; whoever cannot be told now is told at the end.
                if let Err(error) = self.tell_names(&project.name) {
                    tracing::warn!("{error}");
                }
            }
            Ok(())
        })()
        .map_err(engine_error)
    }

    fn perform(&self, project: &Project, change: &Change, events: &dyn Events) -> Result<(), EngineError> {
        self.perform_change(project, change, events).map_err(engine_error)
    }
}

fn find<'a>(project: &'a Project, machine: &str) -> Option<(&'a Domain, &'a Machine)> {
    project.enabled_domains().find_map(|d| d.machines.iter().find(|m| m.name.as_str() == machine).map(|m| (d, m)))
}

/// An error that several machines share.
fn unshare(error: &Error) -> Error {
    Error::Invalid { message: error.to_string(), help: error.help() }
}

#[allow(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn engine_error(error: Error) -> EngineError {
    let help = error.help();
    let out = EngineError::new(error.to_string());
    match help {
        Some(help) => out.with_help(help),
        None => out,
    }
}

/// An image's progress, told as that of the change that needs it.
struct ImageProgress<'a> {
    change: &'a Change,
    events: &'a dyn Events,
}

impl Progress for ImageProgress<'_> {
    fn stage(&self, text: &str) {
        self.events.progress(self.change, text, None);
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        self.events.progress(self.change, "bytes", total.map(|total| (done, total)));
    }

    fn steps(&self, done: u64, total: u64) {
        self.events.progress(self.change, "packages", Some((done, total)));
    }

    fn note(&self, text: &str) {
        self.events.note(text);
    }

    fn finished(&self) {}

    fn cancelled(&self) -> bool {
        self.events.cancelled()
    }
}
