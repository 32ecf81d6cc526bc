//! Id maps of a new user namespace: written by us as root, else by shadow's `newuidmap` and `newgidmap`, which know what
//! `/etc/subuid` and `/etc/subgid` give to a user; one's own id alone needs nobody's help.

use crate::spec::IdMapping;
use crate::{Error, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Whether this process has no rights on the host beyond those of an ordinary user.
pub fn rootless() -> bool {
    !rustix::process::geteuid().is_root()
}

/// Writes both maps of a process's user namespace.
pub fn write(pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> Result<()> {
    if uids.is_empty() || gids.is_empty() {
        return Err(Error::invalid("linux.uidMappings, gidMappings", "a user namespace needs both"));
    }
    if !rootless() {
        return put(pid, "uid_map", &lines(uids)).and_then(|()| put(pid, "gid_map", &lines(gids)));
    }
    let own = |map: &[IdMapping], id: u32| matches!(map, [m] if m.size == 1 && m.host_id == id);
    if own(uids, rustix::process::geteuid().as_raw()) {
        put(pid, "uid_map", &lines(uids))?;
    } else {
        call("newuidmap", "/etc/subuid", pid, uids)?;
    }
    if own(gids, rustix::process::getegid().as_raw()) {
        // Who drops a group could get at files that are closed to that group.
        put(pid, "setgroups", "deny")?;
        return put(pid, "gid_map", &lines(gids));
    }
    call("newgidmap", "/etc/subgid", pid, gids)
}

fn lines(map: &[IdMapping]) -> String {
    map.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size)).collect()
}

fn put(pid: i32, name: &str, text: &str) -> Result<()> {
    let path = format!("/proc/{pid}/{name}");
    fs::write(&path, text).map_err(|e| Error::path("write", Path::new(&path), e))
}

fn call(program: &'static str, list: &'static str, pid: i32, map: &[IdMapping]) -> Result<()> {
    let mut command = Command::new(program);
    command.arg(pid.to_string());
    for m in map {
        command.args([m.container_id, m.host_id, m.size].map(|n| n.to_string()));
    }
    let cure = "install it (package `uidmap`) and give this user ids in /etc/subuid and /etc/subgid, or map only the \
                user's own id";
    let output = command.output().map_err(|e| Error::Unsupported {
        what: "several ids for an ordinary user".to_owned(),
        why: format!("`{program}` does not start: {e}"),
        cure,
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: format!("these ids for an ordinary user ({list})"),
        why: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        cure,
    })
}

/// Maps of users, and of groups.
type Maps = (Vec<IdMapping>, Vec<IdMapping>);

/// Maps in the form of crun's mount option: `uids=INSIDE-HOST-SIZE#…;gids=…`. With `@` before a map its host number is one of
/// the container's.
pub fn of_option(text: &str, uids: &[IdMapping], gids: &[IdMapping]) -> Result<Maps, String> {
    let mut maps = (Vec::new(), Vec::new());
    for part in text.split(';').filter(|part| !part.is_empty()) {
        let (list, own) = match part.split_once('=') {
            Some(("uids", list)) => ((list, &mut maps.0), uids),
            Some(("gids", list)) => ((list, &mut maps.1), gids),
            _ => return Err(format!("`{part}` in its id map is neither `uids=…` nor `gids=…`")),
        };
        for map in list.0.split('#').filter(|map| !map.is_empty()) {
            list.1.push(triplet(map, own)?);
        }
    }
    if maps.0.is_empty() || maps.1.is_empty() {
        Err("its id map needs `uids=…` and `gids=…`".to_owned())
    } else {
        Ok(maps)
    }
}

fn triplet(text: &str, own: &[IdMapping]) -> Result<IdMapping, String> {
    let (plain, relative) = text.strip_prefix('@').map_or((text, false), |rest| (rest, true));
    let numbers: Option<Vec<u32>> = plain.split('-').map(|n| n.parse().ok()).collect();
    let Some(&[container_id, host, size]) = numbers.as_deref() else {
        return Err(format!("`{text}` in its id map is not of the form FIRST-HOST-SIZE"));
    };
    let host_id = match relative {
        false => Some(host),
        true => IdMapping::to_host(own, host),
    };
    let host_id =
        host_id.ok_or_else(|| format!("the container has no number {host}, which its id map names (`{text}`)"))?;
    Ok(IdMapping { container_id, host_id, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_an_option() {
        let own = [IdMapping { container_id: 0, host_id: 1000, size: 10 }];
        let map = |container_id, host_id, size| IdMapping { container_id, host_id, size };
        assert_eq!(
            of_option("uids=0-1-10#10-11-10;gids=@0-5-2", &own, &own).unwrap(),
            (vec![map(0, 1, 10), map(10, 11, 10)], vec![map(0, 1005, 2)])
        );
        for bad in ["", "uids=0-1-1", "uids=0-1;gids=0-1-1", "uids=a-1-1;gids=0-1-1", "x=1", "uids=@0-99-1;gids=0-1-1"]
        {
            assert!(of_option(bad, &own, &own).is_err(), "{bad}");
        }
    }
}
