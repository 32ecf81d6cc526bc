//! Boots the machine of [`crate::vm_image`] in QEMU, hands it files, and takes its results.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::bench::checked;
use crate::vm_image::Image;

/// Room for what the machine says in the end. The file takes only what is written.
const RESULTS_SIZE: u64 = 64 << 20;

/// One boot.
pub struct Boot<'a> {
    /// What it is called in messages and files.
    pub name: &'a str,
    /// Path of process 1 in the machine.
    pub init: &'a str,
    /// A tar archive that is unpacked as `/ilot`.
    pub payload: &'a Path,
    /// Where files of this boot go: `console.log`, `results/`.
    pub dir: &'a Path,
    /// When it is stopped, finished or not.
    pub limit: Duration,
}

/// Boots and waits for the end; shows each line of the console that begins with `ilot: `. The results' directory.
///
/// # Errors
/// When the machine does not come to the end of its script, with the last lines of its console.
pub fn boot(image: &Image, boot: &Boot<'_>) -> Result<PathBuf, String> {
    let fail = |e: std::io::Error| format!("cannot prepare {}: {e}", boot.dir.display());
    let results = boot.dir.join("results");
    if boot.dir.exists() {
        fs::remove_dir_all(boot.dir).map_err(fail)?;
    }
    fs::create_dir_all(boot.dir).map_err(fail)?;
    let disk = boot.dir.join("results.img");
    File::create(&disk).and_then(|file| file.set_len(RESULTS_SIZE)).map_err(fail)?;
    let mut log = File::create(boot.dir.join("console.log")).map_err(fail)?;
    let mut machine = Machine(start(image, boot, &disk)?);
    let output = machine.0.stdout.take().ok_or("QEMU without its output")?;
    let (tell, lines) = channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if tell.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let end = Instant::now() + boot.limit;
    let mut last: Vec<String> = Vec::new();
    let mut done = false;
    let why = loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                writeln!(log, "{line}").map_err(fail)?;
                if let Some((_, said)) = line.split_once("ilot: ") {
                    done |= said.starts_with("done");
                    if !done {
                        println!("  {said}");
                    }
                }
                last.push(line);
            }
            Err(RecvTimeoutError::Timeout) => break format!("it was not done after {} s", boot.limit.as_secs()),
            Err(RecvTimeoutError::Disconnected) => break "it has ended before its tests have".to_owned(),
        }
    };
    drop(machine);
    let _ = reader.join();
    if !done {
        let tail = last.split_off(last.len().saturating_sub(20)).join("\n  ");
        return Err(format!("the machine `{}` failed: {why}; the end of its console:\n  {tail}", boot.name));
    }
    fs::create_dir_all(&results).map_err(fail)?;
    checked(Command::new("tar").arg("-xf").arg(&disk).arg("-C").arg(boot.dir))?;
    fs::remove_file(&disk).map_err(fail)?;
    Ok(results)
}

/// Emulated, never accelerated: `/dev/kvm` can be there and hang, and the results must not depend on it.
fn start(image: &Image, boot: &Boot<'_>, results: &Path) -> Result<Child, String> {
    let drive = |path: &Path, rest: &str| format!("file={},format=raw,if=virtio,{rest}", path.display());
    let words = format!(
        "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on audit=0 \
         systemd.show_status=false systemd.journald.forward_to_console=false ilot.init={}",
        boot.init
    );
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "2", "-m", "1024"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initramfs)
        .args(["-append", &words])
        .args(["-drive", &drive(&image.disk, "snapshot=on,cache=unsafe")])
        .args(["-drive", &drive(boot.payload, "readonly=on")])
        .args(["-drive", &drive(results, "cache=unsafe")])
        .env("TMPDIR", boot.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command.spawn().map_err(|e| format!("cannot run qemu-system-x86_64: {e}"))
}

/// A QEMU that does not outlive its use.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
