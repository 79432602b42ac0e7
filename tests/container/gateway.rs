//! A stand-in for OpenFaaS' gateway: forwards `/function/NAME/…` to the container NAME and adds a call id.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use framework::{
    router::{self, Response},
    serve::serve_with,
};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use lambda_architecture::client::Client;
use tokio::net::TcpListener;

/// Starts the gateway. Returns its URL.
pub async fn start(functions: BTreeMap<String, SocketAddr>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let functions = Arc::new(functions);
    let handler = move |_, request| pass(functions.clone(), request);
    tokio::spawn(serve_with(listener, handler, std::future::pending()));
    url
}

async fn pass(functions: Arc<BTreeMap<String, SocketAddr>>, request: Request<Incoming>) -> Response {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let Some((name, path)) =
        path.strip_prefix("/function/").map(|rest| rest.split_once('/').unwrap_or((rest, "")))
    else {
        return router::empty(StatusCode::OK);
    };
    head.uri = Uri::try_from(format!("/{path}")).unwrap();
    head.headers.entry("x-call-id").or_insert(HeaderValue::from_static("a-call"));
    head.headers.insert("x-start-time", HeaderValue::from_static("1700000000000000000"));
    let body = body.collect().await.unwrap().to_bytes();
    match Client::new(functions[name]).send(Request::from_parts(head, body)).await {
        Ok(answer) => answer.map(Full::new),
        Err(error) => router::problem(StatusCode::BAD_GATEWAY, error.to_string()),
    }
}
