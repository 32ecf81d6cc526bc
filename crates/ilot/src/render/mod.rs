//! How things look on the terminal.

pub(crate) mod change;
pub(crate) mod diff;
pub(crate) mod problem;
pub(crate) mod progress;
pub(crate) mod table;
