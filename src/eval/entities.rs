//! Entities of tagged words, as seqeval finds them without a scheme: from `B-`, `I-`, `E-` and `S-`, leniently.

/// A run of words of one type: type, first and last word.
pub type Entity<'a> = (&'a str, usize, usize);

/// Returns the part of a tag (`B`) and its type (`PER`), `_` for none.
fn parts(tag: &str) -> (char, &str) {
    let mut letters = tag.chars();
    let part = letters.next().unwrap_or('O');
    let rest = letters.as_str();
    let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
    (part, if kind.is_empty() { "_" } else { kind })
}

/// Returns the entities of a sentence, in order.
///
/// ```
/// use loraxs::eval::entities::entities;
///
/// assert_eq!(entities(&["B-PER", "I-PER", "O", "I-LOC"]), [("PER", 0, 1), ("LOC", 3, 3)]);
/// ```
pub fn entities<'a>(tags: &[&'a str]) -> Vec<Entity<'a>> {
    let mut found = Vec::new();
    let ((mut before, mut kind_before), mut start) = (('O', ""), 0);
    for (at, tag) in tags.iter().copied().chain(["O"]).enumerate() {
        let (part, kind) = parts(tag);
        let changes = kind != kind_before;
        let ends = "ES".contains(before)
            || "BI".contains(before) && "BSO".contains(part)
            || !"O.".contains(before) && changes;
        let starts = "BS".contains(part)
            || "ESO".contains(before) && "EI".contains(part)
            || !"O.".contains(part) && changes;
        if ends {
            found.push((kind_before, start, at - 1));
        }
        if starts {
            start = at;
        }
        (before, kind_before) = (part, kind);
    }
    found
}
