//! Limits on a chat template, which comes with a checkpoint and may be anything: work, memory and depth.

use std::cell::Cell;
use std::rc::Rc;

/// Maximum bytes of a template; the longest of released models have some 40,000.
pub(super) const TEMPLATE_BYTES: usize = 1 << 20;
/// Maximum nesting of tags and brackets in a template.
pub(super) const NESTING: usize = 100;
/// Maximum nesting of expressions, blocks and calls while it runs.
const DEPTH: usize = 800;
/// Maximum nesting of lists and mappings.
pub(super) const LEVELS: usize = 200;
/// Maximum bits of a whole number.
pub(super) const BITS: u64 = 1 << 16;

/// Result of anything that a template can make fail.
pub(super) type Outcome<T> = Result<T, Box<Failure>>;

/// Reason why there is no text.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub message: String,
    pub line: Option<usize>,
    /// True if it concerns the template, whatever the conversation.
    pub is_of_template: bool,
    /// True if the template is right, but uses something that is lacking here.
    pub is_lacking: bool,
}

impl Failure {
    /// Creates a failure that Jinja2 raises as well.
    pub fn new(message: impl Into<String>) -> Box<Self> {
        Box::new(Self { message: message.into(), line: None, is_of_template: false, is_lacking: false })
    }

    /// Creates a failure of the template itself.
    pub fn template(message: impl Into<String>) -> Box<Self> {
        let mut failure = Self::new(message);
        failure.is_of_template = true;
        failure
    }

    /// Creates a failure for something that Jinja2 has and this does not.
    pub fn refused(what: &str) -> Box<Self> {
        let mut failure = Self::template(format!("{what} is not supported in chat templates here"));
        failure.is_lacking = true;
        failure
    }

    fn limit(what: &str) -> Box<Self> {
        Self::template(format!("the template {what}"))
    }

    /// Adds the line, unless an inner one is known.
    pub fn at(mut self: Box<Self>, line: usize) -> Box<Self> {
        self.line.get_or_insert(line);
        self
    }
}

/// Counts what one rendering uses up.
#[derive(Debug)]
pub(super) struct Meter {
    steps: Cell<u64>,
    most_steps: u64,
    bytes: Cell<usize>,
    most_bytes: usize,
    depth: Cell<usize>,
}

impl Meter {
    /// Sets limits for a conversation of that many messages and bytes: at least a hundred times what
    /// templates of released models use up, and no more for a short conversation than a second of work.
    ///
    /// Templates may look at all messages for each of them, and some gather texts as they go, so that the work grows
    /// with the square of a conversation.
    pub fn new(messages: usize, bytes: usize) -> Rc<Self> {
        let (messages, size) = (messages as u64, bytes as u64);
        let most_steps = 4_000_000 + 4 * size + messages.saturating_mul(20_000 + size / 128);
        let most_bytes = (64 << 20) + bytes.saturating_mul(16);
        Rc::new(Self {
            steps: Cell::new(0),
            most_steps,
            bytes: Cell::new(0),
            most_bytes,
            depth: Cell::new(0),
        })
    }

    /// Starts anew; what is alive still counts.
    pub fn rewind(&self) {
        self.steps.set(0);
        self.depth.set(0);
    }

    /// Counts steps; one is the cost of an operation on small values.
    pub fn spend(&self, steps: usize) -> Outcome<()> {
        let spent = self.steps.get().saturating_add(steps as u64);
        self.steps.set(spent);
        if spent > self.most_steps {
            return Err(Failure::limit(&format!(
                "takes more than {} steps and may never end",
                self.most_steps
            )));
        }
        Ok(())
    }

    /// Counts moving `bytes` bytes, or searching them.
    pub fn scan(&self, bytes: usize) -> Outcome<()> {
        self.spend(1 + bytes / 256)
    }

    /// Counts looking at each of the characters of `bytes` bytes.
    pub fn read(&self, bytes: usize) -> Outcome<()> {
        self.spend(1 + bytes / 8)
    }

    /// Checks that `bytes` further live bytes stay within the limit.
    pub fn room(&self, bytes: usize) -> Outcome<()> {
        if self.bytes.get().saturating_add(bytes) > self.most_bytes {
            return Err(Failure::limit(&format!("wants more than {} MB of memory", self.most_bytes >> 20)));
        }
        Ok(())
    }

    /// Counts `bytes` bytes until the returned value is dropped.
    pub fn hold(self: &Rc<Self>, bytes: usize) -> Outcome<Held> {
        self.scan(bytes)?;
        self.room(bytes)?;
        self.bytes.set(self.bytes.get() + bytes);
        Ok(Held { meter: Rc::clone(self), bytes })
    }

    /// Goes one level deeper until the returned value is dropped.
    pub fn enter(&self) -> Outcome<Level<'_>> {
        if self.depth.get() >= DEPTH {
            return Err(Failure::limit(&format!("nests more than {DEPTH} calls and blocks")));
        }
        self.depth.set(self.depth.get() + 1);
        Ok(Level(self))
    }
}

/// Bytes that are alive.
#[derive(Debug)]
pub(super) struct Held {
    meter: Rc<Meter>,
    bytes: usize,
}

impl Held {
    /// Counts `bytes` bytes more.
    pub fn grow(&mut self, bytes: usize) -> Outcome<()> {
        self.meter.scan(bytes)?;
        self.meter.room(bytes)?;
        self.meter.bytes.set(self.meter.bytes.get() + bytes);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.meter.bytes.set(self.meter.bytes.get() - self.bytes);
    }
}

/// A level of depth.
#[derive(Debug)]
pub(super) struct Level<'a>(&'a Meter);

impl Drop for Level<'_> {
    fn drop(&mut self) {
        self.0.depth.set(self.0.depth.get() - 1);
    }
}
