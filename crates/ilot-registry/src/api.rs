//! Requests: who asks, for what, and the answer. Paths are taken apart here, for a repository's name has slashes.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};

use crate::access::{Action, Caller, Gate, Identity, LIFETIME};
use crate::error::Refusal;
use crate::mirror::Mirror;
use crate::names::{is_repository, is_tag};
use crate::store::Store;

/// What every request has.
pub(crate) struct App {
    pub(crate) store: Store,
    pub(crate) read_only: bool,
    pub(crate) gate: Gate,
    /// Whether clients come over TLS.
    pub(crate) tls: bool,
    pub(crate) mirror: Option<Arc<Mirror>>,
}

/// An answer, or an error of the specification's form.
pub(crate) type Answer = Result<Response<Body>, Refusal>;

/// What follows `?`.
pub(crate) type Query = HashMap<String, String>;

pub(crate) async fn handle(State(app): State<Arc<App>>, request: Request) -> Response<Body> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut answer = route(&app, request).await.unwrap_or_else(Refusal::response);
    let headers = answer.headers_mut();
    let version = header::HeaderValue::from_static("registry/2.0");
    headers.insert("docker-distribution-api-version", version);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    tracing::info!("{method} {path} {}", answer.status().as_u16());
    answer
}

/// What a read says of itself, without the body that it does not have.
pub(crate) struct Ask {
    pub(crate) headers: HeaderMap,
    /// Only the head is wanted.
    pub(crate) head: bool,
}

/// A request without its body, which only one thread may have.
struct Head {
    method: Method,
    uri: axum::http::Uri,
    headers: HeaderMap,
}

/// What a path means.
enum Place<'a> {
    Version,
    Token,
    Search,
    Catalog,
    Blob(&'a str, &'a str),
    Uploads(&'a str),
    Upload(&'a str, &'a str),
    Manifest(&'a str, &'a str),
    Tags(&'a str),
    Referrers(&'a str, &'a str),
}

/// From the end, for the name before may have any of these words in it.
fn place(path: &str) -> Option<Place<'_>> {
    match path {
        "/token" => return Some(Place::Token),
        "/v1/search" => return Some(Place::Search),
        _ => {}
    }
    let rest = path.strip_prefix("/v2")?;
    match rest {
        "" | "/" => return Some(Place::Version),
        "/_catalog" => return Some(Place::Catalog),
        _ => {}
    }
    let rest = rest.strip_prefix('/')?;
    if let Some(name) = rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads")) {
        return Some(Place::Uploads(name));
    }
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Some(Place::Tags(name));
    }
    let (before, last) = rest.rsplit_once('/')?;
    if let Some(name) = before.strip_suffix("/blobs/uploads") {
        return Some(Place::Upload(name, last));
    }
    let (name, kind) = before.rsplit_once('/')?;
    match kind {
        "blobs" => Some(Place::Blob(name, last)),
        "manifests" => Some(Place::Manifest(name, last)),
        "referrers" => Some(Place::Referrers(name, last)),
        _ => None,
    }
}

/// The repository that a request is about, and what it does to it.
fn scope_of<'a>(method: &Method, place: Option<&Place<'a>>) -> Option<(&'a str, Action)> {
    let (Place::Blob(name, _)
    | Place::Uploads(name)
    | Place::Upload(name, _)
    | Place::Manifest(name, _)
    | Place::Tags(name)
    | Place::Referrers(name, _)) = place?
    else {
        return None;
    };
    let action = match *method {
        Method::GET | Method::HEAD if !matches!(place, Some(Place::Upload(..))) => Action::Pull,
        // To take back an own upload is part of uploading.
        Method::DELETE if !matches!(place, Some(Place::Upload(..))) => Action::Delete,
        _ => Action::Push,
    };
    Some((name, action))
}

async fn route(app: &Arc<App>, request: Request) -> Answer {
    let head =
        Head { method: request.method().clone(), uri: request.uri().clone(), headers: request.headers().clone() };
    let path = head.uri.path().to_owned();
    let found = place(&path);
    let method = head.method.clone();
    if let Some(Place::Token) = found {
        return token(app, &head).await;
    }
    let caller = identified(app, &head).await?;
    let query = query(request.uri().query().unwrap_or_default());
    // Who has no name here may look at what is for everybody; to the question who he is he hears that it matters.
    let asks_who = matches!(found, None | Some(Place::Version)) && !is_token(&head);
    if caller.user.is_none() && (!app.gate.knows_anybody() || asks_who && !app.gate.is_open()) {
        return Err(unauthorized(app, &head, scope_of(&method, found.as_ref())));
    }
    let found = found.ok_or_else(Refusal::no_such_place)?;
    if let Some((name, _)) = scope_of(&method, Some(&found))
        && !is_repository(name)
    {
        return Err(Refusal::name_invalid(name));
    }
    if let Some((name, action)) = scope_of(&method, Some(&found))
        && !app.gate.may(&caller, name, action)
    {
        // Somebody without a name, or with a token for something else, can come back with a better one.
        let known = caller.user.is_some() && !is_token(&head);
        let scope = Some((name, action));
        return Err(if known { Refusal::denied(action.name(), name) } else { unauthorized(app, &head, scope) });
    }
    let ask = Ask { headers: head.headers.clone(), head: method == Method::HEAD };
    let reads = matches!(method, Method::GET | Method::HEAD);
    if app.read_only && !reads {
        return Err(Refusal::unsupported("this registry is read-only"));
    }
    if let Some(mirror) = &app.mirror {
        if !reads {
            let source = mirror.source.name();
            return Err(Refusal::unsupported(format!("this registry is a mirror of {source}: push there")));
        }
        match (&method, &found) {
            (_, Place::Blob(name, digest)) => return app.mirrored_blob(mirror, name, digest, &ask).await,
            (_, Place::Manifest(name, reference)) => return app.mirrored_manifest(mirror, name, reference, &ask).await,
            (&Method::GET, Place::Tags(name)) => return app.mirrored_tags(mirror, name, &query).await,
            (&Method::GET, Place::Referrers(name, digest)) => {
                return app.mirrored_referrers(mirror, name, digest, &query).await;
            }
            _ => {}
        }
    }
    match (method, found) {
        (Method::GET, Place::Search) => app.search(&caller, &query),
        (Method::GET | Method::HEAD, Place::Version) => json(StatusCode::OK, "{}".to_owned(), "application/json"),
        (Method::GET, Place::Catalog) => app.catalog(&caller, &query),
        (Method::GET | Method::HEAD, Place::Blob(name, digest)) => app.blob(name, digest, &ask).await,
        (Method::DELETE, Place::Blob(name, digest)) => app.delete_blob(name, digest),
        (Method::POST, Place::Uploads(name)) => app.begin_upload(name, &caller, &query, request).await,
        (Method::GET | Method::HEAD, Place::Upload(name, id)) => app.upload_state(name, id).await,
        (Method::PATCH, Place::Upload(name, id)) => app.continue_upload(name, id, request).await,
        (Method::PUT, Place::Upload(name, id)) => app.finish_upload(name, id, &query, request).await,
        (Method::DELETE, Place::Upload(name, id)) => app.cancel_upload(name, id).await,
        (Method::GET | Method::HEAD, Place::Manifest(name, reference)) => app.manifest(name, reference, &ask),
        (Method::PUT, Place::Manifest(name, reference)) => {
            if !is_tag(reference) && !reference.contains(':') {
                return Err(Refusal::tag_invalid(reference));
            }
            app.put_manifest(name, reference, request).await
        }
        (Method::DELETE, Place::Manifest(name, reference)) => app.delete_manifest(name, reference),
        (Method::GET, Place::Tags(name)) => app.tags(name, &query),
        (Method::GET, Place::Referrers(name, digest)) => app.referrers(name, digest, &query),
        (method, _) => Err(Refusal::unsupported(format!("{method} does nothing here"))),
    }
}

async fn identified(app: &Arc<App>, head: &Head) -> Result<Caller, Refusal> {
    let (gate, headers) = (app.clone(), head.headers.clone());
    match tokio::task::spawn_blocking(move || gate.gate.identify(&headers)).await {
        Ok(Identity::Is(caller)) => Ok(caller),
        _ => Err(unauthorized(app, head, None)),
    }
}

fn is_token(head: &Head) -> bool {
    let said = head.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    said.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer "))
}

/// Says how to come in: with a password, or with a token and where it is to be had.
fn unauthorized(app: &App, head: &Head, scope: Option<(&str, Action)>) -> Refusal {
    const SERVICE: &str = "ilot registry";
    let basic = || Refusal::unauthorized(format!("Basic realm=\"{SERVICE}\", charset=\"UTF-8\""));
    if !app.gate.gives_tokens() {
        return basic();
    }
    let host = head.headers.get(header::HOST).and_then(|v| v.to_str().ok());
    let host = host.or_else(|| head.uri.authority().map(axum::http::uri::Authority::as_str));
    let is_host =
        |h: &&str| h.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'-' | b'[' | b']'));
    let Some(host) = host.filter(is_host) else { return basic() };
    let scheme = if app.tls { "https" } else { "http" };
    let scope = scope.map(|(name, action)| {
        let actions = if action == Action::Push { "pull,push" } else { action.name() };
        format!(",scope=\"repository:{name}:{actions}\"")
    });
    let scope = scope.unwrap_or_default();
    Refusal::unauthorized(format!("Bearer realm=\"{scheme}://{host}/token\",service=\"{SERVICE}\"{scope}"))
}

/// A token for who shows a password, or for what needs none (Docker Registry v2 authentication, "token").
async fn token(app: &Arc<App>, head: &Head) -> Answer {
    if head.method != Method::GET || !app.gate.gives_tokens() {
        return Err(Refusal::unsupported("no tokens are given here that way"));
    }
    let basic = || Refusal::unauthorized("Basic realm=\"ilot registry\", charset=\"UTF-8\"".to_owned());
    let caller = identified(app, head).await.map_err(|_| basic())?;
    let pairs = head.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let scopes = pairs.filter(|(key, _)| *key == "scope").map(|(_, value)| decode(value));
    let scopes: Vec<String> = scopes.flat_map(|s| s.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    let token = app.gate.token(&caller, &scopes).ok_or_else(basic)?;
    let issued = jiff::Timestamp::now().to_string();
    let body = serde_json::json!({ "token": token, "access_token": token, "expires_in": LIFETIME.as_secs(),
        "issued_at": issued });
    let mut answer = json(StatusCode::OK, body.to_string(), "application/json")?;
    answer.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// `a=b&c=d`, percent-decoded.
fn query(text: &str) -> Query {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[i], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 3;
                continue;
            }
            (b'+', _) => out.push(b' '),
            (other, _) => out.push(other),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Percent-encodes for a query.
pub(crate) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

/// A document.
pub(crate) fn json(status: StatusCode, body: String, media_type: &str) -> Answer {
    let builder = Response::builder().status(status).header(header::CONTENT_TYPE, media_type);
    built(builder.header(header::CONTENT_LENGTH, body.len()), Body::from(body))
}

/// An answer whose headers were made here.
pub(crate) fn built(builder: axum::http::response::Builder, body: Body) -> Answer {
    builder.body(body).map_err(|error| {
        tracing::error!(%error, "an answer that cannot be sent");
        Refusal::no_such_place()
    })
}

/// One page of a sorted list: what it has, and the `Link` to the next.
pub(crate) fn page(
    all: impl Iterator<Item = String>,
    query: &Query,
    path: &str,
) -> Result<(Vec<String>, Option<String>), Refusal> {
    let limit = query.get("n").map(|n| n.parse::<usize>()).transpose().map_err(|_| Refusal::page_invalid())?;
    let last = query.get("last").map_or("", String::as_str);
    let mut rest = all.filter(|name| last.is_empty() || name.as_str() > last);
    let Some(limit) = limit else { return Ok((rest.collect(), None)) };
    let list: Vec<String> = rest.by_ref().take(limit).collect();
    let more = rest.next().is_some() && limit > 0;
    let link = list.last().filter(|_| more).map(|l| format!("<{path}?n={limit}&last={}>; rel=\"next\"", encode(l)));
    Ok((list, link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert!(matches!(place("/v2/"), Some(Place::Version)));
        assert!(matches!(place("/v2/a/blobs/b/manifests/1"), Some(Place::Manifest("a/blobs/b", "1"))));
        assert!(matches!(place("/v2/blobs/uploads/blobs/uploads/"), Some(Place::Uploads("blobs/uploads"))));
        assert!(matches!(place("/v2/a/blobs/uploads/x"), Some(Place::Upload("a", "x"))));
        assert!(matches!(place("/v2/tags/list/tags/list"), Some(Place::Tags("tags/list"))));
        assert!(place("/v1/").is_none() && place("/v2/a").is_none() && place("/").is_none());
    }

    #[test]
    fn queries() {
        let query = query("digest=sha256%3Aabc&last=a+b&n");
        assert_eq!((query["digest"].as_str(), query["last"].as_str(), query["n"].as_str()), ("sha256:abc", "a b", ""));
        assert_eq!(decode("%zz%4"), "%zz%4");
        assert_eq!(decode(&encode("a b/ü+")), "a b/ü+");
    }
}
