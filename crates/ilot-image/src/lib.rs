//! Images of ilot: names, sources, the store that keeps them, and layers unpacked safely.
//!
//! ```no_run
//! # fn main() -> Result<(), ilot_image::Error> {
//! let store = ilot_image::Store::open("/var/lib/ilot".as_ref())?;
//! let image = store.obtain("images:debian/13", &ilot_image::Silent)?;
//! // Read-only trees, top first, for the overlay of a machine of trust level `trusted`.
//! let lowers = store.materialize(&image, "trusted")?;
//! # Ok(()) }
//! ```
//!
//! An image is an OCI manifest, its configuration and its layers, kept as blobs under their SHA-256 in an OCI image
//! layout. What machines run from is unpacked from those blobs once per trust level, so that no two trust levels ever
//! have the same inode.

mod archive;
mod blob;
mod build;
mod derive;
mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod golden;
mod http;
mod lock;
mod mount;
mod native;
mod oci;
mod partial;
mod platform;
mod progress;
mod push;
mod reference;
mod remote;
mod remotes;
mod sbom;
mod scan;
mod source;
mod store;
mod sync;
mod trust;
mod types;

pub use archive::Limits;
pub use blob::Codec;
pub use build::{BuiltLayer, Downloaded, Named, Packed, Workshop};
pub use derive::Changes;
pub use error::{Attempt, Error, Result};
pub use golden::Upper;
pub use http::Timeouts;
pub use mount::Mounted;
pub use native::{DIRECT, NativeLayer, let_go};
pub use platform::Platform;
pub use progress::{Progress, Silent};
pub use push::Pushed;
pub use reference::{Distribution, LayoutKind, Reference, RegistryName};
pub use remote::{BlobPushed, Remote, RemoteManifest, SearchHit};
pub use sbom::{Bill, Package, SbomFormat};
pub use store::{Change, ChangeKind, Collected, Details, Finding, Form, Lower, Step, Store};
pub use sync::{SyncResult, SyncRules, Synced};
pub use trust::{PublicKey, Signed, SigningKey, Verified};
pub use types::{Digest, Image, ImageConfig, ImageInit, InitKind};
