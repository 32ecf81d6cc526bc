//! Requests that carry something, for pushes.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

use ureq::SendBody;
use ureq::http::Request;

use super::{Access, Again, Client, Try, Watch, broken, failed};
use crate::error::{Error, Result};

/// A registry may hash a whole layer again before it answers.
const ANSWER: Duration = Duration::from_secs(300);
/// What a registry explains is short.
const EXPLANATION: u64 = 64 << 10;

/// What is sent.
#[derive(Clone, Copy)]
pub(crate) enum Body<'a> {
    /// Nothing.
    None,
    /// Something small.
    Bytes(&'a [u8]),
    /// A piece of a file: from where, and how much.
    File(&'a Path, u64, u64),
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) status: u16,
    pub(crate) location: Option<String>,
    /// `Docker-Content-Digest`.
    pub(crate) digest: Option<String>,
    /// `Range` of an upload: the last byte that the server has.
    pub(crate) received: Option<u64>,
    /// `OCI-Chunk-Min-Length`.
    pub(crate) chunk: Option<u64>,
}

/// A small answer.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) status: u16,
    headers: ureq::http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// Without its parameters.
    pub(crate) fn media_type(&self) -> String {
        let said = self.header("content-type").unwrap_or_default();
        said.split(';').next().unwrap_or_default().trim().to_owned()
    }
}

impl Client {
    /// Asks for a small document; statuses of `expected` are answers, all others errors. Tried again as downloads are.
    pub(crate) fn ask(
        &self,
        method: &str,
        url: &str,
        limit: u64,
        expected: &[u16],
        access: &dyn Access,
    ) -> Result<Received> {
        self.retrying(url, access, &|| false, || {
            let mut request = Request::builder().method(method).uri(url);
            for (name, value) in access.headers() {
                request = request.header(name, value);
            }
            let request = request.body(()).map_err(|e| failed(url, e.to_string(), Again::Never))?;
            let agent = self.agent(url);
            let safe = self.verifies() && url.starts_with("https://");
            let request = agent.configure_request(request).https_only(safe).build();
            let mut answer = agent.run(request).map_err(|error| self.explain(url, error))?;
            let status = answer.status().as_u16();
            if !expected.contains(&status) {
                return Err(refused(url, &mut answer));
            }
            let headers = answer.headers().clone();
            let mut body = Vec::new();
            if method != "HEAD" {
                let mut reader = answer.body_mut().with_config().limit(u64::MAX).reader().take(limit + 1);
                reader.read_to_end(&mut body).map_err(|e| broken(url, &e))?;
                if body.len() as u64 > limit {
                    return Err(failed(url, format!("larger than {limit} bytes"), Again::Never));
                }
            }
            Ok(Received { status, headers, body })
        })
    }

    /// Sends a request; statuses of `expected` are answers, all others errors. Tried again as downloads are.
    pub(crate) fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, String)],
        body: Body<'_>,
        expected: &[u16],
        (access, watch): (&dyn Access, &Watch<'_>),
    ) -> Result<Sent> {
        self.retrying(url, access, watch.cancelled, || {
            self.send_once(method, url, headers, body, expected, (access, watch))
        })
    }

    fn send_once(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, String)],
        body: Body<'_>,
        expected: &[u16],
        (access, watch): (&dyn Access, &Watch<'_>),
    ) -> Result<Sent, Try> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in access.headers() {
            request = request.header(name, value);
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let length = match body {
            Body::None => 0,
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File(_, _, length) => length,
        };
        if !matches!(method, "GET" | "HEAD" | "DELETE") {
            request = request.header("Content-Length", length.to_string());
        }
        match body {
            Body::None => self.finish(url, request, SendBody::none(), expected),
            Body::Bytes(bytes) => {
                let mut piece = Piece { file: bytes, done: 0, watch };
                self.finish(url, request, SendBody::from_reader(&mut piece), expected)
            }
            Body::File(path, from, length) => {
                let mut opened = File::open(path).map_err(|e| Try::over(Error::io("open", path, e)))?;
                opened.seek(SeekFrom::Start(from)).map_err(|e| Try::over(Error::io("read", path, e)))?;
                let mut piece = Piece { file: opened.take(length), done: 0, watch };
                self.finish(url, request, SendBody::from_reader(&mut piece), expected)
            }
        }
    }

    fn finish(
        &self,
        url: &str,
        request: ureq::http::request::Builder,
        body: SendBody<'_>,
        expected: &[u16],
    ) -> Result<Sent, Try> {
        let request = request.body(body).map_err(|e| failed(url, e.to_string(), Again::Never))?;
        let agent = self.agent(url);
        let request = agent.configure_request(request).timeout_recv_response(Some(ANSWER)).max_redirects(0).build();
        let mut answer = agent.run(request).map_err(|error| match error {
            // The connection went away under a body: perhaps another time.
            ureq::Error::Io(e) if e.kind() != io::ErrorKind::InvalidData && !super::unreachable(&e) => broken(url, &e),
            other => self.explain(url, other),
        })?;
        let status = answer.status().as_u16();
        let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        if expected.contains(&status) {
            let received = header("range").and_then(|r| r.rsplit_once('-')?.1.parse().ok());
            let chunk = header("oci-chunk-min-length").and_then(|c| c.parse().ok());
            let sent =
                Sent { status, location: header("location"), digest: header("docker-content-digest"), received, chunk };
            // Read to its end, the connection can be used again.
            let _ = io::copy(&mut answer.body_mut().as_reader().take(EXPLANATION), &mut io::sink());
            return Ok(sent);
        }
        Err(refused(url, &mut answer))
    }
}

/// A status that is not the expected one.
fn refused(url: &str, answer: &mut ureq::http::Response<ureq::Body>) -> Try {
    let status = answer.status().as_u16();
    let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let challenge = header("www-authenticate").unwrap_or_default();
    let again = super::retry_after(answer);
    let said = explanation(answer);
    match status {
        401 => failed(url, format!("the server wants to know who asks (401){said}"), Again::Challenged(challenge)),
        403 => failed(url, format!("not allowed (403){said}"), Again::Never),
        404 => failed(url, format!("not there (404){said}"), Again::Never),
        429 | 500..=599 => failed(url, format!("the server answers {status}{said}"), again),
        _ => failed(url, format!("the server answers {status}{said}"), Again::Never),
    }
}

/// What a registry says about an error (distribution-spec, error codes), as one line.
fn explanation(answer: &mut ureq::http::Response<ureq::Body>) -> String {
    let mut bytes = Vec::new();
    let _ = answer.body_mut().as_reader().take(EXPLANATION).read_to_end(&mut bytes);
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let first = &json["errors"][0];
    let text = |key: &str| first[key].as_str().unwrap_or_default();
    match (text("code"), text("message")) {
        ("", "") => String::new(),
        (code, "") => format!(": {code}"),
        (code, message) => {
            format!(": {code}: {}", message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>())
        }
    }
}

/// Counts what is sent, and ends when nobody wants it any more.
struct Piece<'a, R> {
    file: R,
    done: u64,
    watch: &'a Watch<'a>,
}

impl<R: Read> Read for Piece<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if (self.watch.cancelled)() {
            return Err(io::Error::other("cancelled"));
        }
        let n = self.file.read(buf)?;
        self.done += n as u64;
        (self.watch.bytes)(self.done, None);
        Ok(n)
    }
}
