//! A profile with its names resolved: for each architecture the calls, each with its rules in order.

use std::collections::BTreeMap;

use crate::spec::{Seccomp, SeccompArg, SeccompOp};

use super::arch::{Arch, PRIVATE_FROM};
use super::filter::Action;
use super::{Result, SeccompError};

/// What happens to one call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Verdict {
    /// Whatever the arguments.
    Always(Action),
    /// The first alternative whose conditions hold, else the default action.
    If(Vec<(Vec<Condition>, Action)>),
}

/// A condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Condition {
    pub(super) index: u8,
    pub(super) op: SeccompOp,
    pub(super) value: u64,
    pub(super) value_two: u64,
}

/// The calls of one architecture.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) arch: Arch,
    pub(super) calls: BTreeMap<u32, Verdict>,
    /// The highest number that the profile names here.
    pub(super) highest: Option<u32>,
}

/// A resolved profile.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) default: Action,
    pub(super) tables: Vec<Table>,
    /// Whether newer calls than the profile knows fail with `ENOSYS`.
    pub(super) enosys: bool,
}

impl Rules {
    pub(super) fn resolve(profile: &Seccomp, native: Arch) -> Result<Self> {
        let default = Action::from_spec(profile.default_action, profile.default_errno_ret, "defaultErrnoRet")?;
        let mut tables: Vec<Table> = architectures(profile, native)?
            .into_iter()
            .map(|arch| Table { arch, calls: BTreeMap::new(), highest: None })
            .collect();
        for (i, rule) in profile.syscalls.iter().enumerate() {
            let what = format!("syscalls[{i}]");
            if rule.names.is_empty() {
                return Err(SeccompError::Profile { what, why: "`names` must have at least one entry".into() });
            }
            let action = Action::from_spec(rule.action, rule.errno_ret, &what)?;
            let alternatives = alternatives(&rule.args, &what)?;
            for table in &mut tables {
                for name in &rule.names {
                    if let Some(nr) = table.arch.number(name) {
                        table.add(nr, &alternatives, action, default);
                    }
                }
            }
        }
        Ok(Self { default, tables, enosys: !default.permissive() })
    }
}

impl Table {
    fn add(&mut self, nr: u32, alternatives: &[Vec<Condition>], action: Action, default: Action) {
        if nr & !super::arch::X32_BIT < PRIVATE_FROM {
            self.highest = self.highest.max(Some(nr));
        }
        if alternatives.is_empty() {
            // It would only hide the conditional rules beside it (runc leaves it out too).
            let known = self.calls.get(&nr);
            if action != default && !matches!(known, Some(Verdict::Always(_))) {
                self.calls.insert(nr, Verdict::Always(action));
            }
            return;
        }
        let new = || alternatives.iter().map(|a| (narrow(a, self.arch), action));
        match self.calls.get_mut(&nr) {
            Some(Verdict::Always(_)) => {}
            Some(Verdict::If(list)) => list.extend(new()),
            None => {
                let list = new().collect();
                self.calls.insert(nr, Verdict::If(list));
            }
        }
    }
}

/// The native architecture and those of the list that this kernel can meet.
pub(super) fn architectures(profile: &Seccomp, native: Arch) -> Result<Vec<Arch>> {
    let mut out = vec![native];
    for name in &profile.architectures {
        if let Some(arch) = Arch::parse(name)?
            && native.family().contains(&arch)
            && !out.contains(&arch)
        {
            out.push(arch);
        }
    }
    Ok(out)
}

/// The conditions of a rule: usually one list, all of which must hold. Empty: unconditional.
pub(super) fn alternatives(args: &[SeccompArg], what: &str) -> Result<Vec<Vec<Condition>>> {
    let mut all = Vec::with_capacity(args.len());
    for arg in args {
        let index = u8::try_from(arg.index).ok().filter(|i| *i < 6).ok_or_else(|| {
            let why = format!("a call has arguments 0 to 5, not {}", arg.index);
            SeccompError::Profile { what: what.into(), why }
        })?;
        all.push(Condition { index, op: arg.op, value: arg.value, value_two: arg.value_two });
    }
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let twice = all.iter().enumerate().any(|(i, c)| all[..i].iter().any(|d| d.index == c.index));
    Ok(if twice { all.into_iter().map(|c| vec![c]).collect() } else { vec![all] })
}

/// The conditions as an architecture with 32-bit arguments can tell them.
fn narrow(conditions: &[Condition], arch: Arch) -> Vec<Condition> {
    let half = |v: u64| if arch.wide() { v } else { v & 0xffff_ffff };
    conditions.iter().map(|c| Condition { value: half(c.value), value_two: half(c.value_two), ..*c }).collect()
}
