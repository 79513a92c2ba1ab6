//! Schemas, for the OpenAPI document of a REST API, of types whose form in JSON is not that of the type.

use std::borrow::Cow;

use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::{
    ApiKeyId, AuditEventId, DriverName, FunctionId, FunctionKey, FunctionName, Generation, InvocationId, KeptBytes,
    Origin, PrincipalId, Protocol, SecretRef, TenantId, TimedPhase, Timestamp, Timings, TraceParent, Version,
};

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::new(Type::String))
}

fn formatted(format: KnownFormat) -> ObjectBuilder {
    text().format(Some(SchemaFormat::KnownFormat(format)))
}

fn whole(minimum: i64) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::Integer))
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(minimum))
}

/// A DNS label, as [`FunctionName`] and others check it.
const LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// What tenants and secrets are called.
const TOKEN: &str = "^[A-Za-z0-9][A-Za-z0-9._-]*$";
/// Anything but control characters.
const PLAIN: &str = r"^[^\u0000-\u001f\u007f-\u009f]+$";

macro_rules! schemas {
    ($($type:ident: $schema:expr;)+) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                $schema.into()
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($type))
            }
        }
    )+};
}

fn named(pattern: &str, max: usize) -> ObjectBuilder {
    text().pattern(Some(pattern)).min_length(Some(1)).max_length(Some(max))
}

schemas! {
    FunctionName: named(LABEL, FunctionName::MAX_LEN);
    DriverName: named(LABEL, DriverName::MAX_LEN);
    Protocol: named(LABEL, Protocol::MAX_LEN);
    TenantId: named(TOKEN, TenantId::MAX_LEN);
    SecretRef: named(TOKEN, SecretRef::MAX_LEN);
    PrincipalId: named(PLAIN, PrincipalId::MAX_LEN);
    FunctionId: text().format(Some(SchemaFormat::Custom("uuid".to_owned())));
    ApiKeyId: text().format(Some(SchemaFormat::Custom("uuid".to_owned())));
    AuditEventId: text().format(Some(SchemaFormat::Custom("uuid".to_owned())));
    InvocationId: text().format(Some(SchemaFormat::Custom("uuid".to_owned())));
    Timestamp: formatted(KnownFormat::DateTime);
    Generation: whole(1);
    Version: whole(0);
    TraceParent: text().pattern(Some("^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"));
    Origin: text().enum_values(Some([Origin::Sync, Origin::Async, Origin::Event].map(Origin::as_str)));
    TimedPhase: text().enum_values(Some(TimedPhase::ALL.map(TimedPhase::as_str)));
    Timings: TimedPhase::ALL.into_iter().fold(
        ObjectBuilder::new().description(Some("The time of each phase that occurred, in microseconds.")),
        |object, phase| object.property(phase.as_str(), whole(0)),
    );
    FunctionKey: ObjectBuilder::new()
        .property("tenant", TenantId::schema())
        .required("tenant")
        .property("name", FunctionName::schema())
        .required("name");
    KeptBytes: ObjectBuilder::new()
        .description(Some("Bytes that were kept: as `text` where they are that, else as `base64`."))
        .property("text", text())
        .property("base64", text())
        .property("content_type", text())
        .property("len", whole(0))
        .property("truncated", ObjectBuilder::new().schema_type(SchemaType::new(Type::Boolean)))
        .required("truncated");
}
