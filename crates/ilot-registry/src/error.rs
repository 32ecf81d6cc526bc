//! What the registry's host is told, and what its clients are.

use std::io;
use std::path::PathBuf;

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use serde_json::json;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a registry cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another server has the store.
    #[error("registry store {}: another registry serves it", path.display())]
    Busy {
        /// The store's folder.
        path: PathBuf,
    },
    /// The address cannot be listened on.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A certificate, key or password file cannot be used.
    #[error("{what} {}: {reason}", path.display())]
    Unusable {
        /// What it is: `certificate`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A system call failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The server itself failed.
    #[error("serve: {source}")]
    Serve {
        /// Why.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io { operation, path: path.into(), source: source.into() }
    }

    /// What the user can do about it, where that is known.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Busy { .. } => Some("stop the other one, or choose another folder with `--root`".to_owned()),
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("another program listens there: choose another port with `--listen`".to_owned())
            }
            Self::Unusable { what: "password file", .. } => {
                Some("make it with `htpasswd -Bc FILE USER` (package apache2-utils); only bcrypt is read".to_owned())
            }
            Self::Unusable { what: "certificate" | "key", .. } => {
                Some("both are PEM files; the certificate may be followed by those above it".to_owned())
            }
            Self::Unusable { what: "access file", .. } => {
                Some("each line is `USER REPOSITORY ACTIONS`, for example `alice team/** pull,push`".to_owned())
            }
            _ => None,
        }
    }
}

/// An answer that is an error (distribution-spec, "Error codes").
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) headers: Vec<(&'static str, String)>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: Vec::new() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn blob_unknown(digest: &impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("blob {digest} is not in this repository"))
    }

    pub(crate) fn upload_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "no such upload; begin it again")
    }

    pub(crate) fn upload_invalid(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "BLOB_UPLOAD_INVALID", message)
    }

    pub(crate) fn digest_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
    }

    pub(crate) fn size_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "SIZE_INVALID", message)
    }

    pub(crate) fn manifest_unknown(reference: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", format!("no manifest `{reference}` in this repository"))
    }

    pub(crate) fn manifest_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
    }

    pub(crate) fn manifest_too_large(limit: usize) -> Self {
        let message = format!("a manifest has at most {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID", message)
    }

    pub(crate) fn manifest_blob_unknown(digest: &impl std::fmt::Display) -> Self {
        let message = format!("{digest} is not in this repository; push it before the manifest");
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", message)
    }

    pub(crate) fn name_invalid(name: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", format!("`{name}` is no repository's name"))
    }

    pub(crate) fn name_unknown(name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", format!("no repository `{name}`"))
    }

    pub(crate) fn tag_invalid(tag: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "TAG_INVALID", format!("`{tag}` is neither a tag nor a digest"))
    }

    pub(crate) fn page_invalid() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", "`n` is not a number")
    }

    pub(crate) fn unauthorized(challenge: String) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "log in first").with("WWW-Authenticate", challenge)
    }

    pub(crate) fn quota(limit: u64) -> Self {
        Self::new(StatusCode::FORBIDDEN, "DENIED", format!("the registry is full: it holds at most {limit} bytes"))
    }

    pub(crate) fn denied(action: &str, name: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "DENIED", format!("you may not {action} `{name}`"))
    }

    pub(crate) fn upstream(message: String) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "UNKNOWN", message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
    }

    pub(crate) fn no_such_place() -> Self {
        Self::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "nothing of the distribution-spec is here")
    }

    pub(crate) fn response(self) -> Response<Body> {
        let body = json!({ "errors": [{ "code": self.code, "message": self.message, "detail": null }] }).to_string();
        let mut builder = Response::builder().status(self.status).header(header::CONTENT_TYPE, "application/json");
        for (name, value) in self.headers {
            builder = builder.header(name, value);
        }
        builder.body(Body::from(body)).unwrap_or_default()
    }
}

/// What of the store fails is the host's to know, not the client's.
impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        tracing::error!(%error, "request failed");
        match &error {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "DENIED", "the registry's disk is full")
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "the registry failed; its log says why"),
        }
    }
}
