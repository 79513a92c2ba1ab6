//! The JSON event format: one event, or a batch.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use function_gateway_core::{Error, ErrorKind, Result};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::value::RawValue;

use crate::event::{Draft, Given, INVALID};
use crate::violations::{Violations, member};
use crate::{AttributeType, AttributeValue, Event, EventLimits, MediaType};

impl Event {
    /// The event as JSON, in the JSON event format.
    ///
    /// Data that are declared to be JSON, and are, stand there as they are; white space around them is not kept. Text (`text/*`,
    /// XML) in UTF-8 is a string. All other data, and data without a content type, are Base64 in `data_base64`.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal), which no event is known to cause.
    pub fn to_json(&self) -> Result<Bytes> {
        to_bytes(&Json(self))
    }

    /// Reads an event in the JSON event format.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) with everything that is wrong, as JSON Pointers;
    /// [`PayloadTooLarge`](ErrorKind::PayloadTooLarge) past [`max_body_bytes`](EventLimits::max_body_bytes).
    pub fn from_json(json: &[u8], limits: &EventLimits) -> Result<Self> {
        check_size(json, limits)?;
        let members = serde_json::from_slice(json).map_err(|error| no_json("an event", &error))?;
        let mut found = Violations::default();
        let event = event(members, "", limits, &mut found);
        found.or(event, INVALID)
    }
}

/// Events as JSON, in the JSON batch format.
pub(crate) fn batch_to_json(events: &[Event]) -> Result<Bytes> {
    to_bytes(&events.iter().map(Json).collect::<Vec<_>>())
}

pub(crate) fn batch_from_json(json: &[u8], limits: &EventLimits) -> Result<Vec<Event>> {
    check_size(json, limits)?;
    let mut items = Items { kept: Vec::new(), max: limits.max_batch_events, count: 0 };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let read = serde::de::DeserializeSeed::deserialize(&mut items, &mut deserializer).and_then(|()| deserializer.end());
    read.map_err(|error| no_json("a batch of events", &error))?;
    if items.count > limits.max_batch_events {
        let message =
            format!("the batch has {} events, and at most {} are taken", items.count, limits.max_batch_events);
        return Err(Error::new(ErrorKind::PayloadTooLarge, message));
    }
    let mut found = Violations::default();
    let mut events = Vec::with_capacity(items.kept.len());
    for (index, item) in items.kept.into_iter().enumerate() {
        let at = format!("/{index}");
        match serde_json::from_str(item.get()) {
            Ok(members) => events.extend(event(members, &at, limits, &mut found)),
            Err(_) => found.add(at, "is not an event, which is a JSON object"),
        }
        if found.is_full() {
            break;
        }
    }
    found.or(Some(events), "the batch is not valid")
}

pub(crate) fn check_size(body: &[u8], limits: &EventLimits) -> Result<()> {
    if body.len() > limits.max_body_bytes {
        let limit = u64::try_from(limits.max_body_bytes).unwrap_or(u64::MAX);
        return Err(Error::too_large(ErrorKind::PayloadTooLarge, "body", limit));
    }
    Ok(())
}

fn no_json(what: &str, error: &serde_json::Error) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("the body is not {what} in JSON: {error}"))
}

fn to_bytes(value: &impl Serialize) -> Result<Bytes> {
    let json = serde_json::to_vec(value);
    json.map(Bytes::from)
        .map_err(|error| Error::new(ErrorKind::Internal, "an event can't be written").with_source(error))
}

/// The members of a JSON object, as they come: the same name may be there twice.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

/// The items of a JSON array; those past the limit are only counted.
struct Items<'a> {
    kept: Vec<&'a RawValue>,
    max: usize,
    count: usize,
}

impl<'de> serde::de::DeserializeSeed<'de> for &mut Items<'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut Items<'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element()? {
            self.count += 1;
            if self.count <= self.max {
                self.kept.push(item);
            }
        }
        Ok(())
    }
}

fn event(members: Members<'_>, at: &str, limits: &EventLimits, found: &mut Violations) -> Option<Event> {
    let mut draft = Draft::new(at, limits.max_attributes_bytes);
    let (mut data, mut base64) = (None, None);
    for (name, raw) in members.0 {
        let slot = match &*name {
            "data" => &mut data,
            "data_base64" => &mut base64,
            _ => {
                match given(raw.get()) {
                    Ok(value) => draft.set(&name, value, found),
                    Err(reason) => draft.refuse(&name, reason, found),
                }
                continue;
            }
        };
        if slot.replace(raw.get()).is_some() {
            found.add(member(at, &name), "is there more than once");
        }
    }
    let base64 = base64.filter(|text| *text != "null");
    let result = match (data, base64) {
        (Some(_), Some(_)) => {
            Err(("data_base64", "stands beside `data`, and only one of them may be there".to_owned()))
        }
        (Some(raw), None) => from_data(raw, &mut draft).map_err(|reason| ("data", reason)),
        (None, Some(raw)) => from_base64(raw).map(Some).map_err(|reason| ("data_base64", reason)),
        (None, None) => Ok(None),
    };
    match result {
        Ok(data) => draft.data = data,
        Err((name, reason)) => found.add(member(at, name), reason),
    }
    draft.finish(found)
}

/// The value of an attribute; `None` for `null`, which is as if it were not there.
fn given(raw: &str) -> Result<Option<Given>, String> {
    Ok(Some(match raw.as_bytes().first() {
        Some(b'"') => Given::Text(text(raw)?),
        Some(b't') => Given::Value(true.into()),
        Some(b'f') => Given::Value(false.into()),
        Some(b'n') => return Ok(None),
        Some(b'{' | b'[') => return Err("is an object or an array, which no attribute is".to_owned()),
        _ => {
            Given::Value(AttributeValue::parse(AttributeType::Integer, raw).map_err(|error| error.reason().to_owned())?)
        }
    }))
}

fn text(raw: &str) -> Result<String, String> {
    serde_json::from_str(raw).map_err(|error| format!("is no string: {error}"))
}

fn from_data(raw: &str, draft: &mut Draft<'_>) -> Result<Option<Bytes>, String> {
    let content_type = draft.datacontenttype.get_or_insert_with(MediaType::json);
    if content_type.is_json() {
        return Ok(Some(Bytes::copy_from_slice(raw.as_bytes())));
    }
    match raw.as_bytes().first() {
        Some(b'"') => {
            let text = text(raw)?;
            if content_type.encodes_as_utf8(&text) {
                Ok(Some(Bytes::from(text)))
            } else {
                Err(format!("can't be taken in the charset of {content_type}: it is to come as `data_base64`"))
            }
        }
        Some(b'n') => Ok(None),
        _ => Err(format!("is no string, though {content_type} is not JSON")),
    }
}

fn from_base64(raw: &str) -> Result<Bytes, String> {
    let bytes = text(raw).ok().and_then(|text| STANDARD.decode(text).ok());
    bytes.map(Bytes::from).ok_or_else(|| "is no string with Base64 as in RFC 4648, section 4".to_owned())
}

/// An event as it stands in JSON.
struct Json<'a>(&'a Event);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.0.core_attributes() {
            if let Some(value) = value {
                map.serialize_entry(name, value)?;
            }
        }
        for (name, value) in self.0.extensions() {
            match value {
                AttributeValue::Boolean(value) => map.serialize_entry(name.as_str(), value)?,
                AttributeValue::Integer(value) => map.serialize_entry(name.as_str(), value)?,
                other => map.serialize_entry(name.as_str(), &other.canonical())?,
            }
        }
        if let Some(data) = self.0.data() {
            match data_member(data, self.0.datacontenttype()) {
                Data::Json(value) => map.serialize_entry("data", value)?,
                Data::Text(text) => map.serialize_entry("data", text)?,
                Data::Binary => map.serialize_entry("data_base64", &STANDARD.encode(data))?,
            }
        }
        map.end()
    }
}

enum Data<'a> {
    Json(&'a RawValue),
    Text(&'a str),
    Binary,
}

fn data_member<'a>(data: &'a [u8], content_type: Option<&MediaType>) -> Data<'a> {
    let Some(content_type) = content_type else { return Data::Binary };
    if content_type.is_json() && (content_type.is_utf8() || data.is_ascii()) {
        return serde_json::from_slice(data).map_or(Data::Binary, Data::Json);
    }
    match std::str::from_utf8(data) {
        Ok(text) if content_type.is_text() && content_type.encodes_as_utf8(text) => Data::Text(text),
        _ => Data::Binary,
    }
}
