//! How long a project of 100 domains and 1000 machines takes to read, by phase. With a path as
//! argument the project's text is written there.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use ilot_spec::{HostFacts, Sources};

fn main() {
    let host = HostFacts { cpus: 64, memory: 256 << 30, ..HostFacts::default() };
    let text = project();
    if let Some(out) = std::env::args_os().nth(1) {
        let _ = std::fs::write(out, &text);
    }
    let sources = Sources::single("infra.yml", text.clone());
    let yaml = median(|| drop(std::hint::black_box(ilot_spec::yaml::parse(&text, 0))));
    let whole = median(|| {
        let loaded = ilot_spec::parse(&sources, &host);
        assert!(loaded.project.is_some(), "{:?}", loaded.errors);
    });
    println!("{} KiB, {} lines", text.len() >> 10, text.lines().count());
    for (phase, (median, best)) in [("yaml", yaml), ("whole", whole)] {
        println!("{phase:5} median {:6.2} ms, best {:6.2} ms", median.as_secs_f64() * 1e3, best.as_secs_f64() * 1e3);
    }
}

/// The median and the best.
fn median(mut run: impl FnMut()) -> (Duration, Duration) {
    let mut times: Vec<Duration> = (0..41)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort();
    (times[times.len() / 2], times[0])
}

fn project() -> String {
    let levels = ["admin", "trusted", "semi-trusted"];
    let mut text = String::from(
        "project_name: speed\nglobal:\n  addressing: {base_octet: 10, zone_base: 100}\n  resource_policy: {overcommit: true}\ndomains:\n",
    );
    for d in 0..100 {
        let level = levels[d % levels.len()];
        let _ = write!(
            text,
            "  dom{d:03}:\n    description: Domain number {d}\n    trust_level: {level}\n    profiles:\n      small:\n        config: {{limits.processes: \"500\"}}\n    machines:\n"
        );
        for m in 0..10 {
            let _ = write!(
                text,
                "      dom{d:03}-m{m}:\n        description: \"Machine {m} of domain {d}\"\n        type: lxc\n        profiles: [default, small]\n        weight: {}\n        config:\n          limits.memory: 128MiB\n          security.nesting: \"true\"\n        roles:\n          - base_system\n          - web\n        persistent_data:\n          home: {{path: /home/user}}\n",
                m + 1
            );
        }
    }
    text.push_str("network_policies:\n");
    for d in 1..100 {
        let _ = write!(
            text,
            "  - description: policy {d}\n    from: dom{:03}\n    to: dom{d:03}-m3\n    ports: [80, 443]\n",
            d - 1
        );
    }
    text
}
