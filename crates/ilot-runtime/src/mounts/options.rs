//! Mount options by name (`config.md`, "Linux mount options").

use crate::sys::{
    ATTR_ATIME, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID, ATTR_NOSYMFOLLOW, ATTR_RDONLY,
    ATTR_STRICTATIME, MountAttr,
};

/// The options of one mount, sorted by who acts on them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Attributes of the mount itself.
    pub set: u64,
    /// Attributes cleared on it.
    pub clear: u64,
    /// Attributes of the mount and all below it.
    pub set_recursive: u64,
    /// Attributes cleared on the mount and all below it.
    pub clear_recursive: u64,
    /// Propagation changes in order: `MS_…`, recursive.
    pub propagation: Vec<(u64, bool)>,
    /// A bind mount; `true` if with what is mounted below.
    pub bind: Option<bool>,
    /// Copy what the image has at this place into the new tmpfs.
    pub copy_up: bool,
    /// Idmapped; `true` if recursive.
    pub idmap: Option<bool>,
    /// Maps of its own, in crun's form, `uids=0-1-10#10-11-10;gids=0-100-10`.
    pub id_maps: Option<String>,
    /// Change the mount that stands there already.
    pub remount: bool,
    /// Flags of the file system itself (`sync`, `dirsync`, `lazytime`).
    pub flags: Vec<&'static str>,
    /// The rest: parameters for the file system.
    pub data: Vec<String>,
}

/// One attribute by name: (bits set, bits cleared).
fn attribute(name: &str) -> Option<(u64, u64)> {
    Some(match name {
        "ro" => (ATTR_RDONLY, 0),
        "rw" => (0, ATTR_RDONLY),
        "nosuid" => (ATTR_NOSUID, 0),
        "suid" => (0, ATTR_NOSUID),
        "nodev" => (ATTR_NODEV, 0),
        "dev" => (0, ATTR_NODEV),
        "noexec" => (ATTR_NOEXEC, 0),
        "exec" => (0, ATTR_NOEXEC),
        "nodiratime" => (ATTR_NODIRATIME, 0),
        "diratime" => (0, ATTR_NODIRATIME),
        // The three access time rules are one field: choosing one clears it first.
        "relatime" | "atime" | "nostrictatime" => (0, ATTR_ATIME),
        "noatime" => (ATTR_NOATIME, ATTR_ATIME),
        "strictatime" | "norelatime" => (ATTR_STRICTATIME, ATTR_ATIME),
        "nosymfollow" => (ATTR_NOSYMFOLLOW, 0),
        "symfollow" => (0, ATTR_NOSYMFOLLOW),
        _ => return None,
    })
}

/// Propagation by name: flag, recursive.
pub fn propagation(name: &str) -> Option<(u64, bool)> {
    let (base, recursive) = match name.strip_prefix('r') {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    let flag = match base {
        "private" => libc::MS_PRIVATE,
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some((flag, recursive))
}

impl Options {
    /// Sorts a list of options; unknown ones are parameters of the file system.
    pub fn parse(list: &[String]) -> Self {
        let mut options = Self::default();
        for name in list.iter().flat_map(|s| s.split(',')) {
            options.add(name);
        }
        options
    }

    fn add(&mut self, name: &str) {
        if let Some((set, clear)) = attribute(name) {
            self.set = (self.set & !clear) | set;
            self.clear = (self.clear & !set) | clear;
            return;
        }
        if let Some((set, clear)) = name.strip_prefix('r').and_then(attribute) {
            self.set_recursive = (self.set_recursive & !clear) | set;
            self.clear_recursive = (self.clear_recursive & !set) | clear;
            return;
        }
        if let Some(change) = propagation(name) {
            self.propagation.push(change);
            return;
        }
        match name {
            "" | "defaults" | "async" | "auto" | "noauto" | "nofail" | "_netdev" | "nouser" | "silent" | "loud"
            | "nolazytime" | "nomand" | "noiversion" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.idmap = Some(self.idmap.unwrap_or(false)),
            "ridmap" => self.idmap = Some(true),
            "remount" => self.remount = true,
            "sync" => self.flags.push("sync"),
            "dirsync" => self.flags.push("dirsync"),
            "lazytime" => self.flags.push("lazytime"),
            "mand" => self.flags.push("mand"),
            "iversion" => self.flags.push("iversion"),
            other if other.starts_with("x-") || other.starts_with("X-") => {}
            other => match other.split_once('=') {
                Some((name @ ("idmap" | "ridmap"), maps)) => {
                    self.idmap = Some(name == "ridmap");
                    self.id_maps = Some(maps.to_owned());
                }
                _ => self.data.push(other.to_owned()),
            },
        }
    }

    /// The attributes that `fsmount` takes for a new mount.
    pub fn new_mount(&self) -> u64 {
        self.set | self.set_recursive
    }

    /// Changes for an existing (bind) mount, in order: the mount alone, then with all below.
    pub fn changes(&self) -> Vec<(MountAttr, bool)> {
        let mut list = Vec::new();
        for (set, clear, recursive) in [(self.set, self.clear, false), (self.set_recursive, self.clear_recursive, true)]
        {
            if set | clear != 0 {
                let attr = MountAttr {
                    set,
                    // A rule for access times is only accepted with the whole field cleared.
                    clear: clear | if set & ATTR_ATIME != 0 { ATTR_ATIME } else { 0 },
                    ..Default::default()
                };
                list.push((attr, recursive));
            }
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Options {
        Options::parse(&[text.to_owned()])
    }

    #[test]
    fn last_one_wins() {
        let o = parse("ro,rw,nosuid,noatime,relatime");
        assert_eq!(o.set, ATTR_NOSUID);
        assert_eq!(o.clear, ATTR_RDONLY | ATTR_ATIME);
    }

    #[test]
    fn recursive_and_plain_are_apart() {
        let o = parse("rbind,rro,nodev,rslave");
        assert_eq!(o.bind, Some(true));
        assert_eq!(o.set, ATTR_NODEV);
        assert_eq!(o.set_recursive, ATTR_RDONLY);
        assert_eq!(o.propagation, vec![(libc::MS_SLAVE, true)]);
        assert!(o.data.is_empty());
    }

    #[test]
    fn maps_of_a_mount() {
        let o = parse("bind,ridmap=uids=0-1-10;gids=0-2-10");
        assert_eq!((o.idmap, o.id_maps.as_deref()), (Some(true), Some("uids=0-1-10;gids=0-2-10")));
        assert!(o.data.is_empty());
    }

    #[test]
    fn relatime_is_not_recursive_elatime() {
        let o = parse("relatime,size=64k,mode=755,strictatime");
        assert_eq!(o.set, ATTR_STRICTATIME);
        assert_eq!(o.data, vec!["size=64k", "mode=755"]);
    }

    /// Every name that `features` lists, and words that are none.
    fn words() -> impl Strategy<Value = Vec<String>> {
        let known = "(r?(ro|rw|nosuid|suid|nodev|dev|noexec|exec|nodiratime|diratime|relatime|norelatime|atime|noatime\
                     |strictatime|nostrictatime|nosymfollow|symfollow))|r?(private|shared|slave|unbindable)|r?bind|r?idmap\
                     |tmpcopyup|defaults|sync|dirsync|lazytime|size=[0-9]{1,4}k|mode=[0-7]{3}";
        prop::collection::vec(
            prop_oneof![4 => known.prop_map(String::from), 1 => "[ -~]{0,10}".prop_map(String::from)],
            0..9,
        )
    }

    proptest! {
        #[test]
        fn lists_and_lines_mean_the_same(words in words()) {
            prop_assert_eq!(Options::parse(&words), Options::parse(&[words.join(",")]));
        }

        #[test]
        fn nothing_is_both_set_and_cleared(words in words()) {
            let options = Options::parse(&words);
            prop_assert_eq!(options.set & options.clear & !ATTR_ATIME, 0);
            prop_assert_eq!(options.set_recursive & options.clear_recursive & !ATTR_ATIME, 0);
            // The kernel takes no rule for access times without the whole field being cleared.
            for (attr, _) in options.changes() {
                prop_assert!(attr.set & ATTR_ATIME == 0 || attr.clear & ATTR_ATIME == ATTR_ATIME);
                prop_assert!(attr.set & ATTR_ATIME != ATTR_NOATIME | ATTR_STRICTATIME);
            }
        }

        #[test]
        fn the_last_word_on_writing_counts(words in words()) {
            let writable = words.iter().flat_map(|w| w.split(',')).rfind(|w| matches!(*w, "ro" | "rw"));
            let set = Options::parse(&words).set & ATTR_RDONLY != 0;
            prop_assert_eq!(set, writable == Some("ro"));
        }
    }
}
