//! `ilot image search`.

use ilot_image::{Remote, Timeouts};
use owo_colors::OwoColorize as _;

use super::super::Outcome;
use crate::context::Context;
use crate::render::table::{Cell, Table};
use crate::ui;

/// Look for images in a registry
///
/// By the registry's own search where it has one (Docker Hub, `ilot registry serve`), else among the names of its catalogue.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image search nginx                                 on Docker Hub
  ilot image search --registry localhost:5000 --tls-verify=false tool")]
pub(crate) struct Args {
    /// Part of a name or of a description
    #[arg(value_name = "TEXT")]
    text: String,

    /// Which registry
    #[arg(long, value_name = "HOST[:PORT]", default_value = "docker.io")]
    registry: String,

    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u16).range(1..=100))]
    limit: u16,

    /// `false`: take whatever certificate the registry shows, or none at all
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    tls_verify: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let remote = Remote::new(&args.registry, Timeouts::default(), args.tls_verify)?;
    let found = remote.search(&args.text, args.limit.into())?;
    if context.json {
        ui::print_json(&found);
        return Ok(u8::from(found.is_empty()));
    }
    if found.is_empty() {
        context.note(&format!("{}: nothing with `{}` in its name", args.registry, args.text));
        return Ok(1);
    }
    let host = if args.registry == "docker.io" { "docker://docker.io".to_owned() } else { args.registry.clone() };
    let mut table = Table::new(&["NAME", "STARS", "DESCRIPTION"]).right(&[1]);
    for hit in &found {
        let official = if hit.is_official { format!(" {}", "official".green()) } else { String::new() };
        // One line each, whatever somebody wrote into it.
        let words: String = hit.description.chars().map(|c| if c.is_control() { ' ' } else { c }).take(80).collect();
        let name: String = hit.name.chars().filter(|c| !c.is_control()).collect();
        table.row([
            Cell::from(format!("{host}/{name}{official}")),
            Cell::from(hit.star_count.to_string()),
            Cell::from(words),
        ]);
    }
    ui::write_out(&table.render());
    Ok(0)
}
