//! `ilot-names DIRECTORY`: the name service of one domain. See `docs/network.md`.

use std::process::ExitCode;

use ilot_net::names::daemon;

fn main() -> ExitCode {
    daemon::set_title();
    daemon::main(std::env::args_os())
}
