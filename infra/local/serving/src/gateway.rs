//! The gateway: routes a request to a function by host or by path.
//! The HTTP server, which functions use too, enforces limits and handles slow clients.

use std::{cmp::Reverse, future::Future, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use framework::serve::{BATCH_LIMIT, read_body, serve_with, unread};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri::PathAndQuery};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpListener;

use crate::{
    guard::{self, Guard},
    invoker::{Invoker, refuse, strip},
};

/// Suffix of a host name that names a function.
const DOMAIN: &str = ".default.localhost";
/// Slightly above any function's limit, so that the function's own error states the limit.
const BODY_LIMIT: usize = BATCH_LIMIT + 64 * 1024;
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// A path prefix that leads to a function, which sees the path without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Begins with a slash and does not end with one: `/ingress`. Matches whole segments of the path.
    pub prefix: String,
    /// The function's name.
    pub function: String,
}

/// Finds the function that a request is for.
pub(crate) struct Router {
    invoker: Invoker,
    /// Longest prefix first, as Gateway API orders them.
    routes: Vec<Route>,
    guard: Guard,
    /// Whether only this machine reaches the gateway.
    is_local: bool,
}

/// Serves until `stop`; `status` answers `GET /` and `GET /status`.
pub(crate) async fn serve<S, F>(
    listener: TcpListener,
    router: Router,
    status: S,
    stop: impl Future<Output = ()>,
) where
    S: Fn(Request<Bytes>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Bytes>> + Send + 'static,
{
    let (router, status) = (Arc::new(router), Arc::new(status));
    let answer = move |peer, request: Request<Incoming>| {
        let (router, status) = (router.clone(), status.clone());
        async move { answer(peer, request, &router, &*status).await.map(Full::new) }
    };
    serve_with(listener, answer, stop).await;
}

async fn answer<S, F>(
    peer: SocketAddr,
    request: Request<Incoming>,
    router: &Router,
    status: &S,
) -> Response<Bytes>
where
    S: Fn(Request<Bytes>) -> F,
    F: Future<Output = Response<Bytes>>,
{
    let host = host(&request);
    let named = host.as_deref().unwrap_or_default();
    if let Err(detail) = router.guard.check(request.method(), named, request.headers()) {
        return unread(refuse(StatusCode::FORBIDDEN, detail), request.into_body());
    }
    let target = match router.target(host.as_deref(), request.uri().path()) {
        Ok(target) => target,
        Err(detail) => return unread(refuse(StatusCode::NOT_FOUND, detail), request.into_body()),
    };
    if let Target::Function { name, .. } = &target
        && !router.is_local
        && router.guard.is_internal(name)
    {
        let detail = format!("`{name}` is internal: its gateway must listen on a loopback address");
        return unread(refuse(StatusCode::FORBIDDEN, detail), request.into_body());
    }
    if let Some(redirect) = redirect(request.method(), request.uri(), &target) {
        return unread(redirect, request.into_body());
    }
    if matches!(target, Target::Status) && !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "the status page takes GET, HEAD");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return unread(response, request.into_body());
    }
    let (mut head, body) = request.into_parts();
    let body = match read_body(body, BODY_LIMIT).await {
        Ok(body) => body,
        Err(response) => return buffered(*response).await,
    };
    match target {
        Target::Status => status(Request::from_parts(head, body)).await,
        Target::Function { name, cut } => {
            // Before adding headers: `Connection` may name one of those.
            strip(&mut head.headers);
            forwarded(&mut head.headers, peer, host.as_deref());
            if let Some(host) = host.and_then(|h| HeaderValue::from_str(&h).ok()) {
                head.headers.insert(header::HOST, host);
            }
            head.uri = strip_prefix(&head.uri, cut);
            router.invoker.send(&name, Request::from_parts(head, body)).await
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Target {
    Status,
    /// A function, and the length of the path prefix to remove.
    Function {
        name: String,
        cut: usize,
    },
}

impl Router {
    pub(crate) fn new(invoker: Invoker, mut routes: Vec<Route>, guard: Guard, is_local: bool) -> Self {
        routes.sort_by_key(|route| Reverse(route.prefix.len()));
        Self { invoker, routes, guard, is_local }
    }

    fn target(&self, host: Option<&str>, path: &str) -> Result<Target, String> {
        let (name, cut) = match self.route(host, path) {
            Some(found) => found,
            None if path == "/" || path == "/status" => return Ok(Target::Status),
            None => {
                let prefixes: String =
                    self.routes.iter().map(|route| format!("{}/…, ", route.prefix)).collect();
                return Err(format!(
                    "there is no `{path}` here; there is /, /status, {prefixes}/function/NAME/…"
                ));
            }
        };
        if self.invoker.knows(&name) {
            return Ok(Target::Function { name, cut });
        }
        let known: Vec<_> = self.invoker.names().collect();
        Err(format!("there is no function `{name}`; there is {known:?}"))
    }

    /// The function's name, and how many bytes of the path are its prefix.
    fn route(&self, host: Option<&str>, path: &str) -> Option<(String, usize)> {
        if let Some(name) = host.and_then(|host| guard::name(host).strip_suffix(DOMAIN)) {
            return Some((name.to_owned(), 0));
        }
        for Route { prefix, function } in &self.routes {
            if path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
                return Some((function.clone(), prefix.len()));
            }
        }
        let rest = path.strip_prefix("/function/")?;
        let name = rest.split('/').next().unwrap_or(rest);
        Some((name.to_owned(), "/function/".len() + name.len()))
    }
}

/// Redirects a reader from a bare prefix to the one with a slash, which a page's relative links need. Other methods
/// pass: an event may be posted to a bare prefix.
fn redirect(method: &Method, uri: &Uri, target: &Target) -> Option<Response<Bytes>> {
    let Target::Function { cut, .. } = target else { return None };
    let reads = matches!(*method, Method::GET | Method::HEAD);
    if *cut == 0 || uri.path().len() > *cut || !reads {
        return None;
    }
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let location = HeaderValue::try_from(format!("{}/{query}", uri.path())).ok()?;
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(header::LOCATION, location);
    Some(response)
}

fn host(request: &Request<Incoming>) -> Option<String> {
    let header = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    header.or(request.uri().authority().map(|a| a.as_str())).map(str::to_ascii_lowercase)
}

/// Removes the first `cut` bytes of the path.
fn strip_prefix(uri: &Uri, cut: usize) -> Uri {
    let (path, query) = (&uri.path()[cut..], uri.query().map(|q| format!("?{q}")).unwrap_or_default());
    let path = if path.is_empty() { "/" } else { path };
    PathAndQuery::try_from(format!("{path}{query}")).map(Uri::from).unwrap_or_default()
}

/// Appends this hop to `Forwarded` and `X-Forwarded-For`.
fn forwarded(headers: &mut http::HeaderMap, peer: SocketAddr, host: Option<&str>) {
    let ip = peer.ip();
    let node = if ip.is_ipv6() { format!("\"[{ip}]\"") } else { ip.to_string() };
    let host = host.map(|h| format!(";host=\"{}\"", h.replace(['"', '\\'], ""))).unwrap_or_default();
    append(headers, header::FORWARDED, &format!("for={node}{host};proto=http"));
    append(headers, FORWARDED_FOR, &ip.to_string());
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
}

fn append(headers: &mut http::HeaderMap, name: HeaderName, value: &str) {
    let before = headers.get_all(&name).iter().filter_map(|v| v.to_str().ok());
    let all: Vec<_> = before.filter(|v| !v.trim().is_empty()).chain([value]).collect();
    if let Ok(value) = HeaderValue::from_str(&all.join(", ")) {
        headers.insert(name, value);
    }
}

/// Buffers the body.
async fn buffered(response: Response<Full<Bytes>>) -> Response<Bytes> {
    use http_body_util::BodyExt;
    let (head, body) = response.into_parts();
    let Ok(body) = body.collect().await;
    Response::from_parts(head, body.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(routes: &[(&str, &str)]) -> Router {
        let routes = routes
            .iter()
            .map(|(prefix, function)| Route { prefix: (*prefix).into(), function: (*function).into() });
        Router::new(Invoker::new(Arc::default()), routes.collect(), Guard::default(), true)
    }

    #[test]
    fn the_longest_prefix_wins() {
        let router = router(&[("/a", "one"), ("/a/b", "two")]);
        assert_eq!(router.route(None, "/a/b/c"), Some(("two".into(), 4)));
        assert_eq!(router.route(None, "/a/bc"), Some(("one".into(), 2)));
    }

    #[test]
    fn an_unknown_path_is_told_the_routes_that_there_are() {
        let error = router(&[("/audit", "audit")]).target(None, "/ingress/user").unwrap_err();
        assert!(error.contains("/audit/…") && !error.contains("/ingress/…"), "{error}");
    }

    #[test]
    fn hosts_and_paths_lead_to_functions() {
        let cases = [
            (None, "/ingress/user", Some(("ingest", 8))),
            (None, "/ingress", Some(("ingest", 8))),
            (None, "/ingressing", None),
            (None, "/service-analytics/analytics", Some(("analytics", 18))),
            (None, "/function/count/user/count", Some(("count", 15))),
            (None, "/function/count", Some(("count", 15))),
            (Some("store.default.localhost:8080"), "/ingress", Some(("store", 0))),
            (Some("store.default.localhost"), "/", Some(("store", 0))),
            (Some("store.default.localhost."), "/", Some(("store", 0))),
            (Some("store.default.localhost.:8080"), "/", Some(("store", 0))),
            (Some("localhost:8080"), "/", None),
            (Some("[::1]:8080"), "/elsewhere", None),
        ];
        let router = router(&[("/ingress", "ingest"), ("/service-analytics", "analytics")]);
        for (host, path, expected) in cases {
            let found = router.route(host, path);
            assert_eq!(found.as_ref().map(|(n, c)| (n.as_str(), *c)), expected, "{host:?} {path}");
        }
    }

    #[test]
    fn what_connection_names_takes_off_nothing_that_is_added_here() {
        let mut headers = http::HeaderMap::new();
        for (name, value) in [
            ("connection", "x-forwarded-for, Forwarded, x-mine, host"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-mine", "a"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("proxy-authenticate", "Basic"),
            ("proxy-anything", "b"),
            ("x-yours", "c"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        strip(&mut headers);
        forwarded(&mut headers, "127.0.0.1:1".parse().unwrap(), Some("a"));
        assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(headers["forwarded"], "for=127.0.0.1;host=\"a\";proto=http");
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-yours"]);
    }

    #[test]
    fn every_line_of_what_proxies_said_is_kept() {
        let mut headers = http::HeaderMap::new();
        headers.append("x-forwarded-for", HeaderValue::from_static("1.1.1.1"));
        headers.append("x-forwarded-for", HeaderValue::from_static("2.2.2.2"));
        forwarded(&mut headers, "127.0.0.1:1".parse().unwrap(), None);
        assert_eq!(headers["x-forwarded-for"], "1.1.1.1, 2.2.2.2, 127.0.0.1");
    }

    #[test]
    fn a_page_without_its_slash_leads_to_the_one_with_it() {
        let target = |cut| Target::Function { name: "analytics".into(), cut };
        let leads = |method: Method, uri: &str, cut| {
            let response = redirect(&method, &uri.parse().unwrap(), &target(cut))?;
            Some((response.status().as_u16(), response.headers()["location"].to_str().unwrap().to_owned()))
        };
        let there = |location: &str| Some((308, location.to_owned()));
        assert_eq!(leads(Method::GET, "/service-analytics?a=b", 18), there("/service-analytics/?a=b"));
        assert_eq!(leads(Method::POST, "/service-analytics", 18), None);
        assert_eq!(leads(Method::GET, "/function/analytics", 19), there("/function/analytics/"));
        assert_eq!(leads(Method::POST, "/function/count", 15), None);
        assert_eq!(leads(Method::GET, "/service-analytics/", 18), None);
        assert_eq!(leads(Method::GET, "/", 0), None);
    }

    #[test]
    fn the_prefix_goes_and_the_query_stays() {
        let cut = |uri: &str, n| strip_prefix(&uri.parse().unwrap(), n).to_string();
        assert_eq!(cut("/ingress/user?a=b", 8), "/user?a=b");
        assert_eq!(cut("/ingress?a=b", 8), "/?a=b");
        assert_eq!(cut("/ingress", 8), "/");
    }
}
