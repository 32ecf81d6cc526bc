//! Any files in any layout: the loader answers without a panic, and what it accepts is sound.
//!
//! The first byte chooses the layout; `\0` ends a file and begins the next.

#![no_main]

use std::collections::HashSet;
use std::path::PathBuf;

use ilot_spec::{HostFacts, Layout, Nesting, Role, SourceFile, Sources};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &str)| {
    let (choice, text) = input;
    let layout = [Layout::SingleFile, Layout::SplitDirectory, Layout::ProjectDirectory][usize::from(choice % 3)];
    let sources = sources(layout, text);
    let nesting = (choice & 4 != 0).then_some(Nesting { absolute_level: 2, relative_level: 1, vm_nested: choice & 8 != 0 });
    let host = HostFacts { cpus: 4, memory: 8 << 30, subnets: Vec::new(), nesting };
    let loaded = ilot_spec::parse(&sources, &host);
    assert_eq!(loaded.project.is_some(), loaded.errors.is_empty());
    for problem in loaded.errors.iter().chain(&loaded.warnings) {
        assert!(!problem.message.is_empty());
        if let Some(at) = &problem.at {
            assert!(sources.files.iter().any(|file| file.path == at.file) && at.line >= 1 && at.column >= 1);
        }
    }
    let Some(project) = &loaded.project else { return };
    let (mut addresses, mut names, mut subnets) = (HashSet::new(), HashSet::new(), HashSet::new());
    for domain in project.domains.values() {
        assert!(subnets.insert(domain.subnet), "{} twice", domain.subnet);
        for machine in &domain.machines {
            assert!(names.insert(machine.name.clone()), "{} twice", machine.name);
            if let Some(ip) = machine.ip {
                assert!(domain.subnet.contains(&ip) && ip != domain.gateway);
                assert!(addresses.insert(ip), "{ip} twice");
            }
            assert!(ilot_spec::explain(&loaded, machine.name.as_str()).is_some());
        }
    }
});

fn sources(layout: Layout, text: &str) -> Sources {
    let roles = [Role::Main, Role::Domains, Role::Policies, Role::Ilot, Role::Domains];
    let names = ["main.yml", "domains/pro.yml", "policies.yml", "ilot.yml", "domains/web.yml"];
    let files = text.split('\0').zip(roles.into_iter().zip(names)).map(|(text, (role, name))| SourceFile {
        path: PathBuf::from(name),
        role,
        text: text.to_owned(),
    });
    let mut files: Vec<SourceFile> = files.collect();
    if layout == Layout::SingleFile {
        files.truncate(1);
    }
    Sources { layout, root: "main.yml".into(), directory: Some("fuzz".into()), files, unreadable: Vec::new() }
}
