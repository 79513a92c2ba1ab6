//! Middleware of your own for Function Gateway.
//!
//! - [`ContentTypes`] is for all functions and lets a call pass or answers by itself.
//! - [`RenameFields`] is chosen by name, with settings, and changes the result.
//! - [`CallToken`] gives the function a credential that must not be stored.
//! - [`AskAgain`] hands a call on twice.
//!
//! `docs/writing-middleware.md` goes through them.

mod ask_again;
mod call_token;
mod content_types;
mod rename_fields;

pub use ask_again::AskAgain;
pub use call_token::{CallToken, TOKEN_HEADER};
pub use content_types::ContentTypes;
pub use rename_fields::RenameFields;
