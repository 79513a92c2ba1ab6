//! Names and values of context attributes: one that exists is valid.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use function_gateway_core::{Error, ErrorKind};

use crate::EventTime;

/// Why a text is not the name of an attribute, or no value of its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what}: it {reason}")]
pub struct InvalidAttribute {
    what: &'static str,
    reason: Cow<'static, str>,
}

impl InvalidAttribute {
    pub(crate) fn new(what: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { what, reason: reason.into() }
    }

    /// What was expected: a type of the specification, or `attribute name`.
    #[must_use]
    pub fn what(&self) -> &str {
        self.what
    }

    /// What is wrong, and what would be right.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl From<InvalidAttribute> for Error {
    fn from(error: InvalidAttribute) -> Self {
        Self::new(ErrorKind::InvalidArgument, error.to_string())
    }
}

type Checked = Result<(), Cow<'static, str>>;

macro_rules! text_value {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a text and takes it.
            ///
            /// # Errors
            /// [`InvalidAttribute`] says which rule the text breaks.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidAttribute> {
                let text = text.as_ref();
                $check(text).map_err(|reason| InvalidAttribute::new($what, reason))?;
                Ok(Self(Arc::from(text)))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        text_traits!($name);
    };
}

macro_rules! text_traits {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidAttribute;

            fn from_str(text: &str) -> Result<Self, InvalidAttribute> {
                Self::new(text)
            }
        }
    };
}

text_value! {
    /// The name of an attribute: lower-case letters and digits of ASCII, and not `data`, which event formats need.
    ///
    /// At most 64 of them. The specification advises to have at most 20.
    AttributeName, "attribute name", check_name
}

text_value! {
    /// A text (the type `String`): Unicode without control characters and noncharacters. It may be empty.
    EventString, "String", check_string
}

text_value! {
    /// The type `URI`: an absolute URI (RFC 3986, section 4.3), so without a fragment.
    Uri, "URI", check_uri
}

text_value! {
    /// The type `URI-reference`: a URI, or one relative to another (RFC 3986, section 4.1). It may be empty.
    UriReference, "URI-reference", check_uri_reference
}

impl std::borrow::Borrow<str> for AttributeName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AttributeName {
    /// The greatest length.
    pub const MAX_LEN: usize = 64;
}

fn check_name(text: &str) -> Checked {
    if text.is_empty() {
        return Err("is empty".into());
    }
    if let Some(bad) = text.chars().find(|char| !matches!(char, 'a'..='z' | '0'..='9')) {
        return Err(format!("contains {bad:?}, allowed are a-z and 0-9").into());
    }
    if text.len() > AttributeName::MAX_LEN {
        return Err(format!("is longer than {} characters", AttributeName::MAX_LEN).into());
    }
    if text == "data" {
        return Err("is `data`, which no attribute may be called".into());
    }
    Ok(())
}

fn check_string(text: &str) -> Checked {
    if let Some(bad) = text.chars().find(|char| char.is_control()) {
        return Err(format!("contains the control character {bad:?}").into());
    }
    if let Some(bad) = text.chars().find(|char| is_noncharacter(*char)) {
        return Err(format!("contains {bad:?}, which Unicode does not use for a character").into());
    }
    Ok(())
}

fn is_noncharacter(char: char) -> bool {
    let code = u32::from(char);
    (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE
}

fn check_uri(text: &str) -> Checked {
    match fluent_uri::Uri::parse(text) {
        Err(error) => Err(format!("is no absolute URI as in RFC 3986: {error}").into()),
        Ok(uri) if uri.has_fragment() => Err("has a fragment, which an absolute URI (RFC 3986, 4.3) has not".into()),
        Ok(_) => Ok(()),
    }
}

fn check_uri_reference(text: &str) -> Checked {
    fluent_uri::UriRef::parse(text)
        .map(drop)
        .map_err(|error| format!("is no URI-reference as in RFC 3986: {error}").into())
}

/// A media type with its parameters, such as `application/json; charset=utf-8`: the value of `datacontenttype`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MediaType {
    text: Arc<str>,
    format: Format,
    charset: Charset,
}

/// What the JSON event format makes of a media type.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Format {
    Json,
    Text,
    Other,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Charset {
    /// Named, or taken for granted.
    Utf8,
    Ascii,
    Other,
}

impl MediaType {
    /// Checks a text and takes it as it is.
    ///
    /// # Errors
    /// [`InvalidAttribute`] says what is wrong.
    pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidAttribute> {
        let text = text.as_ref();
        let (format, charset) = parse_media_type(text).ok_or_else(|| {
            InvalidAttribute::new(
                "media type",
                "is no media type with parameters, such as application/json; charset=utf-8",
            )
        })?;
        Ok(Self { text: Arc::from(text), format, charset })
    }

    /// What the JSON event format implies where nothing else is said.
    pub(crate) fn json() -> Self {
        Self { text: Arc::from("application/json"), format: Format::Json, charset: Charset::Utf8 }
    }

    /// The text, as it came.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the content is JSON: the subtype is `json` or ends with `+json`.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// The media type without parameters, in lower case.
    pub(crate) fn essence(&self) -> String {
        self.text.split(';').next().unwrap_or_default().trim_end().to_ascii_lowercase()
    }

    pub(crate) fn is_utf8(&self) -> bool {
        self.charset != Charset::Other
    }

    /// Whether the content is meant to be read as text, beyond JSON.
    pub(crate) fn is_text(&self) -> bool {
        self.format == Format::Text
    }

    /// Whether a text is the same bytes in the declared charset and in UTF-8.
    pub(crate) fn encodes_as_utf8(&self, text: &str) -> bool {
        match self.charset {
            Charset::Utf8 => true,
            Charset::Ascii => text.is_ascii(),
            Charset::Other => false,
        }
    }
}

text_traits!(MediaType);

fn parse_media_type(text: &str) -> Option<(Format, Charset)> {
    let (kind, rest) = token(text)?;
    let (subtype, mut rest) = token(rest.strip_prefix('/')?)?;
    let mut charset = None;
    loop {
        rest = rest.trim_start_matches(' ');
        if rest.is_empty() {
            break;
        }
        rest = rest.strip_prefix(';')?.trim_start_matches(' ');
        // RFC 9110 has it that a parameter may be left out.
        let Some((name, after)) = token(rest) else { continue };
        let after = after.strip_prefix('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted_string(quoted).filter(|(value, _)| check_string(value).is_ok())?,
            None => token(after).map(|(value, after)| (Cow::Borrowed(value), after))?,
        };
        if name.eq_ignore_ascii_case("charset") {
            charset.get_or_insert(value);
        }
        rest = after;
    }
    let subtype = subtype.to_ascii_lowercase();
    let format = match &*subtype {
        "json" => Format::Json,
        name if name.ends_with("+json") => Format::Json,
        "xml" => Format::Text,
        name if name.ends_with("+xml") || kind.eq_ignore_ascii_case("text") => Format::Text,
        _ => Format::Other,
    };
    let charset = match charset.map(|name| name.to_ascii_lowercase()).as_deref() {
        None | Some("utf-8" | "utf8") => Charset::Utf8,
        Some("us-ascii" | "ascii") => Charset::Ascii,
        Some(_) => Charset::Other,
    };
    Some((format, charset))
}

fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |char: char| char.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(char);
    let end = text.find(|char| !is_token(char)).unwrap_or(text.len());
    text.split_at_checked(end).filter(|(token, _)| !token.is_empty())
}

/// The value of a quoted string (RFC 9110, 5.6.4) whose opening quote is gone, and what comes after it. ASCII only.
pub(crate) fn quoted_string(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next().filter(char::is_ascii)? {
            '"' => return Some((Cow::Owned(value), chars.as_str())),
            '\\' => value.push(chars.next().filter(char::is_ascii)?),
            char => value.push(char),
        }
    }
}

/// The types of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AttributeType {
    /// `true` or `false`.
    Boolean,
    /// A whole number of 32 bits, with a sign.
    Integer,
    /// Unicode text.
    String,
    /// Bytes.
    Binary,
    /// An absolute URI.
    Uri,
    /// A URI, or one relative to another.
    UriReference,
    /// A point in time.
    Timestamp,
}

impl AttributeType {
    /// The name that the specification gives it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Boolean => "Boolean",
            Self::Integer => "Integer",
            Self::String => "String",
            Self::Binary => "Binary",
            Self::Uri => "URI",
            Self::UriReference => "URI-reference",
            Self::Timestamp => "Timestamp",
        }
    }
}

impl fmt::Display for AttributeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The value of an attribute, in one of the types of the specification.
///
/// On its way an extension loses its type where the format has none for it: HTTP headers make all of them a `String`, JSON all
/// but `Boolean` and `Integer`. Its canonical text stays, and [`parse`](Self::parse) makes a typed value of that again.
///
/// ```
/// use function_gateway_events::{AttributeType, AttributeValue};
///
/// let value = AttributeValue::parse(AttributeType::Integer, "-7")?;
/// assert_eq!(value, AttributeValue::Integer(-7));
/// assert_eq!(value.to_string(), "-7");
/// assert!(AttributeValue::parse(AttributeType::Integer, "7.0").is_err());
/// # Ok::<_, function_gateway_events::InvalidAttribute>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AttributeValue {
    /// A truth value.
    Boolean(bool),
    /// A whole number.
    Integer(i32),
    /// A text.
    String(EventString),
    /// Bytes; Base64 as text.
    Binary(Bytes),
    /// An absolute URI.
    Uri(Uri),
    /// A URI-reference.
    UriReference(UriReference),
    /// A point in time.
    Timestamp(EventTime),
}

impl AttributeValue {
    /// Reads the canonical text of a value of a type.
    ///
    /// # Errors
    /// [`InvalidAttribute`] says why the text is none.
    pub fn parse(attribute_type: AttributeType, text: &str) -> Result<Self, InvalidAttribute> {
        let invalid = |reason: &'static str| InvalidAttribute::new(attribute_type.as_str(), reason);
        Ok(match attribute_type {
            AttributeType::Boolean => match text {
                "true" => Self::Boolean(true),
                "false" => Self::Boolean(false),
                _ => return Err(invalid("is neither `true` nor `false`")),
            },
            AttributeType::Integer => {
                let digits = text.strip_prefix('-').unwrap_or(text);
                let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
                if !is_number || digits.is_empty() || (digits.len() > 1 && digits.starts_with('0')) {
                    return Err(invalid("is not a whole number in decimal digits"));
                }
                let value =
                    text.parse().map_err(|_| invalid("is out of the range of 32 bits, -2147483648 to 2147483647"))?;
                Self::Integer(value)
            }
            AttributeType::String => Self::String(EventString::new(text)?),
            AttributeType::Binary => {
                let bytes = STANDARD.decode(text);
                Self::Binary(bytes.map_err(|_| invalid("is not Base64 as in RFC 4648, section 4"))?.into())
            }
            AttributeType::Uri => Self::Uri(Uri::new(text)?),
            AttributeType::UriReference => Self::UriReference(UriReference::new(text)?),
            AttributeType::Timestamp => Self::Timestamp(EventTime::new(text)?),
        })
    }

    /// The type of the value.
    #[must_use]
    pub fn attribute_type(&self) -> AttributeType {
        match self {
            Self::Boolean(_) => AttributeType::Boolean,
            Self::Integer(_) => AttributeType::Integer,
            Self::String(_) => AttributeType::String,
            Self::Binary(_) => AttributeType::Binary,
            Self::Uri(_) => AttributeType::Uri,
            Self::UriReference(_) => AttributeType::UriReference,
            Self::Timestamp(_) => AttributeType::Timestamp,
        }
    }

    /// The value as text, in the canonical form of its type.
    #[must_use]
    pub fn canonical(&self) -> Cow<'_, str> {
        match self {
            Self::Boolean(true) => "true".into(),
            Self::Boolean(false) => "false".into(),
            Self::Integer(value) => value.to_string().into(),
            Self::String(value) => value.as_str().into(),
            Self::Binary(value) => STANDARD.encode(value).into(),
            Self::Uri(value) => value.as_str().into(),
            Self::UriReference(value) => value.as_str().into(),
            Self::Timestamp(value) => value.as_str().into(),
        }
    }
}

impl fmt::Display for AttributeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.canonical())
    }
}

macro_rules! from_value {
    ($($from:ty => $variant:ident),+) => {
        $(impl From<$from> for AttributeValue {
            fn from(value: $from) -> Self {
                Self::$variant(value)
            }
        })+
    };
}

from_value! {
    bool => Boolean, i32 => Integer, EventString => String, Bytes => Binary, Uri => Uri, UriReference => UriReference,
    EventTime => Timestamp
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_lower_case_letters_and_digits() {
        for good in ["id", "comexampleextension1", "1st", &"a".repeat(64)] {
            assert!(AttributeName::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", "data", "Id", "my_ext", "my-ext", "é", &"a".repeat(65)] {
            assert!(AttributeName::new(bad).is_err(), "{bad:?}");
        }
        let error = AttributeName::new("myExt").unwrap_err();
        assert_eq!(error.to_string(), "invalid attribute name: it contains 'E', allowed are a-z and 0-9");
    }

    #[test]
    fn strings_hold_characters_only() {
        for good in ["", " ", "Euro € 😀", "\u{E000}", "\u{10FFFD}", "\u{A0}"] {
            assert!(EventString::new(good).is_ok(), "{good:?}");
        }
        for bad in ["\n", "\0", "\u{7F}", "\u{9F}", "\u{FDD0}", "\u{FFFE}", "\u{FFFF}", "\u{1FFFF}", "\u{10FFFE}"] {
            assert!(EventString::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn uris_are_absolute_and_references_need_not_be() {
        for both in ["https://github.com/cloudevents", "mailto:cncf-wg-serverless@lists.cncf.io", "urn:uuid:6e8bc430"] {
            assert!(Uri::new(both).is_ok() && UriReference::new(both).is_ok(), "{both:?}");
        }
        for reference in ["", "/cloudevents/spec/pull/123", "1-555-123-4567", "cloudevents/spec#1", "?a", "//host"] {
            assert!(Uri::new(reference).is_err() && UriReference::new(reference).is_ok(), "{reference:?}");
        }
        for neither in ["a b", "/é", "%zz", "http://[::1", "a\\b", "<x>"] {
            assert!(Uri::new(neither).is_err() && UriReference::new(neither).is_err(), "{neither:?}");
        }
        assert!(Uri::new("https://example.com/a#b").unwrap_err().reason().contains("fragment"));
    }

    #[test]
    fn a_media_type_is_read_without_regard_to_case() {
        let json = |text: &str| MediaType::new(text).unwrap().is_json();
        assert!(json("application/json") && json("TEXT/Json; CharSet=\"utf-8\"") && json("image/svg+JSON;;"));
        assert!(!json("application/jsonx") && !json("application/json-seq") && !json("json/x"));
        let utf8 = |text: &str| MediaType::new(text).unwrap().encodes_as_utf8("é");
        assert!(utf8("text/plain") && utf8("text/plain; a=b ; CHARSET=UTF-8"));
        assert!(!utf8("text/plain;charset=us-ascii") && !utf8("text/plain;charset=iso-8859-1"));
    }

    #[test]
    fn what_is_no_media_type_is_refused() {
        for bad in
            ["", "json", "a/", "/b", "a /b", "a/b c", "a/b; c", "a/b; c=", "a/b; c=\"d", "a/b; c=\"\té\"", "a/b/c"]
        {
            assert!(MediaType::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_not_of_the_type_is_refused() {
        for (kind, bad) in [
            (AttributeType::Boolean, "True"),
            (AttributeType::Integer, ""),
            (AttributeType::Integer, "-"),
            (AttributeType::Integer, "+1"),
            (AttributeType::Integer, "01"),
            (AttributeType::Integer, "1e3"),
            (AttributeType::Integer, "2147483648"),
            (AttributeType::Integer, "-2147483649"),
            (AttributeType::Binary, "Zm9vYg"),
            (AttributeType::Binary, "Zm9vYg==\n"),
            (AttributeType::Binary, "_-8="),
            (AttributeType::Timestamp, "today"),
        ] {
            assert_eq!(AttributeValue::parse(kind, bad).unwrap_err().what(), kind.as_str(), "{bad:?}");
        }
        assert_eq!(AttributeValue::parse(AttributeType::Integer, "-0").unwrap().canonical(), "0");
    }

    proptest! {
        #[test]
        fn values_round_trip_by_their_canonical_text(
            boolean in any::<bool>(), integer in any::<i32>(), text in "\\PC*", bytes in any::<Vec<u8>>(),
        ) {
            for value in [
                AttributeValue::Boolean(boolean),
                AttributeValue::Integer(integer),
                AttributeValue::Binary(bytes.into()),
            ].into_iter().chain(EventString::new(text).map(AttributeValue::String)) {
                prop_assert_eq!(&AttributeValue::parse(value.attribute_type(), &value.canonical()).unwrap(), &value);
            }
        }

        #[test]
        fn parsing_never_panics(text in any::<String>()) {
            let _ = (AttributeName::new(&text), Uri::new(&text), UriReference::new(&text), MediaType::new(&text));
        }
    }
}
