//! `ilot net`: the rules between domains, read, explained, tried and watched.

mod explain;
mod log;
mod rules;
mod test;
mod trace;

use std::path::PathBuf;

use ilot_net::firewall::{FwDomain, Reason, Ruleset, Side};
use ilot_spec::{Loaded, Position};
use serde::Serialize;

use super::Outcome;
use crate::cli::FileArg;
use crate::context::Context;
use crate::error::CommandError;
use crate::project::{self, Warnings};

/// Read, explain, try and watch what may pass between domains, this host and the outside
///
/// The rules are those of the project's file, before or after they are applied. Where there is no file, and with
/// `--installed`, they are those that the store's projects were applied with.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot net explain pro-dev ai-llm 3000/tcp
  ilot net rules
  ilot net test")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Explain(explain::Args),
    Rules(rules::Args),
    Test(test::Args),
    Trace(trace::Args),
    Log(log::Args),
}

impl Args {
    /// The project named after the command.
    pub(crate) fn file(&self) -> Option<&PathBuf> {
        match &self.command {
            Command::Explain(args) => args.from.file.file.as_ref(),
            Command::Rules(args) => args.from.file.file.as_ref(),
            Command::Test(args) => args.from.file.file.as_ref(),
            Command::Trace(_) | Command::Log(_) => None,
        }
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    match &args.command {
        Command::Explain(args) => explain::run(args, context),
        Command::Rules(args) => rules::run(args, context),
        Command::Test(args) => test::run(args, context),
        Command::Trace(args) => trace::run(args, context),
        Command::Log(args) => log::run(args, context),
    }
}

/// Whose rules.
#[derive(Debug, clap::Args)]
struct From {
    #[command(flatten)]
    file: FileArg,

    /// The rules that were applied, of every project, instead of those of the file
    #[arg(long)]
    installed: bool,
}

/// Rules, and where they come from.
struct Known {
    rules: Ruleset,
    /// The project's file, if they are its.
    loaded: Option<Loaded>,
}

/// Why something is open or closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Why {
    /// In words.
    reason: String,
    /// The policy's number in its file, from 1.
    policy: Option<usize>,
    /// The line that says so.
    at: Option<Position>,
}

impl Known {
    fn read(from: &From, context: &Context) -> Result<Self, CommandError> {
        let file = context.file.clone().or_else(|| ilot_spec::find(std::path::Path::new(".")));
        if from.installed || file.is_none() {
            return Ok(Self { rules: context.engine()?.ruleset()?, loaded: None });
        }
        let project = project::require(context, Warnings::Left)?;
        let rules = ilot_native::project_ruleset(&project)?;
        Ok(Self { rules, loaded: Some(project::load(context)?) })
    }

    /// Where a policy stands.
    fn policy_at(&self, number: usize) -> Option<&Position> {
        let project = self.loaded.as_ref()?.project.as_ref()?;
        project.policies.get(number).map(|policy| &policy.at)
    }

    /// Where the egress list of a machine, its own or its domain's, stands.
    fn egress_at(&self, machine: &str) -> Option<Position> {
        let values = ilot_spec::explain(self.loaded.as_ref()?, machine)?;
        let egress = values.iter().find(|value| value.key == "egress" || value.key.ends_with(".egress"))?;
        egress.origin.at().cloned()
    }

    fn why(&self, reason: Reason, from: &str, to: &str) -> Why {
        let plain = |reason: String| Why { reason, policy: None, at: None };
        match reason {
            Reason::Rule(number) => Why {
                reason: format!("policy `{}`", self.rules.rules[number].comment),
                policy: Some(number + 1),
                at: self.policy_at(number).cloned(),
            },
            Reason::Egress(entry) => {
                let at = self.egress_at(from);
                let what = entry.and_then(|number| Some(egress_entry(self.egress_of(from)?.entries().get(number)?)));
                let reason = match (&at, what) {
                    (_, Some(entry)) => format!("egress `{entry}`"),
                    (Some(_), None) => "egress `all`".to_owned(),
                    (None, None) => "everything may leave: no `egress` says otherwise".to_owned(),
                };
                Why { reason, policy: None, at }
            }
            Reason::EgressClosed => Why {
                reason: "the egress list does not have it, and no policy to `internet` opens it".to_owned(),
                policy: None,
                at: self.egress_at(from),
            },
            Reason::BetweenDomains => {
                let name = |machine: &str| self.domain_of(machine).map_or(machine.to_owned(), |d| d.name.clone());
                plain(format!("no policy from `{}` to `{}` opens it", name(from), name(to)))
            }
            other => plain(other.to_string()),
        }
    }

    fn domain_of(&self, machine: &str) -> Option<&FwDomain> {
        self.rules.domains.iter().find(|d| d.ports.iter().any(|p| p.machine == machine))
    }

    fn egress_of(&self, machine: &str) -> Option<&ilot_net::firewall::Egress> {
        let domain = self.domain_of(machine)?;
        let own = domain.ports.iter().find(|p| p.machine == machine).and_then(|p| p.egress.as_ref());
        Some(own.unwrap_or(&domain.egress))
    }
}

/// `file:line`.
fn line(at: &Position) -> String {
    format!("{}:{}", at.file.display(), at.line)
}

fn side(side: &Side) -> &str {
    match side {
        Side::Host => "host",
        Side::Internet => "internet",
        Side::Domain(name) | Side::Machine(name) => name,
    }
}

/// An egress entry as a file has it.
fn egress_entry(entry: &ilot_net::firewall::EgressEntry) -> String {
    use ilot_net::firewall::{EgressTo, Ports};
    let to = match &entry.to {
        EgressTo::Net(net) if net.addr().is_ipv6() => match (net.prefix_len(), &entry.ports) {
            (128, Ports::All) => net.addr().to_string(),
            (128, _) => format!("[{}]", net.addr()),
            (length, _) => format!("[{}]/{length}", net.addr()),
        },
        EgressTo::Net(net) if net.prefix_len() == 32 => net.addr().to_string(),
        EgressTo::Net(net) => net.to_string(),
        EgressTo::Name(name) => name.clone(),
    };
    let protocol = entry.protocol.map_or(String::new(), |p| format!("/{}", protocol(p)));
    match &entry.ports {
        Ports::All => to,
        Ports::List(list) => format!("{to}:{}{protocol}", numbers(list)),
    }
}

fn protocol(protocol: ilot_net::firewall::Protocol) -> &'static str {
    match protocol {
        ilot_net::firewall::Protocol::Tcp => "tcp",
        ilot_net::firewall::Protocol::Udp => "udp",
    }
}

/// Ports in one word.
fn numbers(list: &[u16]) -> String {
    list.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}
