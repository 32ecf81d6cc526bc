//! Downloads: bounded waits, a few retries, resumed where they broke off.

mod send;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek as _, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::blob::Hasher;
use crate::error::{Error, Result};
use crate::types::Digest;

pub(crate) use send::{Body, Received, Sent};

/// No `Retry-After` is obeyed for longer.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long a server that could not be reached is not asked again.
const FORGIVE: Duration = Duration::from_secs(300);
/// Where distributions keep the certificates of the authorities that they trust.
const CA_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where the authorities of single registries are (containers-certs.d(5)).
const CERTS_D: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// How patient downloads are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection (name, TCP, TLS) stands. Default 4 s: an unreachable server is only the first thing tried.
    pub connect: Duration,
    /// Until a server answers, and between two pieces of an answer. Default 20 s.
    pub stall: Duration,
    /// Further tries after an answer that may be better the next time (429, 5xx, a stall, a cut). Default 3.
    pub retries: u32,
    /// Before the first of them, doubled for each further one. Default 0.5 s.
    pub back_off: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(4),
            stall: Duration::from_secs(20),
            retries: 3,
            back_off: Duration::from_millis(500),
        }
    }
}

/// Downloads, and remembers who does not answer.
#[derive(Debug)]
pub(crate) struct Client {
    timeouts: Timeouts,
    /// Whether servers must show a certificate of an authority.
    verify: bool,
    logins: Logins,
    agent: OnceLock<Agent>,
    /// For the hosts that have authorities of their own.
    own: Mutex<HashMap<String, Agent>>,
    unreachable: Mutex<HashMap<String, (Instant, String)>>,
}

/// How often somebody who waits is asked whether he still wants to.
const LOOK: Duration = Duration::from_millis(100);
const WHO_ASKS: &str = "the server wants to know who asks (401)";
const NO_RANGE: &str = "answers 416";
const NOT_ALLOWED: &str = "not allowed (403)";
const NOT_THERE: &str = "not there (404)";

/// Whether a server answered, and has it not, or not for whoever asks: a registry says the one for the other.
pub(crate) fn says_no(error: &Error) -> bool {
    matches!(error, Error::Http { reason, .. } if [WHO_ASKS, NOT_ALLOWED, NOT_THERE].contains(&reason.as_str()))
}

/// Logins that a call was given, besides those of the usual files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Logins {
    /// `user:password`, for every registry but mirrors.
    pub(crate) given: Option<String>,
    /// The only file that is read.
    pub(crate) file: Option<std::path::PathBuf>,
}

/// How a server is spoken to that wants to know who asks.
pub(crate) trait Access: Sync {
    /// Headers of each request.
    fn headers(&self) -> Vec<(&'static str, String)>;

    /// Answers a `WWW-Authenticate`; true when it is worth asking again.
    fn challenged(&self, challenge: &str) -> Result<bool>;
}

/// Speaks to everybody alike.
pub(crate) struct Open;

impl Access for Open {
    fn headers(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn challenged(&self, _challenge: &str) -> Result<bool> {
        Ok(false)
    }
}

/// What a download is told and asked.
pub(crate) struct Watch<'a> {
    pub(crate) bytes: &'a dyn Fn(u64, Option<u64>),
    pub(crate) cancelled: &'a dyn Fn() -> bool,
}

impl Client {
    pub(crate) fn new(timeouts: Timeouts) -> Self {
        Self {
            timeouts,
            verify: true,
            logins: Logins::default(),
            agent: OnceLock::new(),
            own: Mutex::new(HashMap::new()),
            unreachable: Mutex::new(HashMap::new()),
        }
    }

    /// The same, content with any certificate.
    pub(crate) fn unverified(&self) -> Self {
        Self { verify: false, logins: self.logins.clone(), ..Self::new(self.timeouts) }
    }

    /// The same, with other logins.
    pub(crate) fn with_logins(&self, logins: Logins) -> Self {
        Self { verify: self.verify, logins, ..Self::new(self.timeouts) }
    }

    /// The same, with other waits.
    pub(crate) fn with_timeouts(&self, timeouts: Timeouts) -> Self {
        Self { verify: self.verify, logins: self.logins.clone(), ..Self::new(timeouts) }
    }

    pub(crate) fn logins(&self) -> &Logins {
        &self.logins
    }

    pub(crate) fn verifies(&self) -> bool {
        self.verify
    }

    /// Whether somebody speaks HTTP there, whatever they say.
    pub(crate) fn answers(&self, url: &str) -> bool {
        self.agent(url).get(url).call().is_ok()
    }

    /// A small document.
    pub(crate) fn get(&self, url: &str, limit: u64, proxy: Option<&str>) -> Result<Vec<u8>> {
        self.get_as(url, limit, proxy, &Open).map(|(bytes, _)| bytes)
    }

    /// A small document and its media type.
    pub(crate) fn get_as(
        &self,
        url: &str,
        limit: u64,
        proxy: Option<&str>,
        access: &dyn Access,
    ) -> Result<(Vec<u8>, String)> {
        self.retrying(url, access, &|| false, || {
            let mut body = self.request(url, 0, proxy, access)?.into_body();
            let media_type = body.mime_type().unwrap_or_default().to_owned();
            let mut bytes = Vec::new();
            let mut reader = body.with_config().limit(u64::MAX).reader().take(limit + 1);
            reader.read_to_end(&mut bytes).map_err(|e| broken(url, &e))?;
            if bytes.len() as u64 > limit {
                return Err(failed(url, format!("larger than {limit} bytes"), Again::Never));
            }
            Ok((bytes, media_type))
        })
    }

    /// A file, checked against its digest; a try that broke off is gone on with, an earlier call's too where the file has what
    /// came then.
    pub(crate) fn download(
        &self,
        url: &str,
        to: &Path,
        expected: &Digest,
        size: Option<u64>,
        access: &dyn Access,
        watch: &Watch<'_>,
    ) -> Result<()> {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(to)
            .map_err(|e| Error::io("create", to, e))?;
        let fresh = Hasher::like(expected);
        let mut hash = fresh.clone();
        let mut done = earlier(&mut file, &mut hash, size).map_err(|e| Error::io("read", to, e))?;
        let resumed = done > 0;
        if !resumed || size != Some(done) {
            self.retrying(url, access, watch.cancelled, || {
                self.piece(url, (&mut file, to), (&mut hash, &fresh, &mut done), size, access, watch)
            })?;
        }
        (watch.bytes)(done, size);
        let actual = hash.finish();
        if actual != *expected {
            // What came before may be what is wrong: once more, all of it.
            let _ = fs::remove_file(to);
            if resumed {
                return self.download(url, to, expected, size, access, watch);
            }
            return Err(Error::Mismatch { what: url.to_owned(), expected: expected.clone(), actual });
        }
        Ok(())
    }

    fn piece(
        &self,
        url: &str,
        (file, path): (&mut File, &Path),
        (hash, fresh, done): (&mut Hasher, &Hasher, &mut u64),
        size: Option<u64>,
        access: &dyn Access,
        watch: &Watch<'_>,
    ) -> Result<(), Try> {
        let mut answer = match self.request(url, *done, None, access) {
            // What it has is shorter than what came before.
            Err(Try { error: Error::Http { reason, .. }, .. }) if *done > 0 && reason.ends_with(NO_RANGE) => {
                self.request(url, 0, None, access)?
            }
            other => other?,
        };
        if answer.status() != 206 && *done > 0 {
            // A server that cannot resume starts from the beginning.
            file.set_len(0).and_then(|()| file.rewind()).map_err(|e| Try::over(Error::io("rewind", path, e)))?;
            *hash = fresh.clone();
            *done = 0;
        }
        let total = size.or_else(|| answer.body().content_length().map(|l| l + *done));
        let mut reader = answer.body_mut().with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 128 << 10];
        loop {
            if (watch.cancelled)() {
                return Err(Try::over(Error::Cancelled { reference: url.to_owned() }));
            }
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(broken(url, &e)),
            };
            if size.is_some_and(|size| *done + n as u64 > size) {
                return Err(failed(url, "sends more than it announced", Again::Never));
            }
            file.write_all(&buffer[..n]).map_err(|e| Try::over(Error::io("write", path, e)))?;
            hash.update(&buffer[..n]);
            *done += n as u64;
            (watch.bytes)(*done, total);
        }
        match total {
            Some(total) if *done < total => {
                Err(failed(url, format!("ends after {done} of {total} bytes"), Again::Perhaps))
            }
            _ => Ok(()),
        }
    }

    fn request(
        &self,
        url: &str,
        from: u64,
        proxy: Option<&str>,
        access: &dyn Access,
    ) -> Result<ureq::http::Response<ureq::Body>, Try> {
        let agent = self.agent(url);
        // What was asked for over TLS does not come without, wherever the server sends us.
        let mut request = agent.get(url).config().https_only(self.verify && url.starts_with("https://")).build();
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        for (name, value) in access.headers() {
            request = request.header(name, value);
        }
        let sent = match proxy {
            None => request.call(),
            Some(proxy) => {
                let proxy =
                    ureq::Proxy::new(proxy).map_err(|e| failed(url, format!("proxy {proxy}: {e}"), Again::Never))?;
                request.config().proxy(Some(proxy)).build().call()
            }
        };
        let answer = sent.map_err(|error| self.explain(url, error))?;
        let status = answer.status().as_u16();
        match status {
            200..=299 => Ok(answer),
            401 => {
                let challenge =
                    answer.headers().get("www-authenticate").and_then(|v| v.to_str().ok()).unwrap_or_default();
                let again = Again::Challenged(challenge.to_owned());
                Err(failed(url, WHO_ASKS, again))
            }
            403 => Err(failed(url, NOT_ALLOWED, Again::Never)),
            404 => Err(failed(url, NOT_THERE, Again::Never)),
            429 | 500..=599 => Err(failed(url, format!("the server answers {status}"), retry_after(&answer))),
            _ => Err(failed(url, format!("the server answers {status}"), Again::Never)),
        }
    }

    fn explain(&self, url: &str, error: ureq::Error) -> Try {
        match error {
            ureq::Error::HostNotFound => failed(url, "its name does not resolve", Again::Unreachable),
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                let waited = self.timeouts.connect;
                failed(url, format!("no connection within {waited:?}"), Again::Unreachable)
            }
            ureq::Error::ConnectionFailed => failed(url, "no connection", Again::Unreachable),
            // Asking a mute server three times more would cost a minute.
            ureq::Error::Timeout(_) => {
                failed(url, format!("no answer within {:?}", self.timeouts.stall), Again::Unreachable)
            }
            // What rustls says of a certificate.
            ureq::Error::Io(e) if e.kind() == io::ErrorKind::InvalidData => {
                failed(url, format!("TLS: {e}"), Again::Unreachable)
            }
            ureq::Error::Io(e) if unreachable(&e) => failed(url, e.to_string(), Again::Unreachable),
            ureq::Error::Io(e) => broken(url, &e),
            ureq::Error::Rustls(e) => failed(url, format!("TLS: {e}"), Again::Unreachable),
            other => failed(url, other.to_string(), Again::Never),
        }
    }

    /// Tries until it works, is hopeless, or has been tried often enough; whoever was found unreachable is not asked.
    fn retrying<T>(
        &self,
        url: &str,
        access: &dyn Access,
        cancelled: &dyn Fn() -> bool,
        mut go: impl FnMut() -> Result<T, Try>,
    ) -> Result<T> {
        let host = host_of(url);
        if let Some(reason) = self.known_unreachable(&host) {
            let reason = format!("{reason} (found a moment ago, not asked again)");
            return Err(Error::Http { url: url.to_owned(), reason, unreachable: true });
        }
        let mut pause = self.timeouts.back_off;
        let mut left = self.timeouts.retries;
        let mut answered = false;
        loop {
            match go() {
                Ok(value) => return Ok(value),
                Err(Try { error, again: Again::Unreachable }) => {
                    if let Error::Http { reason, .. } = &error {
                        let mut known = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
                        known.insert(host, (Instant::now(), reason.clone()));
                    }
                    return Err(error);
                }
                Err(Try { error, again: Again::Challenged(challenge) }) => {
                    // Once: a server that does not like the answer says so with another challenge.
                    if answered || !access.challenged(&challenge)? {
                        return Err(error);
                    }
                    answered = true;
                }
                Err(Try { error, again: Again::Perhaps }) if left > 0 => {
                    tracing::debug!(url, %error, "trying again");
                    rest(pause, cancelled);
                    pause *= 2;
                    left -= 1;
                }
                Err(Try { error, again: Again::After(wanted) }) if left > 0 => {
                    // A server may ask for patience, not for the rest of the day.
                    let wait = wanted.min(LONGEST_WAIT).max(pause);
                    tracing::debug!(url, %error, ?wait, "trying again when the server says");
                    rest(wait, cancelled);
                    pause *= 2;
                    left -= 1;
                }
                Err(Try { error, .. }) => return Err(error),
            }
        }
    }

    fn known_unreachable(&self, host: &str) -> Option<String> {
        let known = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(host).filter(|(since, _)| since.elapsed() < FORGIVE).map(|(_, reason)| reason.clone())
    }

    pub(crate) fn agent(&self, url: &str) -> Agent {
        let host = host_of(url);
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = own.get(&host) {
            return agent.clone();
        }
        match own_authorities(&host) {
            extra if extra.is_empty() => self.agent.get_or_init(|| self.make_agent(authorities())).clone(),
            mut extra => {
                if let RootCerts::Specific(all) = authorities() {
                    extra.extend(all.iter().cloned());
                }
                let agent = self.make_agent(RootCerts::Specific(Arc::new(extra)));
                own.insert(host, agent.clone());
                agent
            }
        }
    }

    fn make_agent(&self, roots: RootCerts) -> Agent {
        let tls = TlsConfig::builder().root_certs(roots).disable_verification(!self.verify).build();
        let config = Agent::config_builder()
            .timeout_connect(Some(self.timeouts.connect))
            .timeout_resolve(Some(self.timeouts.connect))
            .timeout_recv_response(Some(self.timeouts.stall))
            .timeout_per_read(Some(self.timeouts.stall))
            .timeout_per_write(Some(self.timeouts.stall))
            .http_status_as_error(false)
            .user_agent(concat!("ilot/", env!("CARGO_PKG_VERSION")))
            // A transparent gzip would break sizes, digests and resuming.
            .accept_encoding("identity")
            .tls_config(tls);
        config.build().into()
    }
}

/// `certs.d/HOST:PORT/*.crt` (containers-certs.d(5)): authorities for one registry alone.
fn own_authorities(host: &str) -> Vec<Certificate<'static>> {
    let mut all = Vec::new();
    // A host is a name, not a path.
    if host.is_empty() || host.starts_with('.') {
        return all;
    }
    let home = std::env::var_os("HOME").map(|h| Path::new(&h).join(".config/containers/certs.d"));
    let folders = CERTS_D.map(Into::into).into_iter().chain(home);
    for file in folders.filter_map(|d: std::path::PathBuf| fs::read_dir(d.join(host)).ok()).flatten().flatten() {
        if file.path().extension().is_some_and(|e| e == "crt") {
            all.extend(certificates(&file.path()));
        }
    }
    all
}

fn certificates(path: &Path) -> Vec<Certificate<'static>> {
    let Ok(pem) = fs::read(path) else { return Vec::new() };
    let of_item = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    parse_pem(&pem).filter_map(of_item).collect()
}

/// The host's own authorities (`SSL_CERT_FILE`, else the distribution's bundle): a company's proxy is among them.
fn authorities() -> RootCerts {
    let own = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    let bundles = own.into_iter().chain(CA_BUNDLES.map(Into::into));
    for path in bundles {
        let certificates = certificates(&path);
        if !certificates.is_empty() {
            return RootCerts::Specific(Arc::new(certificates));
        }
    }
    RootCerts::WebPki
}

/// Waits, but not for somebody who does not want it any more: the next try tells him.
fn rest(pause: Duration, cancelled: &dyn Fn() -> bool) {
    let end = Instant::now() + pause;
    while !cancelled() {
        match end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return,
            left => std::thread::sleep(left.min(LOOK)),
        }
    }
}

/// What a file has of an earlier try, hashed; nothing where it is more than there can be.
fn earlier(file: &mut File, hash: &mut Hasher, size: Option<u64>) -> io::Result<u64> {
    let length = file.metadata()?.len();
    if size.is_none_or(|size| length > size) {
        file.set_len(0)?;
        return Ok(0);
    }
    let mut buffer = vec![0; 128 << 10];
    let mut done = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(done);
        }
        hash.update(&buffer[..n]);
        done += n as u64;
    }
}

enum Again {
    /// The answer will be the same.
    Never,
    /// It may work the next time.
    Perhaps,
    /// It may work then, the server says (RFC 9110, Retry-After).
    After(Duration),
    /// It may work for somebody who says who he is.
    Challenged(String),
    /// Nobody is there.
    Unreachable,
}

/// A try that failed.
struct Try {
    error: Error,
    again: Again,
}

impl Try {
    fn over(error: Error) -> Self {
        Self { error, again: Again::Never }
    }
}

fn failed(url: &str, reason: impl Into<String>, again: Again) -> Try {
    let unreachable = matches!(again, Again::Unreachable);
    Try { error: Error::Http { url: url.to_owned(), reason: reason.into(), unreachable }, again }
}

/// A connection that ended in the middle.
fn broken(url: &str, error: &io::Error) -> Try {
    let is_timeout = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<ureq::Error>())
        .is_some_and(|inner| matches!(inner, ureq::Error::Timeout(_)));
    let reason = match error.kind() {
        _ if is_timeout => "the server stopped sending".to_owned(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "the server stopped sending".to_owned(),
        io::ErrorKind::UnexpectedEof => "the connection was cut".to_owned(),
        _ => format!("the connection broke: {error}"),
    };
    failed(url, reason, Again::Perhaps)
}

/// When to come back, as seconds; a date is as good as no word.
fn retry_after<T>(answer: &ureq::http::Response<T>) -> Again {
    let said = answer.headers().get("retry-after").and_then(|v| v.to_str().ok()?.trim().parse().ok());
    said.map_or(Again::Perhaps, |seconds| Again::After(Duration::from_secs(seconds)))
}

fn unreachable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
    ) || error.to_string().contains("failed to lookup address")
}

/// `host:port` of an address.
fn host_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest).to_owned()
}
