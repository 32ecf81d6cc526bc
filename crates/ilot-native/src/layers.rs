//! An image's layers below a machine: as folders, or as EROFS images mounted once for each trust level.
//!
//! A mounted one is at `layers/<trust>/<layer>.<inode>` of the run directory. All machines of the level have it as a lower
//! layer, and so one page cache; another level has a file, a mount and inodes of its own. What no machine that runs needs
//! stays mounted for a while, with what is in memory of it, for one that comes soon; then the next command that stops,
//! removes or repairs one unmounts it, and `destroy` and the removal of images at once. After a restart of the host nothing
//! is left of it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ilot_image::{Digest, Form, Image, Lower, NativeLayer};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::Native;
use crate::actual::machine_records;
use crate::error::{Error, Result};
use crate::loops;
use crate::paths::make_dir;
use crate::record::MachineRecord;

/// How long a mount that nobody uses waits for somebody.
pub(crate) const IDLE: Duration = Duration::from_secs(600);
/// Beside a mount: when a machine was last started on it.
const USED: &str = "used";
/// What statfs(2) says of EROFS (`EROFS_SUPER_MAGIC_V1`).
const EROFS: u64 = 0xe0f5_e1e2;

/// The lower layers of a machine, top first. Mounted ones stay for as long as this is held, and for as long as the machine
/// runs after that.
#[derive(Debug)]
pub(crate) struct Layers {
    pub(crate) paths: Vec<PathBuf>,
    /// Keeps a collection of mounts away.
    _held: Option<File>,
}

impl Native {
    /// The image's layers for a machine.
    pub(crate) fn layers(&self, record: &MachineRecord, image: &Image) -> Result<Layers> {
        let trust = record.trust.as_str();
        if self.wants_native(image, trust)? {
            let held = self.hold_layers(FlockOperation::LockShared)?;
            match self.mounted(image, trust) {
                Ok(paths) => return Ok(Layers { paths, _held: held }),
                Err(Error::Mount { path, source }) => {
                    tracing::warn!(layer = %path.display(), %source, "cannot be mounted: unpacked instead");
                    // Known until the host starts with another kernel.
                    let _ = fs::write(self.cannot_mount(), source.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Layers { paths: self.images.materialize(image, trust)?, _held: None })
    }

    fn cannot_mount(&self) -> PathBuf {
        self.paths.run.join("layers.unsupported")
    }

    fn wants_native(&self, image: &Image, trust: &str) -> Result<bool> {
        let wanted = match self.images.form(image, trust)? {
            Form::Native => true,
            Form::Unpacked => false,
            Form::Auto => self.images.mounts_native(),
        };
        Ok(wanted && !self.cannot_mount().exists())
    }

    /// The lock that mounts are made and collected under; `None` when somebody has it, and it was not to be waited for.
    fn hold_layers(&self, how: FlockOperation) -> Result<Option<File>> {
        let path = self.paths.run.join("locks/layers");
        let file = File::options().create(true).append(true).open(&path).map_err(Error::file("open", &path))?;
        match flock(&file, how) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(Error::file("lock", &path)(e.into())),
        }
    }

    fn mounted(&self, image: &Image, trust: &str) -> Result<Vec<PathBuf>> {
        let silent = ilot_image::Silent;
        let lowers = match self.images.form(image, trust)? {
            Form::Native => self.images.native(image, trust, &silent)?.into_iter().map(Lower::Native).collect(),
            _ => self.images.lowers(image, trust, &silent)?,
        };
        let level = self.paths.run.join("layers").join(trust);
        let path = |lower: Lower| match lower {
            Lower::Folder(path) => Ok(path),
            Lower::Native(layer) => {
                make_dir(&level, 0o700)?;
                mount_once(&layer, &level)
            }
        };
        lowers.into_iter().map(path).collect()
    }

    /// Unmounts the layers that no running machine needs, and none was started on for as long as `idle`. Quick where there
    /// are none.
    ///
    /// # Errors
    /// When the run directory cannot be read. What is still in use stays for the next time.
    pub fn collect_layers(&self, idle: Duration) -> Result<()> {
        let root = self.paths.run.join("layers");
        let mut places = Vec::new();
        for level in entries(&root)? {
            let trust = level.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let all = entries(&level)?.into_iter().filter(|p| p.extension().is_none_or(|e| e != USED));
            for place in all.filter(|place| was_idle(place, idle)) {
                let layer = place.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                places.push((trust.clone(), layer, place));
            }
        }
        if places.is_empty() {
            return Ok(());
        }
        // A machine that starts just now has the lock: its own end, or another command, comes here again.
        let Some(_lock) = self.hold_layers(FlockOperation::NonBlockingLockExclusive)? else { return Ok(()) };
        for (name, record) in machine_records(&self.paths)? {
            // One whose state cannot be read may well run.
            if self.is_running(&name).unwrap_or(true)
                && let Ok(digest) = record.image_digest.parse::<Digest>()
            {
                let needed: BTreeSet<Digest> = self.images.layer_ids(&digest).unwrap_or_default().into_iter().collect();
                let is_needed = |layer: &str| needed.iter().any(|id| id.hex() == layer);
                places.retain(|(trust, layer, _)| trust != record.trust.as_str() || !is_needed(layer));
                if places.is_empty() {
                    return Ok(());
                }
            }
        }
        for (_, _, place) in places {
            forget(&place);
        }
        // Only what is empty.
        for level in entries(&root)? {
            let _ = fs::remove_dir(&level);
        }
        let _ = fs::remove_dir(&root);
        Ok(())
    }
}

/// Whether no machine was started on a mount for so long.
fn was_idle(place: &Path, idle: Duration) -> bool {
    let used = fs::metadata(beside(place)).and_then(|m| m.modified()).ok();
    // A time in the future is that of a clock that was put back.
    used.and_then(|used| used.elapsed().ok()).is_none_or(|since| since >= idle)
}

/// The file that says when a mount was last used.
fn beside(place: &Path) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(".");
    name.push(USED);
    PathBuf::from(name)
}

fn forget(place: &Path) {
    // Each mount on top of another, should two commands have made one.
    while is_mounted(place) {
        if let Err(error) = unmount(place, UnmountFlags::NOFOLLOW) {
            tracing::debug!(place = %place.display(), %error, "a layer stays mounted");
            return;
        }
    }
    if fs::remove_dir(place).is_ok() {
        let _ = fs::remove_file(beside(place));
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.flatten().map(|e| e.path()).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::file("read", folder)(e)),
    }
}

fn is_mounted(place: &Path) -> bool {
    rustix::fs::statfs(place).is_ok_and(|s| u64::try_from(s.f_type).is_ok_and(|t| t == EROFS))
}

fn mount_once(layer: &NativeLayer, level: &Path) -> Result<PathBuf> {
    // By its inode: a file that was made anew is another one, and those who are on the old one stay there.
    let inode = fs::metadata(&layer.file).map_err(Error::file("read", &layer.file))?.ino();
    let place = level.join(format!("{}.{inode}", layer.layer.hex()));
    let used = beside(&place);
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&used)
        .and_then(|file| file.set_modified(std::time::SystemTime::now()))
        .map_err(Error::file("write", &used))?;
    if is_mounted(&place) {
        return Ok(place);
    }
    // One at a time: two mounts of one file would be two page caches.
    let lock = File::open(level).map_err(Error::file("open", level))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| Error::file("lock", level)(e.into()))?;
    if !is_mounted(&place) {
        make_dir(&place, 0o700)?;
        mount(&layer.file, &place).map_err(|e| Error::Mount { path: layer.file.clone(), source: e.into() })?;
        ilot_image::let_go(&layer.file);
    }
    Ok(place)
}

/// Mounts an EROFS image: from the file itself (Linux 6.12), past the file's page cache (6.15), else by a loop device that
/// goes away with the mount.
fn mount(file: &Path, place: &Path) -> rustix::io::Result<()> {
    match mount_from(file, place, true).or_else(|_| mount_from(file, place, false)) {
        // Older kernels want a block device.
        Err(Errno::NOTBLK | Errno::INVAL | Errno::NODEV) => {
            let device = loops::attach(file)?;
            let done = mount_from(&device.path, place, false);
            drop(device);
            done
        }
        other => other,
    }
}

fn mount_from(source: &Path, place: &Path, direct: bool) -> rustix::io::Result<()> {
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", source)?;
    fsconfig_set_flag(context.as_fd(), "ro")?;
    if direct {
        fsconfig_set_flag(context.as_fd(), ilot_image::DIRECT)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(CWD, place, flags, Mode::empty())?;
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount.as_fd(), "", target.as_fd(), "", empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ilot_image::{Silent, Store};

    /// A native layer with one file, where this host can make one.
    fn layer(dir: &Path, trust: &str) -> Option<NativeLayer> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: needs root");
            return None;
        }
        let tree = dir.join("tree");
        // Once: written again it would be another image, by its time.
        if fs::create_dir(&tree).is_ok() {
            fs::write(tree.join("file"), "content").unwrap();
        }
        let store = Store::open(&dir.join("store")).unwrap();
        let image = store.obtain(&format!("dir:{}", tree.display()), &Silent).unwrap();
        Some(store.native(&image, trust, &Silent).unwrap().remove(0))
    }

    /// Runs with mounts of its own.
    fn apart(test: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let run = || {
                use rustix::mount::{MountPropagationFlags, mount_change};
                // SAFETY: this thread alone gets another view of the mounts, and ends with the closure.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
                mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
                test();
            };
            scope.spawn(run).join().unwrap();
        });
    }

    #[test]
    fn a_level_mounts_once_and_shares_nothing_with_another() {
        let dir = tempfile::tempdir().unwrap();
        let (Some(a), Some(b)) = (layer(dir.path(), "a"), layer(dir.path(), "b")) else { return };
        assert_ne!(fs::metadata(&a.file).unwrap().ino(), fs::metadata(&b.file).unwrap().ino());
        assert_eq!(a.digest, b.digest, "the same layer gives the same bytes");
        apart(|| {
            let levels = [dir.path().join("a"), dir.path().join("b")];
            levels.iter().for_each(|l| fs::create_dir(l).unwrap());
            let first = match mount_once(&a, &levels[0]) {
                Err(Error::Mount { source, .. }) => {
                    println!("SKIPPED: this kernel mounts no EROFS: {source}");
                    return;
                }
                other => other.unwrap(),
            };
            assert_eq!(mount_once(&a, &levels[0]).unwrap(), first);
            let second = mount_once(&b, &levels[1]).unwrap();
            assert_eq!(fs::read(first.join("file")).unwrap(), b"content");
            let device = |p: &Path| fs::metadata(p.join("file")).unwrap().dev();
            assert_ne!(device(&first), device(&second), "two superblocks");
            assert!(fs::write(first.join("file"), "x").is_err() && fs::write(first.join("new"), "x").is_err());
            let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            assert_eq!(mounts.lines().filter(|l| l.contains(&*first.to_string_lossy())).count(), 1);
            forget(&first);
            forget(&second);
            assert!(!first.exists() && !second.exists());
        });
    }

    #[test]
    fn a_loop_device_does_where_files_cannot_be_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let Some(layer) = layer(dir.path(), "a") else { return };
        apart(|| {
            let device = match loops::attach(&layer.file) {
                Ok(device) => device,
                Err(error) => {
                    println!("SKIPPED: no loop device here: {error}");
                    return;
                }
            };
            let place = dir.path().join("place");
            fs::create_dir(&place).unwrap();
            mount_from(&device.path, &place, false).unwrap();
            let path = device.path.clone();
            drop(device);
            assert_eq!(fs::read(place.join("file")).unwrap(), b"content");
            forget(&place);
            // Gone with its last user, a moment later where the kernel is busy.
            let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
            let backing = Path::new("/sys/block").join(path.file_name().unwrap()).join("loop/backing_file");
            let ours = |text: String| text.contains(&*dir.path().to_string_lossy());
            while fs::read_to_string(&backing).is_ok_and(ours) {
                assert!(std::time::Instant::now() < end, "the loop device stays");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        });
    }
}
