//! The stages of a Containerfile: what each begins with, what it needs of the others, and which are needed at all.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Place, Result};
use crate::parse::{File, Instruction, Kind};
use crate::platform::Platform;
use crate::words;

/// What a stage begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Base {
    /// Nothing.
    Scratch,
    Image(String),
    Stage(usize),
}

/// One stage.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) index: usize,
    pub(crate) name: Option<String>,
    pub(crate) base: Base,
    pub(crate) platform: Platform,
    pub(crate) place: Place,
    pub(crate) text: String,
    pub(crate) instructions: Vec<Instruction>,
    /// Stages that it begins with or copies from.
    pub(crate) needs: BTreeSet<usize>,
}

/// Everything that is to be built.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) escape: char,
    pub(crate) stages: Vec<Stage>,
    /// The stage that becomes the image.
    pub(crate) target: usize,
    /// The stages that it needs, itself among them.
    pub(crate) needed: BTreeSet<usize>,
    /// ARGs before the first FROM.
    pub(crate) globals: BTreeMap<String, String>,
    /// What says of the platforms and is there for every `ARG` that names it.
    pub(crate) automatic: BTreeMap<String, String>,
    /// Every name that an ARG has.
    pub(crate) declared: BTreeSet<String>,
}

/// What the user gave.
pub(crate) struct Given<'a> {
    pub(crate) arguments: &'a BTreeMap<String, String>,
    pub(crate) target: Option<&'a str>,
    pub(crate) platform: &'a Platform,
}

impl Stage {
    /// How it is called in messages.
    pub(crate) fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("stage-{}", self.index))
    }
}

fn at(place: &Place, message: impl Into<String>, help: impl Into<String>) -> Error {
    Error::At { place: Box::new(place.clone()), message: message.into(), help: Some(help.into()) }
}

pub(crate) fn plan(file: File, given: &Given<'_>) -> Result<Plan> {
    let mut automatic: BTreeMap<String, String> = given.platform.arguments("TARGET").into_iter().collect();
    automatic.extend(Platform::host().arguments("BUILD"));
    let mut plan = Plan {
        escape: file.escape,
        stages: Vec::new(),
        target: 0,
        needed: BTreeSet::new(),
        globals: BTreeMap::new(),
        automatic,
        declared: BTreeSet::new(),
    };
    for instruction in file.instructions {
        if let Kind::Arg(list) = &instruction.kind {
            plan.declared.extend(list.iter().map(|(name, _)| name.clone()));
        }
        match (&instruction.kind, plan.stages.is_empty()) {
            (Kind::From { .. }, _) => {
                let stage = plan.begin(instruction, given)?;
                plan.stages.push(stage);
            }
            (Kind::Arg(list), true) => plan.global(&instruction.place, list, given)?,
            _ => plan.add(instruction)?,
        }
    }
    plan.target = match given.target {
        None => plan.stages.len() - 1,
        Some(target) => plan.find(target).ok_or_else(|| {
            let names: Vec<String> = plan.stages.iter().filter_map(|s| s.name.clone()).collect();
            let help = if names.is_empty() {
                "no stage has a name; give it a number from 0 on".to_owned()
            } else {
                format!("there are {}", names.join(", "))
            };
            Error::invalid(format!("no stage `{target}`"), help)
        })?,
    };
    let mut left = vec![plan.target];
    while let Some(stage) = left.pop() {
        if plan.needed.insert(stage) {
            left.extend(&plan.stages[stage].needs);
        }
    }
    Ok(plan)
}

impl Plan {
    /// A stage by its name, the last one of that name, or by its number.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        let lower = name.to_ascii_lowercase();
        let named = self.stages.iter().rposition(|stage| stage.name.as_deref() == Some(&lower));
        named.or_else(|| name.parse().ok().filter(|index| *index < self.stages.len()))
    }

    fn lookup(&self, name: &str) -> Option<String> {
        self.globals.get(name).or_else(|| self.automatic.get(name)).cloned()
    }

    fn global(&mut self, place: &Place, list: &[(String, Option<String>)], given: &Given<'_>) -> Result<()> {
        for (name, default) in list {
            let value = match (given.arguments.get(name), default) {
                (Some(value), _) => Some(value.clone()),
                (None, Some(default)) => {
                    Some(words::word(default, self.escape, &|name| self.lookup(name)).map_err(|e| {
                        at(place, format!("`{default}`: {e}"), "see the rules of variables in docs/build.md")
                    })?)
                }
                (None, None) => None,
            };
            if let Some(value) = value {
                self.globals.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    fn begin(&self, instruction: Instruction, given: &Given<'_>) -> Result<Stage> {
        let Kind::From { image, platform, name } = instruction.kind else {
            return Err(at(&instruction.place, "no FROM", "begin with FROM"));
        };
        let place = instruction.place;
        let expand = |text: &str| {
            words::word(text, self.escape, &|name| self.lookup(name))
                .map_err(|e| at(&place, format!("`{text}`: {e}"), "an ARG that FROM uses stands before the first FROM"))
        };
        let wanted = expand(&image)?;
        if wanted.is_empty() {
            return Err(at(
                &place,
                format!("`{image}` is empty"),
                "an ARG that FROM uses stands before the first FROM and has a value, or gets one with `--build-arg`",
            ));
        }
        let platform = match platform {
            Some(text) => Platform::parse(&expand(&text)?).map_err(|e| e.at(&place))?,
            None => given.platform.clone(),
        };
        if let Some(name) = &name
            && self.stages.iter().any(|stage| stage.name.as_ref() == Some(name))
        {
            return Err(at(&place, format!("two stages are called `{name}`"), "give one of them another name"));
        }
        // A number is no stage here, as `FROM 0` never was one.
        let lower = wanted.to_ascii_lowercase();
        let base = match self.stages.iter().rposition(|stage| stage.name.as_deref() == Some(&lower)) {
            Some(index) => Base::Stage(index),
            None if wanted == "scratch" => Base::Scratch,
            None => Base::Image(wanted),
        };
        let needs = match base {
            Base::Stage(index) => [index].into(),
            _ => BTreeSet::new(),
        };
        let index = self.stages.len();
        Ok(Stage { index, name, base, platform, place, text: instruction.text, instructions: Vec::new(), needs })
    }

    /// Adds an instruction to the last stage, with the stages that it needs.
    fn add(&mut self, instruction: Instruction) -> Result<()> {
        let mut sources: Vec<String> = Vec::new();
        match &instruction.kind {
            Kind::Copy(copy) => {
                sources.extend(copy.flags.iter().filter(|f| f.name == "from").filter_map(|f| f.value.clone()));
            }
            Kind::Run { flags, .. } => {
                for flag in flags.iter().filter(|f| f.name == "mount") {
                    let parts = flag.value.as_deref().unwrap_or_default().split(',');
                    sources.extend(parts.filter_map(|p| p.trim().strip_prefix("from=")).map(str::to_owned));
                }
            }
            _ => {}
        }
        let current = self.stages.len() - 1;
        let mut needs = Vec::new();
        for source in sources {
            match self.find(&source) {
                Some(index) if index < current => needs.push(index),
                Some(_) => {
                    let help = "a stage copies from those before it; move that one up";
                    return Err(at(
                        &instruction.place,
                        format!("stage `{source}` does not come before this one"),
                        help,
                    ));
                }
                None => {}
            }
        }
        let stage = &mut self.stages[current];
        stage.needs.extend(needs);
        stage.instructions.push(instruction);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::parse;

    fn planned(text: &str, arguments: &[(&str, &str)], target: Option<&str>) -> Result<Plan> {
        let arguments = arguments.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let platform = Platform::parse("linux/arm64").unwrap();
        plan(parse("f", text)?, &Given { arguments: &arguments, target, platform: &platform })
    }

    #[test]
    fn only_what_the_target_needs() {
        let text = "ARG V=1\nARG IMAGE=x:$V\nFROM $IMAGE AS a\nFROM scratch AS b\nRUN --mount=from=a,target=/a x\n\
                    FROM b AS c\nFROM --platform=$BUILDPLATFORM y AS d\nCOPY --from=0 /x /\nFROM c\nCOPY --from=img /x /";
        let all = planned(text, &[], None).unwrap();
        assert_eq!(all.needed, [0, 1, 2, 4].into());
        assert_eq!(all.stages[0].base, Base::Image("x:1".into()));
        assert_eq!(all.stages[2].base, Base::Stage(1));
        assert_eq!(all.stages[3].platform, Platform::host());
        assert_eq!(all.stages[0].platform.architecture, "arm64");
        let d = planned(text, &[("V", "2")], Some("D")).unwrap();
        assert_eq!((d.target, d.needed), (3, [0, 3].into()));
        assert_eq!(d.stages[0].base, Base::Image("x:2".into()));
        assert_eq!(planned(text, &[], Some("1")).unwrap().target, 1);
    }

    #[test]
    fn mistakes() {
        for (text, part) in [
            ("FROM $none", "is empty"),
            ("FROM a AS x\nFROM b AS X", "two stages"),
            ("FROM a AS x\nCOPY --from=y a b\nFROM b AS y", ""),
            ("FROM a AS x\nCOPY --from=x a b", "does not come before"),
            ("FROM a AS x\nCOPY --from=0 a b", "does not come before"),
            ("FROM --platform=windows a", "is no platform"),
        ] {
            match planned(text, &[], None) {
                Ok(_) => assert_eq!(part, "", "{text}"),
                Err(error) => assert!(!part.is_empty() && error.to_string().contains(part), "{text}: {error}"),
            }
        }
        assert!(planned("FROM a AS x", &[], Some("z")).unwrap_err().help().unwrap().contains("there are x"));
    }
}
