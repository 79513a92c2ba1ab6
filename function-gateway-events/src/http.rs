//! The HTTP protocol binding: events to and from headers and bodies.

use bytes::Bytes;
use function_gateway_core::{Error, ErrorKind, Result};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::attribute::quoted_string;
use crate::event::{Draft, Given, INVALID};
use crate::json::{batch_from_json, batch_to_json, check_size};
use crate::violations::Violations;
use crate::{Event, EventLimits, MediaType};

const PREFIX: &str = "ce-";
const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

/// What a message over HTTP holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Events {
    /// One event, in the binary or the structured mode.
    One(Box<Event>),
    /// A batch, which may be empty.
    Batch(Vec<Event>),
}

impl Events {
    /// The events in their order, one or many.
    #[must_use]
    pub fn into_vec(self) -> Vec<Event> {
        match self {
            Self::One(event) => vec![*event],
            Self::Batch(events) => events,
        }
    }
}

/// Reads the event or the events of a request or response, in whichever mode its content type says.
///
/// A batch is taken whole or not at all. Headers `ce-*` beside an event in JSON are not looked at.
///
/// ```
/// use bytes::Bytes;
/// use function_gateway_events::{EventLimits, Events, from_http};
/// use http::HeaderMap;
///
/// let mut headers = HeaderMap::new();
/// for (name, value) in [
///     ("ce-specversion", "1.0"),
///     ("ce-id", "1"),
///     ("ce-source", "/shop"),
///     ("ce-type", "com.example.paid"),
///     ("ce-subject", "Euro%20%E2%82%AC"),
/// ] {
///     headers.insert(name, value.parse()?);
/// }
/// let Events::One(event) = from_http(&headers, &Bytes::new(), &EventLimits::default())? else { panic!() };
/// assert_eq!(event.subject(), Some("Euro €"));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`InvalidArgument`](ErrorKind::InvalidArgument) where the message is no event, comes in an event format other than
/// JSON, or breaks the specification: then with everything that is wrong, each at an attribute as a JSON Pointer, in a batch
/// with the event's index before it. [`PayloadTooLarge`](ErrorKind::PayloadTooLarge) where body or batch pass the limits.
pub fn from_http(headers: &HeaderMap, body: &Bytes, limits: &EventLimits) -> Result<Events> {
    let content_type = content_type(headers)?;
    if let Some(text) = content_type
        && is_of_events(text)
    {
        let media_type = MediaType::new(text)?;
        if !media_type.is_utf8() {
            return Err(Error::new(ErrorKind::InvalidArgument, "events in JSON are taken in UTF-8 only"));
        }
        return match &*media_type.essence() {
            STRUCTURED => Event::from_json(body, limits).map(Box::new).map(Events::One),
            BATCH => batch_from_json(body, limits).map(Events::Batch),
            _ => {
                let message = format!("the event format is not supported: {STRUCTURED} and {BATCH} are");
                Err(Error::new(ErrorKind::InvalidArgument, message))
            }
        };
    }
    check_size(body, limits)?;
    from_binary(headers, content_type, body, limits).map(Box::new).map(Events::One)
}

/// Puts an event into headers and a body, in the binary mode: attributes in headers, the data as the body.
///
/// # Errors
/// [`InvalidArgument`](ErrorKind::InvalidArgument) where the content type of the data is that of events, since such a message
/// reads as the event in its data; and where there are more extensions than headers can be.
pub fn to_http_binary(event: &Event) -> Result<(HeaderMap, Bytes)> {
    let mut headers = HeaderMap::new();
    if let Some(content_type) = event.datacontenttype() {
        if is_of_events(content_type.as_str()) {
            let message = "the data are an event themselves, which the binary mode can't tell: use the structured mode";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        insert(&mut headers, CONTENT_TYPE, content_type.as_str())?;
    }
    let core = event.core_attributes().into_iter().filter(|(name, _)| *name != "datacontenttype");
    for (name, value) in core {
        if let Some(value) = value {
            insert(&mut headers, header_name(name)?, &percent_encode(value))?;
        }
    }
    for (name, value) in event.extensions() {
        insert(&mut headers, header_name(name.as_str())?, &percent_encode(&value.canonical()))?;
    }
    Ok((headers, event.data().cloned().unwrap_or_default()))
}

/// Puts an event into headers and a body, in the structured mode: all of it in the body, as JSON.
///
/// # Errors
/// As [`Event::to_json`].
pub fn to_http_structured(event: &Event) -> Result<(HeaderMap, Bytes)> {
    Ok((headers_of(STRUCTURED), event.to_json()?))
}

/// Puts events into headers and a body, in the batched mode. Only who has asked for batches may be sent one.
///
/// # Errors
/// As [`Event::to_json`].
pub fn to_http_batch(events: &[Event]) -> Result<(HeaderMap, Bytes)> {
    Ok((headers_of(BATCH), batch_to_json(events)?))
}

fn headers_of(content_type: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))])
}

fn header_name(attribute: &str) -> Result<HeaderName> {
    HeaderName::try_from(format!("{PREFIX}{attribute}")).map_err(unwritable)
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) -> Result<()> {
    let value = HeaderValue::from_str(value).map_err(unwritable)?;
    headers.try_insert(name, value).map(drop).map_err(unwritable)
}

fn unwritable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::InvalidArgument, "the event does not fit into headers").with_source(error)
}

/// Whether a content type announces events in an event format. By its beginning, as the specification has it.
fn is_of_events(content_type: &str) -> bool {
    const OF_EVENTS: &str = "application/cloudevents";
    content_type.get(..OF_EVENTS.len()).is_some_and(|start| start.eq_ignore_ascii_case(OF_EVENTS))
}

fn content_type(headers: &HeaderMap) -> Result<Option<&str>> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let invalid = |message: &'static str| Error::new(ErrorKind::InvalidArgument, message);
    let first = values.next();
    if values.next().is_some() {
        return Err(invalid("the header content-type is there more than once"));
    }
    first.map(|value| value.to_str().map_err(|_| invalid("the header content-type has more than ASCII"))).transpose()
}

fn from_binary(headers: &HeaderMap, content_type: Option<&str>, body: &Bytes, limits: &EventLimits) -> Result<Event> {
    let mut found = Violations::default();
    let mut draft = Draft::new("", limits.max_attributes_bytes);
    let mut is_event = false;
    for (name, value) in headers {
        let Some(attribute) = name.as_str().strip_prefix(PREFIX) else { continue };
        is_event = true;
        if attribute == "datacontenttype" {
            draft.refuse(attribute, "is a header ce-datacontenttype, which is to be content-type", &mut found);
            continue;
        }
        match decode(value) {
            Ok(text) => draft.set(attribute, Some(Given::Text(text)), &mut found),
            Err(reason) => draft.refuse(attribute, reason, &mut found),
        }
    }
    if !is_event {
        let message = format!(
            "the message is no CloudEvent: it has no headers {PREFIX}*, and its content type is neither {STRUCTURED} nor {BATCH}"
        );
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    if let Some(content_type) = content_type {
        draft.set("datacontenttype", Some(Given::Text(content_type.to_owned())), &mut found);
    }
    draft.data = Some(body).filter(|body| !body.is_empty()).cloned();
    let event = draft.finish(&mut found);
    found.or(event, INVALID)
}

/// The text of an attribute in a header: a quoted string is unquoted, for older senders; then percent-encoding is undone, once.
fn decode(value: &HeaderValue) -> Result<String, &'static str> {
    let text = value.to_str().map_err(|_| "holds more than printable ASCII, which is to be percent-encoded")?;
    match text.strip_prefix('"') {
        Some(quoted) => match quoted_string(quoted) {
            Some((unquoted, "")) => percent_decode(&unquoted),
            _ => Err("begins with a double quote, and is no quoted string"),
        },
        None => percent_decode(text),
    }
}

fn percent_decode(text: &str) -> Result<String, &'static str> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
            let code = digit().zip(digit()).and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
            decoded.push(code.ok_or("has a `%` without two hexadecimal digits after it; `%` itself is written `%25`")?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).map_err(|_| "is not UTF-8 once percent-encoding is undone")
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'%') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
