//! The same Containerfiles built by us and by buildah: the file systems and configurations that come of them, entry by
//! entry. Each difference that is allowed has its reason here and in docs/build.md.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use ilot_tests::{World, in_world, sh, skip};
use serde_json::{Value, json};

/// Name, options for both, and the text. `localhost/base` is busybox.
const FILES: &[(&str, &[&str], &str)] = &[
    (
        "metadata",
        &[],
        r#"
FROM localhost/base
LABEL one=1 two="two words" three='$none'
ENV A=1 B="b c" C=$A
ENV A=2 D=$A$B OLD_FORM=x
ENV LEGACY one two  three
EXPOSE 80 53/udp 8000-8002/tcp
VOLUME /data ["/x"]
VOLUME ["/v 1", "/v2"]
USER 12:34
WORKDIR /srv/app
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["echo hi"]
MAINTAINER somebody <x@example.org>
"#,
    ),
    (
        "shell-forms",
        &[],
        r#"
FROM localhost/base
SHELL ["/bin/sh", "-ec"]
CMD echo $HOME
ENTRYPOINT exec sleep 1
HEALTHCHECK --interval=5s --timeout=3s --start-period=1m --retries=4 CMD wget -q localhost || exit 1
RUN false || echo ok > /out
"#,
    ),
    ("cmd-reset", &[], "FROM localhost/base\nENTRYPOINT [\"/bin/echo\"]\n"),
    (
        "run",
        &[],
        r#"
FROM localhost/base
RUN echo one > /one && chmod 4755 /one && ln -s one /two && ln /one /three && mkdir -m 1777 /d && mkfifo /fifo
RUN ["/bin/sh", "-c", "chown 5:6 /d && rm /etc/profile && rm -r /srv && echo changed >> /etc/group"]
RUN mv /home /moved && mkdir /home && touch /home/new
USER www-data
RUN id -u > /tmp/id && touch /tmp/mine
WORKDIR /var/www
RUN pwd > /tmp/pwd; echo "$PATH" > /tmp/path
"#,
    ),
    (
        "arguments",
        &["--build-arg", "GIVEN=given", "--build-arg", "OVER=cli"],
        r#"
ARG GLOBAL=global
ARG OVER=file
FROM localhost/base
ARG GLOBAL
ARG GIVEN
ARG OVER
ARG DEFAULT=${GLOBAL:-x}-${NONE:-none}-${GIVEN:+set}
ENV KEEP=$OVER
ARG KEEP=lost
RUN echo "$GLOBAL $GIVEN $OVER $DEFAULT $KEEP" > /args
LABEL v="${DEFAULT}" w=${NONE:-fallback}
"#,
    ),
    (
        "stages",
        &[],
        r#"
FROM localhost/base AS one
RUN mkdir -p /a/b && echo 1 > /a/b/f && chown -R 7:8 /a && chmod 640 /a/b/f && ln -s b/f /a/link
FROM one AS two
RUN echo 2 > /a/two
FROM localhost/base
COPY --from=one /a /one
COPY --from=two /a/two /two
COPY --from=two --chown=1:2 /a/b /three/
COPY --from=1 /a/link /four
COPY --from=localhost/base /etc/passwd /five/
"#,
    ),
    (
        "scratch",
        &[],
        r#"
FROM localhost/base AS tools
FROM scratch
COPY --from=tools /bin/busybox /bin/busybox
COPY files/plain /plain
CMD ["/bin/busybox"]
"#,
    ),
    (
        "scratch-run",
        &[],
        r#"
FROM scratch
COPY --from=localhost/base /bin /bin
RUN echo hi > /hi
"#,
    ),
    (
        "copy-files",
        &[],
        r#"
FROM localhost/base
COPY files/plain /as
COPY files/plain /into/
COPY files/plain files/exec /several/
COPY files/*.txt /glob/
COPY files/[ab].txt /class/
COPY files/?.txt /one-letter/
COPY ["files/with blank", "/blank/"]
WORKDIR /work
COPY files/plain relative
COPY files/plain ./sub/
COPY files/plain /etc
COPY files/plain /bin/../up
"#,
    ),
    (
        "copy-folders",
        &[],
        r#"
FROM localhost/base
COPY files /dest
COPY files/ /dest2/
COPY files/deep /exists/a/b/c/
COPY . /all/
COPY files/deep/. /dot/
"#,
    ),
    (
        "copy-into-existing",
        &[],
        r#"
FROM localhost/base
RUN mkdir -m 700 -p /t/deep && echo old > /t/plain && echo stay > /t/deep/stay && chown 3:4 /t/deep && ln -s /etc /t/link
COPY files /t
COPY files/plain /t/link/through
"#,
    ),
    (
        "copy-links",
        &[],
        r#"
FROM localhost/base
RUN mkdir /real && ln -s /real /abs && ln -s real /rel && ln -s /nowhere/x /dangling
COPY files/plain /abs/one
COPY files/plain /rel/two
COPY files/link-to-plain /followed
COPY files/link-dir /linked-dir/
COPY links /links/
COPY files/plain /dangling
"#,
    ),
    (
        "copy-owner",
        &[],
        r#"
FROM localhost/base
COPY --chown=10:20 files /numbers
COPY --chown=www-data:users files/plain /names
COPY --chown=10:20 files/plain /new/folders/made
COPY --chmod=0600 files/exec /mode
COPY --chmod=755 files/deep /modes
COPY files/setuid /setuid
"#,
    ),
    (
        "ignored",
        &[],
        r#"
FROM localhost/base
COPY ignored /dest
"#,
    ),
    (
        "add",
        &[],
        r#"
FROM localhost/base
ADD tars/plain.tar /plain/
ADD tars/gz.tar.gz /gz/
ADD tars/xz.tar.xz /xz
ADD files/plain /file
ADD files /folder/
ADD --chown=9:9 files/exec /owned
ADD tars/broken.tar.gz /broken/
"#,
    ),
    (
        "continuations",
        &[],
        "FROM localhost/base\nRUN echo a \\\n  # a comment\n  b \\\n\n  c > /abc\nRUN echo \"x\\\ny\" > /xy\n",
    ),
    ("escape", &[], "# escape=`\nFROM localhost/base\nRUN echo a `\n  b > /ab\nENV P=c:\\d\n"),
    (
        "workdir",
        &[],
        r#"
FROM localhost/base
WORKDIR /a
WORKDIR b/c
ENV D=deep
WORKDIR $D/../x
RUN pwd > /pwd
WORKDIR /etc
"#,
    ),
    (
        "onbuild",
        &[],
        r#"
FROM localhost/base AS parent
ONBUILD RUN echo later > /later
ONBUILD COPY files/plain /p
RUN echo now > /now
FROM parent
RUN cat /later /p > /both
"#,
    ),
    (
        "mounts",
        &[],
        r#"
FROM localhost/base
RUN --mount=type=tmpfs,target=/t echo x > /t/x && ls /t > /seen
RUN --mount=type=bind,source=files,target=/m cat /m/plain > /plain
RUN --mount=type=bind,from=localhost/base,source=/etc,target=/m head -n 1 /m/passwd > /root-line
"#,
    ),
    ("xattrs", &[], "FROM localhost/base\nCOPY attrs /attrs\nRUN cp /attrs/file /copied\n"),
    (
        "whiteouts",
        &[],
        r#"
FROM localhost/base
RUN mkdir -p /w/a /w/b && touch /w/a/1 /w/b/2 /w/3
RUN rm -r /w/a && rm /w/3
RUN rm -r /w/b && mkdir /w/b && touch /w/b/new
RUN rm -r /w && echo file > /w
"#,
    ),
    (
        "platform",
        &["--platform", "linux/amd64"],
        r#"
FROM --platform=$TARGETPLATFORM localhost/base
ARG TARGETPLATFORM
ARG TARGETARCH
ARG BUILDOS
RUN echo $TARGETPLATFORM $TARGETARCH $BUILDOS > /p
"#,
    ),
    (
        "quotes",
        &[],
        r#"
FROM localhost/base
ENV A='single $PATH' B="double \"quoted\"" C=back\ slash D="x${PATH:+y}z"
LABEL "quoted key"="v" multi="a \
b"
RUN printf '%s\n' "$A" "$B" "$C" "$D" > /q
"#,
    ),
    (
        "inherited",
        &[],
        r#"
FROM localhost/base AS parent
ENV A=1
LABEL from=parent
USER 5:6
WORKDIR /parent
ENTRYPOINT ["/bin/parent"]
CMD ["of", "parent"]
EXPOSE 1
VOLUME /of-parent
STOPSIGNAL 9
FROM parent AS kept
ENV B=$A-2
LABEL from=child own=1
EXPOSE 2
FROM kept
ENTRYPOINT ["/bin/child"]
"#,
    ),
    (
        "variables-everywhere",
        &["--build-arg", "TAG=given"],
        r#"
ARG BASE=localhost/base
ARG TAG
FROM ${BASE} AS first
ARG TAG=default
ENV D=/dir U=7 P=90 S=SIGUSR1 N=name F=files/plain
WORKDIR ${D}/sub
COPY $F ${D}/copied
ADD ${F} ${D}/added
USER ${U}
EXPOSE ${P}/udp
STOPSIGNAL $S
VOLUME ${D}/vol
LABEL ${N}=${TAG} other="$N $UNSET"
FROM first
ARG TAG
ENV SEEN=$TAG
"#,
    ),
    (
        "argument-scopes",
        &["--build-arg", "SHARED=cli"],
        r#"
ARG SHARED=global
ARG ONLY=global-only
FROM localhost/base AS a
ARG SHARED
ARG LOCAL=a
RUN echo "$SHARED $LOCAL ${ONLY:-unset}" > /a
ENV LOCAL=env
RUN echo "$LOCAL" >> /a
FROM localhost/base
ARG ONLY
RUN echo "${SHARED:-unset} ${LOCAL:-unset} $ONLY" > /b
COPY --from=a /a /a
ARG LATER=$ONLY-later
RUN echo $LATER >> /b
"#,
    ),
    (
        "target",
        &["--target", "wanted"],
        "FROM localhost/base AS unneeded\nRUN false\nFROM localhost/base AS wanted\nRUN echo w > /w\nFROM wanted\nRUN false\n",
    ),
    (
        "users",
        &[],
        r#"
FROM localhost/base
RUN mkdir -m 777 /u
USER www-data
RUN id -u > /u/name; id -g >> /u/name
USER www-data:users
RUN id -u > /u/both; id -g >> /u/both
USER 1234
RUN id -u > /u/number; id -g >> /u/number
USER 1234:5678
RUN id -u > /u/numbers; id -g >> /u/numbers
COPY files/plain /u/copied
USER root
RUN echo "$HOME" > /u/home
"#,
    ),
    (
        "commands",
        &[],
        r#"
FROM localhost/base
RUN ["echo", "$HOME", "is not replaced"]
RUN echo 'one' && \
    echo "two" > /two; \
    test -s /two
ENTRYPOINT [ "sh" , "-c", "a \"quoted\" word", "\u00e9" ]
CMD [not json]
"#,
    ),
    (
        "spelling",
        &[],
        "# a comment\n\nfrom localhost/base as Base\n  # another\n\trun echo tab > /tab\nEnv a=b\nLABEL   x=y   z=1\nrun echo spaces   >   /spaces\n",
    ),
    ("windows-lines", &[], "FROM localhost/base\r\nRUN echo a > /a && \\\r\n  echo b > /b\r\nENV X=1\r\n"),
    (
        "health",
        &[],
        "FROM localhost/base AS one\nHEALTHCHECK --interval=2m CMD [\"true\"]\nFROM one\nHEALTHCHECK NONE\n",
    ),
    (
        "health-exec",
        &[],
        "FROM localhost/base\nHEALTHCHECK --timeout=1m30s --retries=2 CMD [\"/bin/test\", \"-e\", \"/x\"]\n",
    ),
    ("onbuild-kept", &[], "FROM localhost/base\nONBUILD ENV A=$B\nONBUILD LABEL x=\"y z\"\nONBUILD USER 5\n"),
    (
        "volumes",
        &[],
        r#"
FROM localhost/base
RUN mkdir /data && echo before > /data/before
VOLUME /data
VOLUME ["/more", "/and more"]
"#,
    ),
    (
        "cache-mounts",
        &[],
        r#"
FROM localhost/base
RUN --mount=type=cache,target=/c,id=peers-a echo kept > /c/file
RUN --mount=type=cache,target=/c,id=peers-a cat /c/file > /first
RUN --mount=type=cache,target=/other,id=peers-b,mode=0700 stat -c %a /other > /mode
RUN ls /c /other 2>/dev/null | wc -l > /left
"#,
    ),
    (
        "secrets",
        &["--secret", "id=mine,env=HOME"],
        r#"
FROM localhost/base
RUN --mount=type=secret,id=mine cat /run/secrets/mine > /seen
RUN --mount=type=secret,id=mine,target=/elsewhere,mode=0444 stat -c %a /elsewhere > /mode
RUN --mount=type=secret,id=absent ls /run/secrets > /none 2>&1 || true
RUN rm /none; ls /run > /run-is
"#,
    ),
    ("no-network", &[], "FROM localhost/base\nRUN --network=none ls /sys/class/net > /net\n"),
    (
        "copy-patterns",
        &[],
        r#"
FROM localhost/base AS from
RUN mkdir -p /src/one /src/two && echo 1 > /src/one/f.x && echo 2 > /src/two/f.x && echo 3 > /src/two/g.y
FROM localhost/base
COPY --from=from /src/*/f.x /flat/
COPY --from=from /src/t*/ /stars/
COPY --from=from /src/two/[fg].? /set/
COPY files/?.txt files/p* /mixed/
COPY files/deep files/exec /both/
COPY ./files/../files/plain /normal
COPY /files/plain /rooted
"#,
    ),
    (
        "copy-through-workdir-link",
        &[],
        r#"
FROM localhost/base
RUN mkdir -p /real/sub && ln -s /real /link && ln -s sub /real/rel
WORKDIR /link/rel
COPY files/plain here
COPY files/plain ../up
RUN pwd > /pwd && echo run > run
WORKDIR /link/new
"#,
    ),
    (
        "hard-links",
        &[],
        r#"
FROM localhost/base
COPY linked /linked
RUN ln /linked/a /linked/c && echo more >> /linked/a
RUN rm /linked/b
"#,
    ),
    (
        "names",
        &[],
        r#"
FROM localhost/base
COPY ["names/with blank", "/to here/"]
COPY names /names
RUN touch "/new é" '/dollar$x'
"#,
    ),
    (
        "file-for-folder-and-back",
        &[],
        r#"
FROM localhost/base
RUN mkdir /x && echo inside > /x/f && echo y > /y
RUN rm -r /x && echo file > /x && rm /y && mkdir /y && echo in > /y/f
RUN rm /x && ln -s y /x
COPY files/plain /x/through
"#,
    ),
    (
        "modes",
        &[],
        r#"
FROM localhost/base
ADD --chmod=0640 files/plain /added
COPY --chmod=0711 --chown=3:4 files/deep /deep
COPY --chmod=4755 files/exec /set
RUN chmod 2755 /deep && chmod 000 /added
"#,
    ),
    (
        "add-url",
        &[],
        r#"
FROM localhost/base
ADD http://SERVER/plain /as
ADD http://SERVER/plain /into/
ADD --chown=5:6 http://SERVER/a.txt /owned
ADD --chmod=0644 http://SERVER/a.txt /mode
ADD http://SERVER/gz.tar.gz /archive/
"#,
    ),
    (
        "add-archives",
        &[],
        r#"
FROM localhost/base
RUN mkdir -p /have/sub && echo old > /have/file && chown 1:1 /have
ADD tars/plain.tar /have
ADD tars/plain.tar tars/gz.tar.gz /two/
ADD --chown=8:9 tars/plain.tar /owned/
"#,
    ),
    (
        "heredocs",
        &[],
        r#"
FROM localhost/base
RUN <<END
echo one > /one
echo "$HOME" > /home-is
END
RUN <<'END' sh
echo two > /two
END
COPY <<A <<B /made/
text of a
A
text of b
B
ENV V=value
COPY <<"END" /quoted
$V
END
COPY <<END /replaced
$V
END
"#,
    ),
    (
        "copy-link",
        &[],
        "FROM localhost/base\nCOPY --link files/plain /linked/plain\nCOPY --link --chown=2:3 files/deep /deep\n",
    ),
];

/// What buildah knows only from a version on: files for which an older one says nothing.
const SINCE: &[(&str, (u32, u32))] = &[("heredocs", (1, 33)), ("copy-link", (1, 31)), ("no-network", (1, 33))];

/// What both have in their context.
const CONTEXT: &str = r#"
mkdir -p files/deep/er links ignored/keep ignored/drop attrs tars
echo plain > files/plain; printf '#!/bin/sh\n' > files/exec; chmod 755 files/exec
echo a > files/a.txt; echo b > files/b.txt; echo long > files/long.txt; echo blank > 'files/with blank'
echo deep > files/deep/file; echo deeper > files/deep/er/file; chmod 700 files/deep/er
ln -s plain files/link-to-plain; ln -s deep files/link-dir; echo s > files/setuid; chmod 4711 files/setuid
ln -s ../files/plain links/inside; ln -s nowhere links/broken; ln -s /etc/passwd links/absolute
touch ignored/a.o ignored/b.c ignored/keep/c.o ignored/drop/x ignored/keep/d
printf '**/*.o\nignored/drop\n!ignored/keep/c.o\n' > .dockerignore
echo attr > attrs/file
mkdir t; echo t > t/file; chmod 640 t/file; ln -s file t/link; mkdir t/sub; echo u > t/sub/u; ln t/file t/hard
chown 11:12 t/sub/u
tar -C t -cf tars/plain.tar .; tar -C t -czf tars/gz.tar.gz .; tar -C t -cJf tars/xz.tar.xz .
echo 'no archive' > tars/broken.tar.gz; rm -r t
touch -d '2020-01-02 03:04:05' files/plain
mkdir linked names; echo l > linked/a; ln linked/a linked/b; echo x > 'names/with blank'; echo x > names/é; echo x > 'names/a;b'
"#;

/// Paths that may differ, and why (docs/build.md, "Beside other builders").
const ALLOWED: &[(&str, &str, &str)] = &[
    ("*", "/setuid", "buildah takes set-id bits off what it copies; BuildKit and we keep them"),
    ("shell-forms", "Entrypoint", "buildah 1.28 keeps `/bin/sh -c` there whatever SHELL says"),
    ("shell-forms", "Cmd", "the same"),
    ("escape", "Env", "buildah 1.28 takes a backslash away although the escape is another character"),
    ("metadata", "ExposedPorts", "a range is written as its ports, as BuildKit does it; buildah keeps the range"),
    ("metadata", "/srv/app", "a WORKDIR that is made is root's, as in BuildKit; buildah gives it to USER"),
    ("inherited", "/parent", "the same"),
    (
        "add-archives",
        "/have/",
        "a folder that is there keeps its owner and mode, whatever the archive says of its root",
    ),
    ("add-archives", "/owned/", "a folder that is made for an archive is `--chown`'s; what is in it is the archive's"),
    ("volumes", "/more", "buildah makes folders of volumes; BuildKit and we do not"),
    ("volumes", "/and more", "the same"),
    ("secrets", "/run/secrets", "what is made for a step's mounts is taken away after it; buildah leaves it"),
    ("secrets", "/run-is", "the same, seen by a step after it"),
    ("scratch", "/", "buildah makes a root of nothing 0555; BuildKit and we 0755"),
    ("scratch-run", "/", "the same"),
    ("scratch-run", "/dev", "what is made for a step's mounts is taken away after it; buildah leaves it"),
    ("scratch-run", "/etc", "the same"),
    ("scratch-run", "/proc", "the same"),
    ("scratch-run", "/run", "the same"),
    ("scratch-run", "/sys", "the same"),
    ("stages", "/one", "a folder that a COPY makes is the copied one, owner and mode included, as in BuildKit"),
    ("copy-links", "/dangling", "a link that leads nowhere is replaced, as in BuildKit; buildah makes a folder of it"),
    ("copy-links", "/nowhere", "the same"),
];

fn has(tool: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(tool).exists())
}

/// buildah on storage of the test's own, steps in plain chroots: nothing of the host's is used.
struct Peer<'a> {
    world: &'a World,
    driver: &'static str,
}

impl Peer<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new("buildah");
        command
            .args(["--storage-driver", self.driver, "--root"])
            .arg(self.world.path("peer/root"))
            .arg("--runroot")
            .arg(self.world.path("peer/run"))
            .env("BUILDAH_ISOLATION", "chroot")
            .env("XDG_RUNTIME_DIR", self.world.path("peer"))
            .env("TMPDIR", self.world.path("peer/tmp"))
            .env_remove("SOURCE_DATE_EPOCH")
            .current_dir(self.world.path("context"));
        command
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.command().args(args).output().expect("run buildah");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "buildah {args:?}: {said}{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The files of an image.
    fn mounted(&self, image: &str) -> PathBuf {
        let container = self.ok(&["from", "--pull-never", image]);
        PathBuf::from(self.ok(&["mount", &container]))
    }
}

/// Everything that a path is, but its time.
fn entries(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut inodes: BTreeMap<u64, String> = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = format!("/{}", path.strip_prefix(root).unwrap().display());
        let kind = meta.file_type();
        let content = if kind.is_dir() {
            let mut names: Vec<PathBuf> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()).collect();
            names.sort();
            left.extend(names);
            "folder".to_owned()
        } else if kind.is_symlink() {
            format!("link to {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            let sum: u64 = bytes
                .iter()
                .fold(14_695_981_039_346_656_037, |h, b| (h ^ u64::from(*b)).wrapping_mul(1_099_511_628_211));
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).escape_debug().to_string();
            format!("file of {} bytes, {sum:x}: {start}", bytes.len())
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            format!("device {:x}", meta.rdev())
        };
        // Which names are one file: by the first of them.
        let same = match meta.nlink() > 1 && kind.is_file() {
            true => format!(" one file with {}", inodes.entry(meta.ino()).or_insert_with(|| name.clone())),
            false => String::new(),
        };
        let attributes = attributes(&path);
        let line = format!("{content}; {:o} {}:{}{attributes}{same}", meta.mode() & 0o7777, meta.uid(), meta.gid());
        all.insert(name, line);
    }
    all
}

fn attributes(path: &Path) -> String {
    let mut names = vec![0_u8; 4096];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names) else { return String::new() };
    let mut all: Vec<String> = Vec::new();
    // Marks of an overlay are the storage's that it was unpacked into, not the image's.
    let is_own =
        |n: &&[u8]| n.starts_with(b"user.") && !n.starts_with(b"user.overlay.") || *n == b"security.capability";
    for name in names[..length].split(|&b| b == 0).filter(is_own) {
        let mut value = vec![0_u8; 4096];
        let length = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value).unwrap();
        all.push(format!(" {}={:?}", String::from_utf8_lossy(name), &value[..length]));
    }
    all.sort();
    all.concat()
}

/// The part of a configuration that a container starts from.
fn config(image: &Value) -> Value {
    let own = &image["config"];
    let mut kept = json!({ "architecture": image["architecture"], "os": image["os"], "author": image["author"] });
    for key in [
        "Env",
        "Entrypoint",
        "Cmd",
        "Labels",
        "ExposedPorts",
        "Volumes",
        "WorkingDir",
        "User",
        "StopSignal",
        "Healthcheck",
        "Shell",
        "OnBuild",
    ] {
        let mut value = own[key].clone();
        if let Some(labels) = value.as_object_mut() {
            // buildah says who it is.
            labels.remove("io.buildah.version");
        }
        let nothing = value == json!("") || value == json!([]) || value == json!({}) || value.is_null();
        kept[key] = if nothing { Value::Null } else { value };
    }
    // No folder is the root.
    if kept["WorkingDir"] == "/" {
        kept["WorkingDir"] = Value::Null;
    }
    kept
}

fn differences(name: &str, theirs: &BTreeMap<String, String>, ours: &BTreeMap<String, String>) -> Vec<String> {
    let mut all: Vec<&String> = theirs.keys().chain(ours.keys()).collect();
    all.sort();
    all.dedup();
    let mut found = Vec::new();
    for path in all {
        let (their, our) = (theirs.get(path), ours.get(path));
        // `/x/` is the folder alone, without what is in it.
        let fits = |at: &str| match at.strip_suffix('/') {
            Some(alone) if !alone.is_empty() => path == alone,
            _ => path == at || (at.len() > 1 && path.starts_with(&format!("{at}/"))),
        };
        let allowed =
            ALLOWED.iter().any(|(file, at, _)| (*file == name && fits(at)) || (*file == "*" && path.ends_with(at)));
        if their != our && !allowed {
            found.push(format!("{name}: {path}\n  buildah: {their:?}\n  ilot:    {our:?}"));
        }
    }
    found
}

#[test]
fn the_same_as_buildah_makes_1() {
    compare(0);
}

#[test]
fn the_same_as_buildah_makes_2() {
    compare(1);
}

#[test]
fn the_same_as_buildah_makes_3() {
    compare(2);
}

/// `buildah version 1.28.2 (image-spec …)`
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(' ').nth(2).unwrap_or_default().split('.').map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Serves the context's `files` and archives over HTTP in this thread's network, until the test ends.
fn serve(context: &Path) -> std::net::SocketAddr {
    use std::io::{BufRead as _, BufReader, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let context = context.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { break };
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let asked = lines.next().unwrap_or_default();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let name = asked.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
            let body = ["files", "tars"].iter().find_map(|folder| fs::read(context.join(folder).join(&name)).ok());
            let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
            let body = body.unwrap_or_default();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nLast-Modified: Thu, 02 Jan 2020 03:04:05 GMT\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes());
            if !asked.starts_with("HEAD") {
                let _ = stream.write_all(&body);
            }
        }
    });
    address
}

/// A third of the files: the parts run side by side.
fn compare(part: usize) {
    if !has("buildah") {
        skip("needs `buildah`");
        return;
    }
    in_world(|world| {
        fs::create_dir_all(world.path("context")).unwrap();
        fs::create_dir_all(world.path("peer/tmp")).unwrap();
        sh(&format!("cd {}; {CONTEXT}", world.path("context").display()));
        let with_attributes = rustix::fs::lsetxattr(
            world.path("context/attrs/file"),
            "user.test",
            b"value",
            rustix::fs::XattrFlags::empty(),
        );
        if with_attributes.is_err() {
            eprintln!("no attributes on this file system: they are not compared");
        }
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        world.ilot(["image", "tag", "busybox", "localhost/base"]).ok();
        // Overlay where the file system bears it: copies of everything take their time.
        let mut peer = Peer { world, driver: "overlay" };
        if !peer.command().arg("info").output().is_ok_and(|output| output.status.success()) {
            peer.driver = "vfs";
        }
        // buildah makes a name of the path, and names have no capitals. The mount is seen by this test alone.
        sh(&format!("mount --bind {} /mnt", world.root().display()));
        let store = Path::new("/mnt");
        let base = peer.ok(&["pull", "-q", &format!("oci:{}:busybox", store.display())]);
        peer.ok(&["tag", &base, "localhost/base"]);
        let server = serve(&world.path("context"));
        let version = version(&peer.ok(&["--version"]));
        let mut found = Vec::new();
        let only = std::env::var("ILOT_BUILD_ONLY").ok();
        for (name, options, text) in FILES.iter().skip(part).step_by(3) {
            if only.as_deref().is_some_and(|only| only != *name) {
                continue;
            }
            if let Some((_, since)) = SINCE.iter().find(|(file, since)| file == name && version < *since) {
                skip(&format!("{name}: needs buildah {}.{}", since.0, since.1));
                continue;
            }
            let file = world.write(&format!("files/{name}"), &text.replace("SERVER", &server.to_string()));
            let file = file.to_str().unwrap();
            let theirs = format!("localhost/theirs-{name}");
            let mut args = vec!["bud", "-q", "--format", "docker", "--pull-never", "-t", &theirs, "-f", file];
            args.extend(*options);
            // The server is at this host's loopback, and the test has no other network.
            if *name == "add-url" {
                args.extend(["--network", "host"]);
            }
            args.push(".");
            peer.ok(&args);
            let ours = format!("ours-{name}");
            let mut args = vec!["image", "build", "-q", "--net", "none", "-t", &ours, "-f", file];
            args.extend(*options);
            args.push("context");
            world.ilot(args).ok();
            // buildah reads what we made, and unpacks both.
            let id = peer.ok(&["pull", "-q", &format!("oci:{}:local:{ours}", store.display())]);
            found.extend(differences(name, &entries(&peer.mounted(&theirs)), &entries(&peer.mounted(&id))));
            let their: Value = serde_json::from_str(&peer.ok(&["inspect", "--type", "image", &theirs])).unwrap();
            let our = &world.ilot(["image", "inspect", &ours]).ok().json()[0]["configuration"];
            let (their, our) = (config(&their["Docker"]), config(our));
            for (key, value) in our.as_object().unwrap() {
                let allowed = ALLOWED.iter().any(|(file, at, _)| file == name && at == key);
                if their[key] != *value && !allowed {
                    found.push(format!("{name}: {key}\n  buildah: {}\n  ilot:    {value}", their[key]));
                }
            }
        }
        peer.ok(&["umount", "--all"]);
        sh(&format!("umount /mnt; umount {} 2>/dev/null || true", world.path("peer/root/overlay").display()));
        assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
        world.assert_clean();
    });
}
