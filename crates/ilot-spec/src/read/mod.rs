//! From trees of nodes to raw settings: each layout's keys, their types, unknown ones warned about. What one part says
//! of another (names, addresses, totals) is checked later.

mod domain;
mod global;
mod ilot;
mod layout;
mod machine;
mod policy;

pub(crate) use domain::RawDomain;
pub(crate) use global::{AddressingForm, RawGlobal, RawResourcePolicy};
pub(crate) use ilot::IlotBlock;
pub(crate) use layout::{RawProject, read};
pub(crate) use machine::{RawMachine, RawPersistent};
pub(crate) use policy::{RawPolicy, RawVolume};

/// Every key that each part of a file may have, for the schema and the documentation.
#[cfg_attr(not(test), allow(unused_imports, reason = "most are compared with the schema in tests only"))]
pub(crate) mod keys {
    pub(crate) use super::domain::{DOMAIN_KEYS as DOMAIN, PROFILE_KEYS as PROFILE};
    pub(crate) use super::global::{ADDRESSING_KEYS as ADDRESSING, GLOBAL_KEYS as GLOBAL, RESOURCE_KEYS as RESOURCES};
    pub(crate) use super::ilot::{
        DOMAIN_KEYS as ILOT_DOMAIN, HEALTH_KEYS as HEALTH, MACHINE_KEYS as ILOT_MACHINE, PROJECT_KEYS as ILOT_PROJECT,
    };
    pub(crate) use super::layout::{FILE_KEYS as FILE, PROJECT_KEYS as PROJECT, SCHEMA_VERSIONS};
    pub(crate) use super::machine::{MACHINE_KEYS as MACHINE, PERSISTENT_KEYS as PERSISTENT, SERVICE_KEYS as SERVICE};
    pub(crate) use super::policy::{POLICY_KEYS as POLICY, VOLUME_KEYS as VOLUME};
}

/// A domain's or machine's name must be `^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`: the nearest that is.
pub(crate) fn valid_name_like(text: &str) -> Option<String> {
    let mut name = String::new();
    for c in text.trim().chars() {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            'A'..='Z' => name.push(c.to_ascii_lowercase()),
            '-' | '_' | ' ' | '.' if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    name.truncate(63);
    let name = name.trim_end_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}
