//! System call numbers of the architectures that can occur on one kernel.

use std::str::FromStr;

use super::{Result, SeccompError};

/// An architecture as seccomp sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86 (`int 0x80` from a 64-bit program too).
    X86,
    /// 64-bit x86 with 32-bit pointers: the audit number of [`Arch::X86_64`], a bit set in the system call number.
    X32,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM.
    Arm,
}

/// The bit that marks an x32 call (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// The x32 calls that differ from those of x86_64 (arch/x86/entry/syscalls/syscall_64.tbl).
const X32_OWN: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

/// Calls of x86_64 that x32 has not, beside those of [`X32_OWN`].
const NOT_X32: [&str; 10] = [
    "uselib",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "nfsservctl",
    "set_thread_area",
    "get_thread_area",
    "epoll_ctl_old",
    "epoll_wait_old",
    "vserver",
];

/// Numbers newer than, or left out of, the table crate.
const NEWER: [(&str, u32); 2] = [("file_setattr", 469), ("listns", 470)];
/// Other names of the same calls in profiles (libseccomp's), and in the table crate.
const ALIASES: [(&str, &str); 3] =
    [("newfstatat", "fstatat"), ("sync_file_range2", "arm_sync_file_range"), ("break", "r#break")];
/// arch/arm/include/uapi/asm/unistd.h
const ARM_PRIVATE: [(&str, u32); 6] = [
    ("breakpoint", 0xf_0001),
    ("cacheflush", 0xf_0002),
    ("usr26", 0xf_0003),
    ("usr32", 0xf_0004),
    ("set_tls", 0xf_0005),
    ("get_tls", 0xf_0006),
];

/// Numbers from here on are private to ARM and say nothing about how new a call is.
pub(super) const PRIVATE_FROM: u32 = 0xf_0000;

impl Arch {
    /// The architecture this program is built for, as the kernel's native one.
    #[must_use]
    pub fn native() -> Self {
        #[cfg(target_arch = "x86_64")]
        let arch = Self::X86_64;
        #[cfg(target_arch = "x86")]
        let arch = Self::X86;
        #[cfg(target_arch = "aarch64")]
        let arch = Self::Aarch64;
        #[cfg(target_arch = "arm")]
        let arch = Self::Arm;
        arch
    }

    /// The architectures whose calls the same kernel may take, itself first.
    #[must_use]
    pub fn family(self) -> &'static [Self] {
        match self {
            Self::X86_64 | Self::X32 => &[Self::X86_64, Self::X86, Self::X32],
            Self::Aarch64 => &[Self::Aarch64, Self::Arm],
            Self::X86 => &[Self::X86],
            Self::Arm => &[Self::Arm],
        }
    }

    /// `AUDIT_ARCH_…` of linux/audit.h, what the kernel puts into `seccomp_data.arch`.
    #[must_use]
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments have 64 bits.
    #[must_use]
    pub fn wide(self) -> bool {
        // x32 passes whole registers.
        matches!(self, Self::X86_64 | Self::X32 | Self::Aarch64)
    }

    /// The name in an OCI profile.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::X86 => "SCMP_ARCH_X86",
            Self::X32 => "SCMP_ARCH_X32",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Arm => "SCMP_ARCH_ARM",
        }
    }

    /// The architecture of a name in an OCI profile; `None` for one whose calls no kernel supported here can take.
    ///
    /// # Errors
    /// A name that the runtime-spec does not list.
    pub fn parse(name: &str) -> Result<Option<Self>> {
        const FOREIGN: [&str; 18] = [
            "SCMP_ARCH_MIPS",
            "SCMP_ARCH_MIPS64",
            "SCMP_ARCH_MIPS64N32",
            "SCMP_ARCH_MIPSEL",
            "SCMP_ARCH_MIPSEL64",
            "SCMP_ARCH_MIPSEL64N32",
            "SCMP_ARCH_PPC",
            "SCMP_ARCH_PPC64",
            "SCMP_ARCH_PPC64LE",
            "SCMP_ARCH_S390",
            "SCMP_ARCH_S390X",
            "SCMP_ARCH_PARISC",
            "SCMP_ARCH_PARISC64",
            "SCMP_ARCH_RISCV64",
            "SCMP_ARCH_LOONGARCH64",
            "SCMP_ARCH_M68K",
            "SCMP_ARCH_SH",
            "SCMP_ARCH_SHEB",
        ];
        let known = [Self::X86_64, Self::X86, Self::X32, Self::Aarch64, Self::Arm];
        if let Some(arch) = known.into_iter().find(|a| a.name() == name) {
            return Ok(Some(arch));
        }
        match name {
            "SCMP_ARCH_NATIVE" => Ok(Some(Self::native())),
            _ if FOREIGN.contains(&name) => Ok(None),
            _ => Err(SeccompError::Profile {
                what: format!("architecture {name:?}"),
                why: "the runtime-spec knows no such architecture".into(),
            }),
        }
    }

    /// The number of a call, the x32 bit included; `None` if this architecture has none of that name.
    #[must_use]
    pub fn number(self, name: &str) -> Option<u32> {
        let of = |table: &[(&str, u32)]| table.iter().find(|(n, _)| *n == name).map(|(_, nr)| *nr);
        let id = |nr: i32| nr as u32;
        if self == Self::X32 {
            let number =
                of(&X32_OWN).or_else(|| (!NOT_X32.contains(&name)).then(|| Self::X86_64.number(name)).flatten());
            return number.map(|nr| nr | X32_BIT);
        }
        let number = match self {
            Self::X86_64 | Self::X32 => syscalls::x86_64::Sysno::from_str(name).ok().map(|s| id(s.id())),
            Self::X86 => syscalls::x86::Sysno::from_str(name).ok().map(|s| id(s.id())),
            Self::Aarch64 => syscalls::aarch64::Sysno::from_str(name).ok().map(|s| id(s.id())),
            Self::Arm => syscalls::arm::Sysno::from_str(name).ok().map(|s| id(s.id())),
        };
        number
            .or_else(|| of(&NEWER))
            .or_else(|| of(&ARM_PRIVATE).filter(|_| self == Self::Arm))
            .or_else(|| ALIASES.iter().find(|(n, _)| *n == name).and_then(|(_, other)| self.number(other)))
    }

    /// Every name this architecture has, with its number (for tests and listings).
    #[must_use]
    pub fn all(self) -> Vec<(&'static str, u32)> {
        macro_rules! table {
            ($m:ident) => {
                syscalls::$m::Sysno::iter().map(|s| s.name()).collect::<Vec<&'static str>>()
            };
        }
        let mut names = match self {
            Self::X86_64 | Self::X32 => table!(x86_64),
            Self::X86 => table!(x86),
            Self::Aarch64 => table!(aarch64),
            Self::Arm => table!(arm),
        };
        names.extend(NEWER.iter().chain(&ARM_PRIVATE).map(|(n, _)| *n));
        for name in &mut names {
            let own = |n: &&(&str, &str)| n.1 == *name && n.0 != "sync_file_range2";
            if let Some((alias, _)) = ALIASES.iter().find(own) {
                *name = alias;
            }
        }
        let mut out: Vec<_> = names.into_iter().filter_map(|n| Some((n, self.number(n)?))).collect();
        out.sort_unstable_by_key(|(_, nr)| *nr);
        out.dedup();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(Arch::X86_64.number("read"), Some(0));
        assert_eq!(Arch::X86_64.number("uretprobe"), Some(335));
        assert_eq!(Arch::X86.number("socketcall"), Some(102));
        assert_eq!(Arch::X86_64.number("socketcall"), None);
        assert_eq!(Arch::X32.number("read"), Some(X32_BIT));
        assert_eq!(Arch::X32.number("ioctl"), Some(X32_BIT | 514));
        assert_eq!(Arch::X32.number("nfsservctl"), None);
        assert_eq!(Arch::Arm.number("set_tls"), Some(0xf_0005));
        assert_eq!(Arch::Aarch64.number("open"), None);
        assert_eq!(Arch::Aarch64.number("openat"), Some(56));
        assert_eq!(Arch::Aarch64.number("newfstatat"), Some(79));
        assert_eq!(Arch::Arm.number("sync_file_range2"), Some(341));
        assert_eq!(Arch::X86_64.number("no_such_call"), None);
        #[cfg(target_arch = "x86_64")]
        {
            assert_eq!(Arch::X86_64.number("mseal"), Some(462));
            assert_eq!(i64::from(Arch::X86_64.number("seccomp").unwrap()), libc::SYS_seccomp);
            assert_eq!(i64::from(Arch::X86_64.number("clone3").unwrap()), libc::SYS_clone3);
        }
    }

    #[test]
    fn names() {
        assert_eq!(Arch::parse("SCMP_ARCH_X86").unwrap(), Some(Arch::X86));
        assert_eq!(Arch::parse("SCMP_ARCH_S390X").unwrap(), None);
        assert!(Arch::parse("SCMP_ARCH_Z80").is_err());
        for arch in [Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64, Arch::Arm] {
            assert!(arch.all().len() > 300, "{arch:?}");
        }
    }
}
