//! `ilot image commit`.

use super::super::Outcome;
use super::transfer;
use crate::context::Context;
use crate::render::progress::Fetch;
use crate::signals;

/// Make an image of a machine: what it wrote, on top of the image that it was made from
///
/// A stopped machine, a paused one, or a running one, which stands still for as long as its files are read. What is the
/// machine's alone stays out: its host name and addresses, its machine-id. What was written to volumes is not in it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image commit web golden
  ilot image commit -m 'with nginx' web golden:2
  ilot run golden                       machines made from it share it

Keys of an ssh server are in the image when the machine has some: remove them before, or all machines have the same.")]
pub(crate) struct Args {
    /// A machine
    #[arg(value_name = "MACHINE")]
    machine: String,

    /// The image's name, as `ilot image tag` takes it; it moves when another image has it
    #[arg(value_name = "NAME")]
    name: String,

    /// Say something about it in the image's history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let engine = context.engine()?;
    signals::raise_flag_on_interrupt();
    let image = engine.commit(&args.machine, &args.name, args.message.as_deref(), &Fetch::new(context))?;
    transfer::told(context, &image);
    Ok(0)
}
