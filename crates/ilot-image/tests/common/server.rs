//! A small HTTP server that does what it is told, good or bad.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What a path answers.
#[derive(Clone)]
pub enum Answer {
    Body(Vec<u8>),
    Status(u16),
    /// So many times this status, then the body.
    After(u32, u16, Vec<u8>),
    /// Announces all, sends so many bytes, and closes.
    Cut(usize, Vec<u8>),
    /// As `Cut`, but the whole of it from the second request on; honours `Range` when the flag says so.
    CutOnce(usize, bool, Vec<u8>),
    /// 416 to whoever asks for a part, the body to whoever does not.
    Unsatisfiable(Vec<u8>),
    /// Sends so many bytes, and then nothing, with the connection open.
    Stall(usize, Vec<u8>),
    /// With this media type.
    Typed(String, Vec<u8>),
    /// To requests with this `Authorization`; to others 401 with this `WWW-Authenticate`.
    Guarded(String, String, Box<Answer>),
    /// Follows this.
    Redirect(String),
    /// Once 429 with this many seconds to wait, then the answer.
    Later(u64, Box<Answer>),
    /// Sends for ever, without saying how much there will be.
    Endless,
    /// One byte now and then, for ever: never silent for long, and never done.
    Trickle(Vec<u8>),
    /// Says that there is so much more, and sends it.
    Longer(Vec<u8>, usize),
}

#[derive(Default)]
struct State {
    answers: Mutex<HashMap<String, Answer>>,
    /// `path` or `path Range` of each request.
    requests: Mutex<Vec<String>>,
    stop: AtomicBool,
}

pub struct Server {
    pub address: SocketAddr,
    scheme: &'static str,
    state: Arc<State>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Self {
        Self::with(None)
    }

    /// With TLS, and a certificate for `127.0.0.1`.
    pub fn with(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let mut handlers = Vec::new();
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::SeqCst) {
                    break;
                }
                let (shared, tls) = (Arc::clone(&shared), tls.clone());
                handlers.push(std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    let _ = match tls {
                        None => serve(stream, &shared),
                        Some(config) => {
                            let session = rustls::ServerConnection::new(config).unwrap();
                            serve(rustls::StreamOwned::new(session, stream), &shared)
                        }
                    };
                }));
            }
            for handler in handlers {
                let _ = handler.join();
            }
        });
        Self { address, scheme, state, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub fn set(&self, path: &str, answer: Answer) {
        self.state.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    pub fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }

    pub fn forget_requests(&self) {
        self.state.requests.lock().unwrap().clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: impl Read + Write, state: &State) -> std::io::Result<()> {
    let mut path = String::new();
    let mut range = None;
    let mut authorization = String::new();
    {
        let mut lines = BufReader::new(&mut stream);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        path.push_str(line.split(' ').nth(1).unwrap_or_default());
        loop {
            line.clear();
            if lines.read_line(&mut line)? == 0 || line == "\r\n" {
                break;
            }
            if line.to_ascii_lowercase().starts_with("authorization: ") {
                authorization = line["authorization: ".len()..].trim().to_owned();
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                range = value.trim().trim_end_matches('-').parse::<usize>().ok();
            }
        }
    }
    let asked = range.map_or(path.clone(), |from| format!("{path} {from}"));
    let first = {
        let mut requests = state.requests.lock().unwrap();
        let first = !requests.iter().any(|r| r.split(' ').next() == Some(&path));
        requests.push(asked);
        first
    };
    let answer = {
        let mut answers = state.answers.lock().unwrap();
        let answer = answers.get(&path).cloned().unwrap_or(Answer::Status(404));
        if let Answer::After(times, status, body) = &answer {
            let next =
                if *times > 1 { Answer::After(times - 1, *status, body.clone()) } else { Answer::Body(body.clone()) };
            answers.insert(path, next);
        }
        answer
    };
    let mut refused = None;
    let answer = match answer {
        Answer::Later(seconds, _) if first => {
            let head = "HTTP/1.1 429 X\r\nConnection: close\r\nContent-Length: 0\r\n";
            stream.write_all(format!("{head}Retry-After: {seconds}\r\n\r\n").as_bytes())?;
            return stream.flush();
        }
        Answer::Later(_, then) => *then,
        Answer::Guarded(expected, _, then) if expected == authorization => *then,
        Answer::Guarded(_, challenge, _) => {
            refused = Some(challenge);
            Answer::Status(401)
        }
        other => other,
    };
    let head = |status: u16, more: &str| format!("HTTP/1.1 {status} X\r\nConnection: close\r\n{more}\r\n");
    if let Some(challenge) = refused {
        stream.write_all(head(401, &format!("WWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n")).as_bytes())?;
        return stream.flush();
    }
    match answer {
        Answer::Guarded(..) | Answer::Later(..) => {}
        Answer::Endless => {
            stream.write_all(head(200, "").as_bytes())?;
            // Until the client has enough of it.
            while !state.stop.load(Ordering::SeqCst) {
                stream.write_all(&[b' '; 64 << 10])?;
            }
        }
        Answer::Trickle(body) => {
            stream.write_all(head(200, &format!("Content-Length: {}\r\n", body.len())).as_bytes())?;
            for byte in body {
                if state.stop.load(Ordering::SeqCst) {
                    break;
                }
                stream.write_all(&[byte])?;
                stream.flush()?;
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        Answer::Longer(body, more) => {
            stream.write_all(head(200, &format!("Content-Length: {}\r\n", body.len() + more)).as_bytes())?;
            stream.write_all(&body)?;
            stream.write_all(&vec![0; more])?;
        }
        Answer::Typed(kind, body) => {
            let more = format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
            stream.write_all(head(200, &more).as_bytes())?;
            stream.write_all(&body)?;
        }
        Answer::Status(status) | Answer::After(_, status, _) => {
            stream.write_all(head(status, "Content-Length: 0\r\n").as_bytes())?;
        }
        Answer::Redirect(to) => {
            stream.write_all(head(302, &format!("Location: {to}\r\nContent-Length: 0\r\n")).as_bytes())?;
        }
        Answer::CutOnce(_, true, body) if range.is_some() => {
            let from = range.unwrap_or(0);
            let more = format!(
                "Content-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\n",
                body.len() - from,
                body.len() - 1,
                body.len()
            );
            stream.write_all(head(206, &more).as_bytes())?;
            stream.write_all(&body[from..])?;
        }
        Answer::Cut(some, body) => {
            stream.write_all(head(200, &format!("Content-Length: {}\r\n", body.len())).as_bytes())?;
            stream.write_all(&body[..some])?;
        }
        Answer::CutOnce(some, _, body) => {
            stream.write_all(head(200, &format!("Content-Length: {}\r\n", body.len())).as_bytes())?;
            stream.write_all(if first { &body[..some] } else { &body })?;
        }
        Answer::Unsatisfiable(_) if range.is_some() => {
            stream.write_all(head(416, "Content-Length: 0\r\n").as_bytes())?;
        }
        Answer::Body(body) | Answer::Unsatisfiable(body) => {
            stream.write_all(head(200, &format!("Content-Length: {}\r\n", body.len())).as_bytes())?;
            stream.write_all(&body)?;
        }
        Answer::Stall(some, body) => {
            stream.write_all(head(200, &format!("Content-Length: {}\r\n", body.len())).as_bytes())?;
            stream.write_all(&body[..some])?;
            stream.flush()?;
            // Until the client gives up.
            let _ = stream.read(&mut [0]);
        }
    }
    stream.flush()
}
