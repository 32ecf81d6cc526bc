//! COPY and ADD.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use crate::copy::{Target, absolute};
use crate::error::{Error, Result};
use crate::fetch;
use crate::ignore::Ignore;
use crate::mode::ModeChange;
use crate::parse::{Copy, Source as Asked};
use crate::stage::{Came, Run};
use crate::tree::{Item, Kind, Source, Tree, field, join, text};
use crate::words;
use crate::work::{Key, Users, make};

/// The options of a COPY or ADD.
#[derive(Debug, Default)]
struct How {
    from: Option<String>,
    owner: Option<(u32, u32)>,
    mode: Option<ModeChange>,
    link: bool,
    parents: bool,
    excluded: Ignore,
    checksum: Option<String>,
    keep_git: bool,
    unpack: Option<bool>,
}

/// Something to copy, found.
enum Part {
    /// Files of the context or of `--from`.
    Files { source: Source, items: Vec<Item> },
    /// What an archive holds, its owners and modes its own.
    Archive { tree: Tree, items: Vec<Item> },
    /// Files of a repository.
    Own { tree: Tree, items: Vec<Item> },
    /// A file whose content is at hand.
    Text { name: String, content: Vec<u8> },
    /// One file that was downloaded.
    File { name: String, tree: Tree, items: Vec<Item> },
}

impl Run<'_> {
    pub(crate) fn copy(&mut self, copy: &Copy) -> Result<Came> {
        let how = self.how(copy)?;
        let destination = self.word(&copy.destination)?;
        let from = how.from.as_deref().map(|name| self.from(name)).transpose()?;
        let tree = from.as_ref().map_or(self.work.context, |(_, tree)| tree);
        let mut parts = Vec::new();
        let mut many = copy.sources.len() > 1;
        for source in &copy.sources {
            let found = self.parts(copy, source, &how, tree)?;
            many |= found.len() > 1;
            parts.extend(found);
        }
        let inside = absolute(&self.config.workdir(), &destination);
        let into = destination.ends_with('/') || destination == "." || destination.ends_with("/.") || inside.is_empty();
        if many && !into {
            let help = format!("end it with a slash: `{destination}/`");
            return Err(Error::invalid(format!("several files cannot all become `{destination}`"), help));
        }
        let mut key = self.work.key(if copy.is_add { "add" } else { "copy" });
        if how.link {
            key.add("link", "");
        } else {
            key.on(&self.layers);
        }
        key.add("to", &text(&inside));
        key.add("how", &format!("{into} {} {:?} {:?}", how.parents, how.owner, how.mode));
        hash(&parts, tree, &mut key)?;
        let key = key.end();
        if let Some(layer) = self.work.cached(&key) {
            return Ok(Came::Layer(layer, true));
        }
        let place = self.work.place(if how.link { &[] } else { &self.layers })?;
        let root = self.work.mount(&place)?;
        let mut target = self.work.target(&root);
        (target.owner, target.mode) = (how.owner, how.mode.clone());
        for part in &parts {
            write(&target, part, tree, &inside, into, how.parents)?;
        }
        drop(root);
        Ok(Came::Layer(self.work.pack(&place, &key, if copy.is_add { "ADD" } else { "COPY" })?, false))
    }

    fn how(&self, copy: &Copy) -> Result<How> {
        let mut how = How::default();
        let mut excluded = String::new();
        for flag in &copy.flags {
            let value = self.word(flag.value.as_deref().unwrap_or("true"))?;
            let yes = || match value.as_str() {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(Error::invalid(format!("`--{}={value}` makes no sense", flag.name), "it is true or false")),
            };
            match flag.name.as_str() {
                "from" => how.from = Some(value),
                "chown" => how.owner = Some(self.owner(&value)?),
                "chmod" => {
                    let help = "write it like `755` or `u+x,go-w`";
                    let mode = ModeChange::parse(&value);
                    how.mode = Some(mode.ok_or_else(|| Error::invalid(format!("`{value}` is no mode"), help))?);
                }
                "link" => how.link = yes()?,
                "parents" => how.parents = yes()?,
                "exclude" => excluded.push_str(&format!("{value}\n")),
                "checksum" => how.checksum = Some(value),
                "keep-git-dir" => how.keep_git = yes()?,
                _ => how.unpack = Some(yes()?),
            }
        }
        how.excluded = Ignore::parse(&excluded);
        Ok(how)
    }

    fn owner(&self, owner: &str) -> Result<(u32, u32)> {
        let is_number = |text: &str| text.parse::<u32>().is_ok();
        if owner.split(':').all(is_number) {
            return Users::default().owner(owner);
        }
        Users::of(&self.tree()?).owner(owner)
    }

    /// What one source of the instruction stands for.
    fn parts(&self, copy: &Copy, source: &Asked, how: &How, tree: &Tree) -> Result<Vec<Part>> {
        let asked = match source {
            Asked::Heredoc(heredoc) => {
                let content = if heredoc.expand { self.heredoc(&heredoc.content)? } else { heredoc.content.clone() };
                return Ok(vec![Part::Text { name: heredoc.name.clone(), content: content.into_bytes() }]);
            }
            Asked::Path(path) => self.word(path)?,
        };
        if asked.is_empty() {
            let help = "a variable in it is not set; `.` is the whole context";
            return Err(Error::invalid("a source is empty", help));
        }
        if copy.is_add && how.from.is_none() {
            if let Some(repository) = fetch::repository(&asked) {
                return self.repository(&repository, how);
            }
            if fetch::is_url(&asked) {
                return self.download(&asked, how);
            }
        } else if fetch::is_url(&asked) && how.from.is_none() {
            return Err(Error::invalid("COPY takes files of the context", format!("download it with `ADD {asked}`")));
        }
        let mut parts = Vec::new();
        for source in tree.find(&asked)? {
            let items = tree.list(&source, &how.excluded)?;
            if copy.is_add && !source.is_dir && how.unpack != Some(false) && how.from.is_none() {
                let folder = self.work.folder("add")?;
                if let Some(item) = items.first().filter(|item| item.kind == Kind::File) {
                    let mut file = tree.read(item)?;
                    if may_be_archive(&mut file)? {
                        let path = folder.join("archive");
                        let mut out = File::create_new(&path).map_err(|e| Error::file("create", &path, e))?;
                        let mut file = tree.read(item)?;
                        std::io::copy(&mut file, &mut out).map_err(|e| Error::file("write", &path, e))?;
                        if let Some(part) = self.archive(&path, &folder, how, &asked)? {
                            parts.push(part);
                            continue;
                        }
                    }
                }
            }
            parts.push(Part::Files { source, items });
        }
        Ok(parts)
    }

    /// Variables of a heredoc: quotes mean nothing in it, the escape keeps a `$`.
    fn heredoc(&self, content: &str) -> Result<String> {
        words::heredoc(content, self.plan.escape, &|name| self.lookup(name)).map_err(|e| mistake(&e))
    }

    /// What an archive holds; `None`: it is none.
    fn archive(&self, path: &Path, folder: &Path, how: &How, name: &str) -> Result<Option<Part>> {
        let into = make(folder.join("unpacked"))?;
        // The archive may say nothing of its root.
        fs::set_permissions(&into, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(|e| Error::file("chmod", &into, e))?;
        if !self.work.workshop.unpack_archive(path, &into, &self.work.quiet())? {
            return Ok(None);
        }
        let mut tree = Tree::open(&into, format!("archive `{name}`"))?;
        tree.first_id = Some(0);
        let items = whole(&tree, &how.excluded)?;
        Ok(Some(Part::Archive { tree, items }))
    }

    fn download(&self, url: &str, how: &How) -> Result<Vec<Part>> {
        let folder = self.work.folder("add")?;
        let got = fetch::download(self.work.workshop, url, &folder, &self.work.quiet())?;
        if let Some(wanted) = &how.checksum
            && wanted.strip_prefix("sha256:").unwrap_or(wanted) != got.sha256
        {
            let message = format!("{url}: its content is sha256:{}, not {wanted}", got.sha256);
            return Err(Error::invalid(message, "somebody changed it: look before you change the checksum"));
        }
        if how.unpack == Some(true)
            && let Some(part) = self.archive(&got.path, &folder, how, url)?
        {
            return Ok(vec![part]);
        }
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&got.path, fs::Permissions::from_mode(0o600))
            .and_then(|()| File::options().write(true).open(&got.path))
            .and_then(|file| {
                let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(got.modified.max(0).unsigned_abs());
                file.set_modified(time)
            })
            .map_err(|e| Error::file("set the time of", &got.path, e))?;
        let tree = Tree::open(&folder, format!("`{url}`"))?;
        let source = tree.find("download")?.remove(0);
        let items = tree.list(&source, &Ignore::default())?;
        Ok(vec![Part::File { name: got.name, tree, items }])
    }

    fn repository(&self, repository: &fetch::Repository, how: &How) -> Result<Vec<Part>> {
        let folder = self.work.folder("git")?;
        let keep = how.keep_git && repository.folder.is_empty();
        fetch::check_out(repository, &folder, keep, &|| self.work.cancelled())?;
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(|e| Error::file("chmod", &folder, e))?;
        let tree = Tree::open(&folder, format!("repository `{}`", repository.url))?;
        let source = tree.find(&repository.folder)?.remove(0);
        let items = tree.list(&source, &how.excluded)?;
        Ok(vec![Part::Own { tree, items }])
    }
}

fn mistake(text: &str) -> Error {
    Error::invalid(format!("heredoc: {text}"), "quote its name (`<<'EOF'`) to have it as it is")
}

fn whole(tree: &Tree, excluded: &Ignore) -> Result<Vec<Item>> {
    let source = tree.find(".")?.remove(0);
    tree.list(&source, excluded)
}

/// Whether the first bytes are those of a compressed file or of a tar header: all others are not even copied aside.
fn may_be_archive(file: &mut File) -> Result<bool> {
    let mut start = Vec::new();
    let failed = |e| Error::file("read", Path::new("a file of the context"), e);
    file.take(512).read_to_end(&mut start).map_err(failed)?;
    let magic: [&[u8]; 4] = [b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"BZh"];
    let octal = |field: &[u8]| {
        let digits: Vec<u8> = field.iter().copied().filter(u8::is_ascii_digit).collect();
        u64::from_str_radix(std::str::from_utf8(&digits).ok()?, 8).ok()
    };
    let is_header = start.len() == 512 && {
        let sum: u64 =
            start.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u64::from(b) }).sum();
        octal(&start[148..156]) == Some(sum)
    };
    Ok(is_header || magic.iter().any(|magic| start.starts_with(magic)))
}

fn hash(parts: &[Part], tree: &Tree, key: &mut Key) -> Result<()> {
    for part in parts {
        match part {
            Part::Files { source, items } => {
                field(key.hash(), if source.is_dir { b"" } else { &source.name });
                field(key.hash(), &source.asked);
                tree.hash(items, key.hash())?;
            }
            Part::Archive { tree, items } | Part::Own { tree, items } => tree.hash(items, key.hash())?,
            Part::File { name, tree, items } => {
                field(key.hash(), name.as_bytes());
                tree.hash(items, key.hash())?;
            }
            Part::Text { name, content } => {
                field(key.hash(), name.as_bytes());
                field(key.hash(), content);
            }
        }
    }
    Ok(())
}

fn write(target: &Target<'_>, part: &Part, tree: &Tree, to: &[u8], into: bool, parents: bool) -> Result<()> {
    let is_folder = |path: &[u8]| {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        crate::tree::open_in(target.root, path, flags).is_ok()
    };
    // A file goes into a folder, or becomes the destination.
    let place = |name: &[u8]| -> Result<Vec<u8>> {
        if !into && !is_folder(to) {
            return Ok(to.to_vec());
        }
        if name.is_empty() {
            let help = "name the file that it becomes, without a slash at the end";
            return Err(Error::invalid("the address has no file name", help));
        }
        Ok(join(to, name))
    };
    match part {
        Part::Files { source, items } if parents => {
            let path = join(to, &source.asked);
            target.make_folder(to, 0o755, target.owner)?;
            target.copy(tree, items, &path)
        }
        Part::Files { source, items } if source.is_dir => {
            if into {
                target.make_folder(to, 0o755, target.owner)?;
            }
            target.copy(tree, items, to)
        }
        Part::Files { source, items } => target.copy(tree, items, &place(&source.name)?),
        // `--chown` and `--chmod` are for the folder that it goes into, as in other builders.
        Part::Archive { tree, items } => {
            target.make_folder(to, 0o755, target.owner)?;
            Target { owner: None, mode: None, ..*target }.copy(tree, items, to)
        }
        Part::Own { tree, items } => {
            target.make_folder(to, 0o755, target.owner)?;
            target.copy(tree, items, to)
        }
        Part::File { name, tree, items } => target.copy(tree, items, &place(name.as_bytes())?),
        Part::Text { name, content } => {
            let path = place(name.as_bytes())?;
            let mode = target.mode.as_ref().map_or(0o644, |change| change.apply(0o644, false));
            // Nothing says when it was written.
            target.write(&path, content, mode, target.now.unwrap_or(0))
        }
    }
}
