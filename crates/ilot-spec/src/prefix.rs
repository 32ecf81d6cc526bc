//! `nesting_prefix`: inside another ilot or AnKLuMe machine, names start with the depth.

use crate::cx::{Cx, Path};
use crate::model::{DomainName, Endpoint, HostFacts, InvalidName, MachineName, Project};
use crate::yaml::Span;

/// Puts `NNN-` before the name of every domain and machine, wherever it stands.
pub(crate) fn apply(cx: &mut Cx<'_>, project: &mut Project, host: &HostFacts) {
    let level = host.nesting.map_or(0, |n| n.absolute_level);
    if level == 0 || !project.global.nesting_prefix || !cx.errors.is_empty() {
        return;
    }
    let prefix = format!("{level:03}-");
    if let Err(InvalidName(name)) = rename(project, &prefix) {
        let root = Path::Root;
        let message = format!("`{name}` is longer than 63 characters with its nesting prefix");
        cx.error(Span::start_of(0), &root.key("global").key("nesting_prefix"), message)
            .help("shorten the name, or write `nesting_prefix: false`");
    }
    project.name_prefix = prefix;
}

fn rename(project: &mut Project, prefix: &str) -> Result<(), InvalidName> {
    let domain = |name: &DomainName| DomainName::new(format!("{prefix}{name}"));
    let machine = |name: &MachineName| MachineName::new(format!("{prefix}{name}"));
    let endpoint = |side: &Endpoint| {
        Ok(match side {
            Endpoint::Domain(name) => Endpoint::Domain(domain(name)?),
            Endpoint::Machine(name) => Endpoint::Machine(machine(name)?),
            other => other.clone(),
        })
    };
    for (_, mut old) in std::mem::take(&mut project.domains) {
        old.name = domain(&old.name)?;
        for m in &mut old.machines {
            m.name = machine(&m.name)?;
            m.domain = old.name.clone();
        }
        project.domains.insert(old.name.clone(), old);
    }
    for policy in &mut project.policies {
        policy.from = endpoint(&policy.from)?;
        policy.to = endpoint(&policy.to)?;
    }
    for volume in &mut project.shared_volumes {
        for (name, write) in std::mem::take(&mut volume.consumers) {
            volume.consumers.insert(machine(&name)?, write);
        }
    }
    project.global.ai_access_default = project.global.ai_access_default.as_ref().map(domain).transpose()?;
    project.firewall = project.firewall.as_ref().map(machine).transpose()?;
    Ok(())
}
