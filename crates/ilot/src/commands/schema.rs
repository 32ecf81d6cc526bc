//! `ilot schema`.

use clap::ValueEnum;
use ilot_spec::{SchemaOf, schema_of};

use super::Outcome;
use crate::error::CommandError;
use crate::ui;

/// Print the JSON Schema of a project's files, for editors
///
/// Editors that know YAML schemas then complete keys and mark what does not fit while one types. What one part of a
/// project says of another (names, addresses, totals) only `ilot check` can tell.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot schema > infra.schema.json
  ilot schema --layout project --part domain > domain.schema.json

In the first line of a file, for editors with the YAML language server:
  # yaml-language-server: $schema=infra.schema.json")]
pub(crate) struct Args {
    /// The layout of the project
    #[arg(long, value_enum, default_value_t)]
    layout: Layout,

    /// The file of the layout
    #[arg(long, value_enum, default_value_t)]
    part: Part,
}

/// The layouts of a project's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// One file: infra.yml
    #[default]
    Single,
    /// A directory: infra/base.yml, infra/domains/*.yml, infra/policies.yml
    Split,
    /// A directory: anklume.yml, domains/NAME.yml, policies.yml
    Project,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Part {
    /// infra.yml, infra/base.yml, anklume.yml
    #[default]
    Main,
    /// A file of domains/
    Domain,
    /// policies.yml
    Policies,
    /// ilot.yml
    Ilot,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let file = match (args.layout, args.part) {
        (Layout::Single | Layout::Split, Part::Main) => SchemaOf::Infra,
        (Layout::Project, Part::Main) => SchemaOf::Project,
        (Layout::Split, Part::Domain) => SchemaOf::Domains,
        (Layout::Project, Part::Domain) => SchemaOf::Domain,
        (Layout::Split | Layout::Project, Part::Policies) => SchemaOf::Policies,
        (_, Part::Ilot) => SchemaOf::Ilot,
        (Layout::Single, Part::Domain | Part::Policies) => {
            return Err(CommandError::usage("a single file has no such part: its domains and policies stand in it")
                .hint("name the layout with `--layout split` or `--layout project`"));
        }
    };
    ui::print_json(&schema_of(file));
    Ok(0)
}
