//! How an image's coming about is told to whoever waits for it.

/// Receives what happens while an image is obtained. Calls come from one thread at a time.
///
/// A stage replaces the one before it; `bytes` and `steps` belong to the current stage.
pub trait Progress: Sync {
    /// A new step begins: `debian/13: try https://images.linuxcontainers.org`.
    fn stage(&self, text: &str);

    /// Bytes moved in this stage, and how many there will be when that is known.
    fn bytes(&self, done: u64, total: Option<u64>);

    /// Parts of this stage that are done, where bytes say nothing (packages of a bootstrap).
    fn steps(&self, done: u64, total: u64) {
        let _ = (done, total);
    }

    /// Something worth keeping on the screen: why a source failed, who holds the lock.
    fn note(&self, text: &str);

    /// Nothing more comes.
    fn finished(&self);

    /// True when the caller no longer wants the image; asked often, long work then ends with [`crate::Error::Cancelled`].
    fn cancelled(&self) -> bool {
        false
    }
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _text: &str) {}
    fn bytes(&self, _done: u64, _total: Option<u64>) {}
    fn note(&self, _text: &str) {}
    fn finished(&self) {}
}
