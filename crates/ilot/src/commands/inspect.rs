//! `ilot inspect`.

use serde_json::{Value, json};

use super::Outcome;
use crate::context::Context;
use crate::error::CommandError;
use crate::ui;

/// Print everything known about machines or domains, as JSON
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot inspect web
  ilot inspect web | jq '.[0].limits'
  ilot inspect lab        a domain")]
pub(crate) struct Args {
    /// Machines or domains
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let engine = context.engine()?;
    let mut domains = None;
    let mut found = Vec::new();
    for name in &args.names {
        match engine.machine_details(name) {
            Ok(machine) => found.push(marked("machine", &machine)?),
            Err(ilot_native::Error::NoMachine(_)) => {
                if domains.is_none() {
                    domains = Some(engine.domains()?);
                }
                let domain = domains.iter().flatten().find(|domain| domain.record.name == *name);
                let domain = domain.ok_or_else(|| ilot_native::Error::NoSuchName(name.clone()))?;
                found.push(marked("domain", domain)?);
            }
            Err(error) => return Err(error.into()),
        }
    }
    ui::print_json(&found);
    Ok(0)
}

/// The object with its `kind` in front.
fn marked(kind: &str, value: &impl serde::Serialize) -> Result<Value, CommandError> {
    let mut object = json!({ "kind": kind });
    let value = serde_json::to_value(value).map_err(CommandError::new)?;
    if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), value) {
        object.extend(fields);
    }
    Ok(object)
}
