//! Control groups that systemd makes: one transient scope per container (`--systemd-cgroup`), asked for over D-Bus.
//!
//! systemd makes the group, moves the container's first process in, knows the limits as properties of the unit, and shows
//! it (`systemctl status`). What lies below is delegated: further values, freezing and killing are ours to write.

mod bus;
mod message;
mod properties;

use crate::cgroup::{Cgroup, Layout, Mode};
use crate::container::cgroup_error;
use crate::spec::{Resources, Spec};
use crate::{Error, Result};
use bus::{Bus, MANAGER, Refusal};
use message::{Body, Value};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A unit of systemd that holds a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// `ilot-web.scope`
    pub name: String,
    /// Whether it belongs to the user's manager.
    pub user: bool,
}

/// Where a container goes, by `linux.cgroupsPath` in the form `SLICE:PREFIX:NAME`.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    slice: String,
    unit: String,
}

impl Place {
    fn parse(path: Option<&str>, id: &str, user: bool) -> Result<Self> {
        let bad = |why: &str| {
            let path = path.unwrap_or_default();
            let form = "the systemd manager takes `SLICE:PREFIX:NAME`, as `machine.slice:ilot:web`";
            Error::invalid("linux.cgroupsPath", format!("`{path}`: {why}; {form}"))
        };
        let own = format!(":ilot:{id}");
        let text = path.filter(|p| !p.is_empty()).unwrap_or(&own);
        let parts: Vec<&str> = text.split(':').collect();
        let &[slice, prefix, name] = parts.as_slice() else {
            return Err(bad("it has another number of parts than three"));
        };
        let slice = match slice {
            "" if user => "user.slice",
            "" => "system.slice",
            "-" => "-.slice",
            slice => slice,
        };
        let plain = |t: &str| t.chars().all(|c| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c));
        if !slice.ends_with(".slice") || slice.contains('/') {
            return Err(bad("its first part is no name of a slice"));
        }
        if name.is_empty() || !plain(name) || !plain(prefix) || !plain(slice) {
            return Err(bad("a part has a character that no unit's name has, or the name is empty"));
        }
        if name.ends_with(".slice") {
            return Err(bad("a slice holds no processes"));
        }
        let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        if unit.len() > 255 {
            return Err(bad("the unit's name is longer than 255 bytes"));
        }
        Ok(Self { slice: slice.to_owned(), unit })
    }
}

/// Whether systemd runs this host and its groups; an error with the cure if not.
pub fn check() -> Result<()> {
    let cure = "use the cgroupfs manager (`--cgroup-manager cgroupfs`, or without `--systemd-cgroup`)";
    let no = |why: &str| Err(Error::Unsupported { what: "cgroups by systemd".to_owned(), why: why.to_owned(), cure });
    // sd_booted(3)
    if !Path::new("/run/systemd/system").is_dir() {
        return no("systemd is not running on this host");
    }
    if Layout::detect().map_err(cgroup_error)?.mode() != Mode::V2 {
        return no("this host has cgroup v1, where systemd does not manage all groups");
    }
    Ok(())
}

/// Makes a scope with the container's first process in it; its groups with all limits set.
///
/// # Errors
/// If systemd cannot be reached or refuses, or the kernel refuses a limit. Then the unit is gone again.
pub fn start(spec: &Spec, id: &str, pid: i32, user: bool) -> Result<(Unit, Cgroup)> {
    let linux = spec.linux.as_ref();
    let place = Place::parse(linux.and_then(|l| l.cgroups_path.as_deref()), id, user)?;
    let mut resources = linux.and_then(|l| l.resources.clone()).unwrap_or_default();
    if user {
        // Out of an ordinary user's reach anyway.
        resources.devices.clear();
    }
    let resources = &resources;
    let properties = properties_of_scope(spec, &place, id, pid, resources, user)?;
    let unit = Unit { name: place.unit, user };
    let mut bus = Bus::connect(user)?;
    let body = Body::default().text(&unit.name).text("fail").properties(&properties).no_units();
    let mut answer = unit.call(&mut bus, "StartTransientUnit", &body)?;
    // A unit of that name that has failed is kept for its status to be read.
    if answer.as_ref().is_err_and(|r| r.name.ends_with(".UnitExists")) {
        let _ = unit.call(&mut bus, "ResetFailedUnit", &Body::default().text(&unit.name))?;
        answer = unit.call(&mut bus, "StartTransientUnit", &body)?;
    }
    let answer = answer.map_err(|refusal| unit.refused("start", &refusal))?;
    let made = unit.finish(&mut bus, "start", &answer).and_then(|()| {
        let mut cgroup = group_of(pid)?;
        cgroup.update(resources).map_err(cgroup_error)?;
        Ok(cgroup)
    });
    match made {
        Ok(cgroup) => Ok((unit, cgroup)),
        Err(error) => {
            let _ = unit.stop_by(&mut bus);
            Err(error)
        }
    }
}

/// The group that a process is in.
fn group_of(pid: i32) -> Result<Cgroup> {
    let fail = |why: &str| Error::invalid(format!("cgroup of process {pid}"), why);
    let layout = Layout::detect().map_err(cgroup_error)?;
    let v2 = layout.v2.as_ref().ok_or_else(|| fail("there is no v2 hierarchy"))?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .map_err(|e| Error::system("look at", format!("the cgroup of process {pid}"), e))?;
    let path = text.lines().find_map(|l| l.strip_prefix("0::/")).ok_or_else(|| fail("it is in no v2 group"))?;
    let path: PathBuf = v2.mount.join(path);
    Cgroup::open_in(&layout, &[path]).map_err(cgroup_error)
}

fn properties_of_scope(
    spec: &Spec,
    place: &Place,
    id: &str,
    pid: i32,
    resources: &Resources,
    user: bool,
) -> Result<Vec<(String, Value)>> {
    let mut list: Vec<(String, Value)> = [
        ("Description", Value::Text(format!("ilot container {id}"))),
        ("Slice", Value::Text(place.slice.clone())),
        ("Delegate", Value::Bool(true)),
        ("CPUAccounting", Value::Bool(true)),
        ("MemoryAccounting", Value::Bool(true)),
        ("IOAccounting", Value::Bool(true)),
        ("TasksAccounting", Value::Bool(true)),
        // Containers are stopped by who started them, before the basic units of the system.
        ("DefaultDependencies", Value::Bool(false)),
        ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    list.extend(properties::of_resources(resources, !user)?);
    properties::of_annotations(&spec.annotations, &mut list)?;
    list.push(("PIDs".to_owned(), Value::Numbers(vec![pid.cast_unsigned()])));
    Ok(list)
}

/// Ends the unit of a container, if it has one.
///
/// # Errors
/// As [`Unit::stop`].
pub fn release(unit: Option<&Unit>) -> Result<()> {
    unit.map_or(Ok(()), Unit::stop)
}

impl Unit {
    /// Tells systemd of new limits. The group's files are the caller's to write.
    ///
    /// # Errors
    /// If systemd cannot be reached or refuses.
    pub fn update(&self, resources: &Resources) -> Result<()> {
        let list = properties::of_resources(resources, !self.user)?;
        if list.is_empty() {
            return Ok(());
        }
        let mut bus = Bus::connect(self.user)?;
        // Until it ends: it is of the moment itself.
        let body = Body::default().text(&self.name).bool(true).properties(&list);
        self.call(&mut bus, "SetUnitProperties", &body)?.map(drop).map_err(|r| self.refused("change", &r))
    }

    /// Ends the unit; one that is gone is no error.
    ///
    /// # Errors
    /// If systemd cannot be reached or refuses.
    pub fn stop(&self) -> Result<()> {
        self.stop_by(&mut Bus::connect(self.user)?)
    }

    fn stop_by(&self, bus: &mut Bus) -> Result<()> {
        match self.call(bus, "StopUnit", &Body::default().text(&self.name).text("replace"))? {
            Ok(answer) => self.finish(bus, "stop", &answer)?,
            Err(refusal) if refusal.name.ends_with(".NoSuchUnit") => return Ok(()),
            Err(refusal) => return Err(self.refused("stop", &refusal)),
        }
        // Forgotten by itself unless an annotation says otherwise: then its name would be taken.
        let _ = self.call(bus, "ResetFailedUnit", &Body::default().text(&self.name))?;
        Ok(())
    }

    fn call(&self, bus: &mut Bus, member: &str, body: &Body) -> Result<Result<message::Message, Refusal>> {
        bus.call(MANAGER, member, body).map_err(|why| self.failed("ask systemd for", &why))
    }

    /// Waits for the job that an answer names.
    fn finish(&self, bus: &mut Bus, what: &str, answer: &message::Message) -> Result<()> {
        let job = answer.texts().first().copied().unwrap_or_default().to_owned();
        match bus.wait_job(&job).map_err(|why| self.failed(what, &why))?.as_str() {
            "done" => Ok(()),
            result => {
                Err(self.failed(what, &format!("its job ended with `{result}`; `systemctl status {}`", self.name)))
            }
        }
    }

    fn refused(&self, what: &str, refusal: &Refusal) -> Error {
        let name = refusal.name.strip_prefix("org.freedesktop.").unwrap_or(&refusal.name);
        self.failed(what, &format!("{} ({name})", refusal.text))
    }

    fn failed(&self, what: &str, why: &str) -> Error {
        Error::invalid(format!("{what} unit `{}`", self.name), why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let place = |path: Option<&str>, user| Place::parse(path, "web", user);
        let is = |slice: &str, unit: &str| Place { slice: slice.into(), unit: unit.into() };
        assert_eq!(place(Some("machine.slice:libpod:abc"), false).unwrap(), is("machine.slice", "libpod-abc.scope"));
        assert_eq!(place(Some("::abc"), false).unwrap(), is("system.slice", "abc.scope"));
        assert_eq!(place(Some(":x:abc"), true).unwrap(), is("user.slice", "x-abc.scope"));
        assert_eq!(place(Some("-:x:abc"), true).unwrap(), is("-.slice", "x-abc.scope"));
        assert_eq!(place(None, false).unwrap(), is("system.slice", "ilot-web.scope"));
        assert_eq!(place(Some(""), false).unwrap(), is("system.slice", "ilot-web.scope"));
        for bad in
            ["/a/b", "a:b", "a.slice:b:c:d", "x:y:z", "a/b.slice:y:z", "a.slice:x:", "a.slice:x:y z", ":x:y.slice"]
        {
            let error = place(Some(bad), false).unwrap_err().to_string();
            assert!(error.contains("SLICE:PREFIX:NAME"), "{error}");
        }
    }
}
