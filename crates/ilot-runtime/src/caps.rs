//! Capability sets by name (`capabilities(7)`).

use crate::spec::Capabilities;
use crate::{Error, Result, notice, sys};

/// Names in the order of their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// `CAP_KILL`
pub const KILL: u64 = 1 << 5;

/// The five sets as bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    /// What `execve` can ever give.
    pub bounding: u64,
    /// What counts now.
    pub effective: u64,
    /// What can be made effective.
    pub permitted: u64,
    /// What survives `execve` of a file that has it too.
    pub inheritable: u64,
    /// What survives `execve` of any file.
    pub ambient: u64,
}

/// All names, without `CAP_`.
pub fn names() -> impl Iterator<Item = &'static str> {
    NAMES.into_iter()
}

/// The bit of one capability by name, with or without `CAP_`.
pub fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|n| *n == short).map(|i| 1 << i)
}

/// The highest capability that this kernel knows, plus one.
fn known() -> u32 {
    // Beyond the last one `PR_CAPBSET_READ` fails: cheaper than reading procfs.
    (38..64)
        .find(|c| {
            // SAFETY: takes numbers only.
            unsafe { libc::prctl(libc::PR_CAPBSET_READ, *c, 0, 0, 0) < 0 }
        })
        .unwrap_or(64)
}

/// Leaves out of a configuration what cannot be given, with a warning (`config.md`, "Linux Process": "MUST be logged as a
/// warning … SHOULD NOT fail"). `own_namespace`: inside a user namespace of its own a process gets all that there is.
pub fn leave_out(sets: &mut Capabilities, own_namespace: bool) {
    let there = (1u64 << known()) - 1;
    let given = if own_namespace { u64::MAX } else { sys::permitted_capabilities().unwrap_or(u64::MAX) };
    let mut told: Vec<String> = Vec::new();
    for list in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted, &mut sets.inheritable, &mut sets.ambient]
    {
        list.retain(|name| {
            let why = match bit(name) {
                None => "there is none of that name",
                Some(bit) if bit & there == 0 => "this kernel does not know it",
                Some(bit) if bit & given == 0 => "the runtime does not have it itself",
                Some(_) => return true,
            };
            if !told.contains(name) {
                notice::warn(format_args!("capability `{name}` is left out: {why}"));
                told.push(name.clone());
            }
            false
        });
    }
}

/// Reads the sets of a configuration.
pub fn parse(sets: &Capabilities) -> Result<Sets> {
    let all = |list: &[String]| {
        list.iter().try_fold(0u64, |mask, name| {
            bit(name)
                .map(|b| mask | b)
                .ok_or_else(|| Error::invalid("process.capabilities", format!("`{name}` is not a capability")))
        })
    };
    let permitted = all(&sets.permitted)?;
    let inheritable = all(&sets.inheritable)?;
    Ok(Sets {
        bounding: all(&sets.bounding)?,
        effective: all(&sets.effective)? & permitted,
        permitted,
        inheritable,
        // The kernel only takes what is both permitted and inheritable.
        ambient: all(&sets.ambient)? & permitted & inheritable,
    })
}

/// Drops everything from the bounding set that is not in `keep`; needs `CAP_SETPCAP`.
pub fn drop_bounding(keep: u64) -> Result<()> {
    for capability in 0..known() {
        if keep & (1 << capability) == 0 {
            sys::drop_bounding(capability).map_err(|e| {
                Error::system("drop capability", NAMES.get(capability as usize).copied().unwrap_or("?"), e)
            })?;
        }
    }
    Ok(())
}

/// Sets the other four; after the change of user.
pub fn apply(sets: &Sets) -> Result<()> {
    let mask = (1u64 << known()) - 1;
    sys::set_capabilities(sets.effective & mask, sets.permitted & mask, sets.inheritable & mask)
        .map_err(|e| Error::system("set capabilities", "the process", e))?;
    sys::set_ambient(sets.ambient & mask).map_err(|e| Error::system("set ambient capabilities", "the process", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(bit("CAP_CHOWN"), Some(1));
        assert_eq!(bit("kill"), Some(KILL));
        assert_eq!(bit("CAP_SYS_ADMIN"), Some(1 << 21));
        assert_eq!(bit("CAP_CHECKPOINT_RESTORE"), Some(1 << 40));
        assert_eq!(bit("CAP_NONSENSE"), None);
    }

    #[test]
    fn what_cannot_be_given_is_left_out() {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let mut sets = Capabilities { bounding: list(&["CAP_NONSENSE", "CAP_KILL"]), ..Default::default() };
        sets.ambient = list(&["CAP_NONSENSE"]);
        leave_out(&mut sets, true);
        assert_eq!((sets.bounding, sets.ambient), (list(&["CAP_KILL"]), Vec::new()));
    }

    #[test]
    fn ambient_needs_permitted_and_inheritable() {
        let own = |s: &str| vec![s.to_owned()];
        let sets = parse(&Capabilities { permitted: own("CAP_KILL"), ambient: own("CAP_KILL"), ..Default::default() })
            .unwrap();
        assert_eq!(sets.ambient, 0);
    }
}
