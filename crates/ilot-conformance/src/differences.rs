//! Where a runtime is known to differ from the specification, and what decides.

use crate::Kind;

/// One test that a runtime does not pass.
#[derive(Debug)]
pub struct Difference {
    /// Which runtime.
    pub runtime: Kind,
    /// `area::test`
    pub test: &'static str,
    /// The section that decides.
    pub section: &'static str,
    /// What it does instead.
    pub why: &'static str,
}

/// The difference of a runtime in a test, if one is known.
#[must_use]
pub fn find(runtime: Kind, test: &str) -> Option<&'static Difference> {
    DIFFERENCES.iter().find(|d| d.runtime == runtime && d.test == test)
}

/// All of them. The versions are those of Debian 12: crun 1.8.1, runc 1.1.5.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        runtime: Kind::Crun,
        test: "hooks::a_failing_poststop_hook",
        section: "runtime.md#lifecycle",
        why: "a hook that ends without reading its state may end `delete` by SIGPIPE",
    },
    Difference {
        runtime: Kind::Crun,
        test: "lifecycle::kill_with_an_unknown_signal",
        section: "runtime.md#kill",
        why: "an unknown name is taken for signal 0, and nothing is said",
    },
    Difference {
        runtime: Kind::Crun,
        test: "lifecycle::relative_working_directory",
        section: "config.md#process",
        why: "a relative `cwd` is accepted",
    },
    Difference {
        runtime: Kind::Crun,
        test: "namespaces::duplicates_are_errors",
        section: "config-linux.md#namespaces",
        why: "a namespace listed twice is accepted",
    },
    Difference {
        runtime: Kind::Crun,
        test: "namespaces::time_offsets",
        section: "config-linux.md#offset-for-time-namespace",
        why: "time namespaces came later",
    },
    Difference {
        runtime: Kind::Crun,
        test: "process::empty_lsm_labels_mean_none",
        section: "config.md#linux-process",
        why: "an empty SELinux label is written to the kernel, which refuses it",
    },
    Difference {
        runtime: Kind::Crun,
        test: "process::duplicate_rlimits_are_errors",
        section: "config.md#posix-process",
        why: "a limit listed twice is accepted",
    },
    Difference {
        runtime: Kind::Crun,
        test: "hooks::relative_path",
        section: "config.md#posix-platform-hooks",
        why: "a relative `path` is looked for in the working directory",
    },
    Difference {
        runtime: Kind::Crun,
        test: "hooks::state_on_standard_input",
        section: "runtime.md#state",
        why: "the early hooks are told `created` instead of `creating`",
    },
    Difference {
        runtime: Kind::Crun,
        test: "hooks::each_at_its_time",
        section: "config.md#poststart",
        why: "under load `poststart` may run before `startContainer`",
    },
    Difference {
        runtime: Kind::Crun,
        test: "mounts::mount_propagation",
        section: "config.md#linux-mount-options",
        why: "`shared` without `r` has no effect",
    },
    Difference {
        runtime: Kind::Crun,
        test: "mounts::opposite_attributes",
        section: "config.md#linux-mount-options",
        why: "`rw` after `ro` does not undo it",
    },
    Difference {
        runtime: Kind::Crun,
        test: "mounts::recursive_attributes",
        section: "config.md#linux-mount-options",
        why: "the recursive access time options are refused by the kernel",
    },
    Difference {
        runtime: Kind::Crun,
        test: "mounts::rootfs_propagation",
        section: "config-linux.md#rootfs-mount-propagation",
        why: "an unknown value is accepted",
    },
    Difference {
        runtime: Kind::Crun,
        test: "cli::spec_rootless",
        section: "(command line)",
        why: "no id maps in the rootless template",
    },
    Difference {
        runtime: Kind::Crun,
        test: "exec::no_new_privileges_is_inherited_by_the_configuration",
        section: "config.md#linux-process",
        why: "`exec` by flags forgets `noNewPrivileges`",
    },
    Difference {
        runtime: Kind::Crun,
        test: "resources::pause_and_resume",
        section: "(command line)",
        why: "under load `pause` may return before the container is frozen",
    },
    Difference {
        runtime: Kind::Crun,
        test: "resources::intel_rdt",
        section: "config-linux.md#intelrdt",
        why: "`intelRdt` is ignored",
    },
    Difference {
        runtime: Kind::Crun,
        test: "resources::impossible_limits_are_errors",
        section: "runtime.md#lifecycle",
        why: "an error of a limit leaves the groups behind",
    },
    Difference {
        runtime: Kind::Crun,
        test: "seccomp::notify_without_a_listener_is_an_error",
        section: "config-linux.md#seccomp",
        why: "the filter is loaded without a listener: the calls fail with ENOSYS",
    },
    Difference {
        runtime: Kind::Crun,
        test: "process::unknown_capabilities_are_warned_about",
        section: "config.md#linux-process",
        why: "an unknown capability is an error instead of a warning",
    },
    Difference {
        runtime: Kind::Crun,
        test: "seccomp::required_members",
        section: "config-linux.md#seccomp",
        why: "a rule without a name is accepted",
    },
    Difference {
        runtime: Kind::Crun,
        test: "seccomp::metadata_without_a_listener",
        section: "config-linux.md#seccomp",
        why: "`listenerMetadata` without a `listenerPath` is accepted",
    },
    Difference {
        runtime: Kind::Crun,
        test: "escape_dev::console_is_a_link_to_the_host",
        section: "CVE-2026-47766",
        why: "`/dev/console` is made where a link of the image points to, on the host",
    },
    Difference {
        runtime: Kind::Crun,
        test: "escape_dev::console_is_a_link",
        section: "CVE-2025-52565",
        why: "the terminal is bound over the target of a link",
    },
    Difference {
        runtime: Kind::Crun,
        test: "escape_dev::dev_is_a_link",
        section: "CVE-2026-47766",
        why: "links and nodes are made on the host through `/dev`",
    },
    Difference {
        runtime: Kind::Crun,
        test: "escape_proc_links::mount_inside_proc",
        section: "CVE-2025-52881",
        why: "mounts inside procfs are accepted",
    },
    Difference {
        runtime: Kind::Crun,
        test: "escape_proc_links::swapped_while_the_runtime_works",
        section: "CVE-2025-52881",
        why: "a swapped link puts a mount inside procfs",
    },
    Difference {
        runtime: Kind::Crun,
        test: "escape_proc_links::volume_over_proc",
        section: "CVE-2019-16884",
        why: "a volume over `/proc` is accepted",
    },
    Difference {
        runtime: Kind::Runc,
        test: "hooks::a_failing_poststop_hook",
        section: "runtime.md#lifecycle",
        why: "the hooks after a failing one do not run",
    },
    Difference {
        runtime: Kind::Runc,
        test: "hooks::each_at_its_time",
        section: "config.md#poststart",
        why: "`poststart` runs at the end of `create`",
    },
    Difference {
        runtime: Kind::Runc,
        test: "hooks::state_on_standard_input",
        section: "runtime.md#state",
        why: "`poststart` is told `created`",
    },
    Difference {
        runtime: Kind::Runc,
        test: "mounts::parameters_of_the_file_system",
        section: "config.md#mounts",
        why: "a tmpfs gets the mode of the directory below it, against `mode=`",
    },
    Difference {
        runtime: Kind::Runc,
        test: "mounts::rootfs_propagation",
        section: "config-linux.md#rootfs-mount-propagation",
        why: "`shared` does not show on `/`",
    },
    Difference {
        runtime: Kind::Runc,
        test: "namespaces::user_namespace_by_path",
        section: "config-linux.md#user-namespace-mappings",
        why: "a joined user namespace needs maps all the same",
    },
    Difference {
        runtime: Kind::Runc,
        test: "process::duplicate_rlimits_are_errors",
        section: "config.md#posix-process",
        why: "a limit listed twice is accepted",
    },
    Difference {
        runtime: Kind::Runc,
        test: "process::personality",
        section: "config-linux.md#personality",
        why: "the personality came later and is ignored",
    },
    Difference {
        runtime: Kind::Runc,
        test: "exec::process_file",
        section: "config.md#user",
        why: "`umask` is ignored by `exec`",
    },
    Difference {
        runtime: Kind::Runc,
        test: "seccomp::flags",
        section: "config-linux.md#seccomp",
        why: "flags are refused",
    },
    Difference {
        runtime: Kind::Runc,
        test: "seccomp::required_members",
        section: "config-linux.md#seccomp",
        why: "a rule without a name is accepted",
    },
    Difference {
        runtime: Kind::Runc,
        test: "seccomp::metadata_without_a_listener",
        section: "config-linux.md#seccomp",
        why: "`listenerMetadata` without a `listenerPath` is accepted",
    },
    Difference {
        runtime: Kind::Runc,
        test: "newer::session_keyring",
        section: "(command line)",
        why: "the keyring has the container's id for a name: the next of that id may find it still there",
    },
    Difference {
        runtime: Kind::Runc,
        test: "escape_dev::console_is_a_link",
        section: "CVE-2025-52565",
        why: "the terminal is bound over the target of a link",
    },
    Difference {
        runtime: Kind::Runc,
        test: "escape_dev::dev_is_a_link",
        section: "CVE-2026-41579",
        why: "links are made on the host through `/dev`",
    },
    Difference {
        runtime: Kind::Runc,
        test: "escape_dev::node_swapped_for_a_link",
        section: "(review)",
        why: "the owner of a file of the host is changed through a swapped node",
    },
    Difference {
        runtime: Kind::Runc,
        test: "escape_masked_paths::dev_null_is_a_link",
        section: "CVE-2025-31133",
        why: "whatever `/dev/null` points to is bound over masked paths",
    },
    Difference {
        runtime: Kind::Runc,
        test: "escape_masked_paths::dev_null_is_another_file",
        section: "CVE-2025-31133",
        why: "a regular file as `/dev/null` is bound over masked paths",
    },
    Difference {
        runtime: Kind::Runc,
        test: "escape_mount_races::making_a_destination_below_a_swapped_directory",
        section: "CVE-2024-45310",
        why: "directories are made on the host",
    },
    Difference {
        runtime: Kind::Runc,
        test: "escape_proc_links::mount_inside_proc",
        section: "CVE-2025-52881",
        why: "mounts inside procfs are accepted",
    },
    Difference {
        runtime: Kind::Runc,
        test: "escape_proc_links::swapped_while_the_runtime_works",
        section: "CVE-2025-52881",
        why: "a swapped link puts a mount inside procfs",
    },
];
