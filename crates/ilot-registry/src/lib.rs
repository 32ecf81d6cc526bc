//! A registry: the OCI distribution-spec 1.1 on a store of its own.
//!
//! ```no_run
//! # fn main() -> Result<(), ilot_registry::Error> {
//! let options = ilot_registry::Options::new("127.0.0.1:5000".parse().unwrap(), "/srv/registry");
//! ilot_registry::serve(&options, |address| eprintln!("listening on {address}"))
//! # }
//! ```
//!
//! The store:
//!
//! ```text
//! blobs/sha256/<hex>              every blob and manifest, once
//! repositories/<a+b>/             repository a/b, an OCI image layout: skopeo reads it as oci:
//!     index.json                  its manifests and tags; what refers to blobs is derived from them
//!     blobs -> ../../blobs
//!     uploaded/<hex>              blobs that were uploaded or mounted and that no manifest refers to yet
//! uploads/<a+b>@<id>              uploads that are not finished; they survive a restart
//! lock                            held by the server: one per store
//! ```

mod access;
mod api;
mod auth;
mod blobs;
mod error;
mod gc;
mod manifests;
mod mirror;
mod names;
mod repository;
mod search;
mod server;
mod store;
mod tls;
mod transport;
mod uploads;

pub use error::{Error, Result};
pub use gc::Collected;
pub use mirror::{Source, SourceManifest};
pub use server::{Options, Server, serve};
pub use transport::Transport;
