//! Building a container: a parent on the host and a child in the new namespaces, in lockstep.
//!
//! ```text
//! parent                                  child (clone3 in new namespaces)
//! id maps, root file system as a mount ─► attaches it, mounts, devices, files
//!                                         joins the cgroups, masks, pivot_root
//! state.json, "created" ◄──────────────── ready (with the terminal's master)
//! start ────────────────────────────────► user, capabilities, filter, execve
//! ```

mod child;
mod copy;
mod devices;
mod filesystem;
mod groups;
mod idmap;
mod namespaces;
mod parent;
mod protect;

pub use devices::open_terminal;
pub(crate) use groups::{UNIFIED, shown_on_host};
#[cfg(fuzzing)]
pub use idmap::of_option as fuzz_id_maps;
pub use idmap::rootless;
pub(crate) use namespaces::flag_and_name;
pub use parent::{Built, build};
pub(crate) use parent::{bind_kind, cgroup_error, make_cgroup, open_path, user_namespace};

use crate::record::Request;
use crate::seccomp;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Everything that parent and child share.
pub struct Plan<'a> {
    /// What was asked for.
    pub request: &'a Request,
    /// The compiled filter.
    pub filter: Option<seccomp::Program>,
    /// Standard input, output and error; `None` with a terminal.
    pub stdio: Option<[OwnedFd; 3]>,
    /// ilot's init as an open file, for [`crate::Init::Builtin`].
    pub init_program: Option<OwnedFd>,
    /// Where the word to start comes from, if not from the process that builds the container.
    pub listener: Option<UnixListener>,
    /// The folder of the configuration, for hooks.
    pub bundle: &'a Path,
    /// How many descriptors from 3 on the process keeps.
    pub preserve_fds: u32,
    /// Change the root by `chroot` (for a host whose root is an initramfs).
    pub no_pivot: bool,
    /// Keep the session keyring.
    pub keep_keyring: bool,
    /// Whether this is an ordinary user's, known before there are ids that look like root's.
    pub rootless: bool,
    /// Whether systemd makes the cgroup.
    pub systemd: bool,
    /// Report a missing program when the container is made, not when it is started.
    pub look_up_program: bool,
}

impl<'a> Plan<'a> {
    /// A plan for a request, with nothing of the rarer wishes.
    pub fn new(request: &'a Request) -> Self {
        Self {
            request,
            filter: None,
            stdio: None,
            init_program: None,
            listener: None,
            bundle: &request.run_dir,
            preserve_fds: 0,
            no_pivot: false,
            keep_keyring: false,
            rootless: idmap::rootless(),
            systemd: false,
            look_up_program: false,
        }
    }
}

impl Plan<'_> {
    /// Whether the container has a user namespace of its own.
    fn has_user_namespace(&self) -> bool {
        self.request.spec.linux.as_ref().is_some_and(|l| l.has_namespace(crate::spec::NamespaceKind::User))
    }
}
