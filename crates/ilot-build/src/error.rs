//! What can go wrong, where in the file, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What this library's functions give.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A place in a Containerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// How many characters are meant.
    pub length: usize,
    /// The line itself.
    pub text: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl Place {
    /// The line with carets below what is meant.
    #[must_use]
    pub fn excerpt(&self) -> String {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let text = visible(&self.text.replace('\t', " "));
        let left = text.chars().count().saturating_sub(self.column - 1).max(1);
        let carets = "^".repeat(self.length.clamp(1, left));
        format!(" {number} | {text}\n {margin} | {}{carets}", " ".repeat(self.column - 1))
    }
}

/// A text without what would command a terminal: nobody knows who wrote the file.
pub(crate) fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A build that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something in the file, or what a step of it did.
    #[error("{place}: {message}\n{}", place.excerpt())]
    At {
        /// Where.
        place: Box<Place>,
        /// What is wrong.
        message: String,
        /// The cure, where there is one.
        help: Option<String>,
    },
    /// What was asked for makes no sense, whatever the file says.
    #[error("{message}")]
    Invalid {
        /// What is wrong.
        message: String,
        /// The cure, where there is one.
        help: Option<String>,
    },
    /// A file or folder of the host.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The store of images.
    #[error(transparent)]
    Image(#[from] ilot_image::Error),
    /// The engine that runs the steps.
    #[error(transparent)]
    Native(#[from] ilot_native::Error),
    /// The user gave up.
    #[error("the build was interrupted; nothing of it is left but what the cache keeps")]
    Cancelled,
}

impl Error {
    pub(crate) fn invalid(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), help: Some(help.into()) }
    }

    pub(crate) fn file(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::File { operation, path: path.to_owned(), source: source.into() }
    }

    /// The same said of a place, where it has none yet.
    pub(crate) fn at(self, place: &Place) -> Self {
        match self {
            Self::At { .. } | Self::Cancelled => self,
            Self::Image(ilot_image::Error::Cancelled { .. }) => Self::Cancelled,
            other => {
                let help = other.help();
                Self::At { place: Box::new(place.clone()), message: other.to_string(), help }
            }
        }
    }

    /// What the user can do about it, where that is known.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::At { help, .. } | Self::Invalid { help, .. } => help.clone(),
            Self::File { source, .. } if matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                Some("free some space, or move the store with `--root` or ILOT_ROOT".to_owned())
            }
            Self::Image(error) => error.help(),
            Self::Native(error) => error.help(),
            Self::File { .. } | Self::Cancelled => None,
        }
    }

    /// Where in the file, if it is about one.
    #[must_use]
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::At { place, .. } => Some(place),
            _ => None,
        }
    }
}
