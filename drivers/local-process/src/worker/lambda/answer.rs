//! What a worker posts of an invocation, as it is read.

use bytes::{Bytes, BytesMut};
use function_gateway_core::{Error, ErrorKind, FunctionFailure, Result};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::document;

/// What ends a prelude.
const END_OF_PRELUDE: [u8; 8] = [0; 8];
/// What a prelude may take.
const MAX_PRELUDE: usize = 64 * 1024;

/// What the worker is told of what it has posted.
#[derive(Debug)]
pub(super) enum Verdict {
    Taken,
    TooLarge,
}

/// An answer or an error whose body is still to come. As long as nobody reads it, the worker has to wait.
#[derive(Debug)]
pub(super) struct Posted {
    pub(super) is_error: bool,
    pub(super) headers: HeaderMap,
    pub(super) body: Incoming,
    /// Dropped, it closes the connection.
    pub(super) verdict: oneshot::Sender<Verdict>,
}

/// Why an answer is not read to its end.
#[derive(Debug)]
pub(super) enum Broken {
    /// The connection broke off.
    Off(hyper::Error),
    /// It is not what it must be.
    Wrong(Error),
}

/// The next part of an answer.
#[derive(Debug)]
pub(super) enum Part {
    Data(Bytes),
    End(Option<FunctionFailure>),
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    body: Incoming,
    /// What came with the prelude.
    ahead: BytesMut,
    trailers: HeaderMap,
}

impl Answer {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, ahead: BytesMut::new(), trailers: HeaderMap::new() }
    }

    /// Status and headers of an answer, from its prelude where it has one.
    pub(super) async fn head(&mut self, posted: &HeaderMap) -> Result<(StatusCode, HeaderMap), Broken> {
        let content_type = posted.get(CONTENT_TYPE);
        let essence = content_type.and_then(|value| value.to_str().ok()?.split(';').next().map(str::trim));
        if !essence.is_some_and(|essence| essence.eq_ignore_ascii_case(document::WITH_PRELUDE)) {
            let content_type = content_type.cloned().unwrap_or(document::JSON);
            return Ok((StatusCode::OK, HeaderMap::from_iter([(CONTENT_TYPE, content_type)])));
        }
        let mut searched = 0;
        loop {
            let unseen = self.ahead.get(searched..).unwrap_or_default();
            if let Some(at) = unseen.windows(END_OF_PRELUDE.len()).position(|window| window == END_OF_PRELUDE) {
                let prelude = self.ahead.split_to(searched + at);
                drop(self.ahead.split_to(END_OF_PRELUDE.len()));
                return document::prelude(&prelude).map_err(Broken::Wrong);
            }
            // The end may have come in part.
            searched = self.ahead.len().saturating_sub(END_OF_PRELUDE.len() - 1);
            let more = if self.ahead.len() < MAX_PRELUDE { self.data().await.map_err(Broken::Off)? } else { None };
            let Some(more) = more else {
                let message = "the prelude of the worker's answer does not end with eight NUL bytes";
                return Err(Broken::Wrong(Error::new(ErrorKind::FunctionBroken, message)));
            };
            self.ahead.extend_from_slice(&more);
        }
    }

    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Part, hyper::Error> {
        if !self.ahead.is_empty() {
            return Ok(Part::Data(self.ahead.split().freeze()));
        }
        Ok(match self.data().await? {
            Some(data) => Part::Data(data),
            None => Part::End(document::failure_at_the_end(&self.trailers)),
        })
    }

    async fn data(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        while let Some(frame) = self.body.frame().await.transpose()? {
            match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(frame) => self.trailers.extend(frame.into_trailers().unwrap_or_default()),
            }
        }
        Ok(None)
    }
}
