//! The text of a completion while its tokens come, in whole characters.

use super::text::text;
use crate::data::tokenize::Tokenizer;
use crate::fault::Result;

/// The text so far. What is given out is never taken back, and never the beginning of a stop text.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stop: &'a [String],
    ids: Vec<u32>,
    given: String,
}

impl<'a> TextStream<'a> {
    /// Starts a completion, which one of the texts in `stop` ends.
    pub fn new(tokenizer: &'a Tokenizer, stop: &'a [String]) -> Self {
        Self { tokenizer, stop, ids: Vec::new(), given: String::new() }
    }

    /// Returns what was given out.
    pub fn given(&self) -> &str {
        &self.given
    }

    /// Takes the next token; returns the text that is certain with it. A token that ends amid a character, which decodes to the
    /// replacement character, waits for the next.
    ///
    /// # Errors
    /// When the tokenizer cannot decode the tokens.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = text(self.tokenizer, self.stop, &self.ids)?;
        let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        let begun = |stop: &String| {
            let starts = stop.char_indices().map(|(at, _)| &stop[..at]);
            starts.filter(|start| whole.ends_with(start)).map(str::len).max().unwrap_or(0)
        };
        let certain = whole.len() - self.stop.iter().map(begun).max().unwrap_or(0);
        Ok(self.give(&whole[..certain]))
    }

    /// Ends the completion with these tokens, all there are; returns the rest of its text.
    ///
    /// # Errors
    /// As [`TextStream::push`].
    pub fn finish(&mut self, ids: Vec<u32>) -> Result<String> {
        self.ids = ids;
        Ok(self.give(&text(self.tokenizer, self.stop, &self.ids)?))
    }

    fn give(&mut self, text: &str) -> String {
        let new = text.get(self.given.len()..).unwrap_or_default().to_owned();
        self.given.push_str(&new);
        new
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn pieces_are_whole_characters_and_no_stop_text_begins() {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/rendering/tokenizer.json");
        std::fs::copy(source, folder.path().join("tokenizer.json")).unwrap();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        let told = "é 日本 🙂!\nUser: more";
        let (ids, ..) = tokenizer.encode_plain(told, 1000).unwrap();
        for (stop, expected) in [(vec![], told), (vec!["\nUser:".to_owned()], "é 日本 🙂!")] {
            let mut stream = TextStream::new(&tokenizer, &stop);
            let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
            assert!(pieces.iter().filter(|piece| piece.is_empty()).count() > 3, "{pieces:?}");
            assert_eq!(pieces.concat(), expected);
            assert_eq!((stream.finish(ids.clone()).unwrap().as_str(), stream.given()), ("", expected));
        }
        // All but the last token: half a character waits, and at the end is told as by `decode`.
        let (ids, ..) = tokenizer.encode_plain("ab🙂", 1000).unwrap();
        let short = &ids[..ids.len() - 1];
        let mut stream = TextStream::new(&tokenizer, &[]);
        short.iter().for_each(|&id| drop(stream.push(id).unwrap()));
        assert_eq!(stream.given(), "ab");
        assert_eq!(stream.finish(short.to_vec()).unwrap(), "\u{fffd}");
    }
}
