//! Rules that take several parts of a project to judge.

use std::collections::HashSet;

use ipnet::IpNet;

use crate::address::with_machine_path;
use crate::cx::{Cx, Path};
use crate::egress::{EgressRule, EgressTarget};
use crate::model::{
    Backend, CpuLimit, Domain, Endpoint, GpuPolicy, HostFacts, Isolation, Machine, MachineType, Policy, TrustLevel,
};
use crate::names::Names;
use crate::policies::AI_DOMAIN;
use crate::read::{RawDomain, RawMachine, RawProject};
use crate::units;
use crate::yaml::Span;

/// Rules about single machines once profiles and inheritance are in.
pub(crate) fn machines(cx: &mut Cx<'_>, raw: &RawProject, domains: &[Domain], host: &HostFacts) {
    let (mut privileged, mut raw_keys) = (HashSet::new(), HashSet::new());
    for (raw, domain) in raw.domains.iter().zip(domains) {
        check_ipv6(cx, raw, domain);
        for (raw_machine, machine) in raw.machines.iter().zip(&domain.machines) {
            check_privileged(cx, raw, raw_machine, machine, host, &mut privileged);
            check_raw(cx, raw, raw_machine, machine, &mut raw_keys);
            check_container(cx, raw, raw_machine, domain, machine);
            check_amnesic(cx, raw, raw_machine, machine);
            check_ilot(cx, raw, raw_machine, domain, machine);
            check_cpus(cx, raw, raw_machine, machine, host);
        }
    }
    gpus(cx, raw, domains);
}

/// What may leave over IPv6 needs IPv6.
fn check_ipv6(cx: &mut Cx<'_>, domain: &RawDomain, built: &Domain) {
    if built.ipv6 {
        return;
    }
    let domain_block = [domain.ilot.egress.as_ref()];
    let machines = domain.machines.iter().map(|m| m.ilot.egress.as_ref());
    for egress in domain_block.into_iter().chain(machines).flatten() {
        let target = |text: &String| text.parse::<EgressRule>().ok().map(|rule| rule.target);
        let ipv6 = egress.value.iter().find(|text| matches!(target(text), Some(EgressTarget::Net(IpNet::V6(_)))));
        if let Some(text) = ipv6 {
            let (root, message) =
                (Path::Root, format!("`{text}` can never leave: the domain `{}` has no IPv6", domain.declared));
            cx.error(egress.span, &root.key("domains").key(&domain.declared).key("ilot"), message)
                .help("remove the entry, or `ipv6: false`");
        }
    }
}

/// A privileged container owns the host's kernel; only where that is a VM's may it be.
fn check_privileged(
    cx: &mut Cx<'_>,
    domain: &RawDomain,
    raw: &RawMachine,
    machine: &Machine,
    host: &HostFacts,
    told: &mut HashSet<(u32, u32, u32)>,
) {
    const KEY: &str = "security.privileged";
    let on = machine.config.get(KEY).and_then(|v| units::parse_config_bool(v)).unwrap_or(false);
    let below_vm = host.nesting.is_some_and(|n| n.vm_nested);
    if !on || machine.machine_type == MachineType::Vm || below_vm {
        return;
    }
    let of_profile = || machine.profiles.iter().rev().find_map(|p| domain.profiles.get(p)?.config.get(KEY));
    let Some(span) = raw.config.get(KEY).or_else(of_profile).map(|v| v.span) else { return };
    // A profile's line is told once, however many machines use it.
    if told.insert((span.file, span.line, span.column)) {
        let message = format!("the container `{}` must not be privileged: no VM stands above this host", raw.label());
        with_machine_path(domain, raw, "config", |path| {
            cx.error(span, &path.key(KEY), message)
                .help("use `type: vm`, or `security.nesting: \"true\"` if containers in it are all it needs");
        });
    }
}

/// `raw.*` is Incus's own language: nobody else can act on it.
fn check_raw(
    cx: &mut Cx<'_>,
    domain: &RawDomain,
    raw: &RawMachine,
    machine: &Machine,
    told: &mut HashSet<(u32, u32, u32)>,
) {
    if machine.backend == Backend::Incus {
        return;
    }
    for key in machine.config.keys().filter(|key| key.starts_with("raw.")) {
        let of_profile = || machine.profiles.iter().rev().find_map(|p| domain.profiles.get(p)?.config.get(key));
        let Some(span) = raw.config.get(key).or_else(of_profile).map(|v| v.span) else { continue };
        // A profile's line is told once, however many machines use it.
        if told.insert((span.file, span.line, span.column)) {
            let message = format!("`{key}` is refused: it goes past ilot to one engine's own configuration");
            with_machine_path(domain, raw, "config", |path| {
                cx.error(span, &path.key(key), message).help(
                    "remove it, or run the machine with `ilot: {backend: incus}`; `limits.*`, `security.*` and `devices` \
                     say the same for every engine",
                );
            });
        }
    }
}

fn check_container(cx: &mut Cx<'_>, domain: &RawDomain, raw: &RawMachine, built: &Domain, machine: &Machine) {
    let open = matches!(built.trust_level, TrustLevel::Untrusted | TrustLevel::Disposable);
    let shared_kernel = machine.machine_type == MachineType::Lxc
        && !matches!(machine.isolation, Isolation::Hardware | Isolation::Cryptographic);
    if open && shared_kernel {
        let message = format!(
            "the machine `{}` of the {} domain `{}` is a container: it shares the host's kernel",
            raw.label(),
            built.trust_level,
            domain.declared
        );
        with_machine_path(domain, raw, "type", |path| {
            cx.warning(raw.span, path, message).help("use `type: vm`, or `ilot: {isolation: hardware}`");
        });
    }
}

fn check_amnesic(cx: &mut Cx<'_>, domain: &RawDomain, raw: &RawMachine, machine: &Machine) {
    if !machine.amnesic {
        return;
    }
    for (name, volume) in &raw.persistent {
        if !volume.value.readonly {
            let message =
                format!("the amnesic machine `{}` cannot write to the persistent volume `{name}`", raw.label());
            with_machine_path(domain, raw, "persistent_data", |path| {
                cx.error(volume.span, &path.key(name), message).help("add `readonly: true`, or remove `amnesic`");
            });
        }
    }
}

fn check_ilot(cx: &mut Cx<'_>, domain: &RawDomain, raw: &RawMachine, built: &Domain, machine: &Machine) {
    if let Some(command) = &raw.ilot.command
        && machine.machine_type == MachineType::Vm
    {
        with_machine_path(domain, raw, "ilot", |path| {
            cx.warning(command.span, &path.key("command"), "a VM boots its own system: `command` has no effect")
                .help("remove it, or use `type: lxc`");
        });
    }
    let span = raw.ilot.preload.as_ref().or(domain.ilot.preload.as_ref()).map(|p| p.span);
    if let Some(span) = span
        && machine.preload > 0
        && built.trust_level != TrustLevel::Disposable
        && !machine.ephemeral
    {
        let message = format!("`preload` keeps copies of disposable machines, and `{}` is protected", raw.label());
        with_machine_path(domain, raw, "ilot", |path| {
            cx.warning(span, &path.key("preload"), message).help("set `ephemeral: true`, or remove `preload`");
        });
    }
}

fn check_cpus(cx: &mut Cx<'_>, domain: &RawDomain, raw: &RawMachine, machine: &Machine, host: &HostFacts) {
    let Some(CpuLimit::Set(set)) = &machine.limits.cpu else { return };
    let highest = units::set_cpus(set).1;
    if host.cpus > 0 && highest >= host.cpus {
        let span = raw.config.get("limits.cpu").map_or(raw.span, |v| v.span);
        let message = format!("`{}` is to run on CPU {highest}, but this host has {} CPUs", raw.label(), host.cpus);
        with_machine_path(domain, raw, "config", |path| {
            cx.warning(span, &path.key("limits.cpu"), message)
                .help("CPUs are counted from 0; write a count to use any of them");
        });
    }
}

/// Whether the machine has a GPU: of its own, or by a device of it or of its profiles.
fn has_gpu(machine: &Machine) -> bool {
    machine.gpu || machine.devices.values().any(|d| d.get("type").is_some_and(|t| t == "gpu"))
}

fn gpus(cx: &mut Cx<'_>, raw: &RawProject, domains: &[Domain]) {
    let policy = raw.global.gpu_policy.map_or(GpuPolicy::Exclusive, |p| p.value);
    let mut first: Option<(&RawMachine, Span)> = None;
    let mut labels = Vec::new();
    for (domain, built) in raw.domains.iter().zip(domains).filter(|(d, _)| d.enabled) {
        for (machine, _) in domain.machines.iter().zip(&built.machines).filter(|(_, m)| has_gpu(m)) {
            labels.push(machine.label());
            let span = machine.gpu.filter(|g| g.value).map_or(machine.span, |g| g.span);
            match first {
                None => first = Some((machine, span)),
                Some((other, place)) if policy == GpuPolicy::Exclusive => {
                    let message =
                        format!("the machine `{}` has a GPU, and so has `{}`", machine.label(), other.label());
                    with_machine_path(domain, machine, "gpu", |path| {
                        cx.clash(span, path, message, place, "the first one")
                            .help("keep it in one machine, or set `gpu_policy: shared`");
                    });
                }
                Some(_) => {}
            }
        }
    }
    if let (GpuPolicy::Shared, true, Some(at)) = (policy, labels.len() > 1, raw.global.gpu_policy) {
        let message = format!(
            "{} machines share the GPU, and can read each other's memory on it: {}",
            labels.len(),
            crate::cx::list(&labels)
        );
        let root = crate::cx::Path::Root;
        cx.warning(at.span, &root.key("global").key("gpu_policy"), message)
            .help("keep it in one machine if that matters");
    }
}

/// Rules about names that machines mention, and about machines that need a policy.
pub(crate) fn references(cx: &mut Cx<'_>, raw: &RawProject, names: &Names<'_>, policies: &[Policy]) {
    for domain in &raw.domains {
        for machine in &domain.machines {
            for consumer in &machine.consumers {
                let known = names.machines.contains_key(consumer.value.as_str())
                    || names.domains.contains_key(consumer.value.as_str())
                    || consumer.value == "host";
                if !known && !cx.incomplete {
                    let help = names.unknown(cx, &raw.domains, &consumer.value);
                    let shown = crate::cx::shorten(&consumer.value);
                    with_machine_path(domain, machine, "services", |path| {
                        cx.warning(consumer.span, path, format!("the consumer `{shown}` is no domain and no machine"))
                            .help(help);
                    });
                }
            }
            let assistant = machine.roles.iter().any(|r| r == "openclaw_server")
                || machine.extra.get("openclaw_server").is_some_and(|v| v != &serde_json::Value::Bool(false));
            if assistant && domain.enabled && !reaches_model(raw, names, policies, domain, machine) {
                let message =
                    format!("`{}` is an `openclaw_server`, but no policy leads from it to a model", machine.label());
                with_machine_path(domain, machine, "roles", |path| {
                    cx.warning(machine.span, path, message).help(
                        "add a policy from it to the domain or machine that serves the model, such as `ai-tools`",
                    );
                });
            }
        }
    }
}

fn reaches_model(
    raw: &RawProject,
    names: &Names<'_>,
    policies: &[Policy],
    domain: &RawDomain,
    machine: &RawMachine,
) -> bool {
    let serves = |m: &RawMachine| m.roles.iter().any(|r| r == "ollama_server");
    if domain.declared == AI_DOMAIN || domain.machines.iter().any(serves) {
        return true;
    }
    let own = |side: &Endpoint| match side {
        Endpoint::Domain(name) => Some(name) == domain.name.as_ref(),
        Endpoint::Machine(name) => Some(name) == machine.name.as_ref(),
        Endpoint::Host | Endpoint::Internet => false,
    };
    let model = |side: &Endpoint| match side {
        Endpoint::Domain(name) => {
            let home = names.domains.get(name.as_str()).map(|&d| &raw.domains[d]);
            name.as_str() == AI_DOMAIN || home.is_some_and(|d| d.machines.iter().any(serves))
        }
        Endpoint::Machine(name) => names
            .machines
            .get(name.as_str())
            .is_some_and(|&(d, m)| raw.domains[d].declared == AI_DOMAIN || serves(&raw.domains[d].machines[m])),
        // A model outside, or on the host, is a model too.
        Endpoint::Host | Endpoint::Internet => true,
    };
    policies.iter().any(|p| own(&p.from) && model(&p.to) || p.bidirectional && own(&p.to) && model(&p.from))
}
