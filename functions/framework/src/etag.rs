//! Conditional requests (RFC 9110, section 13): a client that has the current response gets 304 without a body.

use std::hash::{DefaultHasher, Hasher};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::router::{Response, answer, empty, json};

/// The response with this value as JSON, or 304 if the request names its entity tag. Clients may keep the response, but
/// must ask each time whether it has changed.
pub fn conditional_json(request: &HeaderMap, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => conditional(request, body),
        Err(_) => json(StatusCode::OK, value),
    }
}

fn conditional(request: &HeaderMap, body: Vec<u8>) -> Response {
    let tag = tag(&body);
    let mut response = match matches(request, &tag) {
        true => empty(StatusCode::NOT_MODIFIED),
        false => answer(StatusCode::OK, "application/json", body),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::try_from(tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}

/// The entity tag of a body. All replicas of a build compute the same.
fn tag(body: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    format!("\"{:x}-{:016x}\"", body.len(), hasher.finish())
}

/// Whether `If-None-Match` contains the tag, or `*`. The comparison is weak: a proxy that compresses marks tags as weak.
fn matches(request: &HeaderMap, tag: &str) -> bool {
    let values = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|named| named == "*" || named.strip_prefix("W/").unwrap_or(named) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(if_none_match: &str, body: &'static str) -> Response {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, if_none_match.parse().unwrap());
        conditional(&headers, body.into())
    }

    #[test]
    fn a_client_that_has_the_current_response_gets_304() {
        let first = conditional(&HeaderMap::new(), b"{}".to_vec());
        assert_eq!(
            (first.status(), &first.headers()[header::CACHE_CONTROL]),
            (StatusCode::OK, &"no-cache".parse().unwrap())
        );
        let tag = first.headers()[header::ETAG].to_str().unwrap();
        assert!(tag.starts_with('"') && tag.ends_with('"'));
        for named in [tag.to_owned(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            let again = ask(&named, "{}");
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{named}");
            assert_eq!(again.headers()[header::ETAG], tag);
        }
        for (named, body) in [(tag, "{ }"), ("\"other\"", "{}"), (tag.trim_matches('"'), "{}")] {
            assert_eq!(ask(named, body).status(), StatusCode::OK, "{named} {body}");
        }
    }
}
