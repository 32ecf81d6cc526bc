//! What the file asks for and this engine does not do: refused with the reason, or said to be without effect.
//!
//! A key that would change what a machine is, may or has is refused, and keeps that machine from being made. Said is what
//! AnKLuMe's files have for other tools (roles, services, snapshots, the AI keys): such a file works as it is.

use std::collections::{BTreeMap, BTreeSet};

use ilot_spec::{
    Backend, ConfigUse, Domain, FirewallMode, Isolation, Machine, MachineType, Position, Project, config_use,
};

use crate::error::{Error, Result};
use crate::{Native, desired, devices, network};

/// A machine that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The machine.
    pub machine: String,
    /// What, and why.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Where the file has the machine.
    pub at: Position,
    /// The same as a path of keys.
    pub path: String,
    /// Length of the name there.
    pub length: usize,
}

/// Every machine of the enabled domains that [`Native`] would refuse to make, with the first reason of each; before them
/// why it would refuse the whole project, at its firewall machine.
#[must_use]
pub fn refusals(wanted: &Project) -> Vec<Refusal> {
    let whole = project(wanted).err().and_then(|error| {
        let firewall = wanted.machine(wanted.firewall.as_ref()?.as_str())?;
        Some(Refusal {
            machine: firewall.name.to_string(),
            message: format!("this project: {error}"),
            help: error.help(),
            at: firewall.at.clone(),
            path: "global.firewall_mode".to_owned(),
            length: 1,
        })
    });
    let of = |(domain, m): (&Domain, &Machine)| {
        let error = machine(wanted, m).err()?;
        Some(Refusal {
            machine: m.name.to_string(),
            message: error.to_string(),
            help: error.help(),
            at: m.at.clone(),
            path: format!("domains.{}.machines.{}", domain.name, m.declared_name),
            length: m.declared_name.len(),
        })
    };
    let machines = wanted.enabled_domains().flat_map(|d| d.machines.iter().map(move |m| (d, m)));
    whole.into_iter().chain(machines.filter_map(of)).collect()
}

/// What keeps the whole project from being made: nothing of it may run behind a filter that it did not ask for.
pub(crate) fn project(project: &Project) -> Result<()> {
    if project.global.firewall_mode == FirewallMode::Vm {
        return Err(Error::Invalid {
            message: "`firewall_mode: vm` needs a virtual machine, and the native engine has none yet".to_owned(),
            help: Some("write `firewall_mode: host`: this host then filters between the domains".to_owned()),
        });
    }
    Ok(())
}

/// What keeps a machine from being made here.
pub(crate) fn machine(project: &Project, machine: &Machine) -> Result<()> {
    let refuse = |key: &str, why: &str| {
        Err(Error::Unsupported { what: format!("machine `{}`: {key}", machine.name), why: why.to_owned() })
    };
    if machine.machine_type == MachineType::Vm {
        return refuse("`type: vm`", "the native engine runs containers so far, no virtual machines");
    }
    if machine.backend != Backend::Native {
        return refuse(&format!("`backend: {}`", machine.backend), "only the native engine is there so far");
    }
    match machine.isolation {
        Isolation::Basic => {}
        Isolation::Enhanced => return refuse("`isolation: enhanced`", "its stricter filters are not there yet"),
        Isolation::Hardware | Isolation::Cryptographic => {
            return refuse(
                &format!("`isolation: {}`", machine.isolation),
                "it needs a micro-VM, which is not there yet",
            );
        }
    }
    for (key, asked, why) in [
        ("ilot.restart", machine.restart.as_ref().is_some_and(|r| r != "no"), "nothing restarts machines yet"),
        ("ilot.health", machine.health.is_some(), "nothing watches machines yet"),
        ("ilot.preload", machine.preload > 0, "copies are not kept at hand yet"),
    ] {
        if asked {
            return refuse(&format!("`{key}`"), &format!("{why}: remove the key"));
        }
    }
    for (key, value) in &machine.config {
        match config_use(key, value) {
            ConfigUse::Honoured | ConfigUse::Free => {}
            ConfigUse::Incus => {
                return refuse(&format!("`{key}: {value}`"), "only the incus backend acts on it: remove the key");
            }
        }
    }
    devices::of(project, machine)?;
    if let Some((device, why)) = crate::volumes::refused(machine) {
        return refuse(&device, &why);
    }
    if let Err((volume, why)) = crate::storage::of(machine) {
        return refuse(&volume, &why);
    }
    if desired::is_privileged(machine) && desired::is_true(machine, "security.nesting") {
        return refuse(
            "`security.privileged`",
            "machines in it would need ids of their own: leave `security.nesting` away",
        );
    }
    Ok(())
}

impl Native {
    /// What the project asks for that has no effect here, and what this host lacks.
    #[must_use]
    pub fn notes(&self, project: &Project) -> Vec<String> {
        let mut notes = Vec::new();
        notes.extend(roles(project));
        if project.enabled_domains().any(|domain| domain.ipv6) && !network::host_ipv6() {
            notes.push("IPv6 is off on this host: the domains have IPv4 only".to_owned());
        }
        let mut unheard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for domain in project.enabled_domains() {
            for (asked, key) in
                [(domain.ai_provider.is_some(), "ai_provider"), (domain.ai_sanitize.is_some(), "ai_sanitize")]
            {
                if asked {
                    unheard.entry(key).or_default().push(domain.name.as_str());
                }
            }
            for machine in &domain.machines {
                for key in unheard_keys(machine) {
                    unheard.entry(key).or_default().push(machine.name.as_str());
                }
            }
        }
        for (key, names) in unheard {
            notes.push(format!("`{key}` has no effect yet on {}", names.join(", ")));
        }
        if project.extra.get("network_passthrough").is_some_and(|value| value == true) {
            notes.push("`network_passthrough` has no effect yet".to_owned());
        }
        notes
    }

    /// Refuses a project as a whole, before anything of it is planned.
    ///
    /// # Errors
    /// With the reason.
    pub fn accepts(&self, wanted: &Project) -> Result<()> {
        project(wanted)
    }
}

/// Roles are provisioning's, which is not there yet.
fn roles(project: &Project) -> Option<String> {
    let with_roles: Vec<&Machine> = project.enabled_machines().filter(|m| !m.roles.is_empty()).collect();
    let roles: BTreeSet<&str> = with_roles.iter().flat_map(|m| m.roles.iter().map(String::as_str)).collect();
    let roles: Vec<&str> = roles.into_iter().collect();
    let plural = if with_roles.len() == 1 { "" } else { "s" };
    (!roles.is_empty()).then(|| {
        format!(
            "roles not run on {} machine{plural}: {} (provisioning is not there yet)",
            with_roles.len(),
            roles.join(", ")
        )
    })
}

/// Keys of AnKLuMe that are read and kept, and that nothing acts on yet.
fn unheard_keys(machine: &Machine) -> Vec<&'static str> {
    let extra = |key: &str| machine.extra.get(key).is_some_and(|value| value != false && !value.is_null());
    let asked = [
        (machine.snapshots_schedule.is_some(), "snapshots_schedule"),
        (!machine.services.is_empty(), "services"),
        (extra("gui"), "gui"),
        (extra("workspace"), "workspace"),
        (extra("openclaw_server"), "openclaw_server"),
    ];
    asked.into_iter().filter(|(asked, _)| *asked).map(|(_, key)| key).collect()
}
