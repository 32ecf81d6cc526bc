//! Search, as the clients of Docker and podman ask for it (`/v1/search`).

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::access::Caller;
use crate::api::{Answer, App, Query, json as document};
use crate::error::Refusal;
use crate::repository::Content;

/// Results at once, as Docker Hub has it.
const MOST: usize = 100;
const DESCRIPTION: &str = "org.opencontainers.image.description";

impl App {
    /// Repositories whose name or description has all words of `q` in it; those whose name begins with it come first.
    pub(crate) fn search(&self, caller: &Caller, query: &Query) -> Answer {
        let number = |key: &str, default: usize| match query.get(key) {
            None => Ok(default),
            Some(text) => text.parse::<usize>().map_err(|_| Refusal::page_invalid()),
        };
        let (size, page) = (number("n", 25)?.clamp(1, MOST), number("page", 1)?.max(1));
        let text = query.get("q").map(|q| q.to_lowercase()).unwrap_or_default();
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut found: Vec<(bool, String, String)> = Vec::new();
        for (name, repository) in self.store.repositories() {
            if !self.gate.may_list(caller, &name) {
                continue;
            }
            let content = repository.content();
            let description = description(&content);
            let all = format!("{name} {}", description.to_lowercase());
            if !content.manifests.is_empty() && words.iter().all(|word| all.contains(word)) {
                let first = words.iter().any(|w| name.split('/').any(|part| part.starts_with(w)));
                found.push((!first, name, description));
            }
        }
        found.sort();
        let count = found.len();
        let page_of = found.into_iter().skip((page - 1).saturating_mul(size)).take(size);
        let results: Vec<Value> = page_of
            .map(|(_, name, description)| {
                json!({ "name": name, "description": description, "star_count": 0, "is_official": false,
                    "is_automated": false })
            })
            .collect();
        let body = json!({ "query": text, "num_results": count, "num_pages": count.div_ceil(size), "page": page,
            "page_size": size, "results": results });
        document(StatusCode::OK, body.to_string(), "application/json")
    }
}

/// What the image behind `latest`, or behind any other tag, says of itself.
fn description(content: &Content) -> String {
    let tagged = content.tags.get("latest").into_iter().chain(content.tags.values());
    let said = tagged.filter_map(|digest| content.manifests.get(digest)?.annotations.as_ref()?[DESCRIPTION].as_str());
    said.map(str::to_owned).next().unwrap_or_default()
}
