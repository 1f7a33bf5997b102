//! Questions to the store by a thread of their own: a call may take for ever, and another process fail meanwhile.

use std::sync::{Arc, mpsc};
use std::thread;

use super::store::Store;
use super::watch::{LOOK, Watch};
use crate::fault::Result;

/// The store and the watch, while the answer is awaited.
pub struct Question<'a> {
    /// What is asked.
    pub store: &'a Arc<Store>,
    /// What ends the waiting.
    pub watch: &'a Watch,
}

impl Question<'_> {
    /// Returns what `ask` returns.
    ///
    /// # Errors
    /// As `ask`; when another process failed or is lost.
    pub fn answer<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        // The store may answer at once though another process has failed.
        self.watch.check()?;
        let (sender, receiver) = mpsc::channel();
        let store = Arc::clone(self.store);
        thread::spawn(move || sender.send(ask(&store)));
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(answer) => return answer.map_err(|error| self.watch.cause(error)),
                Err(_) => self.watch.check()?,
            }
        }
    }
}
