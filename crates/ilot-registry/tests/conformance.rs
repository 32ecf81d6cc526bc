//! Every endpoint and every status of the distribution-spec 1.1, one test per chapter.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::io::Write as _;

use common::{CONFIG, INDEX, LAYER, MANIFEST, Registry, connect, sha256};
use serde_json::json;

const NOWHERE: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn is_there() {
    let r = Registry::new(|_| {});
    let answer = r.get("/v2/").expect(200);
    assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
    r.get("/v2").expect(200);
    r.head("/v2/").expect(200);
    for path in ["/", "/v1/", "/v2/a", "/v2/a/nothing/b", "/v2/a/b/c/d", "//v2/"] {
        r.get(path).refused(404, "UNSUPPORTED");
    }
    r.ask("POST", "/v2/", &[], b"").refused(405, "UNSUPPORTED");
    r.ask("PATCH", "/v2/a/manifests/1", &[], b"").refused(405, "UNSUPPORTED");
}

#[test]
fn blobs_are_pulled_whole_and_in_part() {
    let r = Registry::new(|_| {});
    let content: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let digest = r.blob("a/b", &content);
    let path = format!("/v2/a/b/blobs/{digest}");
    let got = r.get(&path).expect(200);
    assert_eq!(got.body, content);
    assert_eq!(got.header("content-length"), content.len().to_string());
    assert_eq!(got.header("docker-content-digest"), digest);
    let head = r.head(&path).expect(200);
    assert_eq!((head.body.len(), head.header("content-length")), (0, "300000"));
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=299999-", 299_999, 300_000),
        ("bytes=299990-999999", 299_990, 300_000),
        ("bytes=-10", 299_990, 300_000),
    ] {
        let part = r.ask("GET", &path, &[("Range", range)], b"").expect(206);
        assert_eq!(part.body, content[from..to], "{range}");
        assert_eq!(part.header("content-range"), format!("bytes {from}-{}/300000", to - 1));
    }
    for range in ["bytes=300000-", "bytes=400000-500000", "bytes=-0"] {
        let refused = r.ask("GET", &path, &[("Range", range)], b"").expect(416);
        assert_eq!(refused.header("content-range"), "bytes */300000", "{range}");
    }
    // What is no range of bytes is passed over.
    assert_eq!(r.ask("GET", &path, &[("Range", "lines=1-2")], b"").expect(200).body.len(), 300_000);
    let etag = got.header("etag").to_owned();
    r.ask("GET", &path, &[("If-None-Match", &etag)], b"").expect(304);
    // Not there, of another repository, of another algorithm, of no grammar.
    r.get(&format!("/v2/a/b/blobs/{NOWHERE}")).refused(404, "BLOB_UNKNOWN");
    r.head(&format!("/v2/a/b/blobs/{NOWHERE}")).expect(404);
    r.get(&format!("/v2/a/c/blobs/{digest}")).refused(404, "NAME_UNKNOWN");
    r.blob("a/c", b"other");
    r.get(&format!("/v2/a/c/blobs/{digest}")).refused(404, "BLOB_UNKNOWN");
    r.get("/v2/a/b/blobs/sha512:00").refused(400, "DIGEST_INVALID");
    r.get("/v2/a/b/blobs/sha256:xyz").refused(400, "DIGEST_INVALID");
    for name in ["A", "a/-b", "a//b", "..", "a/../b", "a%2fb"] {
        r.get(&format!("/v2/{name}/blobs/{digest}")).refused(400, "NAME_INVALID");
    }
}

#[test]
fn blobs_are_pushed_in_one_request() {
    let r = Registry::new(|_| {});
    let (content, digest) = (b"hello".as_slice(), sha256(b"hello"));
    let answer = r.ask("POST", &format!("/v2/a/blobs/uploads/?digest={digest}"), &[], content).expect(201);
    assert_eq!(answer.header("location"), format!("/v2/a/blobs/{digest}"));
    assert_eq!(answer.header("docker-content-digest"), digest);
    assert_eq!(r.get(answer.header("location")).expect(200).body, content);
    // The digest may come percent-encoded.
    let encoded = digest.replace(':', "%3A");
    r.ask("POST", &format!("/v2/a/blobs/uploads/?digest={encoded}"), &[], content).expect(201);
    let wrong = sha256(b"other");
    r.ask("POST", &format!("/v2/a/blobs/uploads/?digest={wrong}"), &[], content).refused(400, "DIGEST_INVALID");
    r.get(&format!("/v2/a/blobs/{wrong}")).refused(404, "BLOB_UNKNOWN");
    r.ask("POST", "/v2/a/blobs/uploads/?digest=md5:00", &[], content).refused(400, "DIGEST_INVALID");
    r.ask("POST", "/v2/A/blobs/uploads/", &[], b"").refused(400, "NAME_INVALID");
    assert_eq!(std::fs::read_dir(r.store().join("uploads")).unwrap().count(), 0, "nothing half-done stays");
    // Nothing at all is a blob too.
    let empty = r.blob("a", b"");
    assert_eq!(r.get(&format!("/v2/a/blobs/{empty}")).expect(200).header("content-length"), "0");
}

#[test]
fn blobs_are_pushed_by_post_and_put() {
    let r = Registry::new(|_| {});
    let answer = r.ask("POST", "/v2/a/blobs/uploads/", &[], b"").expect(202);
    assert_eq!(answer.header("range"), "0-0");
    assert!(!answer.header("docker-upload-uuid").is_empty());
    let location = answer.header("location").to_owned();
    let digest = sha256(b"hello");
    let answer = r.ask("PUT", &format!("{location}?digest={digest}"), &[], b"hello").expect(201);
    assert_eq!(answer.header("location"), format!("/v2/a/blobs/{digest}"));
    // Done is done.
    r.ask("PUT", &format!("{location}?digest={digest}"), &[], b"").refused(404, "BLOB_UPLOAD_UNKNOWN");
    let location = r.begin("a");
    r.ask("PUT", &location, &[], b"hello").refused(400, "DIGEST_INVALID");
    r.ask("PUT", &format!("{location}?digest={NOWHERE}"), &[], b"hello").refused(400, "DIGEST_INVALID");
    for id in ["x", "0123456789abcdef0123456789abcdef", "..", "%2e%2e"] {
        r.get(&format!("/v2/a/blobs/uploads/{id}")).refused(404, "BLOB_UPLOAD_UNKNOWN");
    }
    // An upload belongs to its repository.
    let location = r.begin("a");
    r.get(&location.replace("/v2/a/", "/v2/b/")).refused(404, "BLOB_UPLOAD_UNKNOWN");
}

#[test]
fn blobs_are_pushed_in_pieces() {
    let mut r = Registry::new(|_| {});
    let content: Vec<u8> = (0..10_000u32).map(|i| (i % 249) as u8).collect();
    let mut location = r.begin("a");
    for (from, to) in [(0, 4000), (4000, 8000)] {
        let range = format!("{from}-{}", to - 1);
        let piece = &content[from..to];
        let answer = r.ask("PATCH", &location, &[("Content-Range", &range)], piece).expect(202);
        assert_eq!(answer.header("range"), format!("0-{}", to - 1));
        location = answer.header("location").to_owned();
    }
    let state = r.get(&location).expect(204);
    assert_eq!(state.header("range"), "0-7999");
    assert!(!state.header("location").is_empty());
    // Out of order, twice, or of another length than said.
    for range in ["9000-9999", "0-3999", "4000-7999", "nonsense", "8000-8009"] {
        let refused = r.ask("PATCH", &location, &[("Content-Range", range)], &[0; 100]);
        let refused = refused.refused(416, "BLOB_UPLOAD_INVALID");
        assert_eq!(refused.header("range"), "0-7999", "{range}");
    }
    // A server that ends takes no upload along.
    r.restart(|_| {});
    assert_eq!(r.get(&location).expect(204).header("range"), "0-7999");
    let digest = sha256(&content);
    let last = [("Content-Range", "8000-9999")];
    r.ask("PUT", &format!("{location}?digest={digest}"), &last, &content[8000..]).expect(201);
    assert_eq!(r.get(&format!("/v2/a/blobs/{digest}")).expect(200).body, content);
    // One that is given up is gone.
    let location = r.begin("a");
    r.ask("PATCH", &location, &[], b"hello").expect(202);
    r.delete(&location).expect(204);
    r.get(&location).refused(404, "BLOB_UPLOAD_UNKNOWN");
    r.delete(&location).refused(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(std::fs::read_dir(r.store().join("uploads")).unwrap().count(), 0);
}

#[test]
fn blobs_are_pushed_as_a_stream() {
    let r = Registry::new(|_| {});
    let location = r.begin("a");
    let body = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    let answer = r.ask("PATCH", &location, &[("Transfer-Encoding", "chunked")], body).expect(202);
    assert_eq!(answer.header("range"), "0-10");
    let digest = sha256(b"hello world");
    r.ask("PUT", &format!("{location}?digest={digest}"), &[], b"").expect(201);
    // A stream that breaks off: what came is there, and the client goes on from it.
    let location = r.begin("a");
    let mut stream = connect(r.address());
    let head = format!("PATCH {location} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    drop(stream);
    loop {
        let state = r.get(&location).expect(204);
        if state.header("range") == "0-4" {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{state:?}");
        std::thread::yield_now();
    }
    r.ask("PATCH", &location, &[("Content-Range", "5-10")], b" world").expect(202);
    r.ask("PUT", &format!("{location}?digest={digest}"), &[], b"").expect(201);
}

#[test]
fn blobs_are_mounted() {
    let r = Registry::new(|_| {});
    let digest = r.blob("from/here", b"hello");
    let mount = |name: &str, rest: &str| r.ask("POST", &format!("/v2/{name}/blobs/uploads/?mount={rest}"), &[], b"");
    let answer = mount("to/there", &format!("{digest}&from=from/here")).expect(201);
    assert_eq!(answer.header("location"), format!("/v2/to/there/blobs/{digest}"));
    assert_eq!(r.get(answer.header("location")).expect(200).body, b"hello");
    // Without saying from where: any repository that has it.
    mount("any", &digest).expect(201);
    // Not there: an upload begins instead.
    let answer = mount("to/there", &format!("{NOWHERE}&from=from/here")).expect(202);
    assert!(answer.header("location").contains("/blobs/uploads/"));
    mount("to/there", &format!("{digest}&from=nobody")).expect(202);
    mount("to/there", NOWHERE).expect(202);
    mount("to/there", "md5:0").refused(400, "DIGEST_INVALID");
}

#[test]
fn manifests_are_pushed_and_pulled() {
    let r = Registry::new(|_| {});
    let manifest = r.manifest_of("a/b", b"layer");
    // The exact bytes stay, spaces and all.
    let text = serde_json::to_string_pretty(&manifest).unwrap();
    let digest = sha256(text.as_bytes());
    let typed = [("Content-Type", MANIFEST)];
    let answer = r.ask("PUT", "/v2/a/b/manifests/v1", &typed, text.as_bytes()).expect(201);
    assert_eq!(answer.header("docker-content-digest"), digest);
    assert_eq!(answer.header("location"), "/v2/a/b/manifests/v1");
    r.ask("PUT", &format!("/v2/a/b/manifests/{digest}"), &typed, text.as_bytes()).expect(201);
    for reference in ["v1", digest.as_str()] {
        let got = r.get(&format!("/v2/a/b/manifests/{reference}")).expect(200);
        assert_eq!(got.body, text.as_bytes());
        assert_eq!((got.header("content-type"), got.header("docker-content-digest")), (MANIFEST, digest.as_str()));
        let head = r.head(&format!("/v2/a/b/manifests/{reference}")).expect(200);
        assert_eq!((head.body.len(), head.header("content-length")), (0, text.len().to_string().as_str()));
    }
    let etag = format!("\"{digest}\"");
    r.ask("GET", "/v2/a/b/manifests/v1", &[("If-None-Match", &etag)], b"").expect(304);
    // A tag moves.
    let (other, _) = r.image("a/b", "v1", b"another layer");
    assert_eq!(r.head("/v2/a/b/manifests/v1").expect(200).header("docker-content-digest"), other);
    r.get(&format!("/v2/a/b/manifests/{digest}")).expect(200);
    // Unknown ones.
    r.get("/v2/a/b/manifests/v2").refused(404, "MANIFEST_UNKNOWN");
    r.get(&format!("/v2/a/b/manifests/{NOWHERE}")).refused(404, "MANIFEST_UNKNOWN");
    r.get("/v2/nobody/manifests/v1").refused(404, "NAME_UNKNOWN");
    r.head("/v2/nobody/manifests/v1").expect(404);
    // Without a content type, what it says of itself counts.
    r.ask("PUT", "/v2/a/b/manifests/untyped", &[], text.as_bytes()).expect(201);
    assert_eq!(r.get("/v2/a/b/manifests/untyped").expect(200).header("content-type"), MANIFEST);
}

#[test]
fn manifests_that_are_none_are_refused() {
    let r = Registry::new(|_| {});
    let manifest = r.manifest_of("a", b"layer");
    let put = |reference: &str, media_type: &str, body: &[u8]| {
        r.ask("PUT", &format!("/v2/a/manifests/{reference}"), &[("Content-Type", media_type)], body)
    };
    let text = manifest.to_string();
    for (body, why) in [
        ("", "empty"),
        ("no json", "no json"),
        ("[]", "a list"),
        (r#"{"schemaVersion":1}"#, "of old"),
        (r#"{"schemaVersion":2}"#, "without layers"),
        (r#"{"schemaVersion":2,"layers":[],"config":{}}"#, "without configuration"),
        (r#"{"schemaVersion":2,"layers":[{"digest":"x"}],"config":{}}"#, "with a digest that is none"),
    ] {
        let answer = put("1", MANIFEST, body.as_bytes());
        assert_eq!(answer.status, 400, "{why}: {answer:?}");
        answer.refused(400, "MANIFEST_INVALID");
    }
    put("1", "text/plain", text.as_bytes()).refused(400, "MANIFEST_INVALID");
    put("1", INDEX, text.as_bytes()).refused(400, "MANIFEST_INVALID");
    put(NOWHERE, MANIFEST, text.as_bytes()).refused(400, "DIGEST_INVALID");
    put("sha256:short", MANIFEST, text.as_bytes()).refused(400, "DIGEST_INVALID");
    put("-bad", MANIFEST, text.as_bytes()).refused(400, "TAG_INVALID");
    put(&"x".repeat(129), MANIFEST, text.as_bytes()).refused(400, "TAG_INVALID");
    let mut missing = manifest.clone();
    missing["layers"][0]["digest"] = json!(NOWHERE);
    put("1", MANIFEST, missing.to_string().as_bytes()).refused(400, "MANIFEST_BLOB_UNKNOWN");
    // Blobs of another repository do not count.
    let elsewhere = r.blob("b", b"elsewhere");
    missing["layers"][0]["digest"] = json!(elsewhere);
    put("1", MANIFEST, missing.to_string().as_bytes()).refused(400, "MANIFEST_BLOB_UNKNOWN");
    // A layer that is fetched elsewhere need not be here.
    missing["layers"][0]["digest"] = json!(NOWHERE);
    missing["layers"][0]["urls"] = json!(["https://example.org/layer"]);
    put("foreign", MANIFEST, missing.to_string().as_bytes()).expect(201);
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [
        { "mediaType": MANIFEST, "digest": NOWHERE, "size": 3 },
    ]});
    put("2", INDEX, index.to_string().as_bytes()).refused(400, "MANIFEST_BLOB_UNKNOWN");
    let large = format!("{{\"schemaVersion\":2,\"x\":\"{}\"}}", "x".repeat(5 << 20));
    put("3", MANIFEST, large.as_bytes()).expect(413);
    let tags = r.get("/v2/a/tags/list").expect(200).json();
    assert_eq!(tags["tags"], json!(["foreign"]));
}

#[test]
fn indexes_are_kept() {
    let r = Registry::new(|_| {});
    let (one, manifest) = r.image("a", "one", b"1");
    let entry = json!({ "mediaType": MANIFEST, "digest": one, "size": manifest.to_string().len(),
        "platform": { "architecture": "amd64", "os": "linux" } });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }).to_string();
    r.ask("PUT", "/v2/a/manifests/all", &[("Content-Type", INDEX)], index.as_bytes()).expect(201);
    let got = r.get("/v2/a/manifests/all").expect(200);
    assert_eq!((got.header("content-type"), got.body.as_slice()), (INDEX, index.as_bytes()));
}

#[test]
fn tags_are_listed_in_pages() {
    let r = Registry::new(|_| {});
    r.get("/v2/a/tags/list").refused(404, "NAME_UNKNOWN");
    r.blob("a", b"only a blob");
    assert_eq!(r.get("/v2/a/tags/list").expect(200).json(), json!({ "name": "a", "tags": [] }));
    let text = r.manifest_of("a", b"layer").to_string();
    let all = ["A", "Z", "a", "b_1", "c.2", "d"];
    for tag in ["d", "a", "Z", "b_1", "A", "c.2"] {
        r.ask("PUT", &format!("/v2/a/manifests/{tag}"), &[("Content-Type", MANIFEST)], text.as_bytes()).expect(201);
    }
    let list = r.get("/v2/a/tags/list").expect(200);
    assert_eq!((list.json()["tags"].clone(), list.header("link")), (json!(all), ""));
    // Page after page, as the links say.
    let (mut seen, mut path) = (Vec::new(), "/v2/a/tags/list?n=4".to_owned());
    loop {
        let answer = r.get(&path).expect(200);
        seen.extend(answer.json()["tags"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()));
        let link = answer.header("link");
        if link.is_empty() {
            break;
        }
        assert!(link.ends_with("; rel=\"next\""), "{link}");
        path = link.split(['<', '>']).nth(1).unwrap().to_owned();
    }
    assert_eq!(seen, all);
    let exact = r.get("/v2/a/tags/list?n=6").expect(200);
    assert_eq!((exact.json()["tags"].as_array().unwrap().len(), exact.header("link")), (6, ""));
    assert_eq!(r.get("/v2/a/tags/list?n=0").expect(200).json()["tags"], json!([]));
    assert_eq!(r.get("/v2/a/tags/list?last=b_1").expect(200).json()["tags"], json!(["c.2", "d"]));
    assert_eq!(r.get("/v2/a/tags/list?n=1&last=b").expect(200).json()["tags"], json!(["b_1"]));
    r.get("/v2/a/tags/list?n=many").refused(400, "PAGINATION_NUMBER_INVALID");
    // The repositories themselves.
    r.image("b/c", "1", b"x");
    assert_eq!(r.get("/v2/_catalog").expect(200).json(), json!({ "repositories": ["a", "b/c"] }));
    let page = r.get("/v2/_catalog?n=1").expect(200);
    assert_eq!((page.json()["repositories"].clone(), page.header("link").contains("last=a")), (json!(["a"]), true));
}

#[test]
fn referrers_are_found() {
    let mut r = Registry::new(|_| {});
    let (subject, manifest) = r.image("a", "1", b"layer");
    let size = manifest.to_string().len();
    let empty = r.blob("a", b"{}");
    let artifact = |kind: Option<&str>, config: &str, note: &str| {
        let mut artifact = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": config, "digest": empty, "size": 2 },
            "layers": [{ "mediaType": "text/plain", "digest": empty, "size": 2 }],
            "subject": { "mediaType": MANIFEST, "digest": subject, "size": size },
            "annotations": { "note": note },
        });
        if let Some(kind) = kind {
            artifact["artifactType"] = json!(kind);
        }
        artifact.to_string()
    };
    assert_eq!(r.get(&format!("/v2/a/referrers/{subject}")).expect(200).json()["manifests"], json!([]));
    let put = |r: &Registry, body: &str| {
        let path = format!("/v2/a/manifests/{}", sha256(body.as_bytes()));
        let answer = r.ask("PUT", &path, &[("Content-Type", MANIFEST)], body.as_bytes()).expect(201);
        assert_eq!(answer.header("oci-subject"), subject);
    };
    let (sbom, signature) = (artifact(Some("text/sbom"), CONFIG, "x"), artifact(None, "text/signature", "y"));
    put(&r, &sbom);
    put(&r, &signature);
    r.restart(|_| {});
    let answer = r.get(&format!("/v2/a/referrers/{subject}")).expect(200);
    assert_eq!((answer.header("content-type"), answer.header("oci-filters-applied")), (INDEX, ""));
    let list = answer.json();
    assert_eq!((list["schemaVersion"].clone(), list["mediaType"].clone()), (json!(2), json!(INDEX)));
    assert_eq!(list["manifests"].as_array().unwrap().len(), 2, "{list}");
    let filtered = r.get(&format!("/v2/a/referrers/{subject}?artifactType=text%2Fsignature")).expect(200);
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    assert_eq!(
        filtered.json()["manifests"],
        json!([{ "mediaType": MANIFEST, "digest": sha256(signature.as_bytes()), "size": signature.len(),
            "artifactType": "text/signature", "annotations": { "note": "y" } }])
    );
    // Of what is not there, and in what is not there: nothing. Of what is no digest: an error.
    assert_eq!(r.get(&format!("/v2/a/referrers/{NOWHERE}")).expect(200).json()["manifests"], json!([]));
    assert_eq!(r.get(&format!("/v2/nobody/referrers/{subject}")).expect(200).json()["manifests"], json!([]));
    r.get("/v2/a/referrers/latest").refused(400, "DIGEST_INVALID");
    // The subject may come later than what refers to it, and go before.
    let later = artifact(Some("a/b"), CONFIG, "z").replace(&subject, NOWHERE);
    r.ask("PUT", "/v2/a/manifests/later", &[("Content-Type", MANIFEST)], later.as_bytes()).expect(201);
    assert_eq!(
        r.get(&format!("/v2/a/referrers/{NOWHERE}")).expect(200).json()["manifests"].as_array().unwrap().len(),
        1
    );
    r.delete(&format!("/v2/a/manifests/{subject}")).expect(202);
    r.delete(&format!("/v2/a/manifests/{}", sha256(sbom.as_bytes()))).expect(202);
    let left = r.get(&format!("/v2/a/referrers/{subject}")).expect(200).json();
    assert_eq!(left["manifests"].as_array().unwrap().len(), 1);
}

#[test]
fn manifests_tags_and_blobs_are_deleted() {
    let r = Registry::new(|o| o.grace = std::time::Duration::ZERO);
    let (digest, manifest) = r.image("a", "1", b"layer");
    r.image("a", "2", b"layer");
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    r.delete(&format!("/v2/a/blobs/{layer}")).refused(405, "UNSUPPORTED");
    r.delete("/v2/a/manifests/1").expect(202);
    r.get("/v2/a/manifests/1").refused(404, "MANIFEST_UNKNOWN");
    r.delete("/v2/a/manifests/1").refused(404, "MANIFEST_UNKNOWN");
    r.get(&format!("/v2/a/manifests/{digest}")).expect(200);
    r.delete(&format!("/v2/a/manifests/{digest}")).expect(202);
    r.get("/v2/a/manifests/2").refused(404, "MANIFEST_UNKNOWN");
    r.delete(&format!("/v2/a/manifests/{digest}")).refused(404, "MANIFEST_UNKNOWN");
    r.delete("/v2/nobody/manifests/1").refused(404, "NAME_UNKNOWN");
    assert_eq!(r.get("/v2/a/tags/list").expect(200).json()["tags"], json!([]));
    let blob = r.blob("a", b"loose");
    r.delete(&format!("/v2/a/blobs/{blob}")).expect(202);
    r.get(&format!("/v2/a/blobs/{blob}")).refused(404, "BLOB_UNKNOWN");
    r.delete(&format!("/v2/a/blobs/{blob}")).refused(404, "BLOB_UNKNOWN");
    r.delete("/v2/a/blobs/sha256:1").refused(400, "DIGEST_INVALID");
    r.delete(&format!("/v2/nobody/blobs/{blob}")).refused(404, "NAME_UNKNOWN");
    let freed = r.server().collect().unwrap();
    assert!(freed.blobs >= 3 && freed.bytes > 0, "{freed:?}");
    assert_eq!(std::fs::read_dir(r.store().join("blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn a_layer_media_type_is_the_clients_own() {
    let r = Registry::new(|_| {});
    let blob = r.blob("a", b"x");
    let manifest = json!({ "schemaVersion": 2, "config": { "mediaType": "a/b", "digest": blob, "size": 1 },
        "layers": [{ "mediaType": LAYER, "digest": blob, "size": 1 }], "artifactType": "my/own" });
    let text = manifest.to_string();
    let typed = [("Content-Type", "application/vnd.oci.image.manifest.v1+json; charset=utf-8")];
    r.ask("PUT", "/v2/a/manifests/own", &typed, text.as_bytes()).expect(201);
}

#[test]
fn sha512_digests_are_taken() {
    let mut r = Registry::new(|o| o.grace = std::time::Duration::ZERO);
    let sha512 = |bytes: &[u8]| {
        use sha2::Digest as _;
        let hex: String = sha2::Sha512::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        format!("sha512:{hex}")
    };
    let (config, layer) = (br#"{"architecture":"amd64","os":"linux"}"#.as_slice(), b"layer".as_slice());
    for blob in [config, layer] {
        let path = format!("/v2/a/blobs/uploads/?digest={}", sha512(blob));
        r.ask("POST", &path, &[], blob).expect(201);
        assert_eq!(r.get(&format!("/v2/a/blobs/{}", sha512(blob))).expect(200).body, blob);
        // Under the digest that it was pushed by, and no other.
        r.get(&format!("/v2/a/blobs/{}", sha256(blob))).refused(404, "BLOB_UNKNOWN");
    }
    let wrong = sha512(b"other");
    r.ask("POST", &format!("/v2/a/blobs/uploads/?digest={wrong}"), &[], layer).refused(400, "DIGEST_INVALID");
    let location = r.begin("a");
    r.ask("PATCH", &location, &[], b"in pi").expect(202);
    r.ask("PUT", &format!("{location}?digest={}", sha512(b"in pieces")), &[], b"eces").expect(201);
    let text = json!({ "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": sha512(config), "size": config.len() },
        "layers": [{ "mediaType": LAYER, "digest": sha512(layer), "size": layer.len() }] })
    .to_string();
    let by = sha512(text.as_bytes());
    let typed = [("Content-Type", MANIFEST)];
    let put =
        |r: &Registry, reference: &str| r.ask("PUT", &format!("/v2/a/manifests/{reference}"), &typed, text.as_bytes());
    assert_eq!(put(&r, &by).expect(201).header("docker-content-digest"), by);
    put(&r, &wrong).refused(400, "DIGEST_INVALID");
    put(&r, "sha512:short").refused(400, "DIGEST_INVALID");
    put(&r, &format!("sha256:{}", by.split_once(':').unwrap().1)).refused(400, "DIGEST_INVALID");
    r.restart(|_| {});
    let got = r.get(&format!("/v2/a/manifests/{by}")).expect(200);
    assert_eq!((got.body.as_slice(), got.header("docker-content-digest")), (text.as_bytes(), by.as_str()));
    r.server().collect().unwrap();
    r.get(&format!("/v2/a/blobs/{}", sha512(layer))).expect(200);
    r.delete(&format!("/v2/a/manifests/{by}")).expect(202);
    let freed = r.server().collect().unwrap();
    assert!(freed.blobs >= 3, "{freed:?}");
    assert_eq!(std::fs::read_dir(r.store().join("blobs/sha512")).unwrap().count(), 0);
}
