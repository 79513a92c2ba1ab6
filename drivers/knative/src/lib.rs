//! Function Gateway driver that manages and executes functions on Knative Serving, through the Kubernetes API.
//!
//! [`Knative`] makes one Knative Service of each function, with a named Revision and a name (a tag of its route) for each generation, so that
//! an update never has a gap. It goes by what a watch tells, not by asking, and calls functions past the API server.
//! `docs/drivers/knative.md` says how a specification is mapped, which rights the driver needs, what the engine can do, and where its limits are.
//!
//! ```
//! use function_gateway_core::{CallContext, FaasDriver, FunctionSpec, ImageWorkload, Principal};
//! use function_gateway_knative::{Knative, KnativeAccess, KnativeConfig};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let access = KnativeAccess::Kubeconfig { path: "/etc/gateway/kubeconfig".into(), context: None };
//! let driver = Knative::new(KnativeConfig::new(access))?;
//! let cx = CallContext::new(Principal::new("acme".parse()?, "ada".parse()?));
//!
//! let spec = FunctionSpec::new("faas".parse()?, ImageWorkload::new("ghcr.io/acme/resize:1"))
//!     .with_annotation("knative.dev/visibilty", "cluster-local");
//! let violations = driver.check(&cx, &spec).await?;
//! assert!(violations[0].reason.contains("knative.dev/visibility"));
//! # Ok::<_, function_gateway_core::Error>(()) }).unwrap();
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod api;
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
mod state;
mod watch;

pub use config::{KnativeAccess, KnativeConfig, KnativeNamespaces, KnativeRouting};
pub use driver::Knative;
pub use function_gateway_core::forward::HttpVersion;

/// The code in the driver's page, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/drivers/knative.md")]
struct Page;
