//! Pushing to a registry on loopback that is slow of understanding.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Place, Recorder, Tar};
use ilot_image::{Store, Timeouts};
use sha2::Digest as _;

const QUICK: Timeouts = Timeouts {
    connect: Duration::from_millis(500),
    stall: Duration::from_secs(5),
    retries: 2,
    back_off: Duration::from_millis(1),
};

/// What goes wrong, each the given number of times.
#[derive(Debug, Default, Clone)]
struct Trouble {
    /// `METHOD status`, answered to requests of that method.
    answers: Vec<(&'static str, u16)>,
    /// Whole uploads are answered so, however often.
    no_whole: Option<u16>,
    /// PATCH requests whose connection is cut after the body came: the answer is lost.
    lost_answers: usize,
    /// The digest that the registry claims to have got.
    wrong_digest: bool,
    /// Where it sends uploads.
    location: Option<&'static str>,
}

#[derive(Default)]
struct State {
    trouble: Trouble,
    blobs: HashMap<String, Vec<u8>>,
    uploads: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, Vec<u8>>,
    requests: Vec<String>,
}

/// The least of a registry.
struct Registry {
    address: String,
    state: Arc<Mutex<State>>,
}

fn sha256(bytes: &[u8]) -> String {
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

impl Registry {
    fn start(trouble: Trouble) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State { trouble, ..State::default() }));
        let shared = state.clone();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || while serve(&stream, &state).is_some() {});
            }
        });
        Self { address, state }
    }

    fn requests(&self, start: &str) -> usize {
        self.state.lock().unwrap().requests.iter().filter(|r| r.starts_with(start)).count()
    }
}

/// One request; none when the connection is to end.
fn serve(stream: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let (mut length, mut range) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok()?,
            "content-range" => range = value.trim().split_once('-').and_then(|(from, _)| from.parse::<usize>().ok()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (method, path) = line.split_once(' ').map(|(m, p)| (m, p.split(' ').next().unwrap_or_default()))?;
    let (status, headers) = answer(method, path, body, range, &mut state.lock().unwrap())?;
    let text = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n{headers}\r\n");
    let mut stream = stream;
    stream.write_all(text.as_bytes()).ok()
}

fn answer(method: &str, path: &str, body: Vec<u8>, range: Option<usize>, state: &mut State) -> Option<(u16, String)> {
    state.requests.push(format!("{method} {path}"));
    if let Some(i) = state.trouble.answers.iter().position(|(m, _)| *m == method) {
        return Some((state.trouble.answers.remove(i).1, String::new()));
    }
    let (file, query) = path.split_once('?').unwrap_or((path, ""));
    let name = file.rsplit('/').next().unwrap_or_default().to_owned();
    let place = |id: &str, size: usize| {
        format!("Location: /v2/team/tool/blobs/uploads/{id}?state=x\r\nRange: 0-{}\r\n", size.saturating_sub(1))
    };
    match method {
        "HEAD" => Some((if state.blobs.contains_key(&name) { 200 } else { 404 }, String::new())),
        "POST" => {
            let id = format!("u{}", state.uploads.len());
            state.uploads.insert(id.clone(), Vec::new());
            let elsewhere = state.trouble.location.map(|l| format!("Location: {l}\r\n"));
            Some((202, elsewhere.unwrap_or_else(|| place(&id, 0))))
        }
        "GET" => state.uploads.get(&name).map_or(Some((404, String::new())), |u| Some((204, place(&name, u.len())))),
        "PATCH" => {
            let upload = state.uploads.get_mut(&name)?;
            if range != Some(upload.len()) {
                return Some((416, String::new()));
            }
            upload.extend(body);
            if state.trouble.lost_answers > 0 {
                state.trouble.lost_answers -= 1;
                return None;
            }
            Some((202, place(&name, state.uploads[&name].len())))
        }
        "PUT" if file.contains("/manifests/") => {
            let digest = if state.trouble.wrong_digest { sha256(b"other") } else { sha256(&body) };
            state.manifests.insert(name, body);
            Some((201, format!("Docker-Content-Digest: {digest}\r\n")))
        }
        "PUT" => {
            if let (Some(status), false) = (state.trouble.no_whole, body.is_empty()) {
                return Some((status, String::new()));
            }
            let mut upload = state.uploads.remove(&name)?;
            upload.extend(body);
            let digest = query.split("digest=").nth(1)?.to_owned();
            if sha256(&upload) != digest {
                return Some((400, String::new()));
            }
            state.blobs.insert(digest, upload);
            Some((201, String::new()))
        }
        _ => Some((405, String::new())),
    }
}

/// The part of a test that runs in a process of its own, with an environment of its own.
#[test]
fn child() {
    let (Ok(root), Ok(destination)) = (std::env::var("TEST_STORE"), std::env::var("TEST_DESTINATION")) else { return };
    let store = Store::open(root.as_ref()).unwrap().with_timeouts(QUICK);
    let image = store.require("local:small").unwrap();
    match store.push(&image, Some(&destination), &Recorder::default()) {
        Ok(pushed) => println!("PUSHED sent={} present={}", pushed.sent, pushed.present),
        Err(error) => println!("FAILED {error}"),
    }
}

/// A store with an image of a layer that is larger than a piece.
fn place() -> Place {
    let place = Place::new();
    let content: String =
        (0..120_000u32).map(|i| char::from(b'!' + (i.wrapping_mul(2_654_435_761) >> 26) as u8)).collect();
    let file = place.write("small.tar", &Tar::new().file("a", &content).end());
    place.store.import(file.to_str().unwrap(), Some("small"), &ilot_image::Silent).unwrap();
    place
}

fn push(place: &Place, registry: &Registry, chunk: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("TEST_STORE", place.store.root())
        .env("TEST_DESTINATION", format!("{}/team/tool:1", registry.address))
        .env("ILOT_INSECURE_REGISTRIES", &registry.address)
        .env("ILOT_PUSH_CHUNK", chunk)
        .env("REGISTRY_AUTH_FILE", "/dev/null")
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn assert_whole(registry: &Registry) {
    let state = registry.state.lock().unwrap();
    assert_eq!(state.blobs.len(), 2, "{:?}", state.requests);
    for (digest, content) in &state.blobs {
        assert_eq!(sha256(content), *digest);
    }
    assert!(state.manifests.contains_key("1"));
}

#[test]
fn whole_and_in_pieces() {
    let place = place();
    for (chunk, patches) in [("", 0), ("2000", 3)] {
        let registry = Registry::start(Trouble::default());
        let said = push(&place, &registry, chunk);
        assert!(said.contains("PUSHED sent=2 present=0"), "{said}");
        assert_whole(&registry);
        assert!(registry.requests("PATCH") >= patches, "{chunk}: {}", registry.requests("PATCH"));
        let said = push(&place, &registry, chunk);
        assert!(said.contains("PUSHED sent=0 present=2"), "{said}");
    }
}

#[test]
fn busy_registries_are_asked_again() {
    let place = place();
    let troubles = [
        vec![("HEAD", 503), ("POST", 500), ("PUT", 429)],
        vec![("PUT", 500), ("PUT", 502)],
        vec![("POST", 429), ("POST", 429), ("HEAD", 500)],
    ];
    for answers in troubles {
        let registry = Registry::start(Trouble { answers, ..Trouble::default() });
        let said = push(&place, &registry, "");
        assert!(said.contains("PUSHED sent=2"), "{said}");
        assert_whole(&registry);
    }
    // Not for ever.
    let registry = Registry::start(Trouble { answers: vec![("HEAD", 500); 20], ..Trouble::default() });
    let said = push(&place, &registry, "");
    assert!(said.contains("FAILED") && said.contains("the server answers 500"), "{said}");
    assert!(registry.requests("HEAD") <= 2 * 3, "{}", registry.requests("HEAD"));
}

#[test]
fn lost_answers_and_lost_pieces() {
    let place = place();
    for lost_answers in [1, 3] {
        let registry = Registry::start(Trouble { lost_answers, ..Trouble::default() });
        let said = push(&place, &registry, "2000");
        assert!(said.contains("PUSHED sent=2"), "{said}");
        assert_whole(&registry);
        assert!(registry.requests("GET") >= 1, "it asks where it is");
    }
}

#[test]
fn refusals_and_lies() {
    let place = place();
    let cases = [
        (Trouble { answers: vec![("POST", 403), ("POST", 403)], ..Trouble::default() }, "not allowed (403)"),
        (Trouble { answers: vec![("HEAD", 401), ("HEAD", 401)], ..Trouble::default() }, "(401)"),
        (Trouble { no_whole: Some(413), ..Trouble::default() }, "413"),
        (Trouble { wrong_digest: true, ..Trouble::default() }, "digest is sha256:"),
        (Trouble { location: Some("http://127.0.0.1:1/elsewhere"), ..Trouble::default() }, "127.0.0.1:1"),
    ];
    for (trouble, wanted) in cases {
        let shown = format!("{trouble:?}");
        let registry = Registry::start(trouble);
        let said = push(&place, &registry, "");
        assert!(said.contains("FAILED") && said.contains(wanted), "{shown}: {said}");
        place.assert_clean();
    }
}
