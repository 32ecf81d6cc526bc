//! Network policies and the exclusive access to `ai-tools`.

use crate::cx::{At, Cx, Path};
use crate::model::{AiAccessPolicy, DomainName, Endpoint, Layout, Policy, Ports};
use crate::names::Names;
use crate::read::{RawPolicy, RawProject};
use crate::yaml::Span;

/// The domain that `ai_access_policy` guards.
pub const AI_DOMAIN: &str = "ai-tools";

/// Resolves both sides of every policy.
pub(crate) fn resolve(cx: &mut Cx<'_>, raw: &RawProject, names: &Names<'_>) -> Vec<Policy> {
    let root = Path::Root;
    let base = root.key(raw.policies_key);
    let mut policies = Vec::with_capacity(raw.policies.len());
    for policy in &raw.policies {
        let path = base.index(policy.index);
        let from = policy.from.as_ref().and_then(|s| names.endpoint(cx, &raw.domains, s, &path.key("from")));
        let to = policy.to.as_ref().and_then(|s| names.endpoint(cx, &raw.domains, s, &path.key("to")));
        disabled(cx, raw, names, policy, &path);
        let (Some(from), Some(to)) = (from, to) else { continue };
        sense(cx, raw, names, policy, (&from, &to), &path);
        policies.push(Policy {
            at: cx.position(policy.span),
            description: policy.description.clone(),
            from,
            to,
            ports: policy.ports.clone(),
            protocol: policy.protocol,
            bidirectional: policy.bidirectional.is_some_and(|b| b.value),
        });
    }
    policies
}

/// A policy that names a disabled domain, or a machine of one, opens nothing for now.
fn disabled(cx: &mut Cx<'_>, raw: &RawProject, names: &Names<'_>, policy: &RawPolicy, path: &Path<'_>) {
    for (side, key) in [(&policy.from, "from"), (&policy.to, "to")] {
        let Some(At { value: name, span }) = side else { continue };
        let domain = names.domains.get(name.as_str()).copied();
        let home = domain.or_else(|| names.machines.get(name.as_str()).map(|&(d, _)| d));
        let Some(home) = home.map(|d| &raw.domains[d]).filter(|d| !d.enabled && name != "host") else { continue };
        let message = if domain.is_some() {
            format!("this policy names the disabled domain `{name}`")
        } else {
            format!("this policy names `{name}`, a machine of the disabled domain `{}`", home.declared)
        };
        cx.warning(*span, &path.key(key), message).help("it opens nothing until the domain is enabled");
    }
}

/// Policies that cannot mean what they say.
fn sense(
    cx: &mut Cx<'_>,
    raw: &RawProject,
    names: &Names<'_>,
    policy: &RawPolicy,
    (from, to): (&Endpoint, &Endpoint),
    path: &Path<'_>,
) {
    if let (Endpoint::Internet, Some(At { value: true, span })) = (to, policy.bidirectional) {
        cx.error(span, &path.key("bidirectional"), "a policy towards `internet` cannot be bidirectional")
            .help("remove `bidirectional`; forward a port from outside with a `proxy` device");
    }
    let home = |side: &Endpoint| match side {
        Endpoint::Domain(name) => names.domains.get(name.as_str()).copied(),
        Endpoint::Machine(name) => names.machines.get(name.as_str()).map(|&(d, _)| d),
        Endpoint::Host | Endpoint::Internet => None,
    };
    let inside = match (home(from), home(to)) {
        (Some(a), Some(b)) if a == b => {
            Some(format!("inside the domain `{}` everything passes already", raw.domains[a].declared))
        }
        _ if from == &Endpoint::Host && matches!(to, Endpoint::Host | Endpoint::Internet) => {
            Some("the host is not filtered on its way to itself or out".into())
        }
        _ => None,
    };
    if let Some(reason) = inside {
        cx.warning(policy.span, path, format!("this policy opens nothing: {reason}")).help("remove it");
    }
}

/// `ai_access_policy: exclusive`: checks it, and adds the policy from the default domain where none exists.
///
/// A project directory has no key for the default: there the one policy towards `ai-tools` says it.
pub(crate) fn ai_access(
    cx: &mut Cx<'_>,
    raw: &RawProject,
    names: &Names<'_>,
    policies: &mut Vec<Policy>,
) -> Option<DomainName> {
    let default = raw.global.ai_access_default.as_ref();
    let found = default.and_then(|d| names.domains.get(d.value.as_str())).and_then(|&d| raw.domains[d].name.clone());
    let exclusive = raw.global.ai_access_policy.filter(|p| p.value == AiAccessPolicy::Exclusive);
    let Some(exclusive) = exclusive else {
        if let (Some(default), None, false) = (default, &found, cx.incomplete) {
            unknown_default(cx, raw, default);
        }
        return found;
    };
    let root = Path::Root;
    let global = root.key("global");
    let base = if cx.sources.layout == Layout::ProjectDirectory { root } else { global };
    let towards: Vec<&RawPolicy> =
        raw.policies.iter().filter(|p| p.to.as_ref().is_some_and(|t| t.value == AI_DOMAIN)).collect();

    if !cx.incomplete && !names.domains.contains_key(AI_DOMAIN) {
        cx.error(exclusive.span, &base.key("ai_access_policy"), "`exclusive` access needs a domain `ai-tools`")
            .help("add the domain, or write `ai_access_policy: open`");
    }
    let source = check_default(cx, raw, names, exclusive.span, &towards, &base);
    for extra in towards.iter().skip(1) {
        let path = root.key(raw.policies_key);
        let span = extra.to.as_ref().map_or(extra.span, |t| t.span);
        let first = towards[0].to.as_ref().map_or(towards[0].span, |t| t.span);
        let message = "with `exclusive` access only one policy may lead to `ai-tools`".to_owned();
        cx.clash(span, &path.index(extra.index).key("to"), message, first, "the first one")
            .help("keep one and move it with `ilot ai switch`, or write `ai_access_policy: open`");
    }
    if towards.is_empty()
        && let (Some(source), Ok(ai)) = (&source, DomainName::new(AI_DOMAIN))
    {
        policies.push(Policy {
            at: cx.position(exclusive.span),
            description: format!("AI access of `{source}` (added by ai_access_policy: exclusive)"),
            from: Endpoint::Domain(source.clone()),
            to: Endpoint::Domain(ai),
            ports: Ports::All,
            protocol: None,
            bidirectional: true,
        });
    }
    source
}

fn check_default(
    cx: &mut Cx<'_>,
    raw: &RawProject,
    names: &Names<'_>,
    exclusive: Span,
    towards: &[&RawPolicy],
    base: &Path<'_>,
) -> Option<DomainName> {
    let domain = |name: &str| names.domains.get(name).and_then(|&d| raw.domains[d].name.clone());
    let Some(default) = raw.global.ai_access_default.as_ref() else {
        let from = towards.first().and_then(|p| p.from.as_ref());
        if cx.sources.layout == Layout::ProjectDirectory
            && let Some(source) = from.and_then(|f| domain(&f.value))
        {
            return Some(source);
        }
        cx.error(exclusive, &base.key("ai_access_policy"), "`exclusive` access needs `ai_access_default`")
            .help("add `ai_access_default:` with the domain that has access at first");
        return None;
    };
    if default.value == AI_DOMAIN {
        cx.error(default.span, &base.key("ai_access_default"), "`ai-tools` cannot be the default of its own access")
            .help("name the domain that uses it");
        return None;
    }
    let found = domain(&default.value);
    if found.is_none() && !cx.incomplete && !names.domains.contains_key(default.value.as_str()) {
        unknown_default(cx, raw, default);
    }
    found
}

fn unknown_default(cx: &mut Cx<'_>, raw: &RawProject, default: &At<String>) {
    let root = Path::Root;
    let global = root.key("global");
    let base = if cx.sources.layout == Layout::ProjectDirectory { root } else { global };
    let near = cx.nearest(&default.value, raw.domains.iter().map(|d| d.declared.as_str()));
    let help = near.map_or("name a domain of this project".into(), |n| format!("did you mean `{n}`?"));
    let shown = crate::cx::shorten(&default.value);
    cx.error(default.span, &base.key("ai_access_default"), format!("`{shown}` is no domain of this project"))
        .help(help);
}
