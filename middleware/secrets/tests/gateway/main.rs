//! Secrets in a gateway, through the public API.

#[cfg(test)]
mod calls;
