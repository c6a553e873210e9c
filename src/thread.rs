//! Threads with a name, and with a failure that says which one could not be started.

use std::thread::Builder;

use crate::error::{Error, Result};

/// Starts a thread that nobody waits for. `stack` is in bytes.
pub fn spawn(name: &str, stack: usize, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = Builder::new().name(name.to_owned()).stack_size(stack).spawn(body);
    thread.map(|_| ()).map_err(|error| Error::internal(format!("cannot start the thread '{name}': {error}")))
}
