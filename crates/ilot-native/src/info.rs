//! What there is and how it does: for `status`, `ps`, `stats` and `inspect`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use ilot_runtime::{Exit, Status};
use serde::Serialize;

use crate::error::Result;
use crate::record::{DomainRecord, MachineRecord};
use crate::{Native, actual, network};

/// State of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// Its processes run.
    Running,
    /// Its processes are frozen.
    Paused,
    /// It stands in the store and does not run.
    Stopped,
}

impl std::fmt::Display for MachineState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// Live usage of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Bytes of memory in use; 0 where the host does not count it.
    pub memory: u64,
    /// The limit, where there is one.
    pub memory_limit: Option<u64>,
    /// CPU time since the start, in microseconds.
    pub cpu_usec: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// A machine as it is.
#[derive(Debug, Clone, Serialize)]
pub struct MachineInfo {
    /// What the store says of it.
    #[serde(flatten)]
    pub record: MachineRecord,
    /// Its IPv6 address, where its domain and this host have IPv6.
    pub ip6: Option<Ipv6Addr>,
    /// Whether it runs.
    pub state: MachineState,
    /// Its process 1 as the host sees it.
    pub pid: Option<i32>,
    /// Its keeper.
    pub keeper_pid: Option<i32>,
    /// When it was started.
    pub started_at: Option<jiff::Timestamp>,
    /// How it ended, when it did and that is known.
    pub exit: Option<Exit>,
    /// Live usage, of a running one.
    pub usage: Option<Usage>,
}

/// A domain as it is.
#[derive(Debug, Clone, Serialize)]
pub struct DomainInfo {
    /// What the store says of it.
    #[serde(flatten)]
    pub record: DomainRecord,
    /// Whether its bridge is there and up.
    pub up: bool,
    /// Whether its name service answers.
    pub names: bool,
}

impl Native {
    /// Every machine of the store, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn machines(&self) -> Result<Vec<MachineInfo>> {
        let ipv6 = self.with_ipv6()?;
        actual::machine_records(&self.paths)?.into_values().map(|record| self.machine_info(record, &ipv6)).collect()
    }

    /// The domains whose machines have IPv6 on this host.
    fn with_ipv6(&self) -> Result<BTreeSet<String>> {
        if !network::host_ipv6() {
            return Ok(BTreeSet::new());
        }
        let domains = actual::domain_records(&self.paths)?;
        Ok(domains.into_values().filter(|domain| domain.ipv6).map(|domain| domain.name).collect())
    }

    /// One machine.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn machine_details(&self, name: &str) -> Result<MachineInfo> {
        self.machine_info(self.machine(name)?, &self.with_ipv6()?)
    }

    fn machine_info(&self, record: MachineRecord, with_ipv6: &BTreeSet<String>) -> Result<MachineInfo> {
        let run_dir = self.paths.machine_run(&record.name);
        let state = ilot_runtime::state(&run_dir)?;
        let status = state.as_ref().map(|s| s.status);
        let machine_state = match status {
            Some(Status::Running) => MachineState::Running,
            Some(Status::Paused) => MachineState::Paused,
            _ => MachineState::Stopped,
        };
        // It may end between the two looks; then it has no usage.
        let usage = match machine_state {
            MachineState::Stopped => None,
            _ => ilot_runtime::stats(&run_dir).ok().map(|s| usage_of(&s)),
        };
        let ipv6 = record.domain.as_ref().is_some_and(|domain| with_ipv6.contains(domain));
        Ok(MachineInfo {
            ip6: record.ip.filter(|_| ipv6).map(ilot_spec::ipv6_of),
            state: machine_state,
            pid: state.as_ref().and_then(|s| s.pid),
            keeper_pid: state.as_ref().and_then(|s| s.keeper_pid),
            started_at: state
                .as_ref()
                .filter(|_| machine_state != MachineState::Stopped)
                .and_then(|s| s.started_at)
                .and_then(|ns| jiff::Timestamp::from_nanosecond(i128::from(ns)).ok()),
            exit: state.and_then(|s| s.exit),
            usage,
            record,
        })
    }

    /// Every project of the store, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn projects(&self) -> Result<Vec<crate::record::ProjectRecord>> {
        Ok(actual::project_records(&self.paths)?.into_values().collect())
    }

    /// Every domain of the store, by name.
    ///
    /// # Errors
    /// When the store or the kernel cannot be read.
    pub fn domains(&self) -> Result<Vec<DomainInfo>> {
        let bridges: BTreeMap<String, bool> =
            ilot_net::bridges(&self.paths.store_id)?.into_iter().map(|b| (b.name, b.up)).collect();
        let services: Vec<String> = ilot_net::names::running(&self.paths.run)?.into_iter().map(|s| s.domain).collect();
        Ok(actual::domain_records(&self.paths)?
            .into_values()
            .map(|record| DomainInfo {
                up: bridges.get(&record.bridge).copied().unwrap_or(false),
                names: services.contains(&record.name),
                record,
            })
            .collect())
    }
}

fn usage_of(stats: &ilot_runtime::Stats) -> Usage {
    Usage {
        memory: stats.memory.unwrap_or(0),
        memory_limit: stats.memory_limit,
        cpu_usec: stats.cpu_usec.unwrap_or(0),
        pids: stats.pids.unwrap_or(0),
    }
}
