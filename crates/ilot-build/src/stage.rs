//! One stage, instruction by instruction.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ilot_image::BuiltLayer;
use jiff::Timestamp;

use crate::config::Config;
use crate::copy::absolute;
use crate::error::{Error, Result};
use crate::options::{Pull, StepEnd, StepInfo};
use crate::parse::{Instruction, Kind, parse_trigger};
use crate::plan::{Base, Plan, Stage};
use crate::platform::Platform;
use crate::tree::Tree;
use crate::words;
use crate::work::Work;

/// Arguments that need no ARG, are in no key and in no image (Dockerfile reference, "Predefined ARGs").
const PROXIES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// A stage that is built.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    pub(crate) layers: Vec<BuiltLayer>,
    pub(crate) config: Config,
    /// The image that it all began with: name and digest.
    pub(crate) base: Option<(String, String)>,
}

/// Gives the stages that this one needs; waits for them.
pub(crate) trait Others: Sync {
    /// The stage of that number; `None` when the build failed elsewhere.
    fn stage(&self, index: usize) -> Option<Finished>;
}

/// A stage being built.
pub(crate) struct Run<'a> {
    pub(crate) work: &'a Work<'a>,
    pub(crate) plan: &'a Plan,
    pub(crate) stage: &'a Stage,
    pub(crate) others: &'a dyn Others,
    pub(crate) config: Config,
    pub(crate) layers: Vec<BuiltLayer>,
    pub(crate) arguments: BTreeMap<String, String>,
    base: Option<(String, String)>,
}

/// What an instruction came to.
pub(crate) enum Came {
    /// A change of the configuration alone.
    Config,
    /// A layer, and whether the cache had it.
    Layer(BuiltLayer, bool),
}

/// Builds a stage.
pub(crate) fn build(work: &Work<'_>, plan: &Plan, stage: &Stage, others: &dyn Others) -> Result<Finished> {
    let begun = begin(work, plan, stage, others).map_err(|e| e.at(&stage.place))?;
    let mut run = Run {
        work,
        plan,
        stage,
        others,
        config: begun.config,
        layers: begun.layers,
        arguments: BTreeMap::new(),
        base: begun.base,
    };
    for text in run.config.take_triggers() {
        let instruction = parse_trigger(&text, '\\')?;
        work.total.fetch_add(1, Ordering::Relaxed);
        run.step(&instruction)?;
    }
    for instruction in &stage.instructions {
        run.step(instruction)?;
    }
    Ok(Finished { layers: run.layers, config: run.config, base: run.base })
}

/// What a stage begins with.
fn begin(work: &Work<'_>, _plan: &Plan, stage: &Stage, others: &dyn Others) -> Result<Finished> {
    let info = info(work, stage, &stage.text, stage.place.line);
    let started = Instant::now();
    work.events.begins(&info);
    let result = match &stage.base {
        Base::Scratch => Ok(Finished { layers: Vec::new(), config: Config::scratch(&stage.platform), base: None }),
        Base::Stage(index) => others
            .stage(*index)
            .map(|other| Finished { config: other.config.inherited(), ..other })
            .ok_or(Error::Cancelled),
        Base::Image(name) => image(work, name, &stage.platform),
    };
    let end = if result.is_ok() { StepEnd::Done } else { StepEnd::Failed };
    work.events.ends(&info, end, started.elapsed());
    result
}

/// An image of the store, or of its source.
pub(crate) fn image(work: &Work<'_>, name: &str, platform: &Platform) -> Result<Finished> {
    // Steps work on folders.
    let store = &work.workshop.store().clone().for_folders();
    let name = &known(store, name)?;
    let one_at_a_time = work.obtaining.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let image = match work.options.pull {
        Pull::Always => match store.resolve(name)? {
            // What was made here has no source to ask.
            Some(image) if image.reference.starts_with("local:") => image,
            _ => store.refresh(name, work.progress)?,
        },
        Pull::Missing => store.obtain(name, work.progress)?,
        Pull::Never => store.resolve(name)?.ok_or_else(|| {
            Error::invalid(
                format!("image `{name}` is not in the store"),
                format!("`ilot image pull {name}` obtains it"),
            )
        })?,
    };
    drop(one_at_a_time);
    let (layers, configuration) = work.workshop.parts(&image)?;
    let mut config = Config::of(&configuration);
    if config.architecture() != platform.architecture {
        return Err(Error::invalid(
            format!("image `{name}` is for {}, and {platform} is wanted", config.architecture()),
            "name an image of that platform, or build for this one",
        ));
    }
    config.complete_history(layers.len());
    Ok(Finished { layers, config, base: Some((image.reference.clone(), image.digest.to_string())) })
}

/// A name as the store takes it. `ubuntu:24.04` is a registry's, as everywhere in Containerfiles, unless it was given here: the
/// server of that name is meant by `images:ubuntu/24.04`.
fn known(store: &ilot_image::Store, name: &str) -> Result<String> {
    let is_here = |name: &str| store.resolve(name).is_ok_and(|found| found.is_some());
    if !name.starts_with("ubuntu:") || is_here(&format!("local:{name}")) {
        return Ok(name.to_owned());
    }
    let mut meant = store.short_name(name)?;
    let here = meant.iter().position(|name| is_here(name)).unwrap_or(0);
    Ok(if meant.is_empty() { name.to_owned() } else { meant.swap_remove(here) })
}

fn info(work: &Work<'_>, stage: &Stage, text: &str, line: usize) -> StepInfo {
    StepInfo {
        number: work.begun.fetch_add(1, Ordering::Relaxed) + 1,
        total: work.total.load(Ordering::Relaxed),
        stage: stage.label(),
        text: text.to_owned(),
        line,
    }
}

impl Run<'_> {
    fn step(&mut self, instruction: &Instruction) -> Result<()> {
        if self.work.cancelled() {
            return Err(Error::Cancelled);
        }
        let info = info(self.work, self.stage, &instruction.text, instruction.place.line);
        let started = Instant::now();
        self.work.events.begins(&info);
        let result = self.perform(instruction, &info);
        let end = match &result {
            Ok(Came::Layer(_, true)) => StepEnd::Cached,
            Ok(_) => StepEnd::Done,
            Err(_) => StepEnd::Failed,
        };
        let result = result.and_then(|came| self.note(instruction, came)).map_err(|e| e.at(&instruction.place));
        self.work.events.ends(&info, end, started.elapsed());
        result
    }

    /// Adds what came of an instruction to the image.
    fn note(&mut self, instruction: &Instruction, came: Came) -> Result<()> {
        let text = self.created_by(instruction);
        match came {
            Came::Config => self.config.add_history(&text, self.created(), true),
            Came::Layer(layer, cached) => {
                self.work.hits.fetch_add(usize::from(cached), Ordering::Relaxed);
                self.layers.push(layer);
                self.config.add_history(&text, self.created(), false);
            }
        }
        Ok(())
    }

    /// When the newest layer was made: a build that finds everything in the cache gives the same image again.
    fn created(&self) -> Option<Timestamp> {
        let newest = self.layers.iter().filter_map(|layer| layer.created).max();
        match self.work.options.epoch.or(newest) {
            Some(seconds) => Timestamp::from_second(seconds).ok(),
            None => self.config.created(),
        }
    }

    /// What the history says of an instruction: values of arguments stay out, they may be secrets.
    fn created_by(&self, instruction: &Instruction) -> String {
        match &instruction.kind {
            Kind::Run { command, heredocs, .. } if heredocs.is_empty() => {
                format!("RUN {}", self.config.words(command).join(" "))
            }
            _ => instruction.text.clone(),
        }
    }

    pub(crate) fn lookup(&self, name: &str) -> Option<String> {
        self.config.variable(name).or_else(|| self.arguments.get(name).cloned())
    }

    pub(crate) fn word(&self, text: &str) -> Result<String> {
        words::word(text, self.plan.escape, &|name| self.lookup(name)).map_err(|e| mistake(text, &e))
    }

    fn words(&self, text: &str) -> Result<Vec<String>> {
        words::words(text, self.plan.escape, &|name| self.lookup(name)).map_err(|e| mistake(text, &e))
    }

    fn perform(&mut self, instruction: &Instruction, info: &StepInfo) -> Result<Came> {
        match &instruction.kind {
            Kind::Run { flags, command, heredocs } => return self.run(flags, command, heredocs, info),
            Kind::Copy(copy) => return self.copy(copy),
            Kind::Workdir(path) => return self.workdir(path),
            Kind::Arg(list) => self.declare(list)?,
            Kind::Env(list) => {
                // All of them see the values from before the instruction.
                let pairs = self.pairs(list)?;
                pairs.iter().for_each(|(name, value)| self.config.set_variable(name, value));
            }
            Kind::Label(list) => {
                let pairs = self.pairs(list)?;
                pairs.iter().for_each(|(name, value)| self.config.set_label(name, value));
            }
            Kind::User(user) => {
                let user = self.word(user)?;
                self.config.set_user(&user);
            }
            Kind::Entrypoint(command) => self.config.set_entrypoint(command),
            Kind::Cmd(command) => self.config.set_cmd(command),
            Kind::Expose(text) => {
                for port in self.words(text)? {
                    self.config.expose(&port).map_err(|message| {
                        Error::invalid(message, "`EXPOSE 80/tcp` only notes it: nothing is opened")
                    })?;
                }
            }
            Kind::Volume(list) => {
                for path in list {
                    let path = self.word(path)?;
                    if path.is_empty() {
                        return Err(Error::invalid("a volume has no path", "for example `VOLUME /var/lib/data`"));
                    }
                    self.config.add_volume(&path);
                }
            }
            Kind::Shell(words) => self.config.set_shell(words),
            Kind::Stopsignal(signal) => {
                let signal = self.word(signal)?;
                if ilot_native::signal_number(&signal).is_none() {
                    let help = "a number, or a name like `SIGTERM` or `SIGRTMIN+3`";
                    return Err(Error::invalid(format!("there is no signal `{signal}`"), help));
                }
                self.config.set_stop_signal(&signal);
            }
            Kind::Healthcheck(health) => self.config.set_health(health),
            Kind::Onbuild(text) => self.config.add_trigger(text),
            Kind::Maintainer(name) => {
                let name = self.word(name)?;
                self.config.set_author(&name);
            }
            Kind::From { .. } => {}
        }
        Ok(Came::Config)
    }

    fn pairs(&self, list: &[(String, String)]) -> Result<Vec<(String, String)>> {
        list.iter().map(|(name, value)| Ok((self.word(name)?, self.word(value)?))).collect()
    }

    fn declare(&mut self, list: &[(String, Option<String>)]) -> Result<()> {
        for (name, default) in list {
            let own = match default {
                Some(default) => Some(self.word(default)?),
                None => self.plan.globals.get(name).or_else(|| self.plan.automatic.get(name)).cloned(),
            };
            let given = self.work.options.arguments.get(name).cloned();
            let epoch = || (name == "SOURCE_DATE_EPOCH").then(|| self.work.options.epoch.map(|e| e.to_string()))?;
            if let Some(value) = given.or_else(epoch).or(own) {
                self.arguments.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    /// The environment of a step: the image's, arguments that it does not have, and what is not in the key.
    pub(crate) fn environment(&self) -> (Vec<String>, Vec<String>) {
        let mut env = self.config.env();
        if self.config.variable("PATH").is_none() {
            env.push(format!("PATH={}", crate::config::PATH));
        }
        for (name, value) in &self.arguments {
            if self.config.variable(name).is_none() && !PROXIES.contains(&name.as_str()) {
                env.push(format!("{name}={value}"));
            }
        }
        let proxies = PROXIES.iter().filter(|name| self.config.variable(name).is_none());
        let quiet =
            proxies.filter_map(|name| Some(format!("{name}={}", self.work.options.arguments.get(*name)?))).collect();
        (env, quiet)
    }

    fn workdir(&mut self, path: &str) -> Result<Came> {
        let path = absolute(&self.config.workdir(), &self.word(path)?);
        let shown = format!("/{}", String::from_utf8_lossy(&path));
        self.config.set_workdir(&shown);
        let mut key = self.work.key("workdir");
        key.on(&self.layers);
        key.add("path", &shown);
        let key = key.end();
        if let Some(layer) = self.work.cached(&key) {
            return Ok(Came::Layer(layer, true));
        }
        if self.tree()?.is_dir(&path) {
            return Ok(Came::Config);
        }
        let place = self.work.place(&self.layers)?;
        let root = self.work.mount(&place)?;
        self.work.target(&root).make_folder(&path, 0o755, None)?;
        drop(root);
        Ok(Came::Layer(self.work.pack(&place, &key, "WORKDIR")?, false))
    }

    /// The stage's files as they are now.
    pub(crate) fn tree(&self) -> Result<Tree> {
        self.work.tree(&self.layers, "the image".to_owned())
    }

    /// What `--from` names: a stage of the file, else an image.
    pub(crate) fn from(&self, name: &str) -> Result<(Vec<BuiltLayer>, Tree)> {
        let (layers, what) = match self.plan.find(name) {
            Some(index) if self.stage.needs.contains(&index) => {
                let other = self.others.stage(index).ok_or(Error::Cancelled)?;
                (other.layers, format!("stage `{name}`"))
            }
            Some(_) => {
                return Err(Error::invalid(format!("stage `{name}` is not built before this one"), "move it up"));
            }
            None => (image(self.work, name, &self.stage.platform)?.layers, format!("image `{name}`")),
        };
        let tree = self.work.tree(&layers, what)?;
        Ok((layers, tree))
    }
}

fn mistake(text: &str, error: &str) -> Error {
    Error::invalid(format!("`{text}`: {error}"), "see the rules of quotes and variables in docs/build.md")
}
