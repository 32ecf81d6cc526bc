//! From resolved rules to classic BPF.
//!
//! The program is built from its end to its start, because jumps only go forward: when a jump is emitted, everything it
//! can reach stands already and its distance is known. A target further away than a conditional jump's 255 instructions
//! gets a copy of its `ret`, or a long jump, near by.

use std::collections::HashMap;

use crate::spec::SeccompOp;

use super::arch::{Arch, X32_BIT};
use super::filter::{AND, AT_ARCH, AT_NR, Action, JA, JEQ, JGE, JGT, LD, RET, SockFilter, at_arg};
use super::rules::{Condition, Rules, Table, Verdict};
use super::{Result, SeccompError};

/// `BPF_MAXINSNS`
pub(super) const MAX: usize = 4096;
/// Conditional jumps reach 255; what is emitted between the choice of a target and the jump must fit too.
const NEAR: usize = 240;
/// The number of a call that a tracer has cancelled; it belongs to no architecture.
const NO_CALL: u32 = u32::MAX;

/// Compiles the rules.
pub(super) fn compile(rules: &Rules) -> Result<Vec<SockFilter>> {
    let mut out = Builder { rev: Vec::with_capacity(512), rets: HashMap::new(), default: rules.default, wide: true };
    // One tree per audit number: x86_64 and x32 share theirs.
    let mut audits: Vec<(u32, bool)> = Vec::new();
    for arch in rules.tables.iter().map(|t| t.arch) {
        if !audits.contains(&(arch.audit(), arch.wide())) {
            audits.push((arch.audit(), arch.wide()));
        }
    }
    let mut next = Target::Do(Action::KillProcess);
    // The first architecture, the native one, is compared first and so emitted last.
    for (audit, wide) in audits.into_iter().rev() {
        out.wide = wide;
        let tree = out.tree(&segments(rules, audit));
        let start = out.load(AT_NR, tree);
        next = out.jump(JEQ, audit, start, next);
    }
    out.load(AT_ARCH, next);
    out.rev.reverse();
    if out.rev.len() > MAX {
        return Err(SeccompError::TooLong { length: out.rev.len(), max: MAX });
    }
    Ok(out.rev)
}

/// A range of numbers, from `start` to the start of the next one, with one verdict.
struct Segment {
    start: u32,
    verdict: Verdict,
}

/// Numbers have 32 bits; ends of ranges need one more.
const END: u64 = 1 << 32;

/// The whole number space of one audit number as ranges; neighbours with equal verdicts are one.
fn segments(rules: &Rules, audit: u32) -> Vec<Segment> {
    let mut list = Vec::with_capacity(256);
    let table = |x32: bool| rules.tables.iter().find(|t| t.arch.audit() == audit && (t.arch == Arch::X32) == x32);
    if audit == Arch::X32.audit() {
        fill(&mut list, rules, table(false), 0, X32_BIT.into());
        fill(&mut list, rules, table(true), X32_BIT.into(), NO_CALL.into());
        add(&mut list, NO_CALL.into(), &Verdict::Always(rules.default));
    } else {
        fill(&mut list, rules, table(false), 0, END);
    }
    list
}

/// The ranges of one architecture, between two numbers.
fn fill(list: &mut Vec<Segment>, rules: &Rules, table: Option<&Table>, first: u64, end: u64) {
    let Some(table) = table else {
        return add(list, first, &Verdict::Always(Action::KillProcess));
    };
    let newer = if rules.enosys { Action::Errno(libc::ENOSYS as u16) } else { rules.default };
    let known_end = table.highest.map_or(first, |h| u64::from(h) + 1);
    let gap = |list: &mut Vec<Segment>, from: u64, to: u64| {
        if from < to.min(known_end) {
            add(list, from, &Verdict::Always(rules.default));
        }
        if from.max(known_end) < to {
            add(list, from.max(known_end), &Verdict::Always(newer));
        }
    };
    let mut at = first;
    for (nr, verdict) in &table.calls {
        let nr = u64::from(*nr);
        gap(list, at, nr);
        add(list, nr, verdict);
        at = nr + 1;
    }
    gap(list, at, end);
}

fn add(list: &mut Vec<Segment>, start: u64, verdict: &Verdict) {
    let Ok(start) = u32::try_from(start) else { return };
    if list.last().is_none_or(|last| last.verdict != *verdict) {
        list.push(Segment { start, verdict: verdict.clone() });
    }
}

/// Where a jump leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// To the instruction with this index, counted from the program's end.
    At(usize),
    /// To the end of the program with this outcome.
    Do(Action),
}

struct Builder {
    /// The program, last instruction first.
    rev: Vec<SockFilter>,
    /// The nearest `ret` of each outcome.
    rets: HashMap<u32, usize>,
    default: Action,
    /// Whether arguments have two halves.
    wide: bool,
}

impl Builder {
    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> Target {
        self.rev.push(SockFilter { code, jt, jf, k });
        Target::At(self.rev.len() - 1)
    }

    /// Makes the target the next instruction to run after what is pushed next.
    fn go(&mut self, target: Target) {
        match target {
            Target::At(at) if at + 1 == self.rev.len() => {}
            Target::At(at) => {
                let distance = self.rev.len() - 1 - at;
                self.push(JA, u32::try_from(distance).unwrap_or(u32::MAX), 0, 0);
            }
            Target::Do(action) => {
                self.push(RET, action.ret(), 0, 0);
                self.rets.insert(action.ret(), self.rev.len() - 1);
            }
        }
    }

    /// An instruction within a conditional jump's reach that leads to the target.
    fn near(&mut self, target: Target) -> usize {
        let at = match target {
            Target::At(at) => Some(at),
            Target::Do(action) => self.rets.get(&action.ret()).copied(),
        };
        if let Some(at) = at.filter(|at| self.rev.len() - at <= NEAR) {
            return at;
        }
        self.go(target);
        self.rev.len() - 1
    }

    fn jump(&mut self, code: u16, k: u32, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        let (yes, no) = (self.near(yes), self.near(no));
        let here = self.rev.len() - 1;
        // Both are within NEAR + 1 of here.
        let distance = |at: usize| u8::try_from(here - at).unwrap_or(u8::MAX);
        self.push(code, k, distance(yes), distance(no))
    }

    fn load(&mut self, offset: u32, then: Target) -> Target {
        self.go(then);
        self.push(LD, offset, 0, 0)
    }

    /// Finds the range of the number that is loaded.
    fn tree(&mut self, segments: &[Segment]) -> Target {
        match segments {
            [] => Target::Do(Action::KillProcess),
            [one] => self.verdict(&one.verdict),
            // One number apart from its surroundings.
            [before, one, after] if before.verdict == after.verdict && one.start + 1 == after.start => {
                let (around, inside) = (self.verdict(&before.verdict), self.verdict(&one.verdict));
                self.jump(JEQ, one.start, inside, around)
            }
            _ => {
                let mid = segments.len() / 2;
                let right = self.tree(&segments[mid..]);
                let left = self.tree(&segments[..mid]);
                self.jump(JGE, segments[mid].start, right, left)
            }
        }
    }

    fn verdict(&mut self, verdict: &Verdict) -> Target {
        match verdict {
            Verdict::Always(action) => Target::Do(*action),
            Verdict::If(list) => {
                let mut next = Target::Do(self.default);
                for (conditions, action) in list.iter().rev() {
                    let mut then = Target::Do(*action);
                    if let [only] = conditions.as_slice() {
                        next = self.keep_loaded(only, next);
                    }
                    for c in conditions.iter().rev() {
                        then = self.condition(c, then, next);
                    }
                    next = then;
                }
                next
            }
        }
    }

    /// If a condition looks at one whole word and the next alternative begins by loading that word, the load can go: the
    /// word is there still. The next alternative must have been emitted last, and be reached from this condition alone.
    fn keep_loaded(&mut self, c: &Condition, next: Target) -> Target {
        let mask = match c.op {
            SeccompOp::MaskedEqual => c.value,
            SeccompOp::Equal | SeccompOp::NotEqual => u64::MAX,
            _ => return next,
        };
        let one_word = low(mask) == u32::MAX && (!self.wide || high(mask) == 0);
        let top = self.rev.len().wrapping_sub(1);
        let load = SockFilter { code: LD, jt: 0, jf: 0, k: at_arg(c.index).0 };
        if one_word && top > 0 && next == Target::At(top) && self.rev[top] == load {
            self.rev.pop();
            return Target::At(top - 1);
        }
        next
    }

    fn condition(&mut self, c: &Condition, yes: Target, no: Target) -> Target {
        let (v, index) = (c.value, c.index);
        match c.op {
            SeccompOp::Equal => self.masked(index, u64::MAX, v, yes, no),
            SeccompOp::NotEqual => self.masked(index, u64::MAX, v, no, yes),
            SeccompOp::MaskedEqual if c.value_two & !v != 0 => no,
            SeccompOp::MaskedEqual => self.masked(index, v, c.value_two, yes, no),
            SeccompOp::GreaterOrEqual => self.compare(JGE, index, v, yes, no),
            SeccompOp::LessThan => self.compare(JGE, index, v, no, yes),
            SeccompOp::GreaterThan => self.compare(JGT, index, v, yes, no),
            SeccompOp::LessOrEqual => self.compare(JGT, index, v, no, yes),
        }
    }

    /// `arg & mask == want`
    fn masked(&mut self, index: u8, mask: u64, want: u64, yes: Target, no: Target) -> Target {
        let (low_at, high_at) = at_arg(index);
        let low = self.masked_half(low_at, low(mask), low(want), yes, no);
        if self.wide { self.masked_half(high_at, high(mask), high(want), low, no) } else { low }
    }

    fn masked_half(&mut self, at: u32, mask: u32, want: u32, yes: Target, no: Target) -> Target {
        if mask == 0 || yes == no {
            return yes;
        }
        let mut then = self.jump(JEQ, want, yes, no);
        if mask != u32::MAX {
            then = self.push(AND, mask, 0, 0);
        }
        self.load(at, then)
    }

    /// `arg >= value` or `arg > value`, unsigned.
    fn compare(&mut self, code: u16, index: u8, value: u64, yes: Target, no: Target) -> Target {
        if code == JGE && value == 0 || yes == no {
            return yes;
        }
        let (low_at, high_at) = at_arg(index);
        let then = self.jump(code, low(value), yes, no);
        let low = self.load(low_at, then);
        if !self.wide {
            return low;
        }
        let equal = self.jump(JEQ, high(value), low, no);
        let above = self.jump(JGT, high(value), yes, equal);
        self.load(high_at, above)
    }
}

fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}
