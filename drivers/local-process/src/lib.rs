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

#[cfg(target_os = "linux")]
mod config;
#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod error;
#[cfg(target_os = "linux")]
mod exec;
#[cfg(target_os = "linux")]
mod identity;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod program;
#[cfg(target_os = "linux")]
mod reaper;
#[cfg(target_os = "linux")]
mod settings;
#[cfg(target_os = "linux")]
mod worker;

#[cfg(target_os = "linux")]
pub use config::LocalProcessConfig;
#[cfg(target_os = "linux")]
pub use driver::LocalProcess;

/// The code in the driver's page, compiled.
#[cfg(all(doctest, target_os = "linux"))]
#[doc = include_str!("../../../docs/drivers/local-process.md")]
struct Page;
