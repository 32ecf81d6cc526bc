//! `ilot net rules`.

use ilot_net::firewall::{Egress, FwRule, Ports, render};
use serde_json::{Value, json};

use super::{From, Known, Outcome, egress_entry, line, numbers, protocol, side};
use crate::context::Context;
use crate::render::table::Table;
use crate::ui;

/// Print what may pass: the policies, and what may leave
///
/// Machines of one domain reach each other, each machine reaches its domain's name service, and answers always pass. What is
/// neither that nor in this table is dropped.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot net rules
  ilot net rules --installed          of every project on this host
  ilot net rules --nft                as nftables gets it
  ilot net rules --json | jq .rules")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) from: From,

    /// Print what is given to `nft`
    #[arg(long, conflicts_with = "json")]
    nft: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let known = Known::read(&args.from, context)?;
    if args.nft {
        ui::write_out(&render(&known.rules));
        return Ok(0);
    }
    let installed = if args.from.installed { Some(context.engine()?.rules_installed()?) } else { None };
    if context.json {
        let rules: Vec<Value> = (0..known.rules.rules.len()).map(|number| as_json(&known, number)).collect();
        ui::print_json(&json!({ "rules": rules, "installed": installed, "ruleset": known.rules }));
        return Ok(0);
    }
    if !known.rules.rules.is_empty() {
        let mut table = Table::new(&["FROM", "", "TO", "PORTS", "POLICY", "LINE"]);
        for (number, rule) in known.rules.rules.iter().enumerate() {
            let arrow = if rule.bidirectional { "↔" } else { "→" };
            let at = known.policy_at(number).map_or(String::new(), line);
            table.row([side(&rule.from), arrow, side(&rule.to), &ports(rule), &rule.comment, &at]);
        }
        ui::write_out(&table.render());
    }
    let egress = egress_rows(&known);
    if !egress.is_empty() {
        let mut table = Table::new(&["EGRESS OF", "TO", "LINE"]);
        egress.into_iter().for_each(|row| table.row(row));
        ui::write_out(&format!("{}{}", if known.rules.rules.is_empty() { "" } else { "\n" }, table.render()));
    }
    if !context.quiet {
        ui::complain(
            "besides: within a domain everything, each machine its domain's name service, answers to what was let through; \
             domains without `egress` the outside. Nothing else.",
        );
        if installed == Some(false) {
            ui::complain("note: the kernel does not have these rules: `ilot apply` installs them");
        }
    }
    Ok(0)
}

fn ports(rule: &FwRule) -> String {
    match (&rule.ports, rule.protocol) {
        (Ports::All, None) => "all".to_owned(),
        (Ports::All, Some(p)) => format!("all/{}", protocol(p)),
        (Ports::List(list), None) => numbers(list),
        (Ports::List(list), Some(p)) => format!("{}/{}", numbers(list), protocol(p)),
    }
}

/// Who may not let everything out, or says so, and what it may.
fn egress_rows(known: &Known) -> Vec<[String; 3]> {
    let mut rows = Vec::new();
    for domain in &known.rules.domains {
        let holders = std::iter::once((domain.name.as_str(), &domain.egress, domain.ports.first()))
            .chain(domain.ports.iter().filter_map(|p| Some((p.machine.as_str(), p.egress.as_ref()?, Some(p)))));
        for (number, (name, egress, machine)) in holders.enumerate() {
            let to = match egress {
                Egress::All if number == 0 => continue,
                Egress::All => "all".to_owned(),
                Egress::None => "none".to_owned(),
                Egress::List(list) => list.iter().map(egress_entry).collect::<Vec<_>>().join(" "),
            };
            // A machine with a list of its own does not know where its domain's stands.
            let machine = machine.filter(|p| number > 0 || p.egress.is_none());
            let at = machine.and_then(|p| known.egress_at(&p.machine)).map_or(String::new(), |at| line(&at));
            rows.push([name.to_owned(), to, at]);
        }
    }
    rows
}

fn as_json(known: &Known, number: usize) -> Value {
    let rule = &known.rules.rules[number];
    let ports = match &rule.ports {
        Ports::All => json!("all"),
        Ports::List(list) => json!(list),
    };
    json!({
        "from": side(&rule.from),
        "to": side(&rule.to),
        "ports": ports,
        "protocol": rule.protocol.map(protocol),
        "bidirectional": rule.bidirectional,
        "description": rule.comment,
        "at": known.policy_at(number),
    })
}
