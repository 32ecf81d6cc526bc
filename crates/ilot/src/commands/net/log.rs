//! `ilot net log`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use owo_colors::OwoColorize;
use serde_json::{Value, json};

use super::Outcome;
use crate::context::Context;
use crate::error::CommandError;
use crate::ui;

/// Show which names a domain's name service refused lately: what an egress list lacks
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot net log pro")]
pub(crate) struct Args {
    /// The domain
    #[arg(value_name = "DOMAIN")]
    domain: String,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let engine = context.engine()?;
    let rules = engine.ruleset()?;
    let domain = rules.domains.iter().find(|d| d.name == args.domain);
    let domain = domain.ok_or_else(|| ilot_native::Error::NoDomain(args.domain.clone()))?;
    let refusals = ilot_net::names::refusals(&engine.paths().run, &args.domain)
        .map_err(|e| CommandError::from(ilot_native::Error::from(e)))?;
    let machine = |client| domain.ports.iter().find(|p| p.ip == client).map(|p| p.machine.as_str());
    let time =
        |seconds: u64| i64::try_from(seconds).ok().and_then(|s| Timestamp::from_second(s).ok()).unwrap_or_default();
    if context.json {
        let list: Vec<Value> = refusals
            .iter()
            .map(|r| json!({ "time": time(r.time), "machine": machine(r.client), "address": r.client, "name": r.name, "type": r.kind }))
            .collect();
        ui::print_json(&list);
        return Ok(0);
    }
    let zone = TimeZone::system();
    for refusal in refusals {
        let when = time(refusal.time).to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string();
        let who = machine(refusal.client).map_or_else(|| refusal.client.to_string(), str::to_owned);
        ui::print(&format!("{} {who} {} {}", when.dimmed(), refusal.name, refusal.kind));
    }
    Ok(0)
}
