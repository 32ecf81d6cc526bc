//! What a command that died left half-way: found and removed before anything is changed.
//!
//! Records are renamed into place whole, so the store is never torn; what can be left are things without a record
//! (a bridge, an id range, a directory aside) and containers whose end nobody saw. Locks of the dead are free, so what
//! is locked is being worked on by somebody alive and is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use ilot_runtime::Status;

use crate::error::{Error, Result};
use crate::paths::{Lock, remove_tree};
use crate::record::{DomainRecord, MachineRecord};
use crate::{Native, actual, ids};

impl Native {
    /// Removes what dead commands left. Called with the `apply` lock held.
    pub(crate) fn repair(&self) -> Result<()> {
        self.repair_directories()?;
        self.repair_machines()?;
        self.collect_layers(crate::layers::IDLE)?;
        let domains = actual::domain_records(&self.paths)?;
        for bridge in ilot_net::bridges(&self.paths.store_id)? {
            if !domains.values().any(|d| d.bridge == bridge.name) {
                tracing::info!(bridge = bridge.name, "removing a bridge that no domain has");
                ilot_net::remove_bridge(&bridge.name)?;
            }
        }
        for service in ilot_net::names::running(&self.paths.run)? {
            if !domains.contains_key(&service.domain) {
                tracing::info!(domain = service.domain, "stopping the name service of a domain that is gone");
                ilot_net::names::stop(&self.paths.run, &service.domain)?;
            }
        }
        for domain in domains.values() {
            ids::ensure(&self.paths, domain.id_base, &format!("domain:{}", domain.name))?;
        }
        for (relay, alive) in ilot_net::proxy::known(&self.paths.run)? {
            let Some(_lock) = Lock::try_take(&self.paths, &format!("machine-{}", relay.machine))? else { continue };
            if !alive || !self.is_running(&relay.machine)? {
                ilot_net::proxy::stop(&self.paths.run, &relay.machine, &relay.device)?;
            }
        }
        self.repair_ids(Some(&domains))?;
        self.repair_rules(!domains.is_empty())
    }

    /// Gives ranges of ids back that nobody has. Those of domains only where `domains` are all that there are, and the lock
    /// keeps others from making more.
    fn repair_ids(&self, domains: Option<&BTreeMap<String, DomainRecord>>) -> Result<()> {
        for holder in ids::holders(&self.paths)? {
            let orphan = match holder.split_once(':') {
                Some(("domain", name)) => domains.is_some_and(|domains| !domains.contains_key(name)),
                Some(("machine" | "nested", name)) => match Lock::try_take(&self.paths, &format!("machine-{name}"))? {
                    Some(lock) => {
                        let gone = !self.paths.machine_record(name).exists();
                        if gone {
                            lock.forget();
                        }
                        gone
                    }
                    None => false,
                },
                _ => false,
            };
            if orphan {
                ids::release(&self.paths, &holder)?;
            }
        }
        Ok(())
    }

    /// Removes what `ilot run` left that was killed, or whose keeper was: containers of `ilot run --rm` that have ended with
    /// nobody left to remove them, and parts of containers that never stood. Called without the `apply` lock, and quick
    /// where there is nothing; what cannot be removed now is for the next time.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn sweep(&self) -> Result<()> {
        self.repair_directories()?;
        self.sweep_among(&actual::machine_records(&self.paths)?)?;
        self.repair_ids(None)
    }

    /// The containers among these records that [`Native::sweep`] removes.
    pub(crate) fn sweep_among(&self, machines: &BTreeMap<String, MachineRecord>) -> Result<()> {
        for record in machines.values().filter(|m| m.remove_on_exit) {
            if self.is_running(&record.name)? || ilot_runtime::is_attended(&self.paths.machine_run(&record.name)) {
                continue;
            }
            let Some(lock) = Lock::try_take(&self.paths, &format!("machine-{}", record.name))? else { continue };
            // Another one by that name may have been started meanwhile.
            if self.machine(&record.name).is_ok_and(|now| now == *record) && !self.is_running(&record.name)? {
                tracing::info!(machine = record.name, "removing a container that nobody removed");
                if let Err(error) = self.clear(record) {
                    tracing::warn!(machine = record.name, %error, "cannot be removed");
                    continue;
                }
            }
            lock.forget();
        }
        Ok(())
    }

    /// Rules follow the records. Without a domain there must be none; with one they are put right by what comes next.
    fn repair_rules(&self, any: bool) -> Result<()> {
        if !any {
            self.settle_network(false)?;
        }
        Ok(())
    }

    fn repair_directories(&self) -> Result<()> {
        let dir = self.paths.root.join("machines");
        for entry in fs::read_dir(&dir).map_err(Error::file("read", &dir))? {
            let entry = entry.map_err(Error::file("read", &dir))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if !name.starts_with(".new-") && !name.starts_with(".del-") {
                continue;
            }
            let owner = name.rsplit_once('-').and_then(|(_, pid)| pid.parse::<u32>().ok());
            if !owner.is_some_and(is_alive) {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// A machine's directory without a record, and without a file: no machine, and in the way of one by that name.
    /// Whatever holds a file may be somebody's, and stays.
    fn repair_empty(&self, records: &BTreeMap<String, MachineRecord>) -> Result<()> {
        let dir = self.paths.root.join("machines");
        for entry in fs::read_dir(&dir).map_err(Error::file("read", &dir))? {
            let entry = entry.map_err(Error::file("read", &dir))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with('.') || records.contains_key(name) {
                continue;
            }
            let Some(lock) = Lock::try_take(&self.paths, &format!("machine-{name}"))? else { continue };
            if self.paths.machine_record(name).exists() {
                continue;
            }
            // Only empty directories go.
            let removed =
                ["work/work", "work", "upper", ""].map(|part| fs::remove_dir(entry.path().join(part)).is_ok());
            if removed[3] {
                tracing::info!(machine = name, "removed a directory without a machine");
            }
            lock.forget();
        }
        Ok(())
    }

    fn repair_machines(&self) -> Result<()> {
        let mut names: BTreeSet<String> = BTreeSet::new();
        let live = self.paths.run.join("machines");
        for entry in fs::read_dir(&live).map_err(Error::file("read", &live))? {
            let entry = entry.map_err(Error::file("read", &live))?;
            if let Some(name) = entry.file_name().to_str() {
                names.insert(name.to_owned());
            }
        }
        let records = actual::machine_records(&self.paths)?;
        self.repair_empty(&records)?;
        for record in records.values().filter(|m| m.domain.is_none()) {
            ids::ensure(&self.paths, record.id_base, &format!("machine:{}", record.name))?;
        }
        names.extend(records.values().filter(|m| m.remove_on_exit).map(|m| m.name.clone()));
        for name in names {
            let run_dir = self.paths.machine_run(&name);
            let record = records.get(&name);
            if record.is_some_and(|r| !r.remove_on_exit) {
                self.repair_unstarted(&name, &run_dir)?;
                continue;
            }
            let Some(lock) = Lock::try_take(&self.paths, &format!("machine-{name}"))? else { continue };
            let running =
                ilot_runtime::state(&run_dir)?.is_some_and(|s| matches!(s.status, Status::Running | Status::Paused));
            // Who stays with it is told of its end by what is removed here.
            let attended = record.is_some() && ilot_runtime::is_attended(&run_dir);
            if record.is_none() || !(running || attended) {
                tracing::info!(machine = name, "removing what is left of a container");
                self.remove_machine(&name)?;
                lock.forget();
            }
        }
        Ok(())
    }

    /// A container that was created and never started: its maker is dead, or it would hold the lock.
    fn repair_unstarted(&self, name: &str, run_dir: &Path) -> Result<()> {
        let created = ilot_runtime::state(run_dir)?.is_some_and(|s| s.status == Status::Created);
        if created && let Some(_lock) = Lock::try_take(&self.paths, &format!("machine-{name}"))? {
            ilot_runtime::delete(run_dir, true)?;
        }
        Ok(())
    }
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}
