//! A Containerfile of ten steps, cold and with everything in the cache, beside buildah.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::bench::{Report, Series, Stand, Table, checked, rounds, said, timed};
use crate::bench_peers::installed;

/// Five commands, four copies and a folder on a base of busybox; `IMAGE` is its name for each.
const TEXT: &str = "FROM IMAGE\nWORKDIR /app\nCOPY files/a /app/a\nRUN echo one > one\nCOPY files/tree /app/tree\n\
    RUN find /app -type f | sort > list\nCOPY files/b /app/b\nRUN mkdir -p deep/er && cp a b deep/er\n\
    RUN i=0; while [ $i -lt 500 ]; do echo $i > deep/$i; i=$((i+1)); done\nCOPY files/c /app/c\nRUN rm -r deep && cat one\n\
    CMD [\"cat\", \"one\"]\n";

pub fn run(stand: &Stand) -> Result<Report, String> {
    let context = stand.dir.join("context");
    let write = |name: &str, bytes: &[u8]| {
        let path = context.join(name);
        let parent = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, bytes))
            .map_err(|e| format!("{}: {e}", path.display()))
    };
    for name in ["a", "b", "c"] {
        write(&format!("files/{name}"), &vec![b'x'; 256 << 10])?;
    }
    for number in 0..200 {
        write(&format!("files/tree/{number}"), number.to_string().as_bytes())?;
    }
    write("Containerfile", TEXT.replace("IMAGE", "busybox").as_bytes())?;
    write("Peer", TEXT.replace("IMAGE", "localhost/base").as_bytes())?;
    checked(&mut stand.ilot(&["image", "pull", "busybox"]))?;
    let folder = context.to_string_lossy().into_owned();
    let ilot = |options: &[&str]| {
        let mut command = stand.ilot(&["image", "build", "-q", "--net", "none", "-t", "app"]);
        command.args(options).arg(&folder);
        command
    };
    let buildah = |options: &[&str]| {
        let mut command = buildah(stand);
        command.args(["bud", "-q", "--layers", "--network", "none", "-t", "app", "-f"]).arg(context.join("Peer"));
        command.args(options).arg(&folder);
        command
    };
    let mut notes = Vec::new();
    let with_peer = match prepare(stand) {
        Ok(note) => {
            notes.push(note);
            true
        }
        Err(why) => {
            notes.push(format!("buildah was left out: {why}"));
            false
        }
    };
    let mut cold = [Series::new("buildah bud --layers --no-cache"), Series::new("ilot image build --no-cache")];
    let mut warm = [Series::new("buildah bud --layers"), Series::new("ilot image build")];
    for _ in 0..rounds(7) {
        if with_peer {
            cold[0].samples.push(timed(&mut buildah(&["--no-cache"]))?);
            warm[0].samples.push(timed(&mut buildah(&[]))?);
        }
        cold[1].samples.push(timed(&mut ilot(&["--no-cache"]))?);
        warm[1].samples.push(timed(&mut ilot(&[]))?);
    }
    let table = |title: &str, series: [Series; 2]| Table {
        title: title.to_owned(),
        base: Some(series[0].name.clone()),
        series: series.into(),
    };
    Ok(Report { tables: vec![table("ten steps, cold", cold), table("ten steps, all in the cache", warm)], notes })
}

/// buildah on storage of the bench's own.
fn buildah(stand: &Stand) -> Command {
    let mut command = Command::new("buildah");
    let driver = std::env::var("ILOT_BENCH_DRIVER").unwrap_or_else(|_| "overlay".to_owned());
    command
        .args(["--storage-driver", &driver, "--root"])
        .arg(stand.dir.join("peer/root"))
        .arg("--runroot")
        .arg(stand.dir.join("peer/run"))
        // Its lightest: no container at all around a step.
        .env("BUILDAH_ISOLATION", "chroot")
        .env("TMPDIR", &stand.dir)
        .env_remove("SOURCE_DATE_EPOCH");
    command
}

/// Gives buildah the same base image, and says what it is.
fn prepare(stand: &Stand) -> Result<String, String> {
    installed("buildah").ok_or("not installed")?;
    let layout = format!("oci:{}:busybox", stand.dir.join("store").display());
    let id = checked(buildah(stand).args(["pull", "-q", &layout]))?;
    checked(buildah(stand).args(["tag", id.trim(), "localhost/base"]))?;
    let version = said("buildah", &["--version"]);
    Ok(format!(
        "{version}: storage driver overlay, isolation chroot; ilot runs each step in a container of a user namespace"
    ))
}
