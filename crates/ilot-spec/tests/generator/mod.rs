//! Random valid projects, and random ways to write one down: order of keys, indentation, brackets, quotes, comments,
//! blank lines, equivalent spellings.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, missing_docs, reason = "a test that fails may panic")]

use std::collections::HashSet;

use ilot_spec::TrustLevel;
use proptest::prelude::*;

/// A value to be written.
#[derive(Debug, Clone)]
pub enum Tree {
    /// Equal spellings.
    Scalar(Vec<String>),
    /// Keys and values; whether their order means nothing.
    Map(Vec<(String, Tree)>, bool),
    /// A list.
    Seq(Vec<Tree>),
}

/// Small, seeded, good enough.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub fn below(&mut self, n: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        usize::try_from((word >> 33) % (n.max(1) as u64)).unwrap()
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn shuffle<T>(&mut self, of: &mut [T]) {
        for i in (1..of.len()).rev() {
            of.swap(i, self.below(i + 1));
        }
    }
}

fn text(text: &str) -> Tree {
    Tree::Scalar(vec![format!("\"{text}\""), format!("'{text}'")])
}

fn word(word: &str) -> Tree {
    Tree::Scalar(vec![word.to_owned(), format!("\"{word}\""), format!("'{word}'"), format!("!!str {word}")])
}

fn exactly(value: impl ToString) -> Tree {
    Tree::Scalar(vec![value.to_string()])
}

fn known(entries: Vec<(&str, Tree)>) -> Tree {
    Tree::Map(entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(), true)
}

/// A limit of `config`: text, number, or another unit.
fn limits(random: &mut Random) -> Tree {
    let sizes: [&[&str]; 4] = [
        &["2GiB", "2048MiB", "\"2GiB\"", "'2097152KiB'", "2147483648"],
        &["512MiB", "\"512MiB\"", "524288KiB"],
        &["1GB", "1000MB", "1000000kB", "\"1GB\""],
        &["256MiB", "268435456", "\"268435456\""],
    ];
    let list = |all: &[&str]| Tree::Scalar(all.iter().map(ToString::to_string).collect());
    let mut entries = Vec::new();
    if random.one_in(2) {
        entries.push(("limits.memory", list(random.pick(&sizes))));
    }
    if random.one_in(2) {
        entries.push(("limits.cpu", list(random.pick(&[&["4", "\"4\"", "'4'"] as &[&str], &["0-1", "\"0-1\""]]))));
    }
    if random.one_in(3) {
        entries.push(("limits.processes", list(&["100", "\"100\""])));
    }
    if random.one_in(3) {
        entries.push(("security.nesting", list(&["true", "\"true\""])));
    }
    known(entries)
}

/// A random valid project.
pub fn project(seed: u64) -> Tree {
    let random = &mut Random::new(seed);
    let (mut domains, mut names, mut machines) = (Vec::new(), HashSet::new(), Vec::new());
    for d in 0..random.below(6) {
        let name = format!("{}{d}", random.pick(&["pro", "lab", "x", "a-b", "0"]));
        if !names.insert(name.clone()) {
            continue;
        }
        let level = random.pick(TrustLevel::CHOICES);
        let mut entries = vec![("trust_level", word(level))];
        let id = random.one_in(2).then_some(100 + d);
        entries.extend(id.map(|id| ("subnet_id", exactly(id))));
        if random.one_in(3) {
            entries.push(("enabled", exactly(random.one_in(2))));
        }
        if random.one_in(2) {
            entries.push(("description", text(random.pick(&["Work", "a: b # c", "it is, [so] {it} is", ""]))));
        }
        if random.one_in(3) {
            entries.push(("ephemeral", exactly("true")));
        }
        let small = random.one_in(2);
        if small {
            let config = limits(random);
            let small = known(vec![("config", config), ("description", text("small"))]);
            entries.push(("profiles", Tree::Map(vec![("small".into(), small)], false)));
        }
        let mut all = Vec::new();
        for m in 0..random.below(5) {
            let machine = format!("{name}-m{m}");
            let address = id.filter(|_| random.one_in(3)).map(|id| {
                let zone = 100 + usize::from(ilot_spec::zone_offset(TrustLevel::parse(level).unwrap()));
                format!("10.{zone}.{id}.{}", 20 + m)
            });
            all.push((machine.clone(), self::machine(random, small, address)));
            machines.push(machine);
        }
        entries.push(("machines", Tree::Map(all, false)));
        domains.push((name, known(entries)));
    }
    let mut top = vec![("project_name", word("random")), ("global", global(random))];
    let mut policies = Vec::new();
    for _ in 0..if machines.is_empty() { 0 } else { random.below(4) } {
        let ports = random.pick(&["22", "80", "65535"]);
        let mut policy = vec![
            ("from", word(&random.pick(&machines))),
            ("to", word(random.pick(&["host", "internet"]))),
            ("ports", Tree::Seq(vec![exactly(ports), exactly(443)])),
        ];
        if random.one_in(2) {
            policy.push(("description", text("why: because")));
        }
        if random.one_in(2) {
            policy.push(("protocol", word("udp")));
        }
        policies.push(known(policy));
    }
    if !policies.is_empty() {
        top.push(("network_policies", Tree::Seq(policies)));
    }
    top.push(("domains", Tree::Map(domains, false)));
    known(top)
}

fn global(random: &mut Random) -> Tree {
    let mut entries = Vec::new();
    if random.one_in(2) {
        let octets = vec![("base_octet", exactly(10)), ("zone_base", exactly(100)), ("zone_step", exactly(10))];
        entries.push(("addressing", known(octets)));
    }
    if random.one_in(2) {
        entries.push(("default_os_image", word("busybox")));
    }
    if random.one_in(2) {
        entries.push(("gpu_policy", word("shared")));
    }
    known(entries)
}

fn machine(random: &mut Random, small: bool, address: Option<String>) -> Tree {
    let mut entries = Vec::new();
    entries.extend(address.map(|ip| ("ip", word(&ip))));
    if random.one_in(2) {
        entries.push(("description", text(random.pick(&["one", "- two", "#three", "{four"]))));
    }
    if random.one_in(2) {
        entries.push(("type", word("lxc")));
    }
    if random.one_in(2) {
        entries.push(("weight", Tree::Scalar(vec!["3".into(), "0x3".into(), "+3".into()])));
    }
    if random.one_in(3) {
        let profiles = if small { vec![word("default"), word("small")] } else { vec![word("default")] };
        entries.push(("profiles", Tree::Seq(profiles)));
    }
    if random.one_in(2) {
        entries.push(("config", limits(random)));
    }
    if random.one_in(3) {
        entries.push(("roles", Tree::Seq(vec![word("base_system"), word("web")])));
    }
    if random.one_in(4) {
        entries
            .push(("vars", Tree::Map(vec![("b".into(), exactly(1)), ("a".into(), Tree::Seq(vec![exactly(2)]))], true)));
    }
    known(entries)
}

/// Writes a tree down in one of many ways. Returns the text and its comments.
pub fn write(tree: &Tree, seed: u64) -> (String, Vec<String>) {
    let mut writer = Writer { random: Random::new(seed), text: String::new(), comments: Vec::new(), step: 1 };
    writer.step += writer.random.below(4);
    writer.own_comments(0);
    match tree {
        Tree::Map(entries, free) => writer.map(entries, *free, 0),
        other => panic!("{other:?}"),
    }
    writer.own_comments(0);
    writer.comments.sort();
    (writer.text, writer.comments)
}

struct Writer {
    random: Random,
    text: String,
    comments: Vec<String>,
    step: usize,
}

impl Writer {
    fn comment(&mut self) -> String {
        let word = self.random.pick(&["why", "a: b", "- x", "{", "\"", "it's", "été", "# #", "&a *b"]);
        let text = format!("# {} {word}", self.comments.len());
        self.comments.push(text.clone());
        text
    }

    fn own_comments(&mut self, indent: usize) {
        while self.random.one_in(5) {
            if self.random.one_in(3) {
                self.text.push('\n');
            }
            let indent = if self.random.one_in(6) { self.random.below(12) } else { indent };
            let comment = self.comment();
            self.text.push_str(&format!("{}{comment}\n", " ".repeat(indent)));
            if self.random.one_in(4) {
                self.text.push_str("  \n\n");
            }
        }
    }

    fn end_of_line(&mut self) {
        if self.random.one_in(5) {
            let spaces = 1 + self.random.below(3);
            let comment = self.comment();
            self.text.push_str(&format!("{}{comment}", " ".repeat(spaces)));
        } else if self.random.one_in(8) {
            self.text.push_str("  ");
        }
        self.text.push('\n');
    }

    fn order<'t>(&mut self, entries: &'t [(String, Tree)], free: bool) -> Vec<&'t (String, Tree)> {
        let mut entries: Vec<_> = entries.iter().collect();
        if free && self.random.one_in(2) {
            self.random.shuffle(&mut entries);
        }
        entries
    }

    fn key(&mut self, key: &str) -> String {
        match self.random.below(6) {
            0 => format!("\"{key}\""),
            1 => format!("'{key}'"),
            _ => key.to_owned(),
        }
    }

    fn map(&mut self, entries: &[(String, Tree)], free: bool, indent: usize) {
        for (key, value) in self.order(entries, free) {
            self.own_comments(indent);
            let key = self.key(key);
            self.text.push_str(&format!("{}{key}:", " ".repeat(indent)));
            self.value(value, indent, false);
        }
    }

    /// What stands behind a key or a dash.
    fn value(&mut self, value: &Tree, indent: usize, dash: bool) {
        let inner = indent + if dash { 2 } else { self.step };
        match value {
            Tree::Scalar(all) => {
                let spelled = self.random.pick(all);
                if !dash && self.random.one_in(10) {
                    self.end_of_line();
                    self.own_comments(inner);
                    self.text.push_str(&" ".repeat(inner));
                } else {
                    let spaces = 1 + self.random.below(2);
                    self.text.push_str(&" ".repeat(spaces));
                }
                self.text.push_str(&spelled);
                self.end_of_line();
            }
            Tree::Map(entries, _) if entries.is_empty() => {
                self.text.push_str(" {}");
                self.end_of_line();
            }
            Tree::Seq(items) if items.is_empty() => {
                self.text.push_str(" []");
                self.end_of_line();
            }
            _ if self.random.one_in(3) => {
                self.text.push(' ');
                self.flow(value, inner);
                self.end_of_line();
            }
            Tree::Map(entries, free) => {
                self.end_of_line();
                self.map(entries, *free, inner);
            }
            Tree::Seq(items) => {
                self.end_of_line();
                let inner = if dash || !self.random.one_in(3) { inner } else { indent };
                for item in items {
                    self.own_comments(inner);
                    self.text.push_str(&format!("{}-", " ".repeat(inner)));
                    self.value(item, inner, true);
                }
            }
        }
    }

    /// A break inside brackets, perhaps with a comment.
    fn flow_break(&mut self, indent: usize) {
        if self.random.one_in(8) {
            self.end_of_line();
            self.own_comments(indent);
            self.text.push_str(&" ".repeat(indent));
        } else if self.random.one_in(3) {
            self.text.push(' ');
        }
    }

    fn flow(&mut self, value: &Tree, indent: usize) {
        match value {
            Tree::Scalar(all) => {
                let spelled = self.random.pick(all);
                self.text.push_str(&spelled);
            }
            Tree::Map(entries, free) => {
                self.text.push('{');
                let entries = self.order(entries, *free);
                let count = entries.len();
                for (i, (key, value)) in entries.into_iter().enumerate() {
                    self.flow_break(indent);
                    let key = self.key(key);
                    self.text.push_str(&format!("{key}: "));
                    self.flow(value, indent);
                    self.flow_break(indent);
                    if i + 1 < count || self.random.one_in(5) {
                        self.text.push(',');
                    }
                }
                self.flow_break(indent);
                self.text.push('}');
            }
            Tree::Seq(items) => {
                self.text.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.flow_break(indent);
                    self.flow(item, indent);
                    self.flow_break(indent);
                    if i + 1 < items.len() || self.random.one_in(5) {
                        self.text.push(',');
                    }
                }
                self.flow_break(indent);
                self.text.push(']');
            }
        }
    }
}

/// Seeds of a project and of two ways to write it.
pub fn seeds() -> impl Strategy<Value = (u64, u64, u64)> {
    (any::<u64>(), any::<u64>(), any::<u64>())
}
