//! What must change, why, in which order, and how it is carried out.
//!
//! An [`Engine`] says what a project should be ([`Engine::desired`]) and what there is ([`Engine::actual`]), both as
//! flat lists of [`Resource`]s. [`diff()`] compares them into a [`Plan`]: a list of typed [`Change`]s, each with the
//! fields that differ, in an order that respects what depends on what. [`execute()`] runs a plan on the engine, domains
//! side by side, goes on after a failure and reports every one.
//!
//! The crate is pure: it knows no kernel and opens no file.

mod diff;
mod engine;
mod execute;
mod model;
mod select;

pub use diff::{DiffOptions, diff, diff_with};
pub use engine::{Engine, EngineError, Events, Outcome, Silent};
pub use execute::{ExecuteOptions, Report, execute};
pub use model::{Action, Change, Effect, Field, How, Kept, Kind, Plan, Reason, Resource, Summary};
pub use select::{Selection, UnknownNames};
