//! The vocabulary of a plan: resources, their fields, and the changes between two sets of them.

use std::fmt;

use indexmap::IndexMap;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// What sort of thing a resource is. The order is the order of creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The packet filter of the whole project: one resource, replaced in one transaction.
    Firewall,
    /// A domain: its bridge, its addresses, its name service.
    Domain,
    /// A machine.
    Machine,
}

impl Kind {
    /// The word that messages and JSON use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firewall => "firewall",
            Self::Domain => "domain",
            Self::Machine => "machine",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a change of a field costs. The order is the order of strength: the strongest of a resource's changed fields
/// decides what happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Done while it runs.
    Live,
    /// It has to be stopped and started.
    Restart,
    /// It has to be made anew; address, MAC and volumes stay.
    Replace,
}

/// One property of a resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Field {
    /// The value in its one canonical form: equivalent spellings must compare equal (`2147483648`, never `2GiB`).
    pub value: Value,
    /// What it costs to change it. The desired side's effect counts.
    pub effect: Effect,
}

/// One thing that an engine makes: as it should be, or as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resource {
    /// What it is.
    pub kind: Kind,
    /// Its name, unique among its kind in a project.
    pub name: String,
    /// The domain that a machine belongs to. `None` for domains themselves and the firewall.
    pub domain: Option<String>,
    /// `ephemeral: false`: neither deleted nor replaced without force.
    pub protected: bool,
    /// Desired: whether `apply` should make it run (`Some(false)` and `None` leave it as it is). Actual: whether it
    /// runs; `None` where running means nothing.
    pub running: Option<bool>,
    /// Its properties in the order in which reasons are given. A field that one side does not have is null there, so
    /// what a file no longer sets is a change, and what an engine merely observes does not belong here.
    pub fields: IndexMap<String, Field>,
}

impl Resource {
    /// A resource without fields that is not protected.
    #[must_use]
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into(), domain: None, protected: false, running: None, fields: IndexMap::new() }
    }

    /// Puts it into a domain.
    #[must_use]
    pub fn in_domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// Adds a field whose change takes effect while the resource runs.
    #[must_use]
    pub fn live(self, name: &str, value: impl Into<Value>) -> Self {
        self.with(name, value, Effect::Live)
    }

    /// Adds a field whose change needs a restart.
    #[must_use]
    pub fn restart(self, name: &str, value: impl Into<Value>) -> Self {
        self.with(name, value, Effect::Restart)
    }

    /// Adds a field whose change needs a replacement.
    #[must_use]
    pub fn replace(self, name: &str, value: impl Into<Value>) -> Self {
        self.with(name, value, Effect::Replace)
    }

    /// Adds a field.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>, effect: Effect) -> Self {
        let value = value.into();
        self.fields.insert(name.to_owned(), Field { value, effect });
        self
    }
}

/// What is done to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It does not exist yet.
    Create,
    /// It is changed in place, while it runs if it does.
    Update,
    /// It is changed, and stopped and started for that.
    Restart,
    /// It is removed and made anew.
    Replace,
    /// It exists but does not run and should; changed fields (the reasons) are brought up to date on the way.
    Start,
    /// The project made it and no longer declares it.
    Delete,
}

impl Action {
    /// The word that messages and JSON use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Restart => "restart",
            Self::Replace => "replace",
            Self::Start => "start",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a change of an existing resource reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Without interruption.
    Live,
    /// By stopping and starting it.
    Restart,
    /// By making it anew.
    Replacement,
}

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// The field's name.
    pub field: String,
    /// What it is; null when it was not set, and for what is created.
    pub from: Value,
    /// What it will be; null when it is removed.
    pub to: Value,
    /// What changing this field costs.
    pub effect: Effect,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// What is done.
    pub action: Action,
    /// To what.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The domain of a machine.
    pub domain: Option<String>,
    /// How an existing resource is changed; `None` for create, start and delete.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub how: Option<How>,
    /// Whether it is protected (`ephemeral: false`).
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub protected: bool,
    /// Why, field by field. A delete has none: that it is not declared is the reason.
    pub reasons: Vec<Reason>,
}

impl Change {
    /// The domain that the change belongs to: a machine's, or the domain itself. `None` for the firewall.
    #[must_use]
    pub fn belongs_to(&self) -> Option<&str> {
        match self.kind {
            Kind::Firewall => None,
            Kind::Domain => Some(&self.name),
            Kind::Machine => self.domain.as_deref(),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Firewall => write!(f, "{} firewall", self.action),
            kind => write!(f, "{} {kind} {}", self.action, self.name),
        }
    }
}

/// A resource, or a part of what changed of it, that the plan leaves alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// What would have been done: [`Action::Delete`] or [`Action::Replace`]; of what is held also [`Action::Restart`] or
    /// [`Action::Create`].
    pub action: Action,
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The domain of a machine.
    pub domain: Option<String>,
    /// Why it is kept.
    pub because: String,
    /// It waits for somebody to allow restarts; otherwise it is protected.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub held: bool,
    /// The fields that would have changed (for a replacement held back).
    pub reasons: Vec<Reason>,
}

/// An exact list of what must change, in an order in which it can be done.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The steps.
    pub changes: Vec<Change>,
    /// What is left alone: protected, or waiting for a restart to be allowed.
    pub kept: Vec<Kept>,
    /// How many resources are as they should be.
    pub unchanged: usize,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes for which something is stopped: by a restart or a replacement.
    pub fn interruptions(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|c| matches!(c.how, Some(How::Restart | How::Replacement)))
    }

    /// How many changes of each sort there are.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let held = self.kept.iter().filter(|kept| kept.held).count();
        let mut summary =
            Summary { kept: self.kept.len() - held, held, unchanged: self.unchanged, ..Summary::default() };
        for change in &self.changes {
            *match change.action {
                Action::Create => &mut summary.create,
                Action::Update => &mut summary.update,
                Action::Restart => &mut summary.restart,
                Action::Replace => &mut summary.replace,
                Action::Start => &mut summary.start,
                Action::Delete => &mut summary.delete,
            } += 1;
        }
        summary
    }
}

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut plan = serializer.serialize_struct("Plan", 3)?;
        plan.serialize_field("changes", &self.changes)?;
        plan.serialize_field("kept", &self.kept)?;
        plan.serialize_field("summary", &self.summary())?;
        plan.end()
    }
}

/// The number of changes of each sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "one count per action, named after it")]
pub struct Summary {
    pub create: usize,
    pub update: usize,
    pub restart: usize,
    pub replace: usize,
    pub start: usize,
    pub delete: usize,
    /// Protected resources that were left alone.
    pub kept: usize,
    /// Changes that wait for a restart to be allowed.
    #[serde(default)]
    pub held: usize,
    /// Resources that are as they should be.
    pub unchanged: usize,
}
