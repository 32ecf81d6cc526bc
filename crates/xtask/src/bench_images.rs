//! Images: from a registry on loopback to the first process, unpacked and native, beside skopeo with umoci and podman; and 50
//! machines from one image.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::{Report, Series, Stand, Table, checked, rounds, said, timed};
use crate::bench_peers::{busybox_rootfs, installed};

/// Layers of the image, and what each has: together 500 MB, as an application's image has them.
const LAYERS: usize = 4;
const LAYER_BYTES: usize = 125_000_000;
/// Machines that are started from it.
const MACHINES: usize = 50;
/// Of those, how many read a layer from end to end.
const READERS: usize = 5;
const UNPACKED: &str = "ilot pull and run, unpacked";
const NATIVE: &str = "ilot pull and run, native";
const UMOCI: &str = "skopeo copy and umoci unpack";
const PODMAN: &str = "podman pull";

pub fn run(stand: &Stand) -> Result<Report, String> {
    let layout = make_image(&stand.dir.join("image"))?;
    let registry = Registry::start(stand)?;
    let name = format!("{}/bench:1", registry.address);
    checked(&mut stand.ilot(&["image", "import", layout.to_str().unwrap_or_default(), "bench"]))?;
    checked(&mut stand.ilot(&["image", "push", "-q", "bench", &name, "--tls-verify=false"]))?;
    let mut report = Report::default();
    report.tables.extend(pulls(stand, &registry, &name, &mut report.notes)?);
    report.tables.push(machines(stand, &name, &registry, &mut report.notes)?);
    Ok(report)
}

/// Each in turn, from an empty store each time: the clock, and the time of the CPUs.
fn pulls(stand: &Stand, registry: &Registry, name: &str, notes: &mut Vec<String>) -> Result<[Table; 2], String> {
    let new = || -> Vec<Series> { [UNPACKED, NATIVE, UMOCI, PODMAN].map(Series::new).into() };
    let (mut clock, mut cpu) = (new(), new());
    let has = |program: &str| installed(program).is_some();
    let versions: Vec<String> = ["skopeo", "umoci", "podman"]
        .into_iter()
        .map(|p| if has(p) { said(p, &["--version"]) } else { format!("{p} is not installed, and left out") })
        .collect();
    notes.push(versions.join("; "));
    let mut take = |which: usize, work: &dyn Fn() -> Result<(), String>| -> Result<(), String> {
        let (start, before) = (Instant::now(), children_cpu());
        work()?;
        clock[which].samples.push(start.elapsed());
        cpu[which].samples.push(children_cpu().saturating_sub(before));
        Ok(())
    };
    let dir = stand.dir.join("peer");
    for _ in 0..rounds(3) {
        for (which, form) in ["unpacked", "native"].into_iter().enumerate() {
            clean(stand)?;
            take(which, &|| ours(stand, registry, name, form))?;
        }
        clean(stand)?;
        if has("skopeo") && has("umoci") {
            fresh(&dir)?;
            let (from, to) = (format!("docker://{name}"), format!("oci:{}/layout:1", dir.display()));
            take(2, &|| {
                let insecure = ["--insecure-policy", "copy", "-q", "--src-tls-verify=false"];
                checked(Command::new("skopeo").args(insecure).args([&from, &to]))?;
                let image = dir.join("layout:1");
                checked(Command::new("umoci").args(["unpack", "--image"]).arg(image).arg(dir.join("bundle"))).map(drop)
            })?;
        }
        if has("podman") {
            fresh(&dir)?;
            take(3, &|| checked(podman(&dir).args(["pull", "-q", "--tls-verify=false", name])).map(drop))?;
            let _ = podman(&dir).args(["rmi", "-f", name]).output();
            let _ = Command::new("umount").arg(dir.join("r/overlay")).stderr(Stdio::null()).status();
        }
        fresh(&dir)?;
    }
    for (what, series) in [("clock", &clock), ("CPU", &cpu)] {
        let median = |s: &Series| s.median().as_secs_f64();
        let peers = series[2..].iter().filter(|s| !s.samples.is_empty()).map(median).fold(f64::INFINITY, f64::min);
        if peers.is_finite() {
            let (unpacked, native) = (median(&series[0]) / peers, median(&series[1]) / peers);
            notes.push(format!("{what}, against the faster peer: unpacked {unpacked:.2}, native {native:.2}"));
        }
    }
    notes.push("ours have started and ended a process by then, theirs have not".to_owned());
    let table = |title: &str, series| Table { title: title.to_owned(), base: Some(UMOCI.to_owned()), series };
    Ok([table("500 MB from a registry on loopback", clock), table("CPU time of the same, the registry's aside", cpu)])
}

/// What children of this process, and theirs, have taken of the CPUs (proc_pid_stat(5)).
fn children_cpu() -> Duration {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may have blanks: from the third field on. Ticks of 10 ms.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(13).take(2);
    Duration::from_millis(fields.filter_map(|f| f.parse::<u64>().ok()).sum::<u64>() * 10)
}

/// A pull, and the first process.
fn ours(stand: &Stand, registry: &Registry, name: &str, form: &str) -> Result<(), String> {
    let set = |mut command: Command| {
        command.env("ILOT_INSECURE_REGISTRIES", &registry.address).env("ILOT_LAYERS", form);
        checked(&mut command).map(drop)
    };
    set(stand.ilot(&["image", "pull", "-q", name]))?;
    set(stand.ilot(&["run", "--rm", "--net", "none", name, "true"]))
}

/// Nothing of the image is in the store, and nobody has to wait for what another one wrote.
fn clean(stand: &Stand) -> Result<(), String> {
    let store = stand.dir.join("store");
    if store.exists() {
        // Layers stay mounted for the next machine: this one is not to have them.
        checked(&mut stand.ilot(&["image", "prune", "-q"]))?;
        fs::remove_dir_all(&store).map_err(|e| format!("cannot remove {}: {e}", store.display()))?;
    }
    checked(Command::new("sync").arg("-f").arg(&stand.dir)).map(drop)
}

fn fresh(dir: &Path) -> Result<(), String> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(|e| format!("cannot remove {}: {e}", dir.display()))?;
    }
    fs::create_dir_all(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    checked(Command::new("sync").arg("-f").arg(dir)).map(drop)
}

fn podman(dir: &Path) -> Command {
    let mut command = Command::new("podman");
    for (flag, part) in [("--root", "r"), ("--runroot", "n"), ("--tmpdir", "t")] {
        command.arg(flag).arg(dir.join(part));
    }
    command.args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
    command
}

/// 50 machines of one trust level: how long, what disk, what page cache.
fn machines(stand: &Stand, name: &str, registry: &Registry, notes: &mut Vec<String>) -> Result<Table, String> {
    let mut series = Vec::new();
    for form in ["unpacked", "native"] {
        clean(stand)?;
        ours(stand, registry, name, form)?;
        let ilot = |args: &[&str]| {
            let mut command = stand.ilot(args);
            command.env("ILOT_LAYERS", form);
            command
        };
        let mut one = Series::new(&format!("one more machine, {form}"));
        let all = Instant::now();
        for i in 0..MACHINES {
            let machine = format!("bench-{i}");
            let args = ["run", "-d", "--net", "none", "--name", &machine, name, "sleep", "1000"];
            one.samples.push(timed(&mut ilot(&args))?);
        }
        let took = all.elapsed();
        let read = Instant::now();
        for i in 0..READERS {
            checked(&mut ilot(&["exec", &format!("bench-{i}"), "sh", "-c", "cat /data-0/* > /dev/null"]))?;
        }
        let read = read.elapsed();
        let (disk, cache, own) = (disk(&stand.dir.join("store")), cached(stand), processes(stand));
        notes.push(format!(
            "{MACHINES} machines, {form}: {:.2} s; layers and machines on the disk {} MB; after {READERS} of them read 125 MB \
             ({:.2} s) the page cache holds {} of the layers; keepers and processes {} MB of proportional memory",
            took.as_secs_f64(),
            disk >> 20,
            read.as_secs_f64(),
            cache.map_or("what fincore, which is not installed, would say".to_owned(), |c| format!("{} MB", c >> 20)),
            own >> 20,
        ));
        for i in 0..MACHINES {
            checked(&mut ilot(&["rm", "-f", &format!("bench-{i}")]))?;
        }
        series.push(one);
    }
    Ok(Table {
        title: format!("{MACHINES} machines from it"),
        base: Some("one more machine, unpacked".to_owned()),
        series,
    })
}

/// Bytes on the disk of layers and machines, blobs not counted.
fn disk(store: &Path) -> u64 {
    let sum = |part: &str| -> u64 {
        let text = checked(Command::new("du").args(["-s", "-B1"]).arg(store.join(part))).unwrap_or_default();
        text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    sum("layers") + sum("machines")
}

/// Bytes of layers in the page cache, mounted ones and the files behind them together.
fn cached(stand: &Stand) -> Option<u64> {
    installed("fincore")?;
    let script = "find \"$@\" -xdev -type f -size +0 -print0 2>/dev/null | xargs -0 -r fincore -b -n -r -o RES | awk '{s+=$1} END {printf \"%d\", s}'";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(stand.dir.join("store/layers"));
    // Each mount is a file system of its own.
    for level in fs::read_dir(stand.run_dir().join("layers")).into_iter().flatten().flatten() {
        command.args(fs::read_dir(level.path()).into_iter().flatten().flatten().map(|e| e.path()));
    }
    checked(&mut command).ok()?.trim().parse().ok()
}

/// Proportional memory of the keepers and of what the machines run.
fn processes(stand: &Stand) -> u64 {
    let names: Vec<String> = (0..MACHINES).map(|i| format!("bench-{i}")).collect();
    let mut args = vec!["inspect"];
    args.extend(names.iter().map(String::as_str));
    let text = checked(&mut stand.ilot(&args)).unwrap_or_default();
    let all: Value = serde_json::from_str(&text).unwrap_or_default();
    let pids =
        all.as_array().into_iter().flatten().flat_map(|m| [&m["pid"], &m["keeper_pid"]]).filter_map(Value::as_i64);
    pids.map(|pid| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = rollup.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap_or_default().to_owned();
        line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
    })
    .sum()
}

/// An OCI layout with one image of four gzip layers: busybox, and files of a hundred bytes to a megabyte.
fn make_image(dir: &Path) -> Result<PathBuf, String> {
    let fail = |e: std::io::Error| format!("cannot make the image in {}: {e}", dir.display());
    let (layout, blobs) = (dir.join("layout"), dir.join("layout/blobs/sha256"));
    fs::create_dir_all(&blobs).map_err(fail)?;
    let (mut layers, mut ids) = (Vec::new(), Vec::new());
    for i in 0..LAYERS {
        let tree = dir.join(format!("tree-{i}"));
        if i == 0 {
            let rootfs = busybox_rootfs(&tree)?;
            fs::rename(rootfs, dir.join("rootfs")).map_err(fail)?;
            fs::remove_dir_all(&tree).map_err(fail)?;
            fs::rename(dir.join("rootfs"), &tree).map_err(fail)?;
            for link in ["sh", "cat"] {
                std::os::unix::fs::symlink("busybox", tree.join("bin").join(link)).map_err(fail)?;
            }
        }
        fill(&tree.join(format!("data-{i}")), i as u64 + 1).map_err(fail)?;
        let plain = dir.join(format!("{i}.tar"));
        checked(
            Command::new("tar")
                .arg("-C")
                .arg(&tree)
                .args(["--sort=name", "--owner=0", "--group=0", "-cf"])
                .arg(&plain)
                .arg("."),
        )?;
        fs::remove_dir_all(&tree).map_err(fail)?;
        ids.push(format!("sha256:{}", sha256(&plain)?));
        checked(Command::new("gzip").arg("-6").arg("-n").arg(&plain))?;
        layers.push(blob(&dir.join(format!("{i}.tar.gz")), &blobs, "application/vnd.oci.image.layer.v1.tar+gzip")?);
    }
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let put = |name: &str, media: &str, value: &Value| {
        let path = dir.join(name);
        fs::write(&path, value.to_string()).map_err(fail)?;
        blob(&path, &blobs, media)
    };
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["true"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let config = put("config", "application/vnd.oci.image.config.v1+json", &config)?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
    let mut entry = put("manifest", kind, &manifest)?;
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string())
        .map_err(fail)?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).map_err(fail)?;
    Ok(layout)
}

fn sha256(path: &Path) -> Result<String, String> {
    let text = checked(Command::new("sha256sum").arg(path))?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

fn blob(path: &Path, blobs: &Path, media: &str) -> Result<Value, String> {
    let digest = sha256(path)?;
    let fail = |e: std::io::Error| format!("cannot move {}: {e}", path.display());
    let size = fs::metadata(path).map_err(fail)?.len();
    fs::rename(path, blobs.join(&digest)).map_err(fail)?;
    Ok(json!({"mediaType": media, "digest": format!("sha256:{digest}"), "size": size}))
}

/// Files as programs and their libraries compress: words of a small vocabulary among bytes of chance.
fn fill(dir: &Path, seed: u64) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words: Vec<[u8; 8]> = (0..4096).map(|_| random().to_le_bytes()).collect();
    let (mut left, mut number) = (LAYER_BYTES, 0);
    while left > 0 {
        let size = (100usize << (random() % 14)).min(left);
        let mut bytes = Vec::with_capacity(size + 8);
        while bytes.len() < size {
            let choice = random();
            if choice % 4 == 0 {
                bytes.extend(choice.to_le_bytes());
            } else {
                bytes.extend(words[(choice >> 20) as usize % 4096]);
            }
        }
        bytes.truncate(size);
        fs::File::create(dir.join(format!("file-{number:05}")))?.write_all(&bytes)?;
        left -= size;
        number += 1;
    }
    Ok(())
}

/// `ilot registry serve` on loopback, with a store of its own.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    fn start(stand: &Stand) -> Result<Self, String> {
        let mut command = stand.ilot(&["registry", "serve", "--json", "--listen", "127.0.0.1:0"]);
        command.env("ILOT_ROOT", stand.dir.join("registry")).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("cannot start the registry: {e}"))?;
        let mut line = String::new();
        if let Some(out) = child.stdout.as_mut() {
            let _ = BufReader::new(out).read_line(&mut line);
        }
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        match event["address"].as_str() {
            Some(address) => Ok(Self { address: address.to_owned(), child }),
            None => {
                let _ = child.kill();
                Err(format!("the registry does not listen: {line:?}"))
            }
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
