//! Keeps the values of secrets out of whatever is stored or logged.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use aho_corasick::{AhoCorasick, MatchKind};

use crate::{Error, Secret};

/// What stands where a secret stood.
pub const REDACTED: &str = "[redacted]";

#[derive(Clone)]
struct Matcher {
    patterns: Vec<Secret>,
    search: AhoCorasick,
    longest: usize,
}

/// The values of secrets that one call has met, and their removal from text and bytes.
///
/// A value is found as it is and as it stands inside a JSON text. What a function derives from a value (a hash, an
/// encoding, a part of it) can't be found.
#[derive(Default)]
pub struct Redactor(RwLock<Option<Arc<Matcher>>>);

impl Redactor {
    /// A redactor that knows no secret yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value. An empty one is ignored.
    pub fn add(&self, secret: &Secret) {
        if secret.expose().is_empty() {
            return;
        }
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut patterns = known.as_ref().map(|matcher| matcher.patterns.clone()).unwrap_or_default();
        let mut add = |pattern: Secret| {
            if !patterns.iter().any(|other| other.expose() == pattern.expose()) {
                patterns.push(pattern);
            }
        };
        add(secret.clone());
        if let Some(escaped) = json_escaped(secret) {
            add(escaped);
        }
        let search =
            AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(patterns.iter().map(Secret::expose));
        // Building fails only past 2^31 bytes of patterns, which no set of secrets comes near.
        if let Ok(search) = search {
            let longest = patterns.iter().map(|pattern| pattern.expose().len()).max().unwrap_or(0);
            *known = Some(Arc::new(Matcher { patterns, search, longest }));
        }
    }

    /// Adds every value that another redactor knows.
    pub(crate) fn adopt(&self, other: &Self) {
        let Some(theirs) = other.matcher() else { return };
        {
            let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
            if known.is_none() {
                *known = Some(theirs);
                return;
            }
        }
        theirs.patterns.iter().for_each(|pattern| self.add(pattern));
    }

    /// Whether there is nothing to redact.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.matcher().is_none()
    }

    fn matcher(&self) -> Option<Arc<Matcher>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes without the values.
    #[must_use]
    pub fn bytes<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        match self.matcher() {
            Some(matcher) if matcher.search.is_match(bytes) => Cow::Owned(matcher.replace(bytes)),
            _ => Cow::Borrowed(bytes),
        }
    }

    /// Text without the values.
    #[must_use]
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    /// An error none of whose texts holds a value.
    #[must_use]
    pub fn error(&self, error: Error) -> Error {
        if self.is_empty() { error } else { error.map_texts(|text| self.text(text).into_owned()) }
    }

    /// A redactor for bytes that come in pieces, with the values that are known by now.
    #[must_use]
    pub fn stream(&self) -> StreamRedactor {
        StreamRedactor { matcher: self.matcher(), held: Vec::new() }
    }

    /// Tells a stream's redactor the values that have become known since it began, as another attempt may bring some.
    pub(crate) fn refresh(&self, stream: &mut StreamRedactor) {
        stream.matcher = self.matcher();
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redactor").field(&self.matcher().map_or(0, |matcher| matcher.patterns.len())).finish()
    }
}

impl Matcher {
    fn replace(&self, bytes: &[u8]) -> Vec<u8> {
        let replacements = vec![REDACTED; self.patterns.len()];
        self.search.replace_all_bytes(bytes, &replacements)
    }

    /// From where on bytes may be the start of a value. Nothing of a line that ends otherwise is held back, so that who
    /// follows a log sees it at once.
    fn undecided(&self, bytes: &[u8]) -> usize {
        /// Longer values are not compared at each place, since the work would go by the square of their length.
        const MAX_COMPARED: usize = 1024;
        let first = bytes.len().saturating_sub(self.longest.saturating_sub(1));
        if self.longest > MAX_COMPARED {
            return first;
        }
        let may_start = |at: usize| {
            let end = bytes.get(at..).unwrap_or_default();
            self.patterns.iter().any(|value| value.expose().len() > end.len() && value.expose().starts_with(end))
        };
        (first..bytes.len()).find(|at| may_start(*at)).unwrap_or(bytes.len())
    }
}

/// Redacts bytes that come in pieces: a value that is cut by a border between pieces is found too.
pub struct StreamRedactor {
    matcher: Option<Arc<Matcher>>,
    held: Vec<u8>,
}

impl StreamRedactor {
    /// Takes a piece, gives what can be said by now. The end that may be the start of a value is held back.
    pub fn push<'a>(&mut self, piece: &'a [u8]) -> Cow<'a, [u8]> {
        let Some(matcher) = &self.matcher else { return Cow::Borrowed(piece) };
        self.held.extend_from_slice(piece);
        let undecided = matcher.undecided(&self.held);
        // A match that starts among the last bytes may still grow into a longer one.
        let mut settled = undecided;
        for found in matcher.search.find_iter(&self.held) {
            if found.start() >= undecided {
                break;
            }
            settled = settled.max(found.end());
        }
        let rest = self.held.split_off(settled);
        let ready = std::mem::replace(&mut self.held, rest);
        Cow::Owned(matcher.replace(&ready))
    }

    /// Gives what was held back.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        match &self.matcher {
            Some(matcher) => matcher.replace(&self.held),
            None => self.held,
        }
    }
}

impl fmt::Debug for StreamRedactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamRedactor").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

/// The value as it stands inside a JSON text, where that differs.
fn json_escaped(secret: &Secret) -> Option<Secret> {
    let text = std::str::from_utf8(secret.expose()).ok()?;
    let quoted = serde_json::to_string(text).ok()?;
    let escaped = quoted.strip_prefix('"')?.strip_suffix('"')?;
    (escaped != text).then(|| Secret::new(escaped))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn redactor(values: &[&str]) -> Redactor {
        let redactor = Redactor::new();
        for value in values {
            redactor.add(&Secret::new(*value));
        }
        redactor
    }

    #[test]
    fn values_are_found_plain_and_in_json() {
        let redactor = redactor(&["s3cr\"et\n"]);
        assert_eq!(redactor.text("a s3cr\"et\n b"), "a [redacted] b");
        assert_eq!(redactor.text(r#"{"k":"s3cr\"et\n"}"#), r#"{"k":"[redacted]"}"#);
    }

    #[test]
    fn the_longest_value_wins() {
        assert_eq!(redactor(&["abc", "abcdef"]).text("xabcdefx"), "x[redacted]x");
    }

    #[test]
    fn an_empty_secret_redacts_nothing() {
        assert_eq!(redactor(&[""]).text("abc"), "abc");
    }

    #[test]
    fn debug_shows_no_value() {
        let redactor = redactor(&["canary"]);
        let mut stream = redactor.stream();
        let _ = stream.push(b"can");
        assert!(!format!("{redactor:?} {stream:?} {:?}", Secret::new("canary")).contains("can"));
    }

    #[test]
    fn a_redactor_takes_over_what_another_knows() {
        let (mine, theirs) = (redactor(&["one"]), redactor(&["two"]));
        mine.adopt(&theirs);
        let fresh = Redactor::new();
        fresh.adopt(&mine);
        assert_eq!(fresh.text("one two"), "[redacted] [redacted]");
        assert_eq!(theirs.text("one two"), "one [redacted]");
    }

    #[test]
    fn a_stream_learns_of_values_that_come_later() {
        let redactor = redactor(&["one"]);
        let mut stream = redactor.stream();
        let mut out = stream.push(b"one ").into_owned();
        redactor.add(&Secret::new("second"));
        redactor.refresh(&mut stream);
        out.extend_from_slice(&stream.push(b"sec"));
        out.extend_from_slice(&stream.push(b"ond"));
        out.extend_from_slice(&stream.finish());
        assert_eq!(out, b"[redacted] [redacted]");
    }

    #[test]
    fn a_stream_holds_back_only_what_may_be_the_start_of_a_value() {
        let redactor = redactor(&["secret", "second"]);
        let mut stream = redactor.stream();
        for (piece, ready) in
            [("a line\n", "a line\n"), ("se", ""), ("e\ns", "see\n"), ("econ", ""), ("d!", "[redacted]!")]
        {
            assert_eq!(stream.push(piece.as_bytes()), ready.as_bytes(), "{piece:?}");
        }
        let long = "x".repeat(2000);
        assert_eq!(self::redactor(&[&long]).stream().push(b"a line\n"), &b""[..]);
    }

    proptest! {
        #[test]
        fn no_border_between_pieces_lets_a_value_through(
            cuts in proptest::collection::vec(1_usize..6, 0..40),
            values in proptest::collection::vec("[ab]{1,5}", 1..3),
            text in "[abc]{0,60}",
        ) {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let redactor = redactor(&values);
            let mut stream = redactor.stream();
            let mut out = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                out.extend_from_slice(&stream.push(piece));
                rest = after;
            }
            out.extend_from_slice(&stream.push(rest));
            out.extend_from_slice(&stream.finish());
            prop_assert_eq!(String::from_utf8(out).unwrap(), redactor.text(&text));
        }
    }
}
