//! The event, and how one is made.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use function_gateway_core::Result;

use crate::violations::{Violations, member};
use crate::{
    AttributeName, AttributeType, AttributeValue, EventString, EventTime, InvalidAttribute, MediaType, Uri,
    UriReference,
};

/// The version of the specification, as events name it.
pub(crate) const SPEC_VERSION: &str = "1.0";

/// Begins what is said of an event that is not valid.
pub(crate) const INVALID: &str = "the event is not valid";

const SOURCE: &str = "source";
const CONTENT_TYPE: &str = "datacontenttype";

/// An event as CloudEvents 1.0 has it: valid context attributes, and data, which are bytes that nobody looks into.
///
/// ```
/// use function_gateway_events::Event;
///
/// let event = Event::builder()
///     .id("4711")
///     .source("/orders")
///     .event_type("com.example.order.created")
///     .data("application/json", r#"{"total": 12}"#)
///     .extension("partition", 7)
///     .build()?;
/// assert_eq!(event.attribute("partition").as_deref(), Some("7"));
///
/// let error = Event::builder().id("").source("a b").extension("my-ext", true).build().unwrap_err();
/// let places: Vec<_> = error.violations().iter().map(|violation| violation.pointer.as_str()).collect();
/// assert_eq!(places, ["/id", "/my-ext", "/source", "/type"]);
/// # Ok::<_, function_gateway_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    id: EventString,
    source: UriReference,
    event_type: EventString,
    subject: Option<EventString>,
    time: Option<EventTime>,
    datacontenttype: Option<MediaType>,
    dataschema: Option<Uri>,
    extensions: BTreeMap<AttributeName, AttributeValue>,
    data: Option<Bytes>,
}

impl Event {
    /// Begins an event.
    pub fn builder() -> EventBuilder {
        EventBuilder::default()
    }

    /// Identifies the event, together with its source.
    #[must_use]
    pub fn id(&self) -> &str {
        self.id.as_str()
    }

    /// In what context it happened: a URI-reference.
    #[must_use]
    pub fn source(&self) -> &str {
        self.source.as_str()
    }

    /// What kind of event it is (`type`).
    #[must_use]
    pub fn event_type(&self) -> &str {
        self.event_type.as_str()
    }

    /// What it is about, within its source.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_ref().map(EventString::as_str)
    }

    /// When it happened.
    #[must_use]
    pub fn time(&self) -> Option<&EventTime> {
        self.time.as_ref()
    }

    /// The content type of the data.
    #[must_use]
    pub fn datacontenttype(&self) -> Option<&MediaType> {
        self.datacontenttype.as_ref()
    }

    /// The schema of the data: an absolute URI.
    #[must_use]
    pub fn dataschema(&self) -> Option<&str> {
        self.dataschema.as_ref().map(Uri::as_str)
    }

    /// The data. HTTP's binary mode can't tell empty data from none, so there they are `None`.
    #[must_use]
    pub fn data(&self) -> Option<&Bytes> {
        self.data.as_ref()
    }

    /// The extensions, in order of their names.
    pub fn extensions(&self) -> impl Iterator<Item = (&AttributeName, &AttributeValue)> {
        self.extensions.iter()
    }

    /// One extension.
    #[must_use]
    pub fn extension(&self, name: &str) -> Option<&AttributeValue> {
        self.extensions.get(name)
    }

    /// Any attribute as text, `specversion` and extensions included, by its name in the specification.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<Cow<'_, str>> {
        self.core_attributes()
            .into_iter()
            .find(|(known, _)| *known == name)
            .map_or_else(|| self.extension(name).map(AttributeValue::canonical), |(_, value)| value.map(Cow::Borrowed))
    }

    /// The attributes of the specification, in its order.
    pub(crate) fn core_attributes(&self) -> [(&'static str, Option<&str>); 8] {
        [
            ("specversion", Some(SPEC_VERSION)),
            ("id", Some(self.id())),
            (SOURCE, Some(self.source())),
            ("type", Some(self.event_type())),
            ("subject", self.subject()),
            ("time", self.time.as_ref().map(EventTime::as_str)),
            (CONTENT_TYPE, self.datacontenttype.as_ref().map(MediaType::as_str)),
            ("dataschema", self.dataschema()),
        ]
    }
}

/// Puts an event together, which [`build`](Self::build) checks as a whole. What is set twice has the later value.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct EventBuilder {
    attributes: BTreeMap<Cow<'static, str>, Given>,
    data: Option<Bytes>,
}

impl EventBuilder {
    fn attribute(mut self, name: impl Into<Cow<'static, str>>, value: Given) -> Self {
        self.attributes.insert(name.into(), value);
        self
    }

    /// Identifies the event; together with the source it stands for one event only.
    pub fn id(self, id: impl Into<String>) -> Self {
        self.attribute("id", Given::Text(id.into()))
    }

    /// In what context it happened: a URI-reference.
    pub fn source(self, source: impl Into<String>) -> Self {
        self.attribute(SOURCE, Given::Text(source.into()))
    }

    /// What kind of event it is (`type`).
    pub fn event_type(self, event_type: impl Into<String>) -> Self {
        self.attribute("type", Given::Text(event_type.into()))
    }

    /// What it is about, within its source.
    pub fn subject(self, subject: impl Into<String>) -> Self {
        self.attribute("subject", Given::Text(subject.into()))
    }

    /// When it happened.
    pub fn time(self, time: EventTime) -> Self {
        self.attribute("time", Given::Value(time.into()))
    }

    /// The data with their content type.
    pub fn data(self, content_type: impl Into<String>, data: impl Into<Bytes>) -> Self {
        self.datacontenttype(content_type).untyped_data(data)
    }

    /// Data of which the event does not say what they are.
    pub fn untyped_data(mut self, data: impl Into<Bytes>) -> Self {
        self.data = Some(data.into());
        self
    }

    /// The content type alone, of data that are there or not.
    pub fn datacontenttype(self, content_type: impl Into<String>) -> Self {
        self.attribute(CONTENT_TYPE, Given::Text(content_type.into()))
    }

    /// The schema of the data: an absolute URI.
    pub fn dataschema(self, schema: impl Into<String>) -> Self {
        self.attribute("dataschema", Given::Text(schema.into()))
    }

    /// An extension: a value of a type, or text for one of the type `String`.
    pub fn extension(self, name: impl Into<String>, value: impl Into<ExtensionValue>) -> Self {
        let ExtensionValue(value) = value.into();
        self.attribute(name.into(), value)
    }

    /// Checks what has been set.
    ///
    /// # Errors
    /// [`InvalidArgument`](function_gateway_core::ErrorKind::InvalidArgument) with everything that is wrong, the place being
    /// the attribute's name as a JSON Pointer.
    pub fn build(self) -> Result<Event> {
        let mut found = Violations::default();
        let mut draft = Draft::new("", usize::MAX);
        draft.set("specversion", Some(Given::Text(SPEC_VERSION.to_owned())), &mut found);
        for (name, value) in self.attributes {
            draft.set(&name, Some(value), &mut found);
        }
        draft.data = self.data;
        let event = draft.finish(&mut found);
        found.or(event, INVALID)
    }
}

/// What an extension can be set to.
#[derive(Debug, Clone)]
pub struct ExtensionValue(Given);

impl<T: Into<AttributeValue>> From<T> for ExtensionValue {
    fn from(value: T) -> Self {
        Self(Given::Value(value.into()))
    }
}

impl From<&str> for ExtensionValue {
    fn from(value: &str) -> Self {
        Self(Given::Text(value.to_owned()))
    }
}

impl From<String> for ExtensionValue {
    fn from(value: String) -> Self {
        Self(Given::Text(value))
    }
}

/// The value of an attribute that is still to be checked.
#[derive(Debug, Clone)]
pub(crate) enum Given {
    Text(String),
    Value(AttributeValue),
}

/// An event in the making. It is told all attributes, by whichever way they come, and then finished.
pub(crate) struct Draft<'a> {
    at: &'a str,
    max_bytes: usize,
    bytes: usize,
    /// The names so far, and whether each has a value.
    seen: BTreeMap<String, bool>,
    id: Option<EventString>,
    source: Option<UriReference>,
    event_type: Option<EventString>,
    subject: Option<EventString>,
    time: Option<EventTime>,
    pub(crate) datacontenttype: Option<MediaType>,
    dataschema: Option<Uri>,
    extensions: BTreeMap<AttributeName, AttributeValue>,
    pub(crate) data: Option<Bytes>,
}

impl<'a> Draft<'a> {
    /// Begins an event that stands at a place in a document, and whose attributes have a limit.
    pub(crate) fn new(at: &'a str, max_bytes: usize) -> Self {
        Self {
            at,
            max_bytes,
            bytes: 0,
            seen: BTreeMap::new(),
            id: None,
            source: None,
            event_type: None,
            subject: None,
            time: None,
            datacontenttype: None,
            dataschema: None,
            extensions: BTreeMap::new(),
            data: None,
        }
    }

    /// Sets an attribute; `None` is one that is there without a value, as JSON's `null` is.
    pub(crate) fn set(&mut self, name: &str, value: Option<Given>, found: &mut Violations) {
        if let Err(reason) = self.try_set(name, value) {
            found.add(member(self.at, name), reason);
        }
    }

    /// Notes an attribute that is there with a value that is none.
    pub(crate) fn refuse(&mut self, name: &str, reason: impl Into<String>, found: &mut Violations) {
        self.seen.insert(name.to_owned(), true);
        found.add(member(self.at, name), reason);
    }

    fn try_set(&mut self, name: &str, value: Option<Given>) -> Result<(), String> {
        let within = self.bytes <= self.max_bytes;
        let size = value.as_ref().map_or(0, |value| match value {
            Given::Text(text) => text.len(),
            Given::Value(value) => value.canonical().len(),
        });
        self.bytes = self.bytes.saturating_add(name.len()).saturating_add(size);
        if self.bytes > self.max_bytes {
            // Said once: what comes after it is no mistake of its own.
            let reason = format!("brings the attributes to more than {} bytes", self.max_bytes);
            return if within { Err(reason) } else { Ok(()) };
        }
        let invalid_name = |error: InvalidAttribute| format!("is no attribute: the name {}", error.reason());
        let attribute = AttributeName::new(name).map_err(invalid_name)?;
        if self.seen.insert(name.to_owned(), value.is_some()).is_some() {
            return Err("is there more than once".to_owned());
        }
        let Some(value) = value else { return Ok(()) };
        match name {
            "specversion" => {
                let version = text_of(value, AttributeType::String)?;
                if version != SPEC_VERSION {
                    return Err(format!("is not `{SPEC_VERSION}`, the one version that is taken"));
                }
            }
            "id" => self.id = Some(checked(value, AttributeType::String, EventString::new)?),
            SOURCE => self.source = Some(checked(value, AttributeType::UriReference, UriReference::new)?),
            "type" => self.event_type = Some(checked(value, AttributeType::String, EventString::new)?),
            "subject" => self.subject = Some(checked(value, AttributeType::String, EventString::new)?),
            "time" => self.time = Some(checked(value, AttributeType::Timestamp, EventTime::new)?),
            CONTENT_TYPE => self.datacontenttype = Some(checked(value, AttributeType::String, MediaType::new)?),
            "dataschema" => self.dataschema = Some(checked(value, AttributeType::Uri, Uri::new)?),
            _ => {
                let value = match value {
                    Given::Value(value) => value,
                    Given::Text(text) => AttributeValue::String(EventString::new(text).map_err(said)?),
                };
                self.extensions.insert(attribute, value);
            }
        }
        Ok(())
    }

    /// The event, unless there is something wrong, which is in `found` then.
    pub(crate) fn finish(self, found: &mut Violations) -> Option<Event> {
        let is_missing = |name: &&str| self.seen.get(*name) != Some(&true);
        if self.bytes <= self.max_bytes {
            for name in ["specversion", "id", SOURCE, "type"].iter().filter(|name| is_missing(name)) {
                found.add(member(self.at, name), "is missing");
            }
        }
        Some(Event {
            id: self.id?,
            source: self.source?,
            event_type: self.event_type?,
            subject: self.subject,
            time: self.time,
            datacontenttype: self.datacontenttype,
            dataschema: self.dataschema,
            extensions: self.extensions,
            data: self.data,
        })
    }
}

/// The text of an attribute that must not be empty, as a value of its type.
fn checked<T>(
    value: Given,
    wanted: AttributeType,
    take: impl FnOnce(String) -> Result<T, InvalidAttribute>,
) -> Result<T, String> {
    let text = text_of(value, wanted)?;
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    take(text).map_err(said)
}

fn text_of(value: Given, wanted: AttributeType) -> Result<String, String> {
    match value {
        Given::Text(text) => Ok(text),
        Given::Value(value) if matches!(value.attribute_type(), AttributeType::String) => {
            Ok(value.canonical().into_owned())
        }
        Given::Value(value) if value.attribute_type() == wanted => Ok(value.canonical().into_owned()),
        Given::Value(value) => Err(format!("is of the type {}, and must be of {wanted}", value.attribute_type())),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "made for `map_err`")]
fn said(error: InvalidAttribute) -> String {
    error.reason().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> EventBuilder {
        Event::builder().id("1").source("/s").event_type("t")
    }

    fn problems(builder: EventBuilder) -> Vec<(String, String)> {
        let error = builder.build().unwrap_err();
        error.violations().iter().map(|found| (found.pointer.clone(), found.reason.clone())).collect()
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let builder = Event::builder()
            .id("")
            .event_type("a\nb")
            .subject("")
            .dataschema("schemas/1")
            .datacontenttype("json")
            .extension("data", "x")
            .extension("myExt", 1);
        let places: Vec<_> = problems(builder).into_iter().map(|(pointer, _)| pointer).collect();
        assert_eq!(
            places,
            ["/data", "/datacontenttype", "/dataschema", "/id", "/myExt", "/subject", "/type", "/source"]
        );
    }

    #[test]
    fn a_reason_says_what_is_wrong() {
        assert_eq!(problems(minimal().id("")), [("/id".to_owned(), "is empty".to_owned())]);
        let found = problems(minimal().extension("id", 5));
        assert_eq!(found, [("/id".to_owned(), "is of the type Integer, and must be of String".to_owned())]);
        let found = problems(minimal().extension("bell", "\u{7}"));
        assert_eq!(found, [("/bell".to_owned(), "contains the control character '\\u{7}'".to_owned())]);
    }

    #[test]
    fn attributes_are_found_by_their_names() {
        let event = minimal()
            .subject("s")
            .time("2018-04-05T17:31:00Z".parse().unwrap())
            .data("text/plain", "x")
            .dataschema("urn:x")
            .extension("flag", true)
            .extension("empty", "")
            .build()
            .unwrap();
        for (name, value) in [
            ("specversion", "1.0"),
            ("id", "1"),
            ("source", "/s"),
            ("type", "t"),
            ("subject", "s"),
            ("time", "2018-04-05T17:31:00Z"),
            ("datacontenttype", "text/plain"),
            ("dataschema", "urn:x"),
            ("flag", "true"),
            ("empty", ""),
        ] {
            assert_eq!(event.attribute(name).as_deref(), Some(value), "{name}");
        }
        for none in ["data", "other", ""] {
            assert_eq!(event.attribute(none), None, "{none}");
        }
        assert_eq!(minimal().build().unwrap().attribute("subject"), None);
    }

    #[test]
    fn what_is_set_twice_has_the_later_value() {
        let event = minimal().id("2").extension("a", 1).extension("a", 2).build().unwrap();
        assert_eq!(event.id(), "2");
        assert_eq!(event.extension("a"), Some(&AttributeValue::Integer(2)));
    }
}
