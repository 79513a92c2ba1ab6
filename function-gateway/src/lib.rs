//! Function Gateway: own the API of your functions, and change the engine behind it without changing a caller.
//!
//! This crate is what a host depends on. It re-exports `function-gateway-core` flat, and drivers and middleware by
//! feature:
//!
//! | feature | what it brings |
//! |---|---|
//! | `knative` | [`drivers::knative`]: functions on Knative Serving, through the Kubernetes API |
//! | `local-process` | [`drivers::local_process`]: functions as processes on this machine |
//! | `openfaas` | [`drivers::openfaas`]: functions on OpenFaaS, through its gateway |
//! | `events` | [`events`]: CloudEvents that execute functions |
//! | `sqlite`, `postgres`, `mysql` | [`store::sql`]: functions, records, audit events and API keys in a database |
//! | `validation` | [`middleware::validation`]: input and output checked with JSON Schema |
//! | `rest`, `rest-jwt`, `rest-serve` | [`rest`]: a REST API for the host's own axum router |
//! | `secrets` | [`middleware::secrets`]: secrets for each call |
//! | `http-client` | [`forward::HttpClient`]: for drivers of your own that pass calls on by HTTP |
//! | `callbacks` | [`callbacks`]: ends of invocations told to addresses over HTTP |

pub use function_gateway_core::*;

#[cfg(feature = "callbacks")]
pub use function_gateway_callbacks as callbacks;

/// Drivers, by feature.
pub mod drivers {
    #[cfg(feature = "knative")]
    pub use function_gateway_knative as knative;
    #[cfg(feature = "local-process")]
    pub use function_gateway_local_process as local_process;
    #[cfg(feature = "openfaas")]
    pub use function_gateway_openfaas as openfaas;
}

#[cfg(feature = "events")]
pub use function_gateway_events as events;
#[cfg(feature = "rest")]
pub use function_gateway_rest as rest;

/// Middleware, by feature.
pub mod middleware {
    #[cfg(feature = "secrets")]
    pub use function_gateway_secrets as secrets;
    #[cfg(feature = "validation")]
    pub use function_gateway_validation as validation;
}

/// The code in README.md, compiled.
#[cfg(all(doctest, feature = "local-process", feature = "validation", feature = "secrets"))]
#[doc = include_str!("../../README.md")]
pub struct Readme;
