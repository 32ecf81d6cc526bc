//! The format as JSON Schema (draft 2020-12), for editors that complete and check while one types.
//!
//! It says which keys and types there are. What one part says of another (names, addresses, totals) only reading the
//! project can tell.

use serde_json::{Map, Value, json};

use crate::config::{CONFIG_KEYS, DEVICE_TYPES};
use crate::model::{
    AiAccessPolicy, AiProvider, Backend, CpuMode, FirewallMode, GpuPolicy, Isolation, MachineKind, MachineType,
    MemoryEnforce, Protocol, ShareMode, TrustLevel,
};
use crate::read::keys;

/// Which file a schema is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaOf {
    /// `infra.yml` and `infra/base.yml`.
    Infra,
    /// A file of `infra/domains/`: domains by name.
    Domains,
    /// `anklume.yml`.
    Project,
    /// A file of `domains/` of a project directory: one domain.
    Domain,
    /// `policies.yml`, of either layout.
    Policies,
    /// `ilot.yml`.
    Ilot,
}

impl SchemaOf {
    /// Every schema, with the file that it is kept in.
    pub const ALL: &'static [(Self, &'static str)] = &[
        (Self::Infra, "infra.schema.json"),
        (Self::Domains, "domains.schema.json"),
        (Self::Project, "anklume.schema.json"),
        (Self::Domain, "domain.schema.json"),
        (Self::Policies, "policies.schema.json"),
        (Self::Ilot, "ilot.schema.json"),
    ];
}

/// The schema of `infra.yml`.
#[must_use]
pub fn schema() -> Value {
    schema_of(SchemaOf::Infra)
}

/// The schema of one of the files that a project may have.
#[must_use]
pub fn schema_of(file: SchemaOf) -> Value {
    let (title, body) = match file {
        SchemaOf::Infra => ("ilot: infra.yml", infra()),
        SchemaOf::Domains => ("ilot: infra/domains/*.yml", named(&reference("domain"))),
        SchemaOf::Project => ("ilot: anklume.yml", project()),
        SchemaOf::Domain => ("ilot: domains/NAME.yml", reference("domain")),
        SchemaOf::Policies => ("ilot: policies.yml", policies_file()),
        SchemaOf::Ilot => ("ilot: ilot.yml", reference("ilot-project")),
    };
    let mut schema = Map::new();
    schema.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".into(), json!(title));
    if let Value::Object(body) = body {
        schema.extend(body);
    }
    schema.insert(
        "$defs".into(),
        json!({
            "name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": 63},
            "path": {"type": "string", "pattern": "^/"},
            "value": {"type": ["string", "number", "boolean"]},
            "config": config(),
            "devices": devices(),
            "profile": profile(),
            "domain": domain(),
            "machine": machine(),
            "policy": policy(),
            "volume": volume(),
            "resource-policy": resource_policy(),
            "egress": egress(),
            "ilot-project": ilot(keys::ILOT_PROJECT),
            "ilot-domain": ilot(keys::ILOT_DOMAIN),
            "ilot-machine": ilot(keys::ILOT_MACHINE),
        }),
    );
    Value::Object(schema)
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/$defs/{name}")})
}

fn text(description: &str) -> Value {
    json!({"type": ["string", "null"], "description": description})
}

fn boolean(default: bool, description: &str) -> Value {
    json!({"type": ["boolean", "null"], "default": default, "description": description})
}

fn choice(choices: &[&str], description: &str) -> Value {
    json!({"enum": choices, "description": description})
}

fn integer(from: i64, to: Option<i64>, description: &str) -> Value {
    let mut schema = json!({"type": ["integer", "null"], "minimum": from, "description": description});
    if let Some(to) = to {
        schema["maximum"] = json!(to);
    }
    schema
}

fn texts(description: &str) -> Value {
    json!({"type": ["array", "null"], "items": {"type": "string"}, "description": description})
}

/// A mapping from names to something.
fn named(item: &Value) -> Value {
    json!({"type": ["object", "null"], "propertyNames": reference("name"), "additionalProperties": item})
}

/// A mapping of known keys; others are warned about, except `x-` ones at the top.
fn object(properties: Value, required: &[&str]) -> Value {
    let mut schema = Map::new();
    schema.insert("type".into(), json!(["object", "null"]));
    schema.insert("properties".into(), properties);
    schema.insert("additionalProperties".into(), false.into());
    if !required.is_empty() {
        schema.insert("required".into(), json!(required));
    }
    Value::Object(schema)
}

fn top(properties: Value, required: &[&str]) -> Value {
    let mut schema = object(properties, required);
    schema["type"] = json!("object");
    schema["patternProperties"] = json!({"^x-": true});
    schema
}

fn infra() -> Value {
    top(
        json!({
            "project_name": {"type": "string", "maxLength": 64, "description": "the project's name"},
            "global": global(),
            "domains": named(&reference("domain")),
            "network_policies": list(&reference("policy"), "what may pass between domains"),
            "shared_volumes": named(&reference("volume")),
            "ilot": reference("ilot-project"),
        }),
        &["project_name", "global"],
    )
}

fn list(item: &Value, description: &str) -> Value {
    json!({"type": ["array", "null"], "items": item, "description": description})
}

fn common() -> Value {
    json!({
        "default_connection": text("the Ansible connection; informational"),
        "default_user": text("the Ansible user"),
        "gpu_policy": choice(GpuPolicy::CHOICES, "whether more than one machine may have a GPU"),
        "firewall_mode": choice(FirewallMode::CHOICES, "who filters between domains"),
        "ai_access_policy": choice(AiAccessPolicy::CHOICES, "who reaches the domain ai-tools"),
        "ai_access_default": text("the domain that has access to ai-tools at first"),
        "ai_vram_flush": boolean(true, "whether GPU memory is flushed when access moves"),
        "shared_volumes_base": reference("path"),
        "persistent_data_base": reference("path"),
        "resource_policy": reference("resource-policy"),
    })
}

/// Two sets of properties as one.
fn join(first: Value, second: Value) -> Value {
    match (first, second) {
        (Value::Object(mut a), Value::Object(b)) => {
            a.extend(b);
            Value::Object(a)
        }
        (first, _) => first,
    }
}

fn global() -> Value {
    let own = json!({
        "addressing": object(json!({
            "base_octet": {"const": 10},
            "zone_base": integer(0, Some(245), "the second number of the zone admin"),
            "zone_step": integer(1, Some(255), "informational"),
        }), &[]),
        "base_subnet": {"type": "string", "pattern": r"^\d{1,3}\.\d{1,3}$", "description": "the old form: the first two numbers of every address"},
        "default_os_image": text("the image of machines that name none"),
        "nesting_prefix": boolean(true, "whether names get a prefix inside another ilot machine"),
    });
    object(join(own, common()), &[])
}

fn project() -> Value {
    let own = json!({
        "schema_version": {"enum": keys::SCHEMA_VERSIONS},
        "project_name": {"type": "string", "maxLength": 64},
        "defaults": object(json!({
            "os_image": text("the image of machines that name none"),
            "trust_level": choice(TrustLevel::CHOICES, "the trust level of domains that name none"),
        }), &[]),
        "addressing": object(json!({
            "base": {"type": "string", "pattern": r"^10\.\d{1,3}$", "description": "10. and the second number of the zone admin"},
            "zone_step": integer(1, Some(255), "informational"),
        }), &[]),
        "nesting": object(json!({"prefix": boolean(true, "whether names get a prefix inside another ilot machine")}), &[]),
        "shared_volumes": named(&reference("volume")),
        "network_passthrough": boolean(false, "kept as written"),
        "requires_anklume": {"type": ["string", "number"], "description": "kept as written"},
        "ilot": reference("ilot-project"),
    });
    top(join(own, common()), &[])
}

fn policies_file() -> Value {
    let policies = list(&reference("policy"), "what may pass between domains");
    top(json!({"policies": policies, "network_policies": policies}), &[])
}

fn resource_policy() -> Value {
    let reserve =
        json!({"type": ["string", "integer"], "description": "a share such as 20%, a number of cores or a size"});
    let mapping = object(
        json!({
            "host_reserve": object(json!({"cpu": reserve, "memory": reserve}), &[]),
            "host_reserve_cpu": reserve,
            "host_reserve_memory": reserve,
            "mode": choice(ShareMode::CHOICES, "by weight, or the same to each"),
            "cpu_mode": choice(CpuMode::CHOICES, "a percentage of the host's time, or whole cores"),
            "memory_enforce": choice(MemoryEnforce::CHOICES, "whether memory may be exceeded while the host has room"),
            "overcommit": boolean(false, "whether the total may exceed what the host can give"),
        }),
        &[],
    );
    json!({"anyOf": [{"type": "boolean"}, mapping], "description": "shares of the host for machines without limits"})
}

fn profile() -> Value {
    object(
        json!({"description": text("what it is for"), "config": reference("config"), "devices": reference("devices")}),
        &[],
    )
}

fn domain() -> Value {
    object(
        json!({
            "description": text("what it is for"),
            "enabled": boolean(true, "false: nothing is made, but its addresses stay reserved"),
            "trust_level": choice(TrustLevel::CHOICES, "decides its zone of addresses"),
            "subnet_id": integer(0, Some(254), "the third number of its addresses"),
            "ephemeral": boolean(false, "false protects its machines from destroy"),
            "ai_provider": choice(AiProvider::CHOICES, "where its AI requests go"),
            "ai_sanitize": {"enum": [true, false, "always"], "description": "whether AI requests are cleaned of personal data"},
            "profiles": {"type": ["object", "null"], "additionalProperties": reference("profile")},
            "machines": named(&reference("machine")),
            "ilot": reference("ilot-domain"),
        }),
        &[],
    )
}

fn machine() -> Value {
    let persistent = object(
        json!({"path": reference("path"), "readonly": boolean(false, "whether the machine may only read it")}),
        &["path"],
    );
    let service = object(
        json!({
            "name": {"type": "string"},
            "description": text("what it offers"),
            "tool": text("the tool that offers it"),
            "tools": {"type": "array"},
            "consumers": texts("domains and machines that may use it"),
        }),
        &["name"],
    );
    object(
        json!({
            "description": text("what it is for"),
            "type": choice(MachineType::CHOICES, "a system container, or a virtual machine"),
            "ip": {"type": ["string", "null"], "format": "ipv4", "description": "its address; chosen when absent"},
            "ephemeral": {"type": ["boolean", "null"], "description": "false protects it from destroy; its domain's when absent"},
            "gpu": boolean(false, "whether it gets the GPU"),
            "os_image": text("its image"),
            "profiles": texts("profiles of its domain, later ones over earlier ones"),
            "weight": integer(1, None, "its part in resource_policy"),
            "boot_autostart": boolean(false, "whether it starts with the host"),
            "boot_priority": integer(0, Some(100), "higher starts first"),
            "snapshots_schedule": text("five cron fields: 0 2 * * *"),
            "snapshots_expiry": {"type": ["string", "null"], "pattern": "^[0-9]+[dhm]$", "description": "how long snapshots live: 30d"},
            "config": reference("config"),
            "devices": reference("devices"),
            "storage_volumes": {"type": ["object", "null"]},
            "persistent_data": named(&persistent),
            "persistent": named(&reference("path")),
            "services": list(&service, "what it offers to others"),
            "roles": texts("Ansible roles"),
            "vars": {"type": ["object", "null"], "description": "Ansible variables"},
            "gui": boolean(false, "whether it shows windows"),
            "workspace": {"type": ["object", "null"], "description": "where its windows go"},
            "openclaw_server": {"description": "kept as written"},
            "ilot": reference("ilot-machine"),
        }),
        &[],
    )
}

fn config() -> Value {
    let known: Map<String, Value> = CONFIG_KEYS.iter().map(|key| ((*key).to_owned(), reference("value"))).collect();
    json!({
        "type": ["object", "null"],
        "description": "keys of Incus",
        "properties": known,
        "additionalProperties": reference("value"),
    })
}

fn devices() -> Value {
    json!({
        "type": ["object", "null"],
        "description": "devices of Incus",
        "additionalProperties": {
            "type": "object",
            "properties": {"type": {"type": "string", "examples": DEVICE_TYPES}},
            "required": ["type"],
            "additionalProperties": reference("value"),
        },
    })
}

fn policy() -> Value {
    object(
        json!({
            "description": text("why"),
            "from": {"type": "string", "description": "a domain, a machine or host"},
            "to": {"type": "string", "description": "a domain, a machine, host or internet"},
            "ports": {
                "anyOf": [{"const": "all"}, {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 65535}}],
                "description": "ports, or all: every port and protocol",
            },
            "protocol": choice(Protocol::CHOICES, "the protocol of the listed ports"),
            "bidirectional": boolean(false, "whether the other side may begin as well"),
        }),
        &["from", "to"],
    )
}

fn volume() -> Value {
    object(
        json!({
            "description": text("what it is for"),
            "source": reference("path"),
            "path": reference("path"),
            "shift": boolean(true, "whether owners are shifted into the machine's range of ids"),
            "propagate": boolean(false, "whether machines hand it on to those inside them"),
            "consumers": {"type": "object", "minProperties": 1, "additionalProperties": {"enum": ["ro", "rw"]}},
        }),
        &["consumers"],
    )
}

fn egress() -> Value {
    json!({
        "anyOf": [{"enum": ["none", "all"]}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
        "description": "what may leave: none, all, or host names and networks with ports",
    })
}

/// The block at a level, which decides its keys.
fn ilot(level: &[&str]) -> Value {
    let time = json!({"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"});
    let command = json!({"type": "array", "items": {"type": "string"}, "minItems": 1});
    let health = object(
        json!({
            "command": command,
            "http": reference("value"),
            "tcp": reference("value"),
            "interval": time,
            "timeout": time,
            "start_period": time,
            "retries": integer(1, Some(1000), "failures in a row"),
        }),
        &[],
    );
    let all = json!({
        "backend": choice(Backend::CHOICES, "who runs it"),
        "isolation": choice(Isolation::CHOICES, "how strongly it is set apart"),
        "kind": choice(MachineKind::CHOICES, "what it is for"),
        "image": {"type": "string", "description": "the image"},
        "command": command,
        "restart": {"type": ["string", "boolean"], "pattern": "^(no|always|unless-stopped|on-failure(:[1-9][0-9]*)?)$"},
        "health": health,
        "egress": reference("egress"),
        "amnesic": boolean(false, "everything that it writes is gone when it stops"),
        "ipv6": boolean(true, "whether domains have IPv6 beside IPv4"),
        "preload": integer(0, Some(1000), "started copies of a disposable to keep at hand"),
        "domains": named(&reference("ilot-domain")),
        "machines": named(&reference("ilot-machine")),
    });
    let properties: Map<String, Value> = level.iter().map(|key| ((*key).to_owned(), all[*key].clone())).collect();
    object(Value::Object(properties), &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of a schema's object, sorted.
    fn properties(schema: &Value) -> Vec<&str> {
        let mut keys: Vec<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    fn sorted<'k>(keys: &[&'k str]) -> Vec<&'k str> {
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn the_schema_has_the_keys_that_the_reader_knows() {
        let schema = schema();
        let defs = &schema["$defs"];
        assert_eq!(properties(&schema), sorted(keys::FILE));
        assert_eq!(properties(&schema["properties"]["global"]), sorted(keys::GLOBAL));
        assert_eq!(properties(&schema["properties"]["global"]["properties"]["addressing"]), sorted(keys::ADDRESSING));
        assert_eq!(properties(&schema_of(SchemaOf::Project)), sorted(keys::PROJECT));
        for (def, known) in [
            ("domain", keys::DOMAIN),
            ("machine", keys::MACHINE),
            ("profile", keys::PROFILE),
            ("policy", keys::POLICY),
            ("volume", keys::VOLUME),
            ("ilot-project", keys::ILOT_PROJECT),
            ("ilot-domain", keys::ILOT_DOMAIN),
            ("ilot-machine", keys::ILOT_MACHINE),
        ] {
            assert_eq!(properties(&defs[def]), sorted(known), "{def}");
        }
        assert_eq!(properties(&defs["resource-policy"]["anyOf"][1]), sorted(keys::RESOURCES));
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn check(value: &Value, defs: &Map<String, Value>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(target)) = map.get("$ref") {
                        let name = target.strip_prefix("#/$defs/").unwrap();
                        assert!(defs.contains_key(name), "{name}");
                    }
                    map.values().for_each(|v| check(v, defs));
                }
                Value::Array(items) => items.iter().for_each(|v| check(v, defs)),
                _ => {}
            }
        }
        for (file, _) in SchemaOf::ALL {
            let schema = schema_of(*file);
            check(&schema, schema["$defs"].as_object().unwrap());
        }
    }

    #[test]
    fn the_schemas_in_the_repository_are_current() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
        for (file, name) in SchemaOf::ALL {
            let text = serde_json::to_string_pretty(&schema_of(*file)).unwrap() + "\n";
            let path = dir.join(name);
            if std::env::var_os("BLESS").is_some() {
                std::fs::create_dir_all(&dir).unwrap();
                std::fs::write(&path, &text).unwrap();
            }
            let kept = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(kept == text, "{} is not current: write it anew with BLESS=1", path.display());
        }
    }
}
