//! Stand-ins for files that were not really fetched: a Git LFS pointer, or a web page.

use std::path::Path;

use crate::fault::{Fault, fault};

/// Number of bytes checked at the start of a file: pages may begin with empty lines.
const ENOUGH: usize = 1 << 10;
/// Beginning of Git LFS pointers.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";
/// Beginnings of web pages, in either case.
const PAGES: [&[u8]; 2] = [b"<!doctype html", b"<html"];

/// Rejects a file whose beginning shows that it is a stand-in.
/// The error says what it is, and how to get the file itself.
pub fn check_start(path: &Path, start: &[u8]) -> Result<(), Fault> {
    let start = start.get(..ENOUGH).unwrap_or(start);
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let begins = |with: &[u8]| text.get(..with.len()).is_some_and(|found| found.eq_ignore_ascii_case(with));
    let path = path.display();
    if begins(POINTER) {
        return Err(fault(format!("`{path}` is a Git LFS pointer, not the file itself"))
            .hint("fetch it with `git lfs pull`, or download it from the hub"));
    }
    if PAGES.into_iter().any(begins) {
        return Err(fault(format!("`{path}` is an HTML page"))
            .hint("download the file itself; the address was probably that of a page about it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_and_pages_are_told_from_files() {
        let found = |start: &[u8]| check_start(Path::new("f"), start).map_err(|fault| fault.to_string());
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
        assert_eq!(found(pointer).unwrap_err(), "`f` is a Git LFS pointer, not the file itself");
        let pages: [&[u8]; 3] =
            [b"<!DOCTYPE html>", b"\r\n\t<HTML lang=\"en\">", b"\xef\xbb\xbf \n<!doctype HTML"];
        for page in pages {
            assert_eq!(found(page).unwrap_err(), "`f` is an HTML page");
        }
        let files: [&[u8]; 6] =
            [b"", b" \n", b"version,html\n", b"{\"a\": \"<html>\"}", b"<htm", b"\xef\xbb\xbfa <html>"];
        for file in files {
            found(file).unwrap();
        }
    }
}
