//! Which names a project has, and what a policy's `from` and `to` mean.

use std::collections::HashMap;

use crate::cx::{At, Cx, Path};
use crate::model::Endpoint;
use crate::read::RawDomain;

/// Every name that the files define, bad ones included: what is wrong already must not be called unknown too.
pub(crate) struct Names<'r> {
    pub(crate) domains: HashMap<&'r str, usize>,
    pub(crate) machines: HashMap<&'r str, (usize, usize)>,
}

impl<'r> Names<'r> {
    /// Gathers the names; a machine's name that is used twice is an error.
    pub(crate) fn gather(cx: &mut Cx<'_>, domains: &'r [RawDomain]) -> Self {
        let total = domains.iter().map(|d| d.machines.len()).sum();
        let mut names =
            Self { domains: HashMap::with_capacity(domains.len()), machines: HashMap::with_capacity(total) };
        for (d, domain) in domains.iter().enumerate() {
            names.domains.insert(&domain.declared, d);
            for (m, machine) in domain.machines.iter().enumerate() {
                match names.machines.get(machine.label()) {
                    Some(&(other, first)) => {
                        let first = domains[other].machines[first].span;
                        let message = format!(
                            "the machine name `{}` is used twice: in the domains `{}` and `{}`",
                            machine.label(),
                            domains[other].declared,
                            domain.declared
                        );
                        crate::address::with_machine_path(domain, machine, "", |path| {
                            cx.clash(machine.span, path, message, first, "first here")
                                .help("rename one: names are unique over the whole project");
                        });
                    }
                    None => drop(names.machines.insert(machine.label(), (d, m))),
                }
            }
        }
        names
    }

    /// What one side of a policy names.
    pub(crate) fn endpoint(
        &self,
        cx: &mut Cx<'_>,
        domains: &[RawDomain],
        side: &At<String>,
        path: &Path<'_>,
    ) -> Option<Endpoint> {
        let name = side.value.as_str();
        if name == "host" {
            return Some(Endpoint::Host);
        }
        let domain = self.domains.get(name).copied();
        let machine = self.machines.get(name).copied();
        if domain.is_some() && machine.is_some() {
            cx.warning(side.span, path, format!("`{name}` is a domain and a machine: the domain is meant"))
                .help("rename one of them");
        }
        if let Some(d) = domain {
            return domains[d].name.clone().map(Endpoint::Domain);
        }
        if let Some((d, m)) = machine {
            return domains[d].machines[m].name.clone().map(Endpoint::Machine);
        }
        if name == "internet" {
            if path.name() == "to" {
                return Some(Endpoint::Internet);
            }
            cx.error(side.span, path, "`internet` can only be the `to` of a policy")
                .help("what comes from outside reaches no domain; forward a port with a `proxy` device");
            return None;
        }
        if !cx.incomplete {
            let help = self.unknown(cx, domains, name);
            let shown = crate::cx::shorten(name);
            let outside = if path.name() == "to" { ", `host` or `internet`" } else { " or `host`" };
            cx.error(side.span, path, format!("`{shown}` is no domain, no machine{outside}")).help(help);
        }
        None
    }

    /// The cure for a name that nothing has.
    pub(crate) fn unknown(&self, cx: &mut Cx<'_>, domains: &[RawDomain], name: &str) -> String {
        let short = domains.iter().flat_map(|d| &d.machines).find(|m| m.declared == name && m.label() != name);
        if let Some(machine) = short {
            return format!("in a project directory a machine's name starts with its domain's: `{}`", machine.label());
        }
        // Names in a fixed order, so that the same file always gets the same answer.
        let known = domains
            .iter()
            .map(|d| d.declared.as_str())
            .chain(domains.iter().flat_map(|d| d.machines.iter().map(crate::read::RawMachine::label)))
            .chain(["host", "internet"]);
        match cx.nearest(name, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "write the name of a domain or a machine of this project".into(),
        }
    }
}
