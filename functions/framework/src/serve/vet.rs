//! Checks of a request's head, for functions and the gateway alike.

use http::{HeaderMap, HeaderValue, StatusCode, Uri, Version, header, uri::Authority};

use crate::error::Rejection;

/// Maximum size of all header names and values. HTTP/1 rejects larger heads earlier, with the same status.
const HEADER_LIMIT: usize = 64 * 1024;

/// Rejects an invalid host or framing, and sets `Host` to the effective host: that of an absolute target if there is
/// one (RFC 9112, 3.2.2).
pub(super) fn vet<B>(request: &mut http::Request<B>) -> Result<(), Rejection> {
    let size: usize = request.headers().iter().map(|(n, v)| n.as_str().len() + v.len()).sum();
    if size > HEADER_LIMIT {
        let detail = format!("the headers must have at most {HEADER_LIMIT} bytes in all");
        return Err(Rejection::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, detail));
    }
    encoding(request.headers())?;
    if let Some(host) = host(request.version(), request.uri(), request.headers())? {
        request.headers_mut().insert(header::HOST, host);
    }
    Ok(())
}

/// The host that a request is for, as `Host` has it.
fn host(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Option<HeaderValue>, Rejection> {
    let mut named = headers.get_all(header::HOST).iter();
    let (first, second) = (named.next(), named.next());
    if second.is_some() {
        return Err(Rejection::bad_data("`Host` is given more than once; send it once"));
    }
    if first.is_some_and(|value| !value.to_str().is_ok_and(is_host)) {
        let detail = "`Host` must be a host with or without a port, like `example.org:8080`";
        return Err(Rejection::bad_data(detail));
    }
    if let Some(authority) = uri.authority() {
        if !is_host(authority.as_str()) {
            return Err(Rejection::bad_data("the target's host must be a host with or without a port"));
        }
        return Ok(HeaderValue::from_str(authority.as_str()).ok());
    }
    // HTTP/1.0 does not require `Host`.
    if first.is_none() && version != Version::HTTP_10 && version != Version::HTTP_09 {
        return Err(Rejection::bad_data("`Host` is missing; every request names the host that it is for"));
    }
    Ok(first.cloned())
}

/// Whether a text is `host [":" port]` without user information.
fn is_host(text: &str) -> bool {
    let Ok(authority) = text.parse::<Authority>() else { return false };
    let host = authority.host();
    let port = &text[host.len().min(text.len())..];
    if !text.starts_with(host) || !(port.is_empty() || port.starts_with(':')) {
        return false;
    }
    if !port.is_empty() && port != ":" && (authority.port_u16().is_none() || !digits(&port[1..])) {
        return false;
    }
    if let Some(ip) = host.strip_prefix('[') {
        return ip.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    name.len() <= 253 && name.split('.').all(|label| !label.is_empty() && label.bytes().all(is_label))
}

fn digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// Names in use have no more than these; `_` stands in names that containers have.
fn is_label(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// Bodies come as they are or in chunks; what else may be announced would be data that is misread.
fn encoding(headers: &HeaderMap) -> Result<(), Rejection> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter().peekable();
    if codings.peek().is_none() {
        return Ok(());
    }
    let chunked = |v: &HeaderValue| v.to_str().is_ok_and(|v| v.trim().eq_ignore_ascii_case("chunked"));
    if codings.next().is_some_and(chunked) && codings.next().is_none() {
        return Ok(());
    }
    Err(Rejection::bad_data("`Transfer-Encoding` must be `chunked`, once, or be left out"))
}

/// Rejects an encoded body: it would be misread.
pub(super) fn content_encoding(headers: &HeaderMap) -> Result<(), Rejection> {
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let text = String::from_utf8_lossy(value.as_bytes());
        for coding in text.split(',').map(str::trim) {
            if !coding.is_empty() && !coding.eq_ignore_ascii_case("identity") {
                return Err(Rejection::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    format!("`Content-Encoding: {coding}` is not understood; send the body as it is"),
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_with_or_without_a_port() {
        for good in ["a", "localhost:8080", "A.b.", "a_b-c.example:", "127.0.0.1:1", "[::1]", "[::1]:65535"] {
            assert!(is_host(good), "{good}");
        }
        for bad in [
            "", ":", ":80", ".", "a..b", "a b", "a/b", "a:b", "a:65536", "a:-1", "a:+1", "a:1:2", "u@a",
            "u:p@a", "[::1", "[::g]", "::1", "a,b", "a?b", "a#b", "a%", "[]", "é",
        ] {
            assert!(!is_host(bad), "{bad}");
        }
    }

    #[test]
    fn the_host_of_the_target_counts() {
        let mut request =
            http::Request::get("http://a.example/x").header("host", "b.example").body(()).unwrap();
        vet(&mut request).unwrap();
        assert_eq!(request.headers()["host"], "a.example");
    }

    #[test]
    fn only_chunks_are_understood() {
        for (codings, fine) in [
            (&["chunked"][..], true),
            (&["Chunked "], true),
            (&["gzip, chunked"], false),
            (&["chunked", "chunked"], false),
            (&["chunked, chunked"], false),
            (&["identity"], false),
            (&["gzip"], false),
            (&[""], false),
        ] {
            let mut headers = HeaderMap::new();
            for coding in codings {
                headers.append(header::TRANSFER_ENCODING, HeaderValue::from_static(coding));
            }
            assert_eq!(encoding(&headers).is_ok(), fine, "{codings:?}");
        }
    }

    #[test]
    fn an_encoded_body_is_refused_by_the_name_of_its_encoding() {
        for (value, refused) in [
            ("gzip", Some("gzip")),
            ("identity, ZSTD", Some("ZSTD")),
            ("identity", None),
            ("Identity", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_ENCODING, HeaderValue::from_static(value))]);
            let found = content_encoding(&headers).err().map(|r| (r.status.as_u16(), r.detail));
            assert_eq!(found.is_some(), refused.is_some(), "{value}");
            if let (Some((status, detail)), Some(name)) = (found, refused) {
                assert_eq!(status, 415);
                assert!(detail.contains(name), "{detail}");
            }
        }
    }
}
