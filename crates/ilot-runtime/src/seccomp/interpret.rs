//! The meaning of a profile without any BPF, and the meaning of a program without any kernel.

use crate::spec::{Seccomp, SeccompArg, SeccompOp, SeccompRule};

use super::Result;
use super::arch::{Arch, PRIVATE_FROM, X32_BIT};
use super::filter::{AND, Action, Call, JA, JEQ, JGE, JGT, LD, RET, SockFilter};
use super::rules::architectures;

/// What a profile says about a call on a kernel of this architecture: the reference for the compiler.
///
/// # Errors
/// A profile that cannot be compiled either.
pub fn interpret(profile: &Seccomp, native: Arch, call: &Call) -> Result<Action> {
    let default = Action::from_spec(profile.default_action, profile.default_errno_ret, "defaultErrnoRet")?;
    let arches = architectures(profile, native)?;
    // What a tracer leaves when it cancels a call; the number belongs to neither half of x86_64.
    if arches.iter().any(|a| a.audit() == call.arch) && call.arch == Arch::X86_64.audit() && call.nr == u32::MAX {
        return Ok(default);
    }
    let x32 = call.arch == Arch::X32.audit() && call.nr >= X32_BIT;
    let Some(arch) = arches.into_iter().find(|a| a.audit() == call.arch && (*a == Arch::X32) == x32) else {
        return Ok(Action::KillProcess);
    };
    let mut highest = None;
    let mut conditional = None;
    let mut always = None;
    let mut decided = false;
    for (i, rule) in profile.syscalls.iter().enumerate() {
        let action = Action::from_spec(rule.action, rule.errno_ret, &format!("syscalls[{i}]"))?;
        let numbers = || rule.names.iter().filter_map(|n| arch.number(n));
        highest = highest.max(numbers().filter(|nr| nr & !X32_BIT < PRIVATE_FROM).max());
        if !numbers().any(|nr| nr == call.nr) {
            continue;
        }
        decided |= !rule.args.is_empty() || action != default;
        if rule.args.is_empty() {
            if action != default {
                always = always.or(Some(action));
            }
        } else if holds(rule, arch, call) {
            conditional = conditional.or(Some(action));
        }
    }
    // ARM's private numbers are above all others and still known.
    let newer = highest.is_none_or(|h| call.nr > h) && !decided;
    Ok(match always.or(conditional) {
        Some(action) => action,
        None if newer && !default.permissive() => Action::Errno(libc::ENOSYS as u16),
        None => default,
    })
}

fn holds(rule: &SeccompRule, arch: Arch, call: &Call) -> bool {
    let one = |c: &SeccompArg| {
        let cut = |v: u64| if arch.wide() { v } else { v & 0xffff_ffff };
        let (arg, value, two) = (call.args[c.index as usize], cut(c.value), cut(c.value_two));
        match c.op {
            SeccompOp::Equal => arg == value,
            SeccompOp::NotEqual => arg != value,
            SeccompOp::LessThan => arg < value,
            SeccompOp::LessOrEqual => arg <= value,
            SeccompOp::GreaterOrEqual => arg >= value,
            SeccompOp::GreaterThan => arg > value,
            SeccompOp::MaskedEqual => arg & value == two,
        }
    };
    let mut indexes: Vec<u32> = rule.args.iter().map(|c| c.index).collect();
    indexes.sort_unstable();
    let twice = indexes.windows(2).any(|w| w[0] == w[1]);
    if twice { rule.args.iter().any(one) } else { rule.args.iter().all(one) }
}

/// Runs a program on a call as the kernel would, and counts the instructions. `None`: the program is not valid.
#[must_use]
pub fn simulate(program: &[SockFilter], call: &Call) -> Option<(Action, usize)> {
    let mut words = [0_u32; 16];
    words[0] = call.nr;
    words[1] = call.arch;
    words[2] = (call.ip & 0xffff_ffff) as u32;
    words[3] = (call.ip >> 32) as u32;
    for (i, arg) in call.args.iter().enumerate() {
        words[4 + 2 * i] = (arg & 0xffff_ffff) as u32;
        words[5 + 2 * i] = (arg >> 32) as u32;
    }
    let (mut a, mut pc, mut steps) = (0_u32, 0_usize, 0);
    loop {
        let i = program.get(pc)?;
        pc += 1;
        steps += 1;
        let mut branch = |yes: bool| pc += usize::from(if yes { i.jt } else { i.jf });
        match i.code {
            LD => a = *words.get(i.k as usize / 4).filter(|_| i.k % 4 == 0)?,
            AND => a &= i.k,
            JA => pc += i.k as usize,
            JEQ => branch(a == i.k),
            JGT => branch(a > i.k),
            JGE => branch(a >= i.k),
            RET => return Some((Action::from_ret(i.k), steps)),
            _ => return None,
        }
    }
}
