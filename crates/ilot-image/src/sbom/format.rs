//! SPDX 2.3 and CycloneDX 1.5.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Bill, Package};
use crate::types::Image;

const TOOL: &str = "ilot";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// When the image was made: the same image has the same document. In whole seconds, as SPDX wants it.
pub(super) fn time(image: &Image) -> String {
    let seconds = image.created.map_or(0, Timestamp::as_second);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

/// A package URL (purl-spec).
fn purl(package: &Package, bill: &Bill) -> String {
    let encode = |text: &str| crate::source::escape(text).replace('/', "%2F");
    let namespace = match package.kind {
        "deb" => format!("{}/", encode(bill.distribution.as_deref().unwrap_or("debian"))),
        "rpm" => format!("{}/", encode(bill.distribution.as_deref().unwrap_or("fedora"))),
        "apk" => format!("{}/", encode(bill.distribution.as_deref().unwrap_or("alpine"))),
        _ => String::new(),
    };
    // rpm's epoch is a word of its own.
    let (epoch, version) = match package.version.split_once(':') {
        Some((epoch, version)) if package.kind == "rpm" => (Some(epoch), version),
        _ => (None, package.version.as_str()),
    };
    // What stands before the last slash is a namespace: the scope of npm's `@scope/name`, the host of a Go module.
    let name = match package.name.rsplit_once('/') {
        Some((scope, name)) if package.kind == "golang" => format!("{}/{}", crate::source::escape(scope), encode(name)),
        Some((scope, name)) => format!("{}/{}", encode(scope), encode(name)),
        None => encode(&package.name),
    };
    let mut text = format!("pkg:{}/{namespace}{name}@{}", package.kind, encode(version));
    let mut qualifiers = Vec::new();
    if let Some(architecture) = &package.architecture {
        qualifiers.push(format!("arch={}", encode(architecture)));
    }
    if let Some(epoch) = epoch {
        qualifiers.push(format!("epoch={}", encode(epoch)));
    }
    if let (true, Some(id), Some(version)) = (!namespace.is_empty(), &bill.distribution, &bill.version) {
        qualifiers.push(format!("distro={}-{}", encode(id), encode(version)));
    }
    if !qualifiers.is_empty() {
        text.push('?');
        text.push_str(&qualifiers.join("&"));
    }
    text
}

pub(super) fn spdx(image: &Image, bill: &Bill) -> Value {
    let algorithm = image.digest.algorithm().to_uppercase();
    let mut packages = vec![json!({
        "SPDXID": "SPDXRef-image", "name": image.reference, "versionInfo": image.digest,
        "downloadLocation": "NOASSERTION", "filesAnalyzed": false, "primaryPackagePurpose": "CONTAINER",
        "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION",
        "checksums": [{ "algorithm": algorithm, "checksumValue": image.digest.hex() }],
    })];
    let mut relationships = vec![json!({ "spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES",
        "relatedSpdxElement": "SPDXRef-image" })];
    for (i, package) in bill.packages.iter().enumerate() {
        let id = format!("SPDXRef-Package-{}-{i}", package.kind);
        let mut value = json!({
            "SPDXID": id, "name": package.name, "versionInfo": package.version, "downloadLocation": "NOASSERTION",
            "filesAnalyzed": false, "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION",
            "copyrightText": "NOASSERTION", "sourceInfo": format!("found in {}", package.found_in),
            "externalRefs": [{ "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl",
                "referenceLocator": purl(package, bill) }],
        });
        // What a database says need not be an SPDX expression: it is kept as words.
        if let Some(license) = &package.license {
            value["licenseComments"] = json!(license);
        }
        packages.push(value);
        relationships.push(json!({ "spdxElementId": "SPDXRef-image", "relationshipType": "CONTAINS",
            "relatedSpdxElement": id }));
    }
    json!({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": image.reference,
        "documentNamespace": format!("urn:ilot:spdx:{}", image.digest),
        "creationInfo": { "created": time(image), "creators": [format!("Tool: {TOOL}-{VERSION}")] },
        "packages": packages, "relationships": relationships,
    })
}

pub(super) fn cyclone_dx(image: &Image, bill: &Bill) -> Value {
    let hex = image.digest.hex();
    // A UUID made of the image's digest (RFC 9562, version 8).
    let uuid = format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32]);
    let hash = if image.digest.algorithm() == "sha512" { "SHA-512" } else { "SHA-256" };
    let mut components = Vec::new();
    if let Some(id) = &bill.distribution {
        let mut system = json!({ "type": "operating-system", "bom-ref": "operating-system", "name": id });
        if let Some(version) = &bill.version {
            system["version"] = json!(version);
        }
        components.push(system);
    }
    for (i, package) in bill.packages.iter().enumerate() {
        let purl = purl(package, bill);
        let mut value = json!({
            "type": "library", "bom-ref": format!("{i}-{purl}"), "name": package.name, "version": package.version,
            "purl": purl, "properties": [{ "name": "ilot:found-in", "value": package.found_in }],
        });
        if let Some(license) = &package.license {
            value["licenses"] = json!([{ "license": { "name": license } }]);
        }
        components.push(value);
    }
    json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "serialNumber": format!("urn:uuid:{uuid}"), "version": 1,
        "metadata": {
            "timestamp": time(image),
            "tools": { "components": [{ "type": "application", "name": TOOL, "version": VERSION }] },
            "component": { "type": "container", "bom-ref": "image", "name": image.reference,
                "version": image.digest, "hashes": [{ "alg": hash, "content": hex }] },
        },
        "components": components,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_urls() {
        let bill = Bill { distribution: Some("debian".to_owned()), version: Some("13".to_owned()), ..Bill::default() };
        let package = |kind, name: &str, version: &str, architecture: Option<&str>| Package {
            kind,
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: architecture.map(str::to_owned),
            license: None,
            found_in: String::new(),
        };
        for (package, wanted) in [
            (
                package("deb", "libstdc++6", "1:2.0+b1~x", Some("amd64")),
                "pkg:deb/debian/libstdc%2B%2B6@1:2.0%2Bb1~x?arch=amd64&distro=debian-13",
            ),
            (
                package("rpm", "bash", "2:5.2-1.fc41", Some("x86_64")),
                "pkg:rpm/debian/bash@5.2-1.fc41?arch=x86_64&epoch=2&distro=debian-13",
            ),
            (package("golang", "x.org/a/b", "v1.0.0", None), "pkg:golang/x.org/a/b@v1.0.0"),
            (package("npm", "@a/b", "1.0.0", None), "pkg:npm/%40a/b@1.0.0"),
            (package("cargo", "serde", "1.0.1", None), "pkg:cargo/serde@1.0.1"),
        ] {
            assert_eq!(purl(&package, &bill), wanted);
        }
    }
}
