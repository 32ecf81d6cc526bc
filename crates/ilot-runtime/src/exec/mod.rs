//! A further command in a running container.
//!
//! The caller may have threads; `setns` into a user namespace must not. So the caller spawns
//! `ilot-keeper exec`, which joins the cgroups and namespaces, makes the command *as the caller's
//! child* (`CLONE_PARENT`) and ends: nothing stays between the caller and the command.

mod caller;
mod helper;
pub(crate) mod inside;
pub(crate) mod relay;
pub(crate) mod signals;

pub use caller::{attach, exec};
pub use helper::main as helper;

use crate::ExecRequest;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What the helper is asked for.
#[derive(Debug, Serialize, Deserialize)]
struct HelperRequest {
    run_dir: PathBuf,
    args: Vec<String>,
    env: Vec<String>,
    cwd: Option<String>,
    user: Option<String>,
    terminal: bool,
    detach: bool,
    rows: u16,
    columns: u16,
}

impl HelperRequest {
    fn new(run_dir: PathBuf, request: &ExecRequest, size: (u16, u16)) -> Self {
        Self {
            run_dir,
            args: request.args.clone(),
            env: request.env.clone(),
            cwd: request.cwd.clone(),
            user: request.user.clone(),
            terminal: request.terminal,
            detach: request.detach,
            rows: size.0,
            columns: size.1,
        }
    }
}

/// What it answers once the command runs.
#[derive(Debug, Serialize, Deserialize)]
struct HelperAnswer {
    pid: i32,
}
