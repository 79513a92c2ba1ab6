//! Function Gateway driver that manages and executes functions on OpenFaaS, through its gateway's REST API.
//!
//! [`OpenFaas`] speaks to the OpenFaaS gateway as `faas-cli` does: each generation of a function is an OpenFaaS function of its
//! own, so that an update never has a gap. It works with the providers faas-netes (Kubernetes) and faasd (containerd).
//! `docs/drivers/openfaas.md` says how a specification is mapped, what the engine can do, and where its limits are.
//!
//! ```
//! use function_gateway_core::{CallContext, FaasDriver, FunctionSpec, ImageWorkload, Principal};
//! use function_gateway_openfaas::{OpenFaas, OpenFaasConfig};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let driver = OpenFaas::new(OpenFaasConfig::new("http://127.0.0.1:8080"))?;
//! let cx = CallContext::new(Principal::new("acme".parse()?, "ada".parse()?));
//!
//! let spec = FunctionSpec::new("faas".parse()?, ImageWorkload::new("ghcr.io/acme/resize:1"))
//!     .with_annotation("openfaas.com/acept-repeats", "true");
//! let violations = driver.check(&cx, &spec).await?;
//! assert!(violations[0].reason.contains("openfaas.com/accept-repeats"));
//! # Ok::<_, function_gateway_core::Error>(()) }).unwrap();
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod client;
mod config;
mod driver;
mod error;
mod invoke;
mod list;
mod logs;
mod mapping;
mod names;
mod secrets;
mod settings;

pub use config::{OpenFaasAuth, OpenFaasConfig};
pub use driver::OpenFaas;
pub use function_gateway_core::forward::HttpVersion;

/// The code in the driver's page, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/drivers/openfaas.md")]
struct Page;
