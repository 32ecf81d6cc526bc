//! Which devices a container may use.
//!
//! The list of the runtime-spec is read the same way everywhere: it starts from "none", each rule adds or takes away,
//! the last word counts. v1 keeps such a list itself (`devices.allow`, `devices.deny`); on v2 it becomes a small BPF
//! program at the group (`BPF_PROG_TYPE_CGROUP_DEVICE`, linux/bpf.h).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::dir::{Dir, io_error};
use super::error::{CgroupError, Result};
use crate::spec::DeviceRule;

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// One rule, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// `None`: both kinds.
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block,
    Char,
}

impl Rule {
    fn parse(rule: &DeviceRule) -> Result<Self> {
        let bad = |value: String, why: &str| CgroupError::BadValue { what: "devices".into(), value, why: why.into() };
        let kind = match rule.kind.as_deref() {
            None | Some("a" | "") => None,
            Some("b") => Some(Kind::Block),
            Some("c" | "u") => Some(Kind::Char),
            Some(other) => return Err(bad(other.into(), "the type must be a, b or c")),
        };
        let number = |n: Option<i64>| match n {
            None => Ok(None),
            Some(n) if n < 0 => Ok(None),
            Some(n) => {
                u32::try_from(n).map(Some).map_err(|_| bad(n.to_string(), "a device number has 32 bits at most"))
            }
        };
        let mut access = 0;
        for c in rule.access.as_deref().unwrap_or("rwm").chars() {
            access |= match c {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => return Err(bad(c.to_string(), "the access must be of r, w and m")),
            };
        }
        if access == 0 {
            access = ALL;
        }
        Ok(Self { allow: rule.allow, kind, major: number(rule.major)?, minor: number(rule.minor)?, access })
    }

    /// Whether it is about every device.
    fn everything(self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }

    /// The lines for v1, which knows no rule for both kinds except the one about everything.
    fn v1_lines(self) -> Vec<String> {
        if self.everything() {
            return vec!["a".into()];
        }
        let number = |n: Option<u32>| n.map_or("*".into(), |n| n.to_string());
        let mut access = String::new();
        for (bit, c) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
            if self.access & bit != 0 {
                access.push(c);
            }
        }
        let kinds: &[char] = match self.kind {
            None => &['b', 'c'],
            Some(Kind::Block) => &['b'],
            Some(Kind::Char) => &['c'],
        };
        kinds.iter().map(|k| format!("{k} {}:{} {access}", number(self.major), number(self.minor))).collect()
    }
}

/// The rules that matter, from the last one about everything on, with the "none" at the start made explicit.
fn parse(rules: &[DeviceRule]) -> Result<Vec<Rule>> {
    let mut out = vec![Rule { allow: false, kind: None, major: None, minor: None, access: ALL }];
    for rule in rules {
        let rule = Rule::parse(rule)?;
        if rule.everything() {
            out.clear();
        }
        out.push(rule);
    }
    Ok(out)
}

/// Writes the list to a v1 group.
pub(super) fn apply_v1(dir: &Dir, rules: &[DeviceRule]) -> Result<()> {
    for rule in parse(rules)? {
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        for line in rule.v1_lines() {
            dir.write(file, &line)?;
        }
    }
    Ok(())
}

/// Puts the list's program at a v2 group in place of the one before; there is no moment without any.
pub(super) fn apply_v2(dir: &Dir, rules: &[DeviceRule]) -> Result<()> {
    let program = compile(&parse(rules)?);
    let err = |op, source| CgroupError::Bpf { op, path: dir.path().into(), source };
    let group = dir.readable().map_err(|e| io_error("open", dir.path(), e))?;
    let old = bpf::query(&group).map_err(|e| err("look for", e))?;
    let new = bpf::load(&program).map_err(|e| err("load", e))?;
    // More than one program may be there, and each must agree: the new one restricts from here on.
    bpf::attach(&group, &new).map_err(|e| err("attach", e))?;
    for id in old {
        match bpf::by_id(id).and_then(|fd| bpf::detach(&group, &fd)) {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(err("replace", e)),
            _ => {}
        }
    }
    Ok(())
}

/// An instruction of eBPF (`struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Insn {
    code: u8,
    /// Destination in the low, source in the high four bits.
    regs: u8,
    off: i16,
    imm: i32,
}

const LDX_W: u8 = 0x61;
const MOV_IMM: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const AND32_IMM: u8 = 0x54;
const RSH32_IMM: u8 = 0x74;
const JA: u8 = 0x05;
const JNE_IMM: u8 = 0x55;
const JEQ_IMM: u8 = 0x15;
const EXIT: u8 = 0x95;

/// Registers: the kind, the access bits still to be decided, major, minor, scratch.
const R_KIND: u8 = 2;
const R_LEFT: u8 = 3;
const R_MAJOR: u8 = 4;
const R_MINOR: u8 = 5;
const R_TMP: u8 = 6;

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn { code, regs: dst | src << 4, off, imm }
}

/// The program: rules from the last to the first, each deciding the access bits it names, until none is left.
///
/// Context (`struct bpf_cgroup_dev_ctx`): access type (bits << 16 | kind), major, minor.
fn compile(rules: &[Rule]) -> Vec<Insn> {
    let mut p = vec![
        insn(LDX_W, R_KIND, 1, 0, 0),
        insn(AND32_IMM, R_KIND, 0, 0, 0xffff),
        insn(LDX_W, R_LEFT, 1, 0, 0),
        insn(RSH32_IMM, R_LEFT, 0, 0, 16),
        insn(LDX_W, R_MAJOR, 1, 4, 0),
        insn(LDX_W, R_MINOR, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut body = Vec::with_capacity(8);
        if rule.allow {
            let rest = !rule.access & 0xffff;
            body.push(insn(AND32_IMM, R_LEFT, 0, 0, rest as i32));
            body.push(insn(JNE_IMM, R_LEFT, 0, 2, 0));
            body.push(insn(MOV_IMM, 0, 0, 0, 1));
            body.push(insn(EXIT, 0, 0, 0, 0));
        } else {
            body.push(insn(MOV_REG, R_TMP, R_LEFT, 0, 0));
            body.push(insn(AND32_IMM, R_TMP, 0, 0, rule.access as i32));
            body.push(insn(JEQ_IMM, R_TMP, 0, 2, 0));
            body.push(insn(MOV_IMM, 0, 0, 0, 0));
            body.push(insn(EXIT, 0, 0, 0, 0));
        }
        let mut tests = Vec::with_capacity(3);
        let kind = rule.kind.map(|k| if k == Kind::Block { 1_u32 } else { 2 });
        for (reg, want) in [(R_KIND, kind), (R_MAJOR, rule.major), (R_MINOR, rule.minor)] {
            if let Some(want) = want {
                tests.push((reg, want));
            }
        }
        let n = tests.len();
        for (i, (reg, want)) in tests.into_iter().enumerate() {
            let skip = i16::try_from(n - i - 1 + body.len()).unwrap_or(i16::MAX);
            p.push(insn(JNE_IMM, reg, 0, skip, want as i32));
        }
        p.extend(body);
        if rule.everything() {
            // Decided; what follows is never reached, and the verifier refuses that.
            break;
        }
    }
    finish(p)
}

/// A program must not end by falling out of it, and no instruction may be out of reach.
fn finish(mut p: Vec<Insn>) -> Vec<Insn> {
    p.push(insn(MOV_IMM, 0, 0, 0, 0));
    p.push(insn(EXIT, 0, 0, 0, 0));
    debug_assert!(p.iter().all(|i| i.code != JA));
    p
}

/// bpf(2), the few commands that are needed here.
mod bpf {
    use super::{AsRawFd, FromRawFd, Insn, OwnedFd, io};

    const PROG_LOAD: u32 = 5;
    const PROG_ATTACH: u32 = 8;
    const PROG_DETACH: u32 = 9;
    const PROG_GET_FD_BY_ID: u32 = 13;
    const PROG_QUERY: u32 = 16;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    const AT_CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;

    /// The largest of the unions below, zeroed where unused, as the kernel wants it.
    #[repr(C, align(8))]
    struct Attr([u64; 16]);

    impl Attr {
        fn new() -> Self {
            Self([0; 16])
        }

        fn u32(mut self, at: usize, value: u32) -> Self {
            let shift = (at % 8) * 8;
            let word = &mut self.0[at / 8];
            // The kernel's structures are native-endian; only little-endian architectures are supported here.
            *word = (*word & !(0xffff_ffff << shift)) | u64::from(value) << shift;
            self
        }

        fn pointer<T>(mut self, at: usize, value: *const T) -> Self {
            self.0[at / 8] = value as u64;
            self
        }
    }

    #[cfg(not(target_endian = "little"))]
    compile_error!("bpf attributes are laid out for little-endian architectures");

    fn call(cmd: u32, attr: &mut Attr) -> io::Result<i64> {
        // SAFETY: the attribute block is larger than every structure used and zero beyond it; pointers in it are to
        // buffers that the callers keep alive.
        let r = unsafe { libc::syscall(libc::SYS_bpf, cmd, attr.0.as_mut_ptr(), size_of::<Attr>()) };
        if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
    }

    fn fd(r: i64) -> io::Result<OwnedFd> {
        let fd = i32::try_from(r).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
        // SAFETY: a new descriptor from the kernel (close-on-exec), owned here alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn raw(fd: &OwnedFd) -> u32 {
        fd.as_raw_fd() as u32
    }

    /// Loads a device program.
    pub(super) fn load(program: &[Insn]) -> io::Result<OwnedFd> {
        let license = c"Apache-2.0";
        let length = u32::try_from(program.len()).unwrap_or(u32::MAX);
        let mut attr = Attr::new()
            .u32(0, TYPE_CGROUP_DEVICE)
            .u32(4, length)
            .pointer(8, program.as_ptr())
            .pointer(16, license.as_ptr());
        fd(call(PROG_LOAD, &mut attr)?)
    }

    /// Attaches it beside what is there.
    pub(super) fn attach(group: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
        let mut attr =
            Attr::new().u32(0, raw(group)).u32(4, raw(program)).u32(8, AT_CGROUP_DEVICE).u32(12, ALLOW_MULTI);
        call(PROG_ATTACH, &mut attr).map(drop)
    }

    pub(super) fn detach(group: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
        let mut attr = Attr::new().u32(0, raw(group)).u32(4, raw(program)).u32(8, AT_CGROUP_DEVICE);
        call(PROG_DETACH, &mut attr).map(drop)
    }

    /// The ids of the programs at the group.
    pub(super) fn query(group: &OwnedFd) -> io::Result<Vec<u32>> {
        let mut ids = vec![0_u32; 64];
        let mut attr =
            Attr::new().u32(0, raw(group)).u32(4, AT_CGROUP_DEVICE).pointer(16, ids.as_mut_ptr()).u32(24, 64);
        call(PROG_QUERY, &mut attr)?;
        ids.truncate((attr.0[3] & 0xffff_ffff) as usize);
        Ok(ids)
    }

    pub(super) fn by_id(id: u32) -> io::Result<OwnedFd> {
        let mut attr = Attr::new().u32(0, id);
        fd(call(PROG_GET_FD_BY_ID, &mut attr)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &[(&str, &str)]) -> Vec<DeviceRule> {
        text.iter()
            .map(|(verb, rule)| {
                let mut words = rule.split([' ', ':']);
                let number = |w: Option<&str>| w.and_then(|w| w.parse().ok());
                DeviceRule {
                    allow: *verb == "allow",
                    kind: words.next().map(Into::into),
                    major: number(words.next()),
                    minor: number(words.next()),
                    access: words.next().map(Into::into),
                }
            })
            .collect()
    }

    /// Runs the program as the kernel would.
    fn run(program: &[Insn], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let mut r = [0_u64; 11];
        let ctx = [access << 16 | kind, major, minor];
        let mut pc = 0;
        loop {
            let i = program[pc];
            let (dst, src) = ((i.regs & 15) as usize, (i.regs >> 4) as usize);
            pc += 1;
            match i.code {
                LDX_W => r[dst] = ctx[i.off as usize / 4].into(),
                MOV_IMM => r[dst] = i.imm as u64,
                MOV_REG => r[dst] = r[src],
                AND32_IMM => r[dst] = u64::from(r[dst] as u32 & i.imm as u32),
                RSH32_IMM => r[dst] = u64::from(r[dst] as u32 >> i.imm),
                JNE_IMM if r[dst] != i.imm as u64 => pc += i.off as usize,
                JEQ_IMM if r[dst] == i.imm as u64 => pc += i.off as usize,
                JNE_IMM | JEQ_IMM => {}
                EXIT => return r[0] != 0,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn lists() {
        let list = rules(&[
            ("deny", "a"),
            ("allow", "c 1:3 rwm"),
            ("allow", "c *:* m"),
            ("allow", "b 8:* r"),
            ("deny", "b 8:1 r"),
        ]);
        let p = compile(&parse(&list).unwrap());
        assert!(run(&p, 2, 1, 3, READ | WRITE));
        assert!(run(&p, 2, 5, 9, MKNOD));
        assert!(!run(&p, 2, 5, 9, READ));
        assert!(!run(&p, 2, 5, 9, READ | MKNOD));
        assert!(!run(&p, 1, 1, 3, READ));
        assert!(run(&p, 1, 8, 0, READ));
        assert!(!run(&p, 1, 8, 1, READ));
        assert!(!run(&p, 1, 8, 0, WRITE));
        let lines: Vec<_> = parse(&list).unwrap().into_iter().flat_map(Rule::v1_lines).collect();
        assert_eq!(lines, ["a", "c 1:3 rwm", "c *:* m", "b 8:* r", "b 8:1 r"]);
    }

    #[test]
    fn a_list_starts_from_none() {
        let p = compile(&parse(&rules(&[("allow", "c 1:3 rw")])).unwrap());
        assert!(run(&p, 2, 1, 3, READ) && !run(&p, 2, 1, 5, READ) && !run(&p, 2, 1, 3, MKNOD));
        let p = compile(&parse(&rules(&[("allow", "a")])).unwrap());
        assert!(run(&p, 2, 1, 5, ALL));
        let p = compile(&parse(&rules(&[("allow", "a"), ("deny", "c 1:5 w")])).unwrap());
        assert!(run(&p, 2, 1, 5, READ) && !run(&p, 2, 1, 5, WRITE));
    }

    #[test]
    fn bad_rules() {
        for (kind, access) in [("x", "r"), ("c", "rx")] {
            let rule = DeviceRule { kind: Some(kind.into()), access: Some(access.into()), ..DeviceRule::default() };
            assert!(parse(&[rule]).is_err());
        }
        let wide = DeviceRule { major: Some(1 << 40), ..DeviceRule::default() };
        assert!(parse(&[wide]).is_err());
        let any = DeviceRule { major: Some(-1), minor: Some(-1), ..DeviceRule::default() };
        assert!(parse(&[any]).unwrap()[0].everything());
    }
}
