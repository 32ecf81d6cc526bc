//! The program `ilot`; everything is in the library, so that tests and the documentation can use it.

use std::process::ExitCode;

fn main() -> ExitCode {
    ilot::main()
}
