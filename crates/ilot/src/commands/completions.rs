//! `ilot completions`.

use clap_complete::Shell;

use super::Outcome;
use crate::cli;
use crate::ui;

/// Print the completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot completions bash > /etc/bash_completion.d/ilot
  ilot completions zsh > /usr/local/share/zsh/site-functions/_ilot
  ilot completions fish > ~/.config/fish/completions/ilot.fish")]
pub(crate) struct Args {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut cli::command(), "ilot", &mut script);
    ui::write_out(&String::from_utf8_lossy(&script));
    Ok(0)
}
