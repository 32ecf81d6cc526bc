//! Two projects on one host: what the one cannot have because the other has it.

use ilot_spec::{Position, Project};

use crate::error::Result;
use crate::{Native, actual};

/// Something that another project of the store has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collision {
    /// What, and whose it is.
    pub message: String,
    /// What to do about it.
    pub help: String,
    /// Where the file asks for it.
    pub at: Position,
    /// The same as a path of keys.
    pub path: String,
    /// Length of the name there.
    pub length: usize,
}

impl Native {
    /// Domains, machines and subnets of a project that other projects of this store, or containers of `ilot run`, have.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn collisions(&self, project: &Project) -> Result<Vec<Collision>> {
        let domains = actual::domain_records(&self.paths)?;
        let machines = actual::machine_records(&self.paths)?;
        let mut found = Vec::new();
        for domain in project.enabled_domains() {
            let name = domain.name.as_str();
            let mut tell = |message: String, help: &str| {
                found.push(Collision {
                    message,
                    help: help.to_owned(),
                    at: domain.at.clone(),
                    path: format!("domains.{name}"),
                    length: name.len(),
                });
            };
            for other in domains.values().filter(|d| d.project != project.name) {
                let theirs = format!("project `{}` on this host", other.project);
                if other.name == name {
                    tell(format!("the domain `{name}` is {theirs}'s"), "give it another name, or destroy that project");
                } else if other.subnet.contains(&domain.subnet) || domain.subnet.contains(&other.subnet) {
                    let what =
                        format!("the subnet {} of `{name}` is that of `{}` in {theirs}", domain.subnet, other.name);
                    tell(what, "give it a `subnet_id` of its own, or the project another `zone_base`");
                }
            }
            for machine in &domain.machines {
                let taken = machines.get(machine.name.as_str());
                let Some(other) = taken.filter(|m| m.project.as_deref() != Some(project.name.as_str())) else {
                    continue;
                };
                let theirs = match &other.project {
                    Some(owner) => format!("project `{owner}` on this host"),
                    None => "`ilot run`".to_owned(),
                };
                found.push(Collision {
                    message: format!("the machine `{}` is {theirs}'s", machine.name),
                    help: "give it another name, or remove that one".to_owned(),
                    at: machine.at.clone(),
                    path: format!("domains.{name}.machines.{}", machine.declared_name),
                    length: machine.declared_name.len(),
                });
            }
        }
        Ok(found)
    }
}
