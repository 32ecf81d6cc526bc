//! One machine: made, started, stopped, removed.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ilot_image::{Image, Progress};
use ilot_runtime::{CreateRequest, Created, ExitCommand, Rootfs, Status, Stdio};

use crate::actual::domain_records;
use crate::devices::DeviceRecord;
use crate::error::{Error, Result};
use crate::layers::Layers;
use crate::memory::Memory;
use crate::paths::{Lock, make_dir, read_json, remove_tree, write_json, write_json_unsynced};
use crate::record::{DomainRecord, MachineRecord};
use crate::{Native, network, spec};

/// How long the keeper of a container whose maker was killed may take to remove it.
const LEFTOVER_END: Duration = Duration::from_secs(5);

impl Native {
    /// The record of a machine.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn machine(&self, name: &str) -> Result<MachineRecord> {
        // A name that is a path would read elsewhere.
        if ilot_spec::MachineName::new(name).is_err() {
            return Err(Error::NoMachine(name.to_owned()));
        }
        read_json(&self.paths.machine_record(name))?.ok_or_else(|| Error::NoMachine(name.to_owned()))
    }

    /// The record of a domain.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn domain(&self, name: &str) -> Result<DomainRecord> {
        if ilot_spec::DomainName::new(name).is_err() {
            return Err(Error::NoDomain(name.to_owned()));
        }
        read_json(&self.paths.domain_record(name))?.ok_or_else(|| Error::NoDomain(name.to_owned()))
    }

    pub(crate) fn lock_machine(&self, name: &str) -> Result<Lock> {
        Lock::take(&self.paths, &format!("machine-{name}"), &|holder| {
            tracing::info!(machine = name, holder, "waiting for the machine's lock");
        })
    }

    /// The image of that name: in the store, or obtained now. Asked for by several machines at once, it is obtained
    /// once and the others wait.
    pub(crate) fn image(&self, reference: &str, progress: &dyn Progress) -> Result<Arc<Image>, Arc<Error>> {
        let cell = {
            let mut ready = self.ready.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            ready.entry(reference.to_owned()).or_insert_with(|| Arc::new(OnceLock::new())).clone()
        };
        cell.get_or_init(|| {
            let image = match self.images.resolve(reference) {
                Ok(Some(image)) => Ok(image),
                Ok(None) => self.images.obtain(reference, progress),
                Err(e) => Err(e),
            };
            image.map(Arc::new).map_err(|e| Arc::new(e.into()))
        })
        .clone()
    }

    /// Makes the machine's place in the store: all of it or nothing.
    pub(crate) fn make_machine(&self, record: &MachineRecord) -> Result<()> {
        let target = self.paths.machine(&record.name);
        let aside = self.paths.machine(&format!(".new-{}-{}", record.name, std::process::id()));
        let result = (|| {
            remove_tree(&aside)?;
            make_dir(&aside, 0o700)?;
            // An amnesic machine gets them in memory, at each start.
            for dir in if record.amnesic { [].as_slice() } else { &["upper", "work"] } {
                let dir = aside.join(dir);
                make_dir(&dir, 0o755)?;
                chown(&dir, Some(record.id_base), Some(record.id_base)).map_err(Error::file("chown", &dir))?;
                fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).map_err(Error::file("chmod", &dir))?;
            }
            let file = aside.join("machine.json");
            if record.remove_on_exit {
                write_json_unsynced(&file, record)?;
            } else {
                write_json(&file, record)?;
            }
            fs::rename(&aside, &target).map_err(|error| match error.kind() {
                std::io::ErrorKind::DirectoryNotEmpty => Error::Invalid {
                    message: format!("cannot make machine `{}`: `{}` is in the way", record.name, target.display()),
                    help: Some(
                        "it holds files, but no record of a machine: look at them, and move or remove it".to_owned(),
                    ),
                },
                _ => Error::file("make", &target)(error),
            })
        })();
        if result.is_err() {
            // The error says what failed; the next command removes what could not be removed now.
            let _ = remove_tree(&aside);
        }
        result
    }

    /// The machine's root: its own layer on the image's.
    /// The layers stay for as long as they are held, or a machine runs on them.
    pub(crate) fn rootfs(
        &self,
        record: &MachineRecord,
        image: &Image,
        memory: Option<&Memory>,
    ) -> Result<(Rootfs, Layers)> {
        let layers = self.layers(record, image)?;
        let dir = match memory {
            Some(memory) => memory.path(),
            None if record.amnesic => {
                return Err(Error::Invalid {
                    message: format!("machine `{}` is amnesic: it has no files while it does not run", record.name),
                    help: Some(format!("start it with `ilot start {}`", record.name)),
                });
            }
            None => self.paths.machine(&record.name),
        };
        let rootfs = Rootfs::Overlay {
            lowers: layers.paths.clone(),
            upper: dir.join("upper"),
            work: dir.join("work"),
            // A machine that is removed at its end needs no syncing on the way.
            volatile: record.remove_on_exit || record.amnesic,
        };
        Ok((rootfs, layers))
    }

    /// The image that the machine was made from, by digest: a name may mean another one by now.
    pub(crate) fn image_of(&self, record: &MachineRecord, progress: &dyn Progress) -> Result<Arc<Image>> {
        let by_digest = self.image(&record.image_digest, progress);
        by_digest.map_err(|e| Error::Invalid {
            message: format!(
                "machine `{}`: its image `{}` ({}) is not in the store: {e}",
                record.name, record.image, record.image_digest
            ),
            help: Some(format!("`ilot destroy --only {0}` and `ilot apply` make it anew", record.name)),
        })
    }

    /// Starts a machine that stands in the store. One that already runs is left alone.
    pub(crate) fn start_machine(
        &self,
        record: &MachineRecord,
        stdio: Stdio,
        exit_command: Option<ExitCommand>,
        progress: &dyn Progress,
    ) -> Result<Option<Created>> {
        self.start_machine_while(record, stdio, exit_command, progress, None::<fn() -> Result<()>>)
    }

    /// The same; `meanwhile` is done side by side with the making of the container, and before its start.
    pub(crate) fn start_machine_while(
        &self,
        record: &MachineRecord,
        stdio: Stdio,
        exit_command: Option<ExitCommand>,
        progress: &dyn Progress,
        meanwhile: Option<impl FnOnce() -> Result<()> + Send>,
    ) -> Result<Option<Created>> {
        let run_dir = self.paths.machine_run(&record.name);
        if let Some(state) = ilot_runtime::state(&run_dir)? {
            if matches!(state.status, Status::Running | Status::Paused) {
                return Ok(None);
            }
            // Ended, or made by a command that died before it started it.
            ilot_runtime::delete(&run_dir, true)?;
        }
        // Mounted until the machine holds them itself.
        let _volumes =
            record.volumes.iter().map(|volume| volume.ready(&self.paths, &record.name)).collect::<Result<Vec<_>>>()?;
        let image = self.image_of(record, progress)?;
        let memory = record.amnesic.then(|| Memory::new(record)).transpose()?;
        let (rootfs, _layers) = self.rootfs(record, &image, memory.as_ref())?;
        let domain = record.domain.as_deref().map(|d| self.domain(d)).transpose()?;
        let (mut spec, init) = spec::build(&self.paths, record, &image, domain.as_ref())?;
        let (nodes, rules) = crate::devices::prepare(&self.paths, record)?;
        spec.mounts.extend(nodes);
        if let Some(linux) = &mut spec.linux {
            linux.resources.get_or_insert_default().devices.extend(rules);
        }
        let mut files = spec::files(record, domain.as_ref());
        if record.project.is_some() {
            files.extend(crate::nesting::context_files(std::path::Path::new("/etc/anklume")));
        }
        make_dir(&run_dir, 0o700)?;
        let request = CreateRequest {
            id: &record.name,
            run_dir: &run_dir,
            spec: &spec,
            rootfs,
            init,
            stdio,
            files,
            exit_command,
        };
        let created = side_by_side(meanwhile, || create_patiently(&request))?;
        if record.nested_ids.is_some()
            && let Some(state) = ilot_runtime::state(&run_dir)?
        {
            ilot_runtime::cgroup::Cgroup::open(&state.cgroup)?.delegate(record.id_base, record.id_base)?;
        }
        if let Some(domain) = &domain
            && let Some(port) = network::port_spec(&self.paths, record, domain)?
        {
            let netns = ilot_runtime::netns(&run_dir)?;
            ilot_net::attach(&port, netns.as_fd())?;
        }
        if record.devices.values().any(|d| matches!(d, DeviceRecord::Nic(_))) {
            self.attach_nics(record)?;
            self.shape_nics(record)?;
        }
        ilot_runtime::start(&run_dir)?;
        if record.devices.values().any(DeviceRecord::is_live) {
            self.settle_relays(record)?;
        }
        Ok(Some(created))
    }

    /// What removes a container after its end; `attended`: only if this process is not there to do it.
    pub(crate) fn removal_command(&self, name: &str, attended: bool) -> Option<ExitCommand> {
        let program = self.program.as_ref()?;
        let args = vec![
            program.into(),
            "--root".into(),
            (&self.paths.root).into(),
            "--run".into(),
            (&self.paths.run).into(),
            "-q".into(),
            "rm".into(),
            "--force".into(),
            name.into(),
        ];
        Some(ExitCommand { args, only_if_abandoned: attended })
    }

    /// Asks the machine to stop, and kills it after `timeout`. One that does not run is fine.
    pub(crate) fn stop_machine(&self, record: &MachineRecord, timeout: Duration) -> Result<()> {
        self.end_machine(record, timeout)?;
        self.stop_relays(&record.name)?;
        self.collect_layers(crate::layers::IDLE)
    }

    fn end_machine(&self, record: &MachineRecord, timeout: Duration) -> Result<()> {
        let run_dir = self.paths.machine_run(&record.name);
        let Some(state) = ilot_runtime::state(&run_dir)? else { return Ok(()) };
        if state.status == Status::Stopped {
            return Ok(());
        }
        if state.status == Status::Paused {
            ilot_runtime::resume(&run_dir)?;
        }
        if timeout > Duration::ZERO && state.status != Status::Created {
            let signal = self
                .images
                .resolve(&record.image_digest)
                .ok()
                .flatten()
                .map_or(spec::SIGTERM, |image| spec::stop_signal(record, &image));
            ilot_runtime::signal(&run_dir, signal)?;
            if ilot_runtime::wait(&run_dir, Some(timeout))?.is_some() {
                return Ok(());
            }
        }
        ilot_runtime::signal(&run_dir, spec::SIGKILL)?;
        ilot_runtime::wait(&run_dir, Some(Duration::from_secs(10)))?;
        Ok(())
    }

    /// The same, and its storage volumes with it. They go first: killed in between, the machine is still there to be removed.
    pub(crate) fn remove_for_good(&self, name: &str) -> Result<()> {
        ilot_runtime::delete(&self.paths.machine_run(name), true)?;
        crate::storage::remove(&self.paths, name)?;
        self.remove_machine(name)
    }

    /// Ends the machine at once and removes everything of it but its storage volumes, which another one made in its place
    /// gets.
    pub(crate) fn remove_machine(&self, name: &str) -> Result<()> {
        let record = self.machine(name);
        let run_dir = self.paths.machine_run(name);
        self.stop_relays(name)?;
        if record.as_ref().is_ok_and(|r| r.nested_ids.is_some()) {
            crate::nesting::release(&self.paths, name)?;
        }
        ilot_runtime::delete(&run_dir, true)?;
        remove_tree(&run_dir)?;
        let dir = self.paths.machine(name);
        if dir.exists() {
            // Renamed first: a machine is there or it is not, also when this is killed half-way.
            let aside = self.paths.machine(&format!(".del-{name}-{}", std::process::id()));
            remove_tree(&aside)?;
            fs::rename(&dir, &aside).map_err(Error::file("remove", &dir))?;
            remove_tree(&aside)?;
        }
        self.collect_layers(crate::layers::IDLE)?;
        match record {
            Ok(record) => crate::ids::give_back(&self.paths, record.id_base, &format!("machine:{name}")),
            Err(_) => crate::ids::release(&self.paths, &format!("machine:{name}")),
        }
    }

    /// The machines that a command's names mean: machines, or every machine of a domain.
    ///
    /// # Errors
    /// A name that is neither.
    pub fn select(&self, names: &[String]) -> Result<Vec<MachineRecord>> {
        let machines = crate::actual::machine_records(&self.paths)?;
        let domains = domain_records(&self.paths)?;
        let mut chosen: Vec<MachineRecord> = Vec::new();
        for name in names {
            let found: Vec<&MachineRecord> = match machines.get(name) {
                Some(machine) => vec![machine],
                None if domains.contains_key(name) => {
                    machines.values().filter(|m| m.domain.as_deref() == Some(name)).collect()
                }
                None => return Err(Error::NoSuchName(name.clone())),
            };
            for machine in found {
                if !chosen.iter().any(|c| c.name == machine.name) {
                    chosen.push(machine.clone());
                }
            }
        }
        Ok(chosen)
    }

    /// The machines that start with the host, one list for each priority, the highest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn autostart(&self) -> Result<Vec<Vec<String>>> {
        let mut by_priority: std::collections::BTreeMap<u8, Vec<String>> = std::collections::BTreeMap::new();
        for machine in crate::actual::machine_records(&self.paths)?.into_values().filter(|m| m.boot_autostart) {
            by_priority.entry(machine.boot_priority).or_default().push(machine.name);
        }
        Ok(by_priority.into_values().rev().collect())
    }

    /// Starts a machine that was made before. `false`: it ran already.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, name: &str) -> Result<bool> {
        let _lock = self.lock_machine(name)?;
        let record = self.machine(name)?;
        if let Some(domain) = &record.domain {
            self.ensure_network(domain)?;
        }
        Ok(self.start_machine(&record, self.log_stdio(&record), None, &ilot_image::Silent)?.is_some())
    }

    /// Stops a machine: asked politely, killed after `timeout`. `false`: it did not run.
    ///
    /// # Errors
    /// When it cannot be stopped.
    pub fn stop(&self, name: &str, timeout: Duration) -> Result<bool> {
        let _lock = self.lock_machine(name)?;
        let record = self.machine(name)?;
        let running = self.is_running(name)?;
        self.stop_machine(&record, timeout)?;
        Ok(running)
    }

    /// Freezes every process of a machine.
    ///
    /// # Errors
    /// When it does not run, or the host cannot freeze.
    pub fn pause(&self, name: &str) -> Result<()> {
        self.running(name)?;
        Ok(ilot_runtime::pause(&self.paths.machine_run(name))?)
    }

    /// Lets a frozen machine go on.
    ///
    /// # Errors
    /// When it does not run, or the host cannot thaw it.
    pub fn resume(&self, name: &str) -> Result<()> {
        self.running(name)?;
        Ok(ilot_runtime::resume(&self.paths.machine_run(name))?)
    }

    /// Removes a machine of `ilot run`, or one that a project no longer has. A running one only with `force`.
    ///
    /// # Errors
    /// When it runs, belongs to a project, or cannot be removed.
    pub fn remove(&self, name: &str, force: bool) -> Result<()> {
        let lock = self.lock_machine(name)?;
        let record = match self.machine(name) {
            Ok(record) => record,
            Err(error) => {
                if matches!(error, Error::NoMachine(_)) {
                    lock.forget();
                }
                return Err(error);
            }
        };
        if let (Some(project), false) = (&record.project, force) {
            return Err(Error::Invalid {
                message: format!("machine `{name}` belongs to project `{project}`"),
                help: Some(format!("`ilot destroy --only {name}` removes it; the next `ilot apply` makes it anew")),
            });
        }
        if !record.ephemeral && !force {
            return Err(Error::Protected(vec![name.to_owned()]));
        }
        if self.is_running(name)? && !force {
            return Err(Error::Invalid {
                message: format!("machine `{name}` is running"),
                help: Some(format!("stop it with `ilot stop {name}`, or use `--force`")),
            });
        }
        self.clear(&record)?;
        lock.forget();
        Ok(())
    }

    pub(crate) fn is_running(&self, name: &str) -> Result<bool> {
        Ok(ilot_runtime::state(&self.paths.machine_run(name))?
            .is_some_and(|s| matches!(s.status, Status::Running | Status::Paused)))
    }

    /// The record of a machine that runs.
    pub(crate) fn running(&self, name: &str) -> Result<MachineRecord> {
        let record = self.machine(name)?;
        if self.is_running(name)? { Ok(record) } else { Err(Error::NotRunning(name.to_owned())) }
    }

    /// Runs a command in a machine, in the foreground of this process.
    ///
    /// # Errors
    /// When the machine does not run, or the command cannot be started.
    pub fn exec(&self, name: &str, mut request: ExecRequestParts) -> Result<ilot_runtime::Exit> {
        let record = self.running(name)?;
        let mut env = spec::environment(&record, &[]);
        env.append(&mut request.env);
        let request = ilot_runtime::ExecRequest {
            args: request.args,
            env,
            cwd: request.cwd,
            user: request.user,
            terminal: request.terminal,
            stdin: request.stdin,
            detach: request.detach,
        };
        Ok(ilot_runtime::exec(&self.paths.machine_run(name), &request)?)
    }
}

/// Does the second, and the first on another thread; the second's error counts more.
fn side_by_side<T>(first: Option<impl FnOnce() -> Result<()> + Send>, second: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(first) = first else { return second() };
    std::thread::scope(|scope| {
        let first = scope.spawn(first);
        let done = second();
        let first = first.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let done = done?;
        first.map(|()| done)
    })
}

/// Creates a container. One of the same name that a killed command left is torn down by its keeper, which takes a moment:
/// the machine's lock is held here, so nobody else can be making it.
fn create_patiently(request: &CreateRequest<'_>) -> Result<Created> {
    let end = Instant::now() + LEFTOVER_END;
    loop {
        let error = match ilot_runtime::create(request) {
            Ok(created) => return Ok(created),
            Err(error) => error,
        };
        let leftover = match &error {
            ilot_runtime::Error::Status { .. } => true,
            ilot_runtime::Error::Container { message, .. } => message.contains("it holds the processes"),
            _ => false,
        };
        if !leftover || Instant::now() >= end {
            return Err(error.into());
        }
        std::thread::sleep(Duration::from_millis(5));
        ilot_runtime::delete(request.run_dir, true)?;
        make_dir(request.run_dir, 0o700)?;
    }
}

/// What `exec` is asked for; the machine's own environment is added.
#[derive(Debug, Clone, Default)]
pub struct ExecRequestParts {
    /// The command and its arguments.
    pub args: Vec<String>,
    /// `K=V`, over the machine's own.
    pub env: Vec<String>,
    /// Working directory; the user's home or `/` when not given.
    pub cwd: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`.
    pub user: Option<String>,
    /// With a terminal.
    pub terminal: bool,
    /// Hand the caller's standard input on.
    pub stdin: bool,
    /// Do not wait for its end.
    pub detach: bool,
}
