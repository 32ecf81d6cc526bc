//! RUN.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;

use ilot_native::{BuildNet, Step};

use crate::error::{Error, Result, visible};
use crate::lines::{Heredoc, announced};
use crate::mounts::{From, Ready, Wanted};
use crate::options::StepInfo;
use crate::parse::{Command, Flag};
use crate::stage::{Came, Run};
use crate::work::{Place, clear};

/// Where a step has mounts of its own, whatever it says.
const MOUNTED: [&str; 6] = ["proc", "sys", "dev", "etc/hosts", "etc/hostname", "etc/resolv.conf"];
/// The longest line of output that is handed on whole, in bytes.
const LONGEST: usize = 64 << 10;

/// What a step runs.
struct Job {
    args: Vec<String>,
    /// A script of its own, with its name.
    script: Option<(String, String)>,
}

impl Run<'_> {
    pub(crate) fn run(
        &mut self,
        flags: &[Flag],
        command: &Command,
        heredocs: &[Heredoc],
        info: &StepInfo,
    ) -> Result<Came> {
        let job = self.job(command, heredocs);
        let (mut net, mut insecure) = (None, false);
        let mut wanted = Vec::new();
        for flag in flags {
            let value = self.word(flag.value.as_deref().unwrap_or_default())?;
            match (flag.name.as_str(), value.as_str()) {
                ("mount", _) => wanted.push(Wanted::parse(&value)?),
                ("network", "default") | ("security", "sandbox") => {}
                ("network", "none") => net = Some(BuildNet::None),
                ("network", "host") if self.work.options.allow_host_network => net = Some(BuildNet::Host),
                ("security", "insecure") if self.work.options.allow_insecure => insecure = true,
                ("network", "host") => return Err(not_allowed("network.host", "the host's network")),
                ("security", "insecure") => return Err(not_allowed("security.insecure", "more rights")),
                (name, _) => {
                    let help = "`--network` is default, none or host; `--security` sandbox or insecure";
                    return Err(Error::invalid(format!("`--{name}={value}` makes no sense"), help));
                }
            }
        }
        let froms = wanted.iter().map(|w| w.from.as_deref().map(|name| self.mount_from(name)).transpose());
        let froms: Vec<Option<From>> = froms.collect::<Result<_>>()?;
        let (env, quiet) = self.environment();
        let mut key = self.work.key("run");
        key.on(&self.layers);
        key.add("platform", &self.stage.platform.to_string());
        key.add_all("arg", &job.args);
        key.add_all("script", job.script.iter().map(|(_, text)| text));
        key.add_all("env", &env);
        key.add("cwd", &self.config.workdir());
        key.add("user", &self.config.user());
        key.add("net", &format!("{:?}", net.as_ref().unwrap_or(&self.work.options.net) == &BuildNet::None));
        key.add("insecure", &insecure.to_string());
        for (mount, from) in wanted.iter().zip(&froms) {
            mount.key(self.work, from.as_ref(), &mut key)?;
        }
        let key = key.end();
        if let Some(layer) = self.work.cached(&key) {
            return Ok(Came::Layer(layer, true));
        }
        let mut ready = Ready::default();
        for (mount, from) in wanted.iter().zip(&froms) {
            mount.ready(self.work, from.as_ref(), &self.config.workdir(), &mut ready)?;
        }
        let env = [env, quiet, ready.env.clone()].concat();
        let place = self.work.place(&self.layers)?;
        let args = self.script(job, &place, &mut ready)?;
        let made = self.missing(&ready)?;
        self.execute(&place, args, env, net, insecure, &ready, info)?;
        drop(ready);
        clear(&place.upper, &made);
        Ok(Came::Layer(self.work.pack(&place, &key, &info.text)?, false))
    }

    fn mount_from(&self, name: &str) -> Result<From> {
        let (layers, tree) = self.from(name)?;
        Ok(From { tree, layers })
    }

    /// What is run: heredocs are the shell's, but one that stands alone is the whole script.
    fn job(&self, command: &Command, heredocs: &[Heredoc]) -> Job {
        let text = match command {
            Command::Exec(_) => return Job { args: self.config.words(command), script: None },
            Command::Shell(text) => text,
        };
        let shell = |text: String| self.config.shell().into_iter().chain([text]).collect();
        match heredocs {
            [] => Job { args: shell(text.clone()), script: None },
            [alone] if announced(text).is_some() => {
                if alone.content.starts_with("#!") {
                    return Job { args: Vec::new(), script: Some((alone.name.clone(), alone.content.clone())) };
                }
                Job { args: shell(alone.content.clone()), script: None }
            }
            all => {
                let mut whole = format!("{text}\n");
                for heredoc in all {
                    whole.push_str(&format!("{}{}\n", heredoc.content, heredoc.name));
                }
                Job { args: shell(whole), script: None }
            }
        }
    }

    /// Writes a script beside the step, and gives what is run.
    fn script(&self, job: Job, place: &Place, ready: &mut Ready) -> Result<Vec<String>> {
        let Some((name, text)) = job.script else { return Ok(job.args) };
        let path = place.folder.join("script");
        let failed = |e| Error::file("write", &path, e);
        let mut file = File::create_new(&path).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
        Ok(vec![ready.add_script(&name, &path)])
    }

    /// Paths that exist for the mounts alone, the deepest first.
    fn missing(&self, ready: &Ready) -> Result<Vec<Vec<u8>>> {
        let tree = self.tree()?;
        let own = MOUNTED.iter().map(|path| path.as_bytes().to_vec());
        let mut missing: Vec<Vec<u8>> = Vec::new();
        for target in own.chain(ready.targets.iter().cloned()) {
            let ends: Vec<usize> = target
                .iter()
                .enumerate()
                .filter(|(_, b)| **b == b'/')
                .map(|(at, _)| at)
                .chain([target.len()])
                .collect();
            for end in ends {
                let part = target[..end].to_vec();
                if !part.is_empty() && !missing.contains(&part) && !tree.exists(&part) {
                    missing.push(part);
                }
            }
        }
        missing.sort_by_key(|path| std::cmp::Reverse(path.len()));
        Ok(missing)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one step, each from elsewhere")]
    fn execute(
        &self,
        place: &Place,
        args: Vec<String>,
        env: Vec<String>,
        net: Option<BuildNet>,
        insecure: bool,
        ready: &Ready,
        info: &StepInfo,
    ) -> Result<()> {
        let pipe = || {
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(|e| Error::file("make", std::path::Path::new("pipe"), e))
        };
        let (output, writer) = pipe()?;
        let user = self.config.user();
        let shown = visible(args.join(" ").lines().next().unwrap_or_default());
        let work = self.work;
        let exit = std::thread::scope(|scope| {
            scope.spawn(move || hand_on(File::from(output), |line| work.events.output(info, line)));
            let step = Step {
                lowers: place.lowers.clone(),
                upper: place.upper.clone(),
                work: place.work.clone(),
                args,
                env,
                cwd: self.config.workdir(),
                user: (!user.is_empty()).then_some(user),
                mounts: ready.mounts.clone(),
                net,
                insecure,
                streams: [writer.as_fd(), writer.as_fd()],
            };
            let exit = work.builder.run(&step, &|| work.cancelled());
            // The last writer's end: the thread above sees it.
            drop(step);
            drop(writer);
            exit
        })?;
        match exit {
            None => Err(Error::Cancelled),
            Some(exit) if exit.code == 0 => Ok(()),
            Some(exit) => {
                let why = match (exit.oom_killed, exit.signal) {
                    (true, _) => "it was killed for want of memory".to_owned(),
                    (_, Some(signal)) => format!("signal {signal} ended it"),
                    _ => format!("it ended with status {}", exit.code),
                };
                Err(Error::Invalid { message: format!("`{shown}`: {why}"), help: cure(exit.code) })
            }
        }
    }
}

fn cure(code: i32) -> Option<String> {
    match code {
        127 => Some("there is no such command in the image: install it in a step before".to_owned()),
        126 => Some("the command cannot be executed: look at its mode and its first line".to_owned()),
        _ => None,
    }
}

fn not_allowed(what: &str, rights: &str) -> Error {
    Error::invalid(format!("the step wants {rights}"), format!("allow it with `--allow {what}` if you trust the file"))
}

/// Hands on what is written, line by line; what has no end is cut.
fn hand_on(from: File, mut each: impl FnMut(&str)) {
    let mut reader = BufReader::new(from);
    let mut line: Vec<u8> = Vec::new();
    loop {
        let (used, ended) = match reader.fill_buf() {
            Ok([]) | Err(_) => break,
            Ok(bytes) => {
                let end = bytes.iter().position(|&b| b == b'\n');
                let part = &bytes[..end.unwrap_or(bytes.len())];
                line.extend_from_slice(part);
                (part.len() + usize::from(end.is_some()), end.is_some())
            }
        };
        reader.consume(used);
        if ended || line.len() > LONGEST {
            each(String::from_utf8_lossy(&line).trim_end_matches('\r'));
            line.clear();
        }
    }
    if !line.is_empty() {
        each(&String::from_utf8_lossy(&line));
    }
}
