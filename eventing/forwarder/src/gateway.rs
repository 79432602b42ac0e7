//! Sends events to functions through an OpenFaaS gateway: `POST /function/NAME`, over persistent connections. Only a
//! response with the functions' own header comes from a function. If a function is not available, the gateway and its
//! provider respond in its place, with statuses that would have another meaning from the function itself.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use eventing::sink::{Sink, SinkError, from_function, is_unauthorized};
use framework::{
    call::CALL_ID,
    error::Error,
    router::{EVENT_TOKEN, FUNCTION},
};
use http::{HeaderMap, Request, Response, Uri, header::AUTHORIZATION, uri::Scheme};
use reqwest::{Client, redirect::Policy};
use tokio::time::timeout;
use uuid::Uuid;

use crate::settings::GatewaySettings;

/// Timeout of a function's health probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of establishing a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of the gateway's health probe.
const READY_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time that an idle connection is kept. Gateways close idle connections after a minute or less; a connection
/// that the gateway might be closing must not be reused.
const IDLE: Duration = Duration::from_secs(5);
/// Maximum number of bytes read of a response body. A dead letter keeps less, and a function's response to an event is
/// not longer.
const ANSWER: usize = 64 * 1024;

/// A client of a gateway.
pub struct Gateway {
    settings: GatewaySettings,
    client: Client,
    /// Functions that rejected the sender of the last event.
    unauthorized: Mutex<BTreeSet<String>>,
}

impl Gateway {
    /// Creates a client that connects on first use. Fails if the HTTP client cannot be created on this machine.
    pub fn new(settings: GatewaySettings) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE)
            .redirect(Policy::none())
            .no_proxy()
            .build()?;
        Ok(Self { settings, client, unauthorized: Mutex::default() })
    }

    /// Checks that the gateway responds without a server error.
    pub async fn ready(&self) -> Result<(), Error> {
        let asked = async { self.exchange(Request::get(self.uri("/healthz")?).body(Bytes::new())?).await };
        match timeout(READY_TIMEOUT, asked).await {
            Ok(Ok(answer)) if !answer.status().is_server_error() => Ok(()),
            Ok(Ok(answer)) => Err(Error::Unavailable(format!("the gateway answers {}", answer.status()))),
            Ok(Err(error)) => {
                Err(Error::Unavailable(format!("the gateway does not answer: {}", words(&error))))
            }
            Err(_) => Err(Error::Unavailable(format!("the gateway does not answer in {READY_TIMEOUT:?}"))),
        }
    }

    async fn exchange(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, ExchangeError> {
        if let Some(authorization) = &self.settings.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let mut answer = self.client.execute(request.try_into()?).await?;
        let mut body = BytesMut::new();
        while body.len() < ANSWER
            && let Some(chunk) = answer.chunk().await?
        {
            body.extend_from_slice(&chunk[..chunk.len().min(ANSWER - body.len())]);
        }
        Ok(Response::<reqwest::Body>::from(answer).map(|_| body.freeze()))
    }

    fn uri(&self, path: &str) -> Result<Uri, http::Error> {
        let whole = format!("{}{path}", self.settings.prefix);
        Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(self.settings.authority.clone())
            .path_and_query(whole)
            .build()
    }
}

impl Gateway {
    /// Returns the response to an event if it comes from the function itself and does not reject the sender.
    fn answer(&self, function: &str, answer: Response<Bytes>) -> Result<Response<Bytes>, SinkError> {
        let mut unauthorized = self.unauthorized.lock().unwrap_or_else(PoisonError::into_inner);
        match is_unauthorized(answer.status()) {
            true => unauthorized.insert(function.to_owned()),
            false => unauthorized.remove(function),
        };
        drop(unauthorized);
        from_function(answer, "GATEWAY_USER, GATEWAY_PASSWORD and EVENT_TOKEN")
    }
}

#[async_trait]
impl Sink for Gateway {
    async fn send(&self, function: &str, mut request: Request<Bytes>) -> Result<Response<Bytes>, SinkError> {
        let sent = async {
            *request.uri_mut() = self.uri(&format!("/function/{function}"))?;
            if let Ok(id) = call_id(request.headers()).to_string().try_into() {
                request.headers_mut().entry(CALL_ID).or_insert(id);
            }
            if let Some(token) = &self.settings.event_token {
                request.headers_mut().insert(EVENT_TOKEN, token.clone());
            }
            self.exchange(request).await
        };
        self.answer(function, sent.await.map_err(|error| SinkError(words(&error)))?)
    }

    /// Probes the function's health. If a healthy function does not respond to an event, the event is at fault; if the
    /// function rejects the sender, the event is not.
    async fn answers(&self, function: &str) -> bool {
        if self.unauthorized.lock().unwrap_or_else(PoisonError::into_inner).contains(function) {
            return false;
        }
        let asked = async {
            let uri = self.uri(&format!("/function/{function}/healthz"))?;
            self.exchange(Request::get(uri).body(Bytes::new())?).await
        };
        match timeout(PROBE_TIMEOUT, asked).await {
            Ok(Ok(answer)) => answer.status().is_success() && answer.headers().contains_key(FUNCTION),
            _ => false,
        }
    }

    fn destination(&self, function: &str, _namespace: &str) -> String {
        format!("http://{}{}/function/{function}", self.settings.authority, self.settings.prefix)
    }
}

/// Returns the same id for all attempts of an event, also after a restart: it is derived from the event's source and
/// id.
fn call_id(headers: &HeaderMap) -> Uuid {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, headers.get("ce-source"), headers.get("ce-id")).hash(&mut hasher);
        hasher.finish()
    };
    let bytes = (u128::from(half(0)) << 64 | u128::from(half(1))).to_be_bytes();
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// The reason why there is no response.
#[derive(Debug, thiserror::Error)]
enum ExchangeError {
    #[error(transparent)]
    Exchange(#[from] reqwest::Error),
    #[error("no such URL")]
    Url(#[from] http::Error),
}

fn words(error: &ExchangeError) -> String {
    Error::unavailable(error).to_string()
}
