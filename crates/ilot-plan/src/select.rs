//! `--only`: the part of a project that a command is about.

use std::collections::HashSet;

use crate::model::{Kind, Resource};

/// A choice of domains and machines by name.
///
/// A domain stands for itself and all of its machines; a machine for itself and the domain that it needs. The
/// firewall always takes part, as it is one for the whole project.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Domains chosen with everything in them.
    whole: HashSet<String>,
    /// Machines chosen.
    machines: HashSet<String>,
    /// Domains that chosen machines need.
    needed: HashSet<String>,
}

/// Names that are neither a domain nor a machine of the project.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.describe())]
pub struct UnknownNames {
    /// Each name, with the nearest that exists.
    pub names: Vec<(String, Option<String>)>,
}

impl UnknownNames {
    fn describe(&self) -> String {
        let names: Vec<String> = self.names.iter().map(|(name, _)| format!("`{name}`")).collect();
        match names.as_slice() {
            [one] => format!("{one} is neither a domain nor a machine of this project"),
            many => format!("{} are neither domains nor machines of this project", many.join(", ")),
        }
    }

    /// The nearest existing names, as a sentence.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        let near: Vec<String> =
            self.names.iter().filter_map(|(_, near)| near.as_ref().map(|near| format!("`{near}`"))).collect();
        (!near.is_empty()).then(|| format!("did you mean {}?", near.join(", ")))
    }
}

impl Selection {
    /// Finds the names among the resources, desired and actual ones.
    ///
    /// # Errors
    ///
    /// The names that no domain and no machine has.
    pub fn new<'a, R>(names: &[String], resources: R) -> Result<Self, UnknownNames>
    where
        R: IntoIterator<Item = &'a Resource>,
    {
        let mut selection = Self::default();
        let mut known: HashSet<&str> = HashSet::new();
        let wanted: HashSet<&str> = names.iter().map(String::as_str).collect();
        for resource in resources {
            match resource.kind {
                Kind::Firewall => continue,
                Kind::Domain => {
                    if wanted.contains(resource.name.as_str()) {
                        selection.whole.insert(resource.name.clone());
                    }
                }
                Kind::Machine => {
                    if wanted.contains(resource.name.as_str()) {
                        selection.machines.insert(resource.name.clone());
                        selection.needed.extend(resource.domain.clone());
                    }
                }
            }
            known.insert(&resource.name);
        }
        let unknown: Vec<_> = names
            .iter()
            .filter(|name| !known.contains(name.as_str()))
            .map(|name| (name.clone(), nearest(name, &known)))
            .collect();
        if unknown.is_empty() { Ok(selection) } else { Err(UnknownNames { names: unknown }) }
    }

    /// Whether a resource is part of the choice, for making it or changing it.
    #[must_use]
    pub fn includes(&self, resource: &Resource) -> bool {
        match resource.kind {
            Kind::Firewall => true,
            Kind::Domain => self.whole.contains(&resource.name) || self.needed.contains(&resource.name),
            Kind::Machine => {
                self.machines.contains(&resource.name)
                    || resource.domain.as_ref().is_some_and(|domain| self.whole.contains(domain))
            }
        }
    }

    /// Whether a resource may be removed: a domain that is only needed by a chosen machine may not.
    #[must_use]
    pub fn includes_removal(&self, resource: &Resource) -> bool {
        match resource.kind {
            Kind::Domain => self.whole.contains(&resource.name),
            Kind::Firewall | Kind::Machine => self.includes(resource),
        }
    }
}

/// The name that a typing error most likely meant.
fn nearest(name: &str, known: &HashSet<&str>) -> Option<String> {
    let mut best: Vec<(usize, &str)> = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(name.len()) / 4)
        .collect();
    best.sort_unstable();
    best.first().map(|(_, candidate)| (*candidate).to_owned())
}
