//! CloudEvents 1.0 for Function Gateway: events over HTTP and as JSON, and subscriptions.
//!
//! ```
//! use function_gateway_events::{Event, EventLimits, Filter, Filters, from_http, to_http_structured};
//!
//! let event = Event::builder()
//!     .id("4711")
//!     .source("/orders")
//!     .event_type("com.example.order.created")
//!     .data("application/json", r#"{"total": 12}"#)
//!     .build()?;
//! let (headers, body) = to_http_structured(&event)?;
//! assert_eq!(headers["content-type"], "application/cloudevents+json");
//!
//! let received = from_http(&headers, &body, &EventLimits::default())?.into_vec();
//! assert_eq!(received, [event]);
//!
//! let filters = Filters::new(vec![Filter::prefix("type", "com.example.order.")?])?;
//! assert!(filters.matches(&received[0]));
//! # Ok::<_, function_gateway_core::Error>(())
//! ```
//!
//! # Events
//! - An [`Event`] that exists is valid. Its data are bytes that nobody looks into; unknown extensions stay.
//! - [`from_http`] takes the binary, the structured and the batched mode. What the specification forbids is refused, with
//!   every violation at its attribute.
//! - [`to_http_binary`], [`to_http_structured`] and [`to_http_batch`] write them, [`Event::to_json`] without HTTP.
//! - [`EventLimits`] bound what a message may ask of its receiver.
//!
//! # Filters
//! [`Filters`] are those of the CloudEvents Subscriptions API: `exact`, `prefix`, `suffix`, `all`, `any` and `not`.
//!
//! # Subscriptions
//! An [`EventBroker`] keeps [`Subscription`]s in a store, and has a gateway's queue execute the functions that they name.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod attribute;
mod broker;
mod event;
mod filter;
mod http;
mod json;
mod limits;
mod subscription;
#[cfg(test)]
mod tests;
mod time;
mod violations;

pub use attribute::{
    AttributeName, AttributeType, AttributeValue, EventString, InvalidAttribute, MediaType, Uri, UriReference,
};
pub use broker::{BrokerConfig, EventBroker, Published, Triggered, VALIDATION_ERROR};
pub use event::{Event, EventBuilder, ExtensionValue};
pub use filter::{Filter, Filters};
pub use http::{Events, from_http, to_http_batch, to_http_binary, to_http_structured};
pub use limits::EventLimits;
pub use subscription::{EventForm, FailurePolicy, Retries, Strategy, Subscription, SubscriptionName, SubscriptionSpec};
pub use time::EventTime;

/// The code in docs/events.md, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/events.md")]
pub struct Page;
