//! Keys and values that all processes share, in a `c10d::TCPStore` of one of them or of `torchrun`.

use std::ffi::{CString, c_char, c_int, c_void};
use std::os::fd::RawFd;
use std::time::Duration;

use crate::fault::Result;
use crate::torch::checked;

type Take = extern "C" fn(*mut c_void, *const u8, usize);

unsafe extern "C" {
    #[rustfmt::skip]
    fn lx_store_open(
        out: *mut *mut c_void,
        host: *const c_char,
        port: c_int,
        role: c_int,
        millis: i64,
        prefix: *const c_char,
    ) -> c_int;
    fn lx_store_set(store: *mut c_void, key: *const c_char, bytes: *const u8, count: usize) -> c_int;
    #[rustfmt::skip]
    fn lx_store_set_first(
        store: *mut c_void,
        key: *const c_char,
        bytes: *const u8,
        count: usize,
        sink: *mut c_void,
        take: Take,
    ) -> c_int;
    #[rustfmt::skip]
    fn lx_store_get(
        store: *mut c_void,
        key: *const c_char,
        millis: i64,
        sink: *mut c_void,
        take: Take,
    ) -> c_int;
    #[rustfmt::skip]
    fn lx_store_get_many(
        store: *mut c_void,
        keys: *const *const c_char,
        count: usize,
        sink: *mut c_void,
        take: Take,
    ) -> c_int;
    fn lx_store_has(store: *mut c_void, key: *const c_char, found: *mut c_int) -> c_int;
    fn lx_store_remove(store: *mut c_void, key: *const c_char) -> c_int;
    fn lx_store_add(store: *mut c_void, key: *const c_char, number: i64, sum: *mut i64) -> c_int;
}

/// What a process is to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It connects to it.
    Client,
    /// It has the store, at the port of the address.
    Server,
    /// It has the store, at this socket, which listens at that port.
    ServerOf(RawFd),
}

/// A connection to the store. Calls of several threads wait for one another; none of them ends when the network is cut.
#[derive(Debug)]
pub struct Store(*mut c_void);

// SAFETY: `c10d::TCPStore` guards its connection by a lock.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Connects to the store at `host`, with keys below `prefix`, or makes it there first, by this process's `role`. It lives as long
    /// as the process.
    ///
    /// # Errors
    /// When nothing is there in time, or the port is taken.
    pub fn open((host, port): (&str, u16), role: Role, prefix: &str, patience: Duration) -> Result<Self> {
        let mut store = std::ptr::null_mut();
        let (host, prefix) = (CString::new(host)?, CString::new(prefix)?);
        // SAFETY: both strings live for the call; on success `store` is a new connection.
        checked(unsafe {
            lx_store_open(
                &raw mut store,
                host.as_ptr(),
                c_int::from(port),
                match role {
                    Role::Client => -1,
                    Role::Server => 0,
                    Role::ServerOf(socket) => socket,
                },
                // c10d's socket.cpp tries IPv6, then IPv4, each for so long.
                millis(patience / 2),
                prefix.as_ptr(),
            )
        })?;
        Ok(Self(store))
    }

    /// Returns what the functions of a group take.
    pub(super) fn pointer(&self) -> *const c_void {
        self.0
    }

    /// Sets a key.
    ///
    /// # Errors
    /// As all of these: when the connection is lost.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = CString::new(key)?;
        // SAFETY: the connection is live, key and value are for the call.
        checked(unsafe { lx_store_set(self.0, key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// Sets a key that has no value yet; returns its value then.
    pub fn set_first(&self, key: &str, value: &[u8]) -> Result<Vec<u8>> {
        let key = CString::new(key)?;
        let mut found = Vec::new();
        // SAFETY: as `set`; `found` is what `take` expects.
        checked(unsafe {
            lx_store_set_first(
                self.0,
                key.as_ptr(),
                value.as_ptr(),
                value.len(),
                (&raw mut found).cast(),
                take,
            )
        })?;
        Ok(one(found))
    }

    /// Returns the value of a key, once it has one.
    pub fn get(&self, key: &str, patience: Duration) -> Result<Vec<u8>> {
        let key = CString::new(key)?;
        let mut found = Vec::new();
        // SAFETY: as `set_first`.
        checked(unsafe {
            lx_store_get(self.0, key.as_ptr(), millis(patience), (&raw mut found).cast(), take)
        })?;
        Ok(one(found))
    }

    /// Returns the values of keys that all have one.
    pub fn get_many(&self, keys: &[String]) -> Result<Vec<Vec<u8>>> {
        let keys: Vec<CString> =
            keys.iter().map(|key| CString::new(key.as_str())).collect::<std::result::Result<_, _>>()?;
        let pointers: Vec<*const c_char> = keys.iter().map(|key| key.as_ptr()).collect();
        let mut found: Vec<Vec<u8>> = Vec::new();
        // SAFETY: as `set_first`, with as many keys as are told.
        checked(unsafe {
            lx_store_get_many(self.0, pointers.as_ptr(), pointers.len(), (&raw mut found).cast(), take)
        })?;
        Ok(found)
    }

    /// Returns the value of a key that may have none.
    pub fn find(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let name = CString::new(key)?;
        let mut found = 0;
        // SAFETY: as `set`; `found` is a live local.
        checked(unsafe { lx_store_has(self.0, name.as_ptr(), &raw mut found) })?;
        if found == 0 { Ok(None) } else { self.get(key, Duration::from_secs(60)).map(Some) }
    }

    /// Removes a key.
    pub fn remove(&self, key: &str) -> Result<()> {
        let key = CString::new(key)?;
        // SAFETY: as `set`.
        checked(unsafe { lx_store_remove(self.0, key.as_ptr()) })
    }

    /// Adds to a number, at first 0; returns the sum.
    pub fn add(&self, key: &str, number: i64) -> Result<i64> {
        let key = CString::new(key)?;
        let mut sum = 0;
        // SAFETY: as `set`; `sum` is a live local.
        checked(unsafe { lx_store_add(self.0, key.as_ptr(), number, &raw mut sum) })?;
        Ok(sum)
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn one(found: Vec<Vec<u8>>) -> Vec<u8> {
    found.into_iter().next().unwrap_or_default()
}

/// Adds a value to the `Vec<Vec<u8>>` at `sink`.
extern "C" fn take(sink: *mut c_void, bytes: *const u8, count: usize) {
    // SAFETY: only called with the pointers of the functions above, while these run.
    let (sink, bytes) = unsafe {
        let bytes: &[u8] = if count == 0 { &[] } else { std::slice::from_raw_parts(bytes, count) };
        (&mut *sink.cast::<Vec<Vec<u8>>>(), bytes)
    };
    sink.push(bytes.to_vec());
}
