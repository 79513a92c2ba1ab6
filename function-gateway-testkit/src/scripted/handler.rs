use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use function_gateway_core::{
    Body, CallContext, DriverRequest, Error, ErrorKind, FunctionFailure, InvokeResponse, Result,
};
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use http::header::CONTENT_TYPE;

use super::Gate;

/// What a handler makes of a call.
pub type Answer = Pin<Box<dyn Future<Output = Result<InvokeResponse>> + Send>>;

type Closure = dyn Fn(CallContext, DriverRequest) -> Answer + Send + Sync;

/// How a scripted function answers.
///
/// The request's `secrets` are all that the function has: those of the call, and those of its deployment.
#[derive(Clone)]
pub struct Handler(Arc<Closure>);

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handler")
    }
}

impl Handler {
    /// Answers by a closure.
    ///
    /// ```
    /// use function_gateway_core::InvokeResponse;
    /// use function_gateway_testkit::Handler;
    ///
    /// let shout = Handler::new(async |_cx, request| {
    ///     let text = request.body.collect(1024).await?.to_ascii_uppercase();
    ///     Ok(InvokeResponse::new(http::StatusCode::OK, text))
    /// });
    /// ```
    #[must_use]
    pub fn new<F, Fut>(answer: F) -> Self
    where
        F: Fn(CallContext, DriverRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<InvokeResponse>> + Send + 'static,
    {
        Self(Arc::new(move |cx, request| Box::pin(answer(cx, request))))
    }

    /// Answers with the payload and its content type; a stream stays a stream.
    #[must_use]
    pub fn echo() -> Self {
        Self::new(async |_, mut request: DriverRequest| {
            let mut response = InvokeResponse::new(StatusCode::OK, request.body);
            if let Some(content_type) = request.headers.remove(CONTENT_TYPE) {
                response.headers.insert(CONTENT_TYPE, content_type);
            }
            Ok(response)
        })
    }

    /// Answers with a status and a body.
    #[must_use]
    pub fn status(status: StatusCode, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self::new(move |_, _| {
            let response = InvokeResponse::new(status, body.clone());
            async { Ok(response) }
        })
    }

    /// Fails, with a message.
    #[must_use]
    pub fn failing(message: &'static str) -> Self {
        Self::new(move |_, _| async move { Ok(InvokeResponse::failed(FunctionFailure::new(message), message)) })
    }

    /// Gives an error of the engine or the gateway.
    #[must_use]
    pub fn error(error: Error) -> Self {
        Self::new(move |_, _| {
            let error = error.clone();
            async { Err(error) }
        })
    }

    /// Answers with a stream. Each chunk waits at the gate; an open one lets all through.
    #[must_use]
    pub fn stream<I: IntoIterator<Item = C>, C: Into<Bytes>>(chunks: I, gate: &Gate) -> Self {
        Self::chunks(chunks, gate, None)
    }

    /// Answers with a stream that breaks off with an error after its chunks, each of which waits at the gate.
    #[must_use]
    pub fn break_off<I: IntoIterator<Item = C>, C: Into<Bytes>>(chunks: I, gate: &Gate) -> Self {
        Self::chunks(chunks, gate, Some(Error::new(ErrorKind::FunctionBroken, "the function broke off")))
    }

    fn chunks<I: IntoIterator<Item = C>, C: Into<Bytes>>(chunks: I, gate: &Gate, end: Option<Error>) -> Self {
        let items: Vec<Result<Bytes>> = chunks.into_iter().map(|chunk| Ok(chunk.into())).chain(end.map(Err)).collect();
        let gate = gate.clone();
        Self::new(move |_, _| {
            let (items, gate) = (items.clone(), gate.clone());
            async move {
                let body = stream::iter(items).then(move |item| {
                    let gate = gate.clone();
                    async move {
                        // The error that breaks the stream off comes by itself.
                        if item.is_ok() {
                            gate.pass().await;
                        }
                        item
                    }
                });
                Ok(InvokeResponse::new(StatusCode::OK, Body::from_stream(body)))
            }
        })
    }

    /// Logs each of its texts, and waits at the gate after it; an open one lets all through. Then answers with nothing.
    #[must_use]
    pub fn logging(texts: &'static [&'static str], gate: &Gate) -> Self {
        let gate = gate.clone();
        Self::new(move |_, request| {
            let gate = gate.clone();
            async move {
                for text in texts {
                    request.logs.write(text.as_bytes());
                    gate.pass().await;
                }
                Ok(InvokeResponse::new(StatusCode::OK, ""))
            }
        })
    }

    /// Never answers.
    #[must_use]
    pub fn hang() -> Self {
        Self::new(|_, _| std::future::pending())
    }

    /// Waits at a gate before it hands the call on.
    #[must_use]
    pub fn gated(self, gate: &Gate) -> Self {
        let gate = gate.clone();
        Self::new(move |cx, request| {
            let (inner, gate) = (self.clone(), gate.clone());
            async move {
                gate.pass().await;
                inner.answer(cx, request).await
            }
        })
    }

    /// Sleeps by the runtime's clock before it hands the call on.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self::new(move |cx, request| {
            let inner = self.clone();
            async move {
                tokio::time::sleep(delay).await;
                inner.answer(cx, request).await
            }
        })
    }

    /// Answers with the secrets that it got, as a JSON object from variable to text.
    #[must_use]
    pub fn secrets() -> Self {
        Self::new(async |_, request: DriverRequest| {
            let secrets = request.secrets.iter();
            let shown = |secret: &[u8]| String::from_utf8_lossy(secret).into_owned();
            let object: serde_json::Map<_, _> =
                secrets.map(|secret| (secret.name.clone(), shown(secret.secret.expose()).into())).collect();
            let body = serde_json::Value::from(object).to_string();
            Ok(InvokeResponse::new(StatusCode::OK, body))
        })
    }

    /// Answers a call.
    pub fn answer(&self, cx: CallContext, request: DriverRequest) -> Answer {
        (self.0)(cx, request)
    }
}
