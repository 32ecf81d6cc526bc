//! `ilot-proxy DIRECTORY`: the relay of one proxy device. See `docs/network.md`.

use std::process::ExitCode;

use ilot_net::proxy::daemon;

fn main() -> ExitCode {
    daemon::main(std::env::args_os())
}
