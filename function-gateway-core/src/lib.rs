//! Function Gateway: own the API of your functions.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod authorize;
mod body;
mod capability;
mod config;
mod context;
mod driver;
mod envelope;
mod error;
mod executor;
mod function;
mod gateway;
mod host;
mod invocation;
mod key;
mod layers;
mod manager;
mod middleware;
mod reconcile;
mod record;
mod registry;
mod route;
mod secret;
pub mod store;
mod time;
mod trace;

pub use authorize::{
    Action, AllowWithinTenant, AuditEvent, AuditLog, Authorizer, Decision, MemoryAuditLog, Principal, Resource,
};
pub use body::{Body, BodyEnd, ByteStream};
pub use capability::{DriverCapabilities, Scope, SpecField};
pub use config::{GatewayConfig, RecordDefaults};
pub use context::{CallContext, Cancellation, Origin};
pub use driver::{
    BoxStream, DeployRequest, Deployment, DeploymentState, DeploymentStatus, DriverInfo, DriverRef, DriverRequest,
    EngineInfo, FaasDriver, ListScope, LogLine, LogQuery, call_header, call_headers, set_call_headers,
};
pub use error::{Delivery, Error, ErrorClass, ErrorKind, Result, Retry, Violation};
pub use executor::{FunctionExecutor, FunctionExecutorExt};
pub use function::{
    Condition, ConditionKind, CustomWorkload, Function, FunctionSpec, FunctionStatus, ImageWorkload, KeepPayloads,
    Limits, MiddlewareChoice, PayloadFormat, Phase, ProcessWorkload, Rate, RecordMode, RecordPolicy, RetryPolicy,
    Revision, RevisionReason, RevisionState, RevisionStatus, RouteEntry, Scale, SecretBinding, SecretDelivery,
    Timeouts, UnknownFields, Workload,
};
pub use gateway::{Gateway, GatewayBuilder};
pub use invocation::{
    CallState, FunctionFailure, Invocation, InvokeRequest, InvokeResponse, LogSink, Outcome, TimedPhase, Timings,
};
pub use key::{
    DriverName, FunctionId, FunctionKey, FunctionName, FunctionRef, GatewayId, Generation, InvalidName, InvocationId,
    PrincipalId, Protocol, Qualifier, SecretRef, TenantId, Version,
};
pub use manager::{FunctionManager, FunctionManagerExt, Precondition};
pub use middleware::{BodyAccess, Middleware, MiddlewareFactory, Next, Settings, Stage};
pub use reconcile::{Reconciled, Swept};
pub use record::{
    Failure, InvocationRecord, InvocationState, KeptBytes, Quantiles, RecordFilter, Retention, Statistics,
    StatisticsQuery,
};
pub use registry::DriverRegistry;
pub use secret::{
    DirectorySecrets, EnvironmentSecrets, MemorySecrets, ProvidedSecret, REDACTED, Redactor, Secret, SecretChain,
    SecretProvider, SecretVariable, StreamRedactor,
};
pub use store::{
    Cursor, CursorKind, Durability, FunctionFilter, FunctionStore, InvocationStore, Lease, Page, PageRequest,
    UnreadableRow,
};
pub use time::{Clock, Deadline, SystemClock, Timestamp};
pub use trace::TraceParent;
