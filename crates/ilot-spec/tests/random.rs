//! Random projects and random bytes: what must hold for every file.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test that fails may panic")]

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;

use ilot_spec::{HostFacts, Loaded, Machine, Project, Sources, TrustLevel};
use proptest::prelude::*;

fn parse(text: &str) -> Loaded {
    ilot_spec::parse(
        &Sources::single("infra.yml", text),
        &HostFacts { cpus: 4, memory: 8 << 30, ..HostFacts::default() },
    )
}

/// A domain to be written: its level, `subnet_id`, whether it is enabled, and the explicit host of each machine.
#[derive(Debug, Clone)]
struct Plan {
    name: String,
    level: usize,
    id: Option<u8>,
    enabled: bool,
    hosts: Vec<Option<u8>>,
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        "[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,3})?",
        0_usize..5,
        proptest::option::weighted(0.3, 0_u8..=254),
        proptest::bool::weighted(0.8),
        proptest::collection::vec(proptest::option::weighted(0.2, 1_u8..=249), 0..8),
    )
        .prop_map(|(name, level, id, enabled, hosts)| Plan { name, level, id, enabled, hosts })
}

/// Plans that make a valid project: no name, no number of a zone and no host twice.
fn plans(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Plan>> {
    proptest::collection::vec(plan(), count).prop_map(|plans| {
        let (mut names, mut ids) = (HashSet::new(), HashSet::new());
        plans
            .into_iter()
            .filter(|p| names.insert(p.name.clone()))
            .map(|mut p| {
                if p.id.is_some_and(|id| !ids.insert((p.level, id))) {
                    p.id = None;
                }
                let mut hosts = HashSet::new();
                for host in &mut p.hosts {
                    if host.is_some_and(|h| !hosts.insert(h)) {
                        *host = None;
                    }
                }
                p
            })
            .collect()
    })
}

/// The file of the plans. Explicit addresses need the subnet, so they are only written with a `subnet_id`.
fn write(plans: &[Plan]) -> String {
    let mut text = String::from("project_name: random\nglobal: {}\ndomains:\n");
    if plans.is_empty() {
        text.insert_str(text.len() - 1, " {}");
    }
    for plan in plans {
        let level = TrustLevel::CHOICES[plan.level];
        write!(text, "  {}:\n    trust_level: {level}\n    enabled: {}\n", plan.name, plan.enabled).unwrap();
        if let Some(id) = plan.id {
            writeln!(text, "    subnet_id: {id}").unwrap();
        }
        text.push_str("    machines:\n");
        for (i, host) in plan.hosts.iter().enumerate() {
            write!(text, "      {}-m{i}: {{", plan.name).unwrap();
            if let (Some(id), Some(host)) = (plan.id, host) {
                let zone = 100 + ilot_spec::zone_offset(TrustLevel::parse(level).unwrap());
                write!(text, "ip: 10.{zone}.{id}.{host}").unwrap();
            }
            text.push_str("}\n");
        }
    }
    text
}

fn project(plans: &[Plan]) -> Result<Project, TestCaseError> {
    let text = write(plans);
    let loaded = parse(&text);
    prop_assert!(loaded.errors.is_empty(), "{:?}\n{text}", loaded.errors);
    Ok(loaded.project.unwrap())
}

fn machines(project: &Project) -> impl Iterator<Item = &Machine> {
    project.domains.values().flat_map(|d| &d.machines)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn addresses_are_sound(plans in plans(0..24)) {
        let project = project(&plans)?;
        let mut addresses = HashSet::new();
        let mut subnets = HashSet::new();
        for domain in project.domains.values() {
            prop_assert!(subnets.insert(domain.subnet), "{} twice", domain.subnet);
            let [a, b, _, host] = domain.gateway.octets();
            prop_assert_eq!((a, host), (10, 254));
            prop_assert_eq!(b, 100 + ilot_spec::zone_offset(domain.trust_level));
            for machine in &domain.machines {
                let ip = machine.ip.unwrap();
                prop_assert!(domain.subnet.contains(&ip), "{ip} not in {}", domain.subnet);
                prop_assert!(ip != domain.gateway);
                prop_assert!(addresses.insert(ip), "{ip} twice");
            }
        }
    }

    #[test]
    fn disabled_domains_hold_their_places(plans in plans(1..16), which in any::<prop::sample::Index>()) {
        let before = project(&plans)?;
        let mut toggled = plans.clone();
        let at = which.index(toggled.len());
        toggled[at].enabled = !toggled[at].enabled;
        let after = project(&toggled)?;
        for (a, b) in machines(&before).zip(machines(&after)) {
            prop_assert_eq!((&a.name, a.ip), (&b.name, b.ip));
        }
    }

    #[test]
    fn zones_do_not_touch_each_other(plans in plans(0..16), extra in plan(), at in any::<prop::sample::Index>()) {
        prop_assume!(plans.iter().all(|p| p.name != extra.name));
        let before = project(&plans)?;
        let mut more = plans.clone();
        let clash = plans.iter().any(|p| p.level == extra.level && p.id.is_some() && p.id == extra.id);
        let extra = Plan { id: extra.id.filter(|_| !clash), hosts: vec![None; extra.hosts.len()], ..extra };
        more.insert(at.index(plans.len() + 1), extra.clone());
        let after = project(&more)?;
        let places: BTreeMap<_, _> = machines(&after).map(|m| (m.name.clone(), m.ip)).collect();
        let level = TrustLevel::parse(TrustLevel::CHOICES[extra.level]).unwrap();
        for domain in before.domains.values().filter(|d| d.trust_level != level) {
            prop_assert_eq!(after.domains[&domain.name].subnet, domain.subnet);
            for machine in &domain.machines {
                prop_assert_eq!(places[&machine.name], machine.ip);
            }
        }
    }

    #[test]
    fn the_same_text_gives_the_same_answer(plans in plans(0..8)) {
        let text = write(&plans);
        prop_assert_eq!(parse(&text), parse(&text));
    }

    #[test]
    fn shares_never_exceed_the_host(weights in proptest::collection::vec(1_u32..50, 1..12), equal in any::<bool>()) {
        let mode = if equal { "equal" } else { "proportional" };
        let mut text = format!("project_name: r\nglobal: {{resource_policy: {{mode: {mode}}}}}\ndomains: {{a: {{machines: {{");
        for (i, weight) in weights.iter().enumerate() {
            write!(text, "m{i}: {{weight: {weight}}}, ").unwrap();
        }
        text.push_str("}}}\n");
        let loaded = parse(&text);
        let Some(project) = loaded.project else {
            // Only the least shares can add up to too much.
            prop_assert!(loaded.errors.iter().all(|e| e.message.starts_with("the machines take")), "{:?}", loaded.errors);
            return Ok(());
        };
        let memory: u64 = machines(&project).map(|m| m.limits.memory.unwrap()).sum();
        prop_assert!(memory <= (8 << 30) * 8 / 10);
        prop_assert!(machines(&project).all(|m| m.limits.memory.unwrap() >= 128 << 20));
        prop_assert!(machines(&project).all(|m| m.limits.cpu_allowance.is_some()));
    }

    #[test]
    fn random_text_never_panics(text in "\\PC{0,200}") {
        parse(&text);
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn random_yaml_never_panics(text in "([ ]{0,6}|\n|- |\\? |: |[a-z]{1,4}: |\\{|\\}|\\[|\\]|, |&a |\\*a|<<: |\\||>|'|\"|#|!!str |---\n|~|0|true|\t|\\\\|é){0,60}") {
        parse(&text);
    }

    #[test]
    fn damaged_files_never_panic(cut in 0_usize..2000, junk in "[ \\-:{}\\[\\]a\n\t\"'*&|>%@!#,?0]{0,4}") {
        let text = include_str!("../../../examples/teacher-lab/infra.yml");
        let at = (0..=cut.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        let end = text.char_indices().map(|(i, _)| i).find(|&i| i >= at + 3).unwrap_or(text.len());
        parse(&format!("{}{junk}{}", &text[..at], &text[end..]));
        parse(&text[..at]);
    }

    #[test]
    fn wrong_values_anywhere_are_told(
        key in prop::sample::select(vec![
            "enabled", "trust_level", "subnet_id", "ephemeral", "ai_provider", "ai_sanitize", "profiles", "machines", "description",
        ]),
        value in prop::sample::select(vec!["[1, 2]", "-7", "3.14", "\"true\"", "{a: {b: [c]}}"]),
    ) {
        let loaded = parse(&format!("project_name: r\nglobal: {{}}\ndomains: {{pro: {{{key}: {value}}}}}\n"));
        // Text is a description, a mapping of mappings may be profiles or machines: everything else is refused.
        let fits = key == "description" && value == "\"true\"" || matches!(key, "profiles" | "machines") && value.starts_with('{');
        prop_assert_eq!(loaded.errors.is_empty(), fits, "{} {} {:?}", key, value, loaded.errors);
        for error in &loaded.errors {
            prop_assert!(error.path.starts_with("domains.pro"), "{}", error.path);
            prop_assert!(error.at.as_ref().is_some_and(|at| at.line == 3), "{:?}", error.at);
        }
    }
}
