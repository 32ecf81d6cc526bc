//! What a build is asked for, and what it tells while it runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ilot_image::Image;
use ilot_native::BuildNet;

/// Where the files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Context {
    /// A folder of the host.
    Folder(PathBuf),
    /// A repository of git (`https://….git#main:folder`), or an archive over HTTP.
    Address(String),
    /// Standard input: an archive, or a Containerfile and no files.
    Input,
}

/// Where the Containerfile is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileAt {
    /// `Containerfile`, else `Dockerfile`, in the context.
    Usual,
    /// A file: of the host, or below a context that came from elsewhere.
    Path(PathBuf),
    /// Standard input.
    Input,
}

/// Whether a base image is asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pull {
    /// When the store does not have it.
    Missing,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Something that steps may see and images must not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// The content of a file.
    File(PathBuf),
    /// The value of a variable of this process.
    Variable(String),
}

/// What a build is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the files come from.
    pub context: Context,
    /// Where the Containerfile is.
    pub file: FileAt,
    /// The image's names; none: it is reached by its digest.
    pub names: Vec<String>,
    /// `--build-arg`.
    pub arguments: BTreeMap<String, String>,
    /// The stage that becomes the image; the last one when not given.
    pub target: Option<String>,
    /// `linux/amd64`; this host's when not given.
    pub platform: Option<String>,
    /// By id.
    pub secrets: BTreeMap<String, Secret>,
    /// Sockets of ssh agents, by id.
    pub agents: BTreeMap<String, PathBuf>,
    /// Do every step anew.
    pub no_cache: bool,
    /// Whether base images are asked for again.
    pub pull: Pull,
    /// Labels over those of the file.
    pub labels: Vec<(String, String)>,
    /// Annotations of the manifest.
    pub annotations: Vec<(String, String)>,
    /// The network of the steps.
    pub net: BuildNet,
    /// Whether `RUN --security=insecure` may be.
    pub allow_insecure: bool,
    /// Whether `RUN --network=host` may be.
    pub allow_host_network: bool,
    /// `SOURCE_DATE_EPOCH`: the time that nothing in the image is newer than, in seconds since 1970.
    pub epoch: Option<i64>,
    /// How many steps run at once.
    pub jobs: usize,
}

/// A step of the build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepInfo {
    /// Its number, from 1, over all stages that are built.
    pub number: usize,
    /// How many there are.
    pub total: usize,
    /// Its stage's name.
    pub stage: String,
    /// The instruction.
    pub text: String,
    /// Where it stands.
    pub line: usize,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepEnd {
    /// It was done.
    Done,
    /// The cache had what it gives.
    Cached,
    /// It failed; the build's error says why.
    Failed,
}

/// Receives what happens. Stages are built side by side: calls come from several threads.
pub trait Events: Sync {
    /// A step begins.
    fn begins(&self, step: &StepInfo);
    /// A step's command wrote a line.
    fn output(&self, step: &StepInfo, line: &str);
    /// A step ended.
    fn ends(&self, step: &StepInfo, end: StepEnd, took: Duration);
    /// Something worth knowing.
    fn note(&self, text: &str);
    /// True when nobody wants the image any more.
    fn cancelled(&self) -> bool {
        false
    }
}

/// An image that was built.
#[derive(Debug, Clone)]
pub struct Built {
    /// It.
    pub image: Image,
    /// How many steps there were, and how many of them the cache had.
    pub steps: (usize, usize),
}
