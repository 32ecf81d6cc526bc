//! What the specification calls an error in a configuration, before anything is made of it.

use crate::mounts::options::Options;
use crate::spec::{Hook, Linux, Mount, NamespaceKind, Pids, Process, Resources, Spec};
use crate::{Error, Result, caps};

/// Refuses what is missing, contradicts itself, or could not have an effect.
pub fn check(spec: &Spec) -> Result<()> {
    if spec.oci_version.is_empty() {
        return Err(Error::invalid("ociVersion", "missing from the configuration"));
    }
    if !spec.oci_version.starts_with("1.") {
        return Err(Error::invalid("ociVersion", format!("`{}` is not supported, 1.x is", spec.oci_version)));
    }
    match &spec.root {
        None => return Err(Error::invalid("root", "missing from the configuration")),
        Some(root) if root.path.as_os_str().is_empty() => {
            return Err(Error::invalid("root.path", "missing from the configuration"));
        }
        Some(_) => {}
    }
    spec.process.as_ref().map_or(Ok(()), check_process)?;
    spec.linux.as_ref().map_or(Ok(()), check_linux)?;
    spec.mounts.iter().try_for_each(check_mount)?;
    let hooks = &spec.hooks;
    let lists = [
        &hooks.prestart,
        &hooks.create_runtime,
        &hooks.create_container,
        &hooks.start_container,
        &hooks.poststart,
        &hooks.poststop,
    ];
    lists.into_iter().flatten().try_for_each(check_hook)
}

/// A process of a configuration or of `exec`.
pub fn check_process(process: &Process) -> Result<()> {
    if !process.cwd.starts_with('/') {
        return Err(Error::invalid("process.cwd", "it must be an absolute path"));
    }
    if process.args.is_empty() {
        return Err(Error::invalid("process.args", "it must have at least one entry"));
    }
    Ok(())
}

fn check_linux(linux: &Linux) -> Result<()> {
    let kinds = &linux.namespaces;
    if kinds.iter().enumerate().any(|(i, n)| kinds[..i].iter().any(|m| m.kind == n.kind)) {
        return Err(Error::invalid("linux.namespaces", "a kind is listed twice"));
    }
    if !linux.uid_mappings.is_empty() && !linux.has_namespace(NamespaceKind::User) {
        return Err(Error::invalid("linux.uidMappings", "they need a user namespace"));
    }
    if linux.makes(NamespaceKind::User) && (linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty()) {
        return Err(Error::invalid("linux.uidMappings, gidMappings", "a new user namespace needs both"));
    }
    if !linux.time_offsets.is_empty() && !linux.makes(NamespaceKind::Time) {
        return Err(Error::invalid("linux.timeOffsets", "they need a new time namespace"));
    }
    if let Some(flag) = linux.personality.as_ref().and_then(|p| p.flags.first()) {
        return Err(Error::invalid("linux.personality.flags", format!("`{flag}` is unknown, there are none yet")));
    }
    Ok(())
}

fn check_mount(mount: &Mount) -> Result<()> {
    let of = |why: &str| Err(Error::invalid(format!("mount `{}`", mount.destination), why));
    if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
        return of("`uidMappings` and `gidMappings` need each other");
    }
    let options = Options::parse(&mount.options);
    let mapped = !mount.uid_mappings.is_empty() || options.idmap.is_some();
    if mapped && crate::container::bind_kind(mount, &options).is_none() {
        return of("only a bind mount can be idmapped");
    }
    Ok(())
}

fn check_hook(hook: &Hook) -> Result<()> {
    let of = |why: &str| Err(Error::invalid(format!("hook `{}`", hook.path.display()), why));
    if !hook.path.is_absolute() {
        return of("its path must be absolute");
    }
    if hook.timeout == Some(0) {
        return of("its timeout must be greater than zero");
    }
    Ok(())
}

/// Settles what depends on the version of the specification or on this host, with a warning where something is lost.
pub fn settle(spec: &mut Spec) {
    let own = spec.linux.as_ref().is_some_and(|l| l.has_namespace(NamespaceKind::User));
    if let Some(sets) = spec.process.as_mut().and_then(|p| p.capabilities.as_mut()) {
        caps::leave_out(sets, own);
    }
    if let Some(resources) = spec.linux.as_mut().and_then(|l| l.resources.as_mut()) {
        settle_pids(resources, &spec.oci_version);
    }
}

/// 0 was no limit on processes until version 1.3 of the specification made it one.
pub fn settle_pids(resources: &mut Resources, version: &str) {
    let minor = version.split('.').nth(1).and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
    if let Some(Pids { limit: limit @ Some(0) }) = &mut resources.pids
        && minor < 3
    {
        *limit = Some(-1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<()> {
        let text = format!(r#"{{"ociVersion":"1.3.0","root":{{"path":"rootfs"}},{json}}}"#);
        check(&crate::spec::from_json(text.as_bytes()).unwrap())
    }

    #[test]
    fn what_cannot_have_an_effect_is_refused() {
        for json in [
            r#""process":{"args":["a"],"cwd":"tmp"}"#,
            r#""process":{"args":[],"cwd":"/"}"#,
            r#""linux":{"namespaces":[{"type":"pid"},{"type":"pid"}]}"#,
            r#""linux":{"uidMappings":[{"containerID":0,"hostID":0,"size":1}]}"#,
            r#""linux":{"namespaces":[{"type":"user"}]}"#,
            r#""linux":{"timeOffsets":{"monotonic":{"secs":1}}}"#,
            r#""linux":{"namespaces":[{"type":"time","path":"/x"}],"timeOffsets":{"monotonic":{"secs":1}}}"#,
            r#""linux":{"personality":{"domain":"LINUX","flags":["X"]}}"#,
            r#""mounts":[{"destination":"/a","source":"/b","options":["bind"],"uidMappings":[{"size":1}]}]"#,
            r#""mounts":[{"destination":"/a","type":"tmpfs","options":["idmap"]}]"#,
            r#""hooks":{"poststop":[{"path":"relative"}]}"#,
            r#""hooks":{"prestart":[{"path":"/x","timeout":0}]}"#,
        ] {
            assert!(of(json).is_err(), "{json}");
        }
        assert!(check(&crate::spec::from_json(br#"{"ociVersion":"1.3.0","root":{}}"#).unwrap()).is_err());
        assert!(of(r#""linux":{"namespaces":[{"type":"time"}],"timeOffsets":{"monotonic":{"secs":1}}}"#).is_ok());
    }

    #[test]
    fn no_processes_or_no_limit() {
        let with = |version: &str| {
            let mut resources = Resources { pids: Some(Pids { limit: Some(0) }), ..Default::default() };
            settle_pids(&mut resources, version);
            resources.pids.unwrap().limit.unwrap()
        };
        assert_eq!([with("1.0.2"), with("1.2.1"), with("1.3.0"), with("1.4.0-rc.1")], [-1, -1, 0, 0]);
    }
}
