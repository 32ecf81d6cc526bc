//! The native engine: ilot's own runtime, images and network joined under the engine trait.
//!
//! No daemon: everything is the store on disk (`records`), the run directory and the kernel. Every command reads what
//! there is, and repairs what a killed one left behind before it changes anything.

mod actual;
mod collisions;
mod commit;
mod copy;
mod desired;
mod devices;
mod engine;
mod error;
pub mod ids;
mod info;
mod layers;
mod logs;
mod loops;
mod machine;
mod memory;
mod nesting;
mod network;
mod paths;
mod record;
mod refuse;
mod remove;
mod repair;
mod run;
mod spec;
mod step;
mod storage;
mod volumes;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use sha2::{Digest as _, Sha256};

pub use collisions::Collision;
pub use copy::{CopyEnd, CopyReport};
pub use devices::{DeviceRecord, GpuRecord, Leg, NicRecord, NodeOwner, ProxyRecord, UnixCharRecord, UsbRecord};
pub use engine::Session;
pub use error::{Error, Result};
pub use info::{DomainInfo, MachineInfo, MachineState, Usage};
pub use logs::{LogLine, LogOptions};
pub use machine::ExecRequestParts;
pub use network::project_ruleset;
pub use paths::{Lock, Paths};
pub use record::{DomainRecord, MachineRecord, PolicyRecord, ProjectRecord, Side};
pub use refuse::{Refusal, refusals};
pub use run::{NetChoice, RunOptions, Started};
pub use spec::signal_number;
pub use step::{BuildNet, Builder, Step};
pub use storage::StorageRecord;
pub use volumes::VolumeRecord;

pub use ilot_image::{Image, Store};
pub use ilot_runtime::{Exit, Status};

/// What came of asking for an image: once per process, whoever asks.
pub(crate) type Asked = OnceLock<Result<Arc<Image>, Arc<Error>>>;

/// The native engine on one store.
pub struct Native {
    pub(crate) paths: Paths,
    pub(crate) images: Store,
    /// Images found or obtained by this process, so that 61 machines ask once.
    pub(crate) ready: Mutex<HashMap<String, Arc<Asked>>>,
    /// The command line of this program for what must run after a container's end.
    pub(crate) program: Option<std::path::PathBuf>,
}

impl Native {
    /// Opens the store below `root` with its live state below `run`; both are made when they are not there.
    ///
    /// # Errors
    /// When they cannot be made or read.
    pub fn open(root: &Path, run: &Path) -> Result<Self> {
        let paths = Paths::open(root, run)?;
        let images = Store::open(&paths.root)?;
        Ok(Self { paths, images, ready: Mutex::new(HashMap::new()), program: std::env::current_exe().ok() })
    }

    /// Where this engine keeps things.
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The image store.
    #[must_use]
    pub fn images(&self) -> &Store {
        &self.images
    }
}

impl std::fmt::Debug for Native {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Native").field("paths", &self.paths).finish_non_exhaustive()
    }
}

/// The first `digits` hexadecimal digits of the SHA-256 of `bytes`.
pub(crate) fn short_hash(bytes: &[u8], digits: usize) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text.truncate(digits);
    text
}
