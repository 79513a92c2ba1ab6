//! Function Gateway driver that runs functions as processes on this machine.
//!
//! [`LocalProcess`] speaks three protocols. By `exec` there is one process for each invocation, the payload on its standard
//! input, the result on its standard output, its log on standard error. By `http` there are workers that stay: web
//! servers, started as load asks, kept warm, replaced when they die. By `lambda` such workers ask for their calls, as the
//! runtimes of AWS Lambda do. `docs/drivers/local-process.md` is the contract that a
//! function is written against.
//!
//! Linux 5.4 or later: the driver follows each process by a file descriptor (`pidfd`).
//!
//! ```
//! use function_gateway_core::{CallContext, FaasDriver, FunctionSpec, Principal, ProcessWorkload};
//! use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let driver = LocalProcess::new(LocalProcessConfig::new())?;
//! let cx = CallContext::new(Principal::new("acme".parse()?, "ada".parse()?));
//!
//! let spec = FunctionSpec::new("local".parse()?, ProcessWorkload::new("no-such-program"));
//! let violations = driver.check(&cx, &spec).await?;
//! assert_eq!(violations[0].pointer, "/run/process/command");
//! # Ok::<_, function_gateway_core::Error>(()) }).unwrap();
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!("function-gateway-local-process needs Linux: it follows processes by pidfd");

mod config;
mod driver;
mod error;
mod exec;
mod identity;
mod limits;
mod process;
mod program;
mod reaper;
mod settings;
mod threads;
mod worker;

pub use config::LocalProcessConfig;
pub use driver::LocalProcess;

/// The code in the driver's page, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/drivers/local-process.md")]
struct Page;
