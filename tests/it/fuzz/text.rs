//! Changes of bytes and lines, and the values that programs trip over.

use super::dice::Dice;

/// Numbers at the ends of types, and what is written like a number.
pub const NUMBERS: &str = "0¦1¦-1¦2¦3¦7¦8¦64¦127¦128¦255¦256¦1000¦65535¦65536¦1000000¦5000000¦1000000000¦2147483647¦\
    2147483648¦-2147483648¦4294967295¦4294967296¦9007199254740991¦9007199254740993¦\
    4611686018427387904¦9223372036854775807¦9223372036854775808¦-9223372036854775808¦\
    18446744073709551615¦18446744073709551616¦1e5¦1e20¦1e30¦1e308¦-1e308¦1e309¦-1e309¦5e-324¦1e-30¦\
    0.1¦0.5¦-0.5¦1.5¦1.0¦-0¦-0.0¦99999999999999999999999999999999999999999999";

/// What stands for a number that is none.
pub const NO_NUMBERS: &str = "NaN¦nan¦Infinity¦-Infinity¦inf¦-inf¦None¦0x10¦1_000¦٣";

/// Texts that mean something to someone.
pub const TEXTS: &str = "¦ ¦a¦A¦\n¦\t¦\0¦é¦é\u{301}¦\u{fdd0}¦\u{200b}¦\u{feff}¦日本語¦🤖¦..¦../../../etc/passwd¦/dev/zero¦\
    /dev/null¦/¦*¦%s%n¦{}¦{q}¦{¦}}¦{{ x }}¦{% x %}¦<s>¦</s>¦[CLS]";

/// A text: one of the known ones, or a long one.
pub fn text(dice: &mut Dice) -> String {
    if dice.chance(80) {
        return dice.word(TEXTS).to_owned();
    }
    let unit = dice.word("a¦é¦ ¦0¦\n¦{¦\\¦日¦a b ¦\"");
    unit.repeat(dice.count())
}

/// A whole number as it is written.
pub fn whole(dice: &mut Dice) -> &'static str {
    loop {
        let number = dice.word(NUMBERS);
        if number.bytes().all(|b| b.is_ascii_digit() || b == b'-') && number != "-0" {
            return number;
        }
    }
}

/// A number as it is written.
pub fn number(dice: &mut Dice) -> &'static str {
    let list = if dice.chance(92) { NUMBERS } else { NO_NUMBERS };
    dice.word(list)
}

/// Changes some bytes, lines or numbers; `words` are put in here and there.
pub fn changed(dice: &mut Dice, mut bytes: Vec<u8>, words: &str) -> Vec<u8> {
    for _ in 0..dice.few() {
        bytes = match dice.below(20) {
            0..4 => renumbered(dice, &bytes),
            4..8 => lines_changed(dice, &bytes),
            8..11 if !words.is_empty() => {
                let word = dice.word(words);
                inserted(dice, &bytes, word.as_bytes())
            }
            _ => bytes_changed(dice, bytes),
        };
    }
    bytes
}

fn inserted(dice: &mut Dice, bytes: &[u8], what: &[u8]) -> Vec<u8> {
    let at = dice.below(bytes.len() + 1);
    [&bytes[..at], what, &bytes[at..]].concat()
}

/// Puts another number in the place of one.
fn renumbered(dice: &mut Dice, bytes: &[u8]) -> Vec<u8> {
    let starts: Vec<usize> = (0..bytes.len())
        .filter(|i| {
            bytes[*i].is_ascii_digit() && !i.checked_sub(1).is_some_and(|j| bytes[j].is_ascii_digit())
        })
        .collect();
    let Some(start) = starts.get(dice.below(starts.len())) else { return bytes.to_vec() };
    let length = bytes[*start..].iter().take_while(|b| b.is_ascii_digit() || **b == b'.').count();
    [&bytes[..*start], number(dice).as_bytes(), &bytes[start + length..]].concat()
}

/// Doubles, drops, swaps or cuts lines.
fn lines_changed(dice: &mut Dice, bytes: &[u8]) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    if lines.is_empty() {
        return b"\n".to_vec();
    }
    let (one, other) = (dice.below(lines.len()), dice.below(lines.len()));
    match dice.below(6) {
        0 => lines.swap(one, other),
        1 => drop(lines.remove(one)),
        2 => lines.insert(other, lines[one]),
        3 => {
            let count = dice.count();
            lines.splice(one..one, std::iter::repeat_n(lines[one], count));
        }
        4 => lines.truncate(one),
        _ => lines[one] = &lines[one][..dice.below(lines[one].len())],
    }
    lines.concat()
}

fn bytes_changed(dice: &mut Dice, mut bytes: Vec<u8>) -> Vec<u8> {
    let at = dice.below(bytes.len());
    match dice.below(13) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
        1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'\n'][dice.below(8)],
        2 => bytes.truncate(at),
        3 => bytes.drain(..at).for_each(drop),
        4 => drop(bytes.drain(dice.range(at))),
        5 => {
            let part = bytes[dice.range(at)].to_vec();
            let count = dice.count().min(1 + 2_000_000 / (part.len() + 1));
            bytes = inserted(dice, &bytes, &part.repeat(count));
        }
        6 => {
            let length = 1 + dice.below(40);
            let noise = dice.bytes(length);
            bytes = inserted(dice, &bytes, &noise);
        }
        7 => {
            let text = text(dice);
            bytes = inserted(dice, &bytes, text.as_bytes());
        }
        8 => bytes = inserted(dice, &bytes, &[0xff, 0xfe, 0xc3]),
        9 => bytes = [&b"\xef\xbb\xbf"[..], &bytes].concat(),
        10 => {
            bytes =
                bytes.iter().flat_map(|b| if *b == b'\n' { vec![b'\r', b'\n'] } else { vec![*b] }).collect()
        }
        11 => bytes = [&bytes[..], &bytes[..]].concat(),
        12 => bytes.clear(),
        _ => bytes.push(0),
    }
    bytes
}
