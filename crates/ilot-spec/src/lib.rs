//! Infrastructure files in, one validated and addressed model out.
//!
//! Three layouts (single file, split directory, project directory) load into the same [`Project`]. Nothing after
//! this crate knows which layout it came from, and validation never opens a file: [`read()`] gathers the texts, [`parse`]
//! judges them, [`load`] does both.
//!
//! Every problem is found at once, each with its file, line and column and what to do about it. The format is described
//! in `docs/infra.md`.

mod address;
mod assemble;
mod checks;
mod config;
mod convert;
mod cx;
mod edit;
pub mod egress;
mod explain;
mod files;
mod fmt;
mod lookup;
pub mod model;
mod names;
mod policies;
mod prefix;
mod problem;
mod read;
#[cfg(test)]
mod reference;
mod resources;
mod schema;
pub mod units;
mod volumes;
pub mod yaml;

use std::path::Path;

pub use address::{FIREWALL_HOST, GATEWAY_HOST, LAST_STATIC_HOST, ipv6_of, ipv6_subnet, zone_offset};
pub use assemble::DEFAULT_IMAGE;
pub use config::{CONFIG_KEYS, ConfigUse, DEVICE_TYPES, config_use};
pub use convert::{ConvertError, Converted, convert};
pub use cx::nearest;
pub use egress::{EgressRule, EgressTarget};
pub use explain::{Explained, Origin, explain};
pub use files::{find, read};
pub use fmt::{FormatError, Formatted, format, same_model};
pub use lookup::{Index, Side};
pub use model::*;
pub use policies::AI_DOMAIN;
pub use problem::{Loaded, Problem, Related, Role, SourceFile, Sources};
pub use schema::{SchemaOf, schema, schema_of};

/// Reads and judges the project that `path` names: see [`read()`] for what it may be.
#[must_use]
pub fn load(path: &Path, host: &HostFacts) -> Loaded {
    let sources = read(path);
    let (project, errors, warnings) = judge(&sources, host);
    Loaded { project, errors, warnings, sources }
}

/// Judges a project's files. Pure: nothing is opened, and the same texts and facts give the same answer.
#[must_use]
pub fn parse(sources: &Sources, host: &HostFacts) -> Loaded {
    let (project, errors, warnings) = judge(sources, host);
    Loaded { project, errors, warnings, sources: sources.clone() }
}

fn judge(sources: &Sources, host: &HostFacts) -> (Option<Project>, Vec<Problem>, Vec<Problem>) {
    let mut cx = cx::Cx::new(sources);
    cx.incomplete = !sources.unreadable.is_empty();
    let mut trees = Vec::with_capacity(sources.files.len());
    for (file, source) in sources.files.iter().enumerate() {
        let parsed = yaml::parse(&source.text, u32::try_from(file).unwrap_or(u32::MAX));
        cx.incomplete |= parsed.broken;
        for error in parsed.errors {
            let problem = cx.error(error.span, &cx::Path::Root, error.message);
            problem.help = error.help;
            if let Some((message, span)) = error.related {
                let related = Related { message, at: sources.position(span), length: span.length as usize };
                problem.related.push(related);
            }
        }
        trees.push(parsed.root);
    }
    let main = sources.files.first().is_some_and(|f| f.role == Role::Main);
    let project = main.then(|| {
        let raw = read::read(&mut cx, &trees);
        assemble::assemble(&mut cx, raw, host)
    });
    let errors = ordered(sources.unreadable.clone(), cx.errors);
    let warnings = ordered(Vec::new(), cx.warnings);
    (project.filter(|_| errors.is_empty()), errors, warnings)
}

/// In the order of the files and their lines, each once: an alias can bring one mistake in at many places.
fn ordered(mut first: Vec<Problem>, mut placed: Vec<(yaml::Span, Problem)>) -> Vec<Problem> {
    placed.sort_by_key(|(span, _)| (span.file, span.line, span.column));
    placed.dedup_by(|(a, x), (b, y)| a == b && x.message == y.message);
    first.extend(placed.into_iter().map(|(_, problem)| problem));
    first
}
