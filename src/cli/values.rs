//! Parsers of option values.

use clap::{Arg, Command};

/// Value names of options that take numbers.
const NUMBERS: [&str; 5] = ["N", "P", "R", "SIZE", "X"];
/// Those of numbers with a fraction.
const FRACTIONS: [&str; 2] = ["P", "X"];

/// Accepts negative numbers as values, so that the error is the option's own and not an unknown flag `-1`.
pub(super) fn with_negative_numbers(command: Command) -> Command {
    let of_number = |arg: Arg| {
        let names = arg.get_value_names().unwrap_or_default();
        let is_of = |known: &[&str]| names.iter().any(|name| known.contains(&name.as_str()));
        let (is_number, is_fraction) = (is_of(&NUMBERS), is_of(&FRACTIONS));
        // clap takes `-1e-3` for flags.
        arg.allow_negative_numbers(is_number).allow_hyphen_values(is_fraction)
    };
    command.mut_args(of_number).mut_subcommands(with_negative_numbers)
}

/// Reads a number of threads; the limit keeps a slip of the finger from bringing the machine to a halt.
pub(super) fn threads(text: &str) -> std::result::Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number <= 1024)
        .ok_or("expected a whole number from 0 to 1024".to_owned())
}

/// Reads a size in bytes; KB, MB and GB are powers of 1000, KiB, MiB and GiB of 1024.
pub(super) fn bytes(text: &str) -> std::result::Result<u64, String> {
    let units = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    let split = units.into_iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    let (digits, factor) = split.unwrap_or((text, 1));
    let number: Option<u64> = digits.trim().parse().ok();
    number
        .and_then(|number| number.checked_mul(factor))
        .filter(|size| *size >= 1)
        .ok_or("expected a size such as `500MB`, `5GB` or `2GiB`".to_owned())
}
