//! Images made of others: settings changed, files laid on top where the image's own links lead.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Place, Tar};
use ilot_image::{Changes, Image, Silent};

fn base(place: &Place) -> Image {
    let tar = Tar::new()
        .folder("usr/bin")
        .file("usr/bin/old", "old")
        .symlink("bin", "usr/bin")
        .symlink("deep", "/a/../bin")
        .symlink("round", "about")
        .symlink("about", "round")
        .symlink("away", "../../../../srv")
        .folder("srv")
        .file("etc/settings", "before")
        .end();
    place.store.obtain(place.write("base.tar", &tar).to_str().unwrap(), &Silent).unwrap()
}

fn copies(pairs: &[(&PathBuf, &str)]) -> Changes {
    let copies = pairs.iter().map(|(from, to)| ((*from).clone(), (*to).to_owned())).collect();
    Changes { copies, ..Changes::default() }
}

/// Paths of the image's top layer.
fn top(place: &Place, image: &Image) -> Vec<String> {
    let top = place.store.materialize(image, "trusted").unwrap().remove(0);
    let mut found = Vec::new();
    let mut left = vec![top.clone()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(&top).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn settings_change_and_files_lie_on_top() {
    let place = Place::new();
    let base = base(&place);
    let changes = Changes {
        env: vec!["A=1".to_owned(), "A=2".to_owned(), "SECRET=hidden".to_owned()],
        cmd: Some(vec!["serve".to_owned()]),
        entrypoint: Some(vec!["/bin/old".to_owned()]),
        labels: vec!["version=2".to_owned()],
        user: Some("7:7".to_owned()),
        working_dir: Some("/srv".to_owned()),
        ..Changes::default()
    };
    let image = place.store.derive(&base, &changes, "settings", &Silent).unwrap();
    assert_eq!(image.reference, "local:settings");
    let config = &image.config;
    assert!(config.env.contains(&"A=2".to_owned()) && !config.env.contains(&"A=1".to_owned()));
    assert!(config.env.iter().any(|e| e.starts_with("PATH=")), "what was there stays");
    assert_eq!(
        (config.cmd.as_slice(), config.entrypoint.as_slice()),
        (&["serve".to_owned()][..], &["/bin/old".to_owned()][..])
    );
    assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("7:7", "/srv"));
    let details = place.store.details("settings").unwrap();
    assert_eq!(details.configuration["config"]["Labels"]["version"], "2");
    assert_eq!(details.manifest["layers"].as_array().unwrap().len(), 1, "no layer for settings alone");
    let steps = place.store.history(&image).unwrap();
    assert!(steps[0].layer.is_none() && steps[1].layer.is_some(), "{steps:?}");
    assert!(steps[0].created_by.contains("--env SECRET") && !steps[0].created_by.contains("hidden"), "{steps:?}");
    // Files, in folders of the image that links lead to.
    let (file, folder) = (place.write("tool", b"tool"), place.path("tree"));
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::write(folder.join("bin/inside"), "inside").unwrap();
    fs::write(folder.join("page"), "page").unwrap();
    std::os::unix::fs::symlink("page", folder.join("link")).unwrap();
    let changes = copies(&[
        (&file, "/bin/"),
        (&file, "deep/renamed"),
        (&file, "etc/settings"),
        (&folder, "/"),
        (&folder, "away/new"),
    ]);
    let image = place.store.derive(&base, &changes, "files", &Silent).unwrap();
    let wanted = [
        "etc/settings",
        "link",
        "page",
        "srv/new/bin/inside",
        "srv/new/link",
        "srv/new/page",
        "usr/bin/inside",
        "usr/bin/renamed",
        "usr/bin/tool",
    ];
    assert_eq!(top(&place, &image), wanted);
    assert!(place.store.verify(&image, &Silent).unwrap().is_empty());
    let changed: Vec<_> = place.store.diff(&base, &image).unwrap().into_iter().map(|c| c.path).collect();
    assert!(changed.contains(&"/etc/settings".to_owned()) && !changed.contains(&"/bin".to_owned()), "{changed:?}");
    assert!(!changed.contains(&"/usr/bin/old".to_owned()) && !changed.contains(&"/srv".to_owned()), "{changed:?}");
    place.assert_clean();
}

#[test]
fn what_has_no_place_is_refused() {
    let place = Place::new();
    let base = base(&place);
    let file = place.write("tool", b"tool");
    let missing = place.path("missing");
    for (changes, wanted) in [
        (copies(&[(&missing, "/x")]), "missing"),
        (copies(&[(&file, "/etc/settings/x")]), "the image has a file at /etc/settings"),
        (copies(&[(&file, "/round/x")]), "leads in a circle"),
        (Changes { env: vec!["=x".to_owned()], ..Changes::default() }, "NAME=value"),
        (Changes { labels: vec!["x".to_owned()], ..Changes::default() }, "NAME=value"),
    ] {
        let error = place.store.derive(&base, &changes, "bad", &Silent).unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
        assert!(place.store.resolve("local:bad").unwrap().is_none());
        place.assert_clean();
    }
    assert!(place.store.derive(&base, &Changes::default(), "images:debian/13", &Silent).is_err());
    // Out of the image there is nothing: `..` ends at its root.
    let image = place.store.derive(&base, &copies(&[(&file, "../../../../escaped")]), "in", &Silent).unwrap();
    assert_eq!(top(&place, &image), ["escaped"]);
}
