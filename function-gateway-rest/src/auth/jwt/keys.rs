//! The keys that tokens are verified with: where they come from, and how long they are used.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use function_gateway_core::{Error, ErrorKind, Result};
use http::{StatusCode, header};
use jsonwebtoken::DecodingKey;
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use reqwest::{Client, Url, redirect};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Algorithm, Signed};
use crate::auth::is_loopback;

/// How many keys are tried for one token.
const MAX_TRIED: usize = 8;
/// How large a set of keys may be, in bytes.
const MAX_BYTES: usize = 256 * 1024;
/// How long it may take to get one.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_REDIRECTS: usize = 3;

/// The public keys of an issuer. Keys for other algorithms or purposes than those of tokens are passed over.
///
/// They are given as a text, or come from a file or a URL, and then are got again in time. A key that has vanished from there
/// is not used any more. While they can't be got, the last ones are used on, up to [`with_max_stale`](Self::with_max_stale).
/// After that, and where there never were any, a token can't be verified: [`ErrorKind::DependencyUnavailable`]. So it is
/// with a token whose key is not known, while the last attempt to get the keys failed.
///
/// All who need the keys at the same time share one attempt to get them. It takes 5 s at most, and goes on when they give
/// up. While the last attempt failed and there still are keys, nobody waits for the next. A set of keys has 256 KiB at most.
///
/// A clone shares what was got. Must be used within a tokio runtime.
#[derive(Clone)]
pub struct JwtKeys {
    origin: Origin,
    timing: Timing,
}

#[derive(Clone)]
enum Origin {
    Fixed(Arc<KeySet>),
    Kept(Arc<Kept>),
}

#[derive(Debug, Clone, Copy)]
struct Timing {
    refresh: Duration,
    max_stale: Duration,
    min_refetch: Duration,
}

impl JwtKeys {
    /// After how long keys from a URL are fetched again.
    pub const DEFAULT_REFRESH: Duration = Duration::from_secs(300);
    /// How long keys are used that can't be got again.
    pub const DEFAULT_MAX_STALE: Duration = Duration::from_secs(3600);
    /// How much time is between two fetches that tokens with unknown keys cause.
    pub const DEFAULT_MIN_REFETCH: Duration = Duration::from_secs(10);
    /// How often a file is looked at.
    const DEFAULT_LOOK: Duration = Duration::from_secs(1);

    /// Takes a JSON Web Key Set (RFC 7517), which stays as it is.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where the text is none, or none of its keys is of use.
    pub fn from_jwks(json: &str) -> Result<Self> {
        let set = KeySet::from_jwks(json).and_then(KeySet::not_empty).map_err(|reason| invalid(&reason))?;
        Ok(Self::new(Origin::Fixed(Arc::new(set)), Self::DEFAULT_REFRESH, Self::DEFAULT_MIN_REFETCH))
    }

    /// Reads a file: a JSON Web Key Set, or public keys in PEM (`PUBLIC KEY`: RFC 7468, section 13), which have no names.
    ///
    /// The file is looked at once a second at most, and only when a token comes. It is read again when its size or the time
    /// of its last change is another. Put a new one in the place of the old by renaming it: one that is half written can't
    /// be used.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where it can't be read, or holds no key that is of use.
    pub async fn from_file(path: impl Into<PathBuf>) -> Result<Self> {
        let kept = Arc::new(Kept::new(Source::File(path.into())));
        let keys = Self::new(Origin::Kept(Arc::clone(&kept)), Self::DEFAULT_LOOK, Self::DEFAULT_LOOK);
        let state = kept.current(&keys.timing).await;
        match state.loaded {
            Some(loaded) if !loaded.set.keys.is_empty() => Ok(keys),
            Some(_) => Err(invalid(NO_KEY)),
            None => {
                let error = Error::new(ErrorKind::InvalidArgument, "the file with the keys can't be used");
                Err(state.failure.into_iter().fold(error, Error::with_source))
            }
        }
    }

    /// Fetches a JSON Web Key Set, first when the first token comes.
    ///
    /// It is fetched again after [`with_refresh`](Self::with_refresh), and when a token comes that names a key that is not
    /// known, or names none and no key verifies it: the issuer may have new keys. Redirects are followed within the URL's
    /// origin only. The certificates that the system trusts are trusted; proxies that the environment names are not used.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a text that is no URL, or a URL that holds a user's name or password, or one that
    /// is not `https`, except that a loopback host (`localhost`, 127.0.0.0/8, `::1`) may be spoken to by `http`.
    /// [`ErrorKind::Internal`] where there can be no client, such as without any certificate that the system trusts.
    pub fn from_url(url: &str) -> Result<Self> {
        let url = Url::parse(url).map_err(|error| invalid("the URL is not valid").with_source(error))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("the URL must not hold a user's name or password"));
        }
        if !(url.scheme() == "https" || url.scheme() == "http" && url.host_str().is_some_and(is_loopback)) {
            return Err(invalid("the URL must be https, unless its host is a loopback one"));
        }
        let client = client(&url).map_err(|error| {
            Error::new(ErrorKind::Internal, "there can be no client for the keys").with_source(error.without_url())
        })?;
        let kept = Arc::new(Kept::new(Source::Url { client, url: Box::new(url) }));
        Ok(Self::new(Origin::Kept(kept), Self::DEFAULT_REFRESH, Self::DEFAULT_MIN_REFETCH))
    }

    fn new(origin: Origin, refresh: Duration, min_refetch: Duration) -> Self {
        Self { origin, timing: Timing { refresh, max_stale: Self::DEFAULT_MAX_STALE, min_refetch } }
    }

    /// Sets after how long keys are got again. Default: 5 min from a URL; 1 s from a file, which is only looked at.
    #[must_use]
    pub fn with_refresh(mut self, refresh: Duration) -> Self {
        self.timing.refresh = refresh;
        self
    }

    /// Sets how long keys are used that can't be got again, counted from when they were got. Default: 1 h.
    #[must_use]
    pub fn with_max_stale(mut self, max_stale: Duration) -> Self {
        self.timing.max_stale = max_stale;
        self
    }

    /// Sets how much time is at least between an attempt to get the keys and the next one that is made because the last
    /// failed, or because of a token whose key is not known. Default: 10 s for a URL, 1 s for a file.
    #[must_use]
    pub fn with_min_refetch(mut self, min_refetch: Duration) -> Self {
        self.timing.min_refetch = min_refetch;
        self
    }

    /// Whether a key verifies the token.
    pub(super) async fn verify(&self, token: &Signed<'_>) -> Result<bool> {
        let kept = match &self.origin {
            Origin::Fixed(set) => return Ok(set.verify(token) == Verdict::Valid),
            Origin::Kept(kept) => kept,
        };
        let state = kept.current(&self.timing).await;
        match state.usable(&self.timing)?.verify(token) {
            Verdict::Valid => return Ok(true),
            Verdict::Invalid => return Ok(false),
            Verdict::Unknown => tracing::debug!(?token, "no key is known for a token"),
        }
        let newer = kept.newer(&self.timing, state.round).await;
        match newer.usable(&self.timing)?.verify(token) {
            Verdict::Valid => Ok(true),
            Verdict::Unknown if newer.failure.is_some() => Err(newer.out_of_reach(&self.timing)),
            Verdict::Unknown | Verdict::Invalid => Ok(false),
        }
    }
}

impl fmt::Debug for JwtKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("JwtKeys");
        match &self.origin {
            Origin::Fixed(set) => debug.field("keys", &set.keys.len()).finish(),
            Origin::Kept(kept) => debug.field("source", &kept.source).field("timing", &self.timing).finish(),
        }
    }
}

fn invalid(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, reason.to_owned())
}

fn client(url: &Url) -> std::result::Result<Client, reqwest::Error> {
    let same_origin = redirect::Policy::custom(|attempt| {
        let first = attempt.previous().first().map(Url::origin);
        match first == Some(attempt.url().origin()) && attempt.previous().len() <= MAX_REDIRECTS {
            true => attempt.follow(),
            false => attempt.stop(),
        }
    });
    let client = Client::builder().redirect(same_origin).referer(false).no_proxy().pool_max_idle_per_host(0);
    match url.scheme() {
        "https" => client.https_only(true).build(),
        // The system's certificates are not needed, and need not be there.
        _ => client.tls_certs_only([]).build(),
    }
}

/// Keys that are got again in time.
struct Kept {
    source: Source,
    state: watch::Sender<State>,
}

#[derive(Clone, Default)]
struct State {
    loaded: Option<Loaded>,
    /// Why the last attempt failed, if it did.
    failure: Option<Error>,
    /// When the last attempt began, that which is running included.
    began: Option<Instant>,
    running: bool,
    /// How many attempts have ended.
    round: u64,
}

#[derive(Clone)]
struct Loaded {
    set: Arc<KeySet>,
    stamp: Option<Stamp>,
    /// When the attempt began by which they were got, or found to be still the same.
    as_of: Instant,
}

impl State {
    fn is_younger(&self, than: Duration) -> bool {
        self.loaded.as_ref().is_some_and(|loaded| loaded.as_of.elapsed() < than)
    }

    fn has_usable(&self, timing: &Timing) -> bool {
        self.is_younger(timing.max_stale)
    }

    fn is_fresh(&self, timing: &Timing) -> bool {
        self.is_younger(timing.refresh.min(timing.max_stale))
    }

    fn may_try_again(&self, timing: &Timing) -> bool {
        self.began.is_none_or(|began| began.elapsed() >= timing.min_refetch)
    }

    fn usable(&self, timing: &Timing) -> Result<&KeySet> {
        // What was got just now is used, whatever the limits.
        let loaded = self.loaded.as_ref().filter(|_| self.failure.is_none() || self.has_usable(timing));
        loaded.map(|loaded| &*loaded.set).ok_or_else(|| self.out_of_reach(timing))
    }

    fn out_of_reach(&self, timing: &Timing) -> Error {
        let since = self.began.map_or(Duration::ZERO, |began| began.elapsed());
        let error =
            Error::new(ErrorKind::DependencyUnavailable, "the keys that tokens are verified with are out of reach")
                .with_retry_after(timing.min_refetch.saturating_sub(since));
        self.failure.iter().cloned().fold(error, Error::with_source)
    }
}

impl Kept {
    fn new(source: Source) -> Self {
        Self { source, state: watch::Sender::new(State::default()) }
    }

    /// The keys as of now, if they can be had.
    async fn current(self: &Arc<Self>, timing: &Timing) -> State {
        let state = self.state.borrow().clone();
        if state.is_fresh(timing) {
            return state;
        }
        let state =
            self.begin(|state| !state.is_fresh(timing) && (state.failure.is_none() || state.may_try_again(timing)));
        let need_not_wait = state.is_fresh(timing) || state.failure.is_some() && state.has_usable(timing);
        if need_not_wait { state } else { self.ended(state).await }
    }

    /// Newer keys than those of a round, if they may be got now.
    async fn newer(self: &Arc<Self>, timing: &Timing, round: u64) -> State {
        let state = self.begin(|state| state.round == round && state.may_try_again(timing));
        if state.round == round { self.ended(state).await } else { state }
    }

    /// Begins to get the keys, unless that is running, or is not wanted. Gives the state after that.
    fn begin(self: &Arc<Self>, is_wanted: impl FnOnce(&State) -> bool) -> State {
        let mut attempt = None;
        let mut state = State::default();
        self.state.send_if_modified(|shared| {
            if !shared.running && is_wanted(shared) {
                let began = Instant::now();
                shared.running = true;
                shared.began = Some(began);
                attempt = Some(began);
            }
            state = shared.clone();
            false
        });
        if let Some(began) = attempt {
            let outcome = Err(unavailable("the attempt was broken off"));
            let attempt = Attempt { kept: Arc::clone(self), began, outcome };
            let stamp = state.loaded.as_ref().and_then(|loaded| loaded.stamp);
            // A task of its own, so that it goes on when its caller is gone, and others wait for the same. It ends by its
            // time limit.
            tokio::spawn(attempt.run(stamp));
        }
        state
    }

    /// Waits for the attempt that is running, if one is.
    async fn ended(&self, state: State) -> State {
        if !state.running {
            return state;
        }
        let mut states = self.state.subscribe();
        let ended = states.wait_for(|now| now.round > state.round).await;
        ended.map_or_else(|_| state.clone(), |now| now.clone())
    }
}

/// An attempt to get the keys. What came of it is known when it is dropped, for whatever reason.
struct Attempt {
    kept: Arc<Kept>,
    began: Instant,
    outcome: Result<Option<(KeySet, Option<Stamp>)>>,
}

impl Attempt {
    async fn run(mut self, stamp: Option<Stamp>) {
        self.outcome = match tokio::time::timeout(LOAD_TIMEOUT, self.kept.source.load(stamp)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(unavailable("it took too long")),
        };
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let source = &self.kept.source;
        let outcome = match std::mem::replace(&mut self.outcome, Ok(None)) {
            Ok(Some((set, stamp))) if set.keys.is_empty() => {
                tracing::warn!(?source, "there is no key for tokens any more");
                Ok(Some((Arc::new(set), stamp)))
            }
            Ok(found) => Ok(found.map(|(set, stamp)| (Arc::new(set), stamp))),
            Err(error) => {
                if self.kept.state.borrow().failure.is_none() {
                    tracing::warn!(?source, ?error, "the keys for tokens can't be read");
                }
                Err(error)
            }
        };
        self.kept.state.send_modify(|state| {
            state.running = false;
            state.round += 1;
            state.failure = outcome.as_ref().err().cloned();
            match (outcome, &mut state.loaded) {
                (Ok(Some((set, stamp))), loaded) => *loaded = Some(Loaded { set, stamp, as_of: self.began }),
                (Ok(None), Some(loaded)) => loaded.as_of = self.began,
                (Ok(None), None) | (Err(_), _) => {}
            }
        });
    }
}

fn unavailable(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::DependencyUnavailable, "the keys can't be read").with_detail(reason)
}

enum Source {
    Url { client: Client, url: Box<Url> },
    File(PathBuf),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A query can be a secret.
            Self::Url { url, .. } => write!(f, "{}{}", url.origin().ascii_serialization(), url.path()),
            Self::File(path) => path.fmt(f),
        }
    }
}

/// By what it is seen that a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    bytes: u64,
}

impl Source {
    /// `None` where they are those that have this stamp.
    async fn load(&self, stamp: Option<Stamp>) -> Result<Option<(KeySet, Option<Stamp>)>> {
        match self {
            Self::Url { client, url } => fetch(client, url).await.map(|set| Some((set, None))),
            Self::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || read(&path, stamp)).await;
                let found = read.map_err(|error| unavailable("the reader failed").with_source(error))??;
                Ok(found.map(|(set, stamp)| (set, Some(stamp))))
            }
        }
    }
}

async fn fetch(client: &Client, url: &Url) -> Result<KeySet> {
    let failed = |error: reqwest::Error| unavailable("the request failed").with_source(error.without_url());
    let request = client.get(url.clone()).header(header::ACCEPT, "application/jwk-set+json, application/json");
    let mut response = request.send().await.map_err(failed)?;
    if response.status() != StatusCode::OK {
        return Err(unavailable(format!("the status is {}", response.status())));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > MAX_BYTES {
            return Err(unavailable(TOO_LARGE));
        }
        body.extend_from_slice(&chunk);
    }
    let text = std::str::from_utf8(&body).map_err(|error| unavailable("it is no text").with_source(error))?;
    KeySet::from_jwks(text).map_err(unavailable)
}

fn read(path: &Path, stamp: Option<Stamp>) -> Result<Option<(KeySet, Stamp)>> {
    let failed = |error: std::io::Error| unavailable("the file can't be read").with_source(error);
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let found = Stamp { modified: meta.modified().map_err(failed)?, bytes: meta.len() };
    if stamp == Some(found) {
        return Ok(None);
    }
    let mut text = String::new();
    let limit = MAX_BYTES as u64 + 1;
    if file.take(limit).read_to_string(&mut text).map_err(failed)? > MAX_BYTES {
        return Err(unavailable(TOO_LARGE));
    }
    let is_json = text.trim_start().starts_with('{');
    let set = if is_json { KeySet::from_jwks(&text) } else { KeySet::from_pem(&text) };
    Ok(Some((set.map_err(unavailable)?, found)))
}

const TOO_LARGE: &str = "it is larger than 256 KiB";
const NO_KEY: &str = "there is no key for RS256, ES256 or EdDSA";

/// Keys that are of use.
struct KeySet {
    keys: Vec<Key>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Valid,
    Invalid,
    /// No key has the name that the token gives, or it gives none: a newer set may have one.
    Unknown,
}

impl KeySet {
    fn from_jwks(json: &str) -> std::result::Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        // The parser's message may repeat what stands there.
        let set: Set = serde_json::from_str(json)
            .map_err(|error| format!("it is no JSON Web Key Set: line {}, column {}", error.line(), error.column()))?;
        let key = |value| serde_json::from_value::<Jwk>(value).ok()?.key();
        Ok(Self { keys: set.keys.into_iter().filter_map(key).collect() })
    }

    /// Takes every `PUBLIC KEY`, and refuses anything else that has a label.
    fn from_pem(text: &str) -> std::result::Result<Self, String> {
        const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
        const END: &str = "-----END PUBLIC KEY-----";
        let mut keys = Vec::new();
        let mut rest = text;
        while let Some((_, after)) = rest.split_once("-----BEGIN ") {
            let from = rest.len() - after.len() - "-----BEGIN ".len();
            let block = rest.get(from..).and_then(|block| block.strip_prefix(BEGIN));
            let (body, after) =
                block.and_then(|block| block.split_once(END)).ok_or("it holds something that is no public key")?;
            let encoded: String = body.split_ascii_whitespace().collect();
            let der = STANDARD.decode(encoded).map_err(|_| "a public key is not in base64")?;
            keys.push(
                Key::from_der(&der).ok_or("a public key is neither RSA of 2048 bits or more, nor P-256 nor Ed25519")?,
            );
            rest = after;
        }
        Self { keys }.not_empty()
    }

    fn not_empty(self) -> std::result::Result<Self, String> {
        if self.keys.is_empty() { Err(NO_KEY.to_owned()) } else { Ok(self) }
    }

    fn verify(&self, token: &Signed<'_>) -> Verdict {
        let is_named = |key: &&Key| token.key.is_some() && key.name.as_deref() == token.key;
        let is_known = self.keys.iter().any(|key| is_named(&key));
        let may_be = |key: &&Key| if is_known { is_named(key) } else { token.key.is_none() || key.name.is_none() };
        let mut fitting =
            self.keys.iter().filter(|key| key.algorithm == token.algorithm).filter(may_be).take(MAX_TRIED);
        match fitting.any(|key| key.verifies(token)) {
            true => Verdict::Valid,
            false if is_known => Verdict::Invalid,
            false => Verdict::Unknown,
        }
    }
}

struct Key {
    name: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Key {
    /// Takes a SubjectPublicKeyInfo (RFC 5280, section 4.1) in DER.
    fn from_der(der: &[u8]) -> Option<Self> {
        // SEQUENCE { SEQUENCE { algorithm, parameters }, BIT STRING { key } }. All but the key itself is always the same
        // for P-256 and Ed25519; with RSA, the lengths differ, and have two bytes from 2048 bits on.
        const P256: [u8; 27] = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
            0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
        ];
        const ED25519: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        const RSA: [u8; 15] =
            [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
        let (algorithm, key) = if der.len() == 91 && der.starts_with(&P256) {
            (Algorithm::Es256, DecodingKey::from_ec_der(der))
        } else if der.len() == 44 && der.starts_with(&ED25519) {
            (Algorithm::Ed25519, DecodingKey::from_ed_der(der))
        } else if der.starts_with(&[0x30, 0x82]) && der.get(4..)?.starts_with(&RSA) {
            (Algorithm::Rs256, DecodingKey::from_rsa_der(der))
        } else {
            return None;
        };
        Some(Self { name: None, algorithm, key })
    }

    fn verifies(&self, token: &Signed<'_>) -> bool {
        let algorithm = match token.algorithm {
            Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
            Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
            Algorithm::Ed25519 => jsonwebtoken::Algorithm::EdDSA,
        };
        // Not `jsonwebtoken::decode`: its provider depends on the features and on who was first in the process, and panics
        // where there is none.
        let verifier = (DEFAULT_PROVIDER.verifier_factory)(&algorithm, &self.key);
        verifier.is_ok_and(|verifier| verifier.verify(token.message, &token.signature).is_ok())
    }
}

/// A JSON Web Key (RFC 7517, section 4; RFC 7518, section 6; RFC 8037, section 2).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwk {
    /// `None` for a key that is not for the signatures of tokens, or that nobody could use.
    fn key(self) -> Option<Key> {
        let is_for_signatures = self.purpose.is_none_or(|purpose| purpose == "sig")
            && self.key_ops.is_none_or(|all| all.iter().any(|operation| operation == "verify"));
        let (algorithm, key) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (bytes(self.n)?, bytes(self.e)?);
                let n = n.strip_prefix(&[0]).unwrap_or(&n);
                (
                    Algorithm::Rs256,
                    (256..=1024).contains(&n.len()).then(|| DecodingKey::from_rsa_raw_components(n, &e))?,
                )
            }
            ("EC", Some("P-256")) => {
                let (x, y) = (bytes(self.x)?, bytes(self.y)?);
                let point = [&[4], &*x, &*y].concat();
                (Algorithm::Es256, (x.len() == 32 && y.len() == 32).then(|| DecodingKey::from_ec_der(&point))?)
            }
            ("OKP", Some("Ed25519")) => {
                let x = bytes(self.x)?;
                (Algorithm::Ed25519, (x.len() == 32).then(|| DecodingKey::from_ed_der(&x))?)
            }
            _ => return None,
        };
        let is_for_it = self.alg.is_none_or(|name| Algorithm::named(&name) == Some(algorithm));
        (is_for_signatures && is_for_it).then_some(Key { name: self.kid, algorithm, key })
    }
}

fn bytes(encoded: Option<String>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(encoded?).ok()
}
