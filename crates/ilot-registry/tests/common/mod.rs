//! A registry on loopback, and a client that says exactly what a test wants.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use ilot_registry::{Options, Server};
use serde_json::{Value, json};
use sha2::Digest as _;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

pub struct Registry {
    pub dir: tempfile::TempDir,
    pub server: Option<Server>,
    pub options: Options,
}

impl Registry {
    pub fn new(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new("127.0.0.1:0".parse().unwrap(), dir.path().join("store"));
        change(&mut options);
        let server = Some(Server::start(&options).unwrap());
        Self { dir, server, options }
    }

    /// Ends the server and starts another one on the same store.
    pub fn restart(&mut self, change: impl FnOnce(&mut Options)) {
        drop(self.server.take());
        change(&mut self.options);
        self.server = Some(Server::start(&self.options).unwrap());
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub fn address(&self) -> SocketAddr {
        self.server().address()
    }

    pub fn store(&self) -> PathBuf {
        self.options.root.clone()
    }

    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        ask(self.address(), method, path, headers, body)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    pub fn head(&self, path: &str) -> Answer {
        self.ask("HEAD", path, &[], b"")
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, &[], b"")
    }

    /// Pushes a blob in one request; its digest.
    pub fn blob(&self, name: &str, content: &[u8]) -> String {
        let digest = sha256(content);
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        self.ask("POST", &path, &[], content).expect(201);
        digest
    }

    /// Pushes an image of one layer; its manifest.
    pub fn image(&self, name: &str, reference: &str, layer: &[u8]) -> (String, Value) {
        let manifest = self.manifest_of(name, layer);
        let text = manifest.to_string();
        let path = format!("/v2/{name}/manifests/{reference}");
        self.ask("PUT", &path, &[("Content-Type", MANIFEST)], text.as_bytes()).expect(201);
        (sha256(text.as_bytes()), manifest)
    }

    /// Pushes what a manifest needs, and makes it.
    pub fn manifest_of(&self, name: &str, layer: &[u8]) -> Value {
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let (config_digest, layer_digest) = (self.blob(name, config), self.blob(name, layer));
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": config_digest, "size": config.len() },
            "layers": [{ "mediaType": LAYER, "digest": layer_digest, "size": layer.len() }],
        })
    }

    /// Begins an upload; where it goes on.
    pub fn begin(&self, name: &str) -> String {
        let answer = self.ask("POST", &format!("/v2/{name}/blobs/uploads/"), &[], b"").expect(202);
        answer.header("location").to_owned()
    }
}

#[derive(Debug)]
pub struct Answer {
    pub line: String,
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}: {:?} {}", self.line, self.headers, String::from_utf8_lossy(&self.body));
        self
    }

    /// An error of the specification's form.
    pub fn refused(self, status: u16, code: &str) -> Self {
        let answer = self.expect(status);
        if !answer.line.starts_with("HEAD") {
            let json = answer.json();
            assert_eq!(json["errors"][0]["code"], code, "{}: {json}", answer.line);
            assert!(json["errors"][0]["message"].as_str().is_some_and(|m| !m.is_empty()), "{json}");
            assert_eq!(answer.header("content-type"), "application/json");
        }
        answer
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{}: {e}: {:?}", self.line, self.body))
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// One request on a connection of its own, byte by byte as it is here.
pub fn ask(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut stream = connect(address);
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    let says_length = headers
        .iter()
        .any(|(n, _)| n.eq_ignore_ascii_case("content-length") || n.eq_ignore_ascii_case("transfer-encoding"));
    if !says_length && !matches!(method, "GET" | "HEAD" | "DELETE") {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    // A server may answer and close before it has read everything.
    let _ = stream.write_all(body);
    read(&mut stream, &format!("{method} {path}"))
}

pub fn read(stream: &mut TcpStream, line: &str) -> Answer {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| panic!("{line}: no answer"));
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next().and_then(|l| l.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
    let headers: BTreeMap<String, String> =
        lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())).collect();
    let mut body = bytes[end + 4..].to_vec();
    if headers.get("transfer-encoding").is_some_and(|t| t == "chunked") {
        body = unchunk(&body);
    }
    Answer { line: line.to_owned(), status, headers, body }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap().trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        out.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
    out
}
