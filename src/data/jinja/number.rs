//! Numbers as Python computes, reads and writes them.

use std::cmp::Ordering;

use num_bigint::{BigInt, Sign};
use num_traits::{FromPrimitive as _, Signed as _, ToPrimitive as _, Zero as _};

use super::ast::Binary;
use super::meter::{BITS, Failure, Outcome};
use super::unicode::{DECIMAL, trim};
use super::value::Value;

/// Converts a number to a whole one; truth values are 0 and 1.
pub(super) fn whole(value: &Value) -> Option<BigInt> {
    match value {
        Value::Big(number) => Some((**number).clone()),
        value => value.index().map(BigInt::from),
    }
}

/// Converts a number to a floating one.
///
/// # Errors
/// When it is too large.
pub(super) fn floating(value: &Value) -> Outcome<Option<f64>> {
    match value {
        Value::Float(x) => Ok(Some(*x)),
        Value::Big(number) => match number.to_f64().filter(|x| x.is_finite()) {
            Some(x) => Ok(Some(x)),
            None => Err(Failure::new("int too large to convert to float")),
        },
        value => Ok(value.index().map(|i| i as f64)),
    }
}

/// Compares two numbers; `None` if one is not a number, or is NaN.
pub(super) fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        (Value::Float(a), b) => against_float(&whole(b)?, *a).map(Ordering::reverse),
        (a, Value::Float(b)) => against_float(&whole(a)?, *b),
        (Value::Big(_), _) | (_, Value::Big(_)) => Some(whole(a)?.cmp(&whole(b)?)),
        (a, b) => Some(a.index()?.cmp(&b.index()?)),
    }
}

fn against_float(a: &BigInt, b: f64) -> Option<Ordering> {
    if b.is_infinite() {
        return 0.0.partial_cmp(&b);
    }
    let order = a.cmp(&BigInt::from_f64(b.trunc())?);
    Some(order.then(0.0.partial_cmp(&b.fract())?))
}

/// Returns the result of an operation, or `None` if one of the two is not a number.
///
/// # Errors
/// On a division by zero, or a result beyond all bounds.
pub(super) fn binary(op: Binary, a: &Value, b: &Value) -> Outcome<Option<Value>> {
    if matches!(a, Value::Float(_)) || matches!(b, Value::Float(_)) {
        let (Some(a), Some(b)) = (floating(a)?, floating(b)?) else { return Ok(None) };
        return float_op(op, a, b).map(Some);
    }
    if let (Some(x), Some(y)) = (a.index(), b.index())
        && !matches!(a, Value::Big(_))
        && !matches!(b, Value::Big(_))
    {
        let small = match op {
            Binary::Add => x.checked_add(y),
            Binary::Sub => x.checked_sub(y),
            Binary::Mul => x.checked_mul(y),
            _ => None,
        };
        if let Some(small) = small {
            return Ok(Some(Value::Int(small)));
        }
    }
    let (Some(a), Some(b)) = (whole(a), whole(b)) else { return Ok(None) };
    whole_op(op, &a, &b).map(Some)
}

fn zero_division() -> Box<Failure> {
    Failure::new("division by zero")
}

fn whole_op(op: Binary, a: &BigInt, b: &BigInt) -> Outcome<Value> {
    match op {
        Binary::Add => Value::int(a + b),
        Binary::Sub => Value::int(a - b),
        Binary::Mul => Value::int(a * b),
        Binary::Pow => power(a, b),
        _ if b.is_zero() => Err(zero_division()),
        Binary::Div => {
            // Beyond this, the quotient of the rounded numbers is not the rounded quotient
            if a.bits() > 53 || b.bits() > 53 {
                return Err(Failure::refused("a quotient of such large numbers"));
            }
            Ok(Value::Float(a.to_f64().unwrap_or(f64::NAN) / b.to_f64().unwrap_or(f64::NAN)))
        }
        Binary::FloorDiv | Binary::Mod => {
            let (mut quotient, mut rest) = (a / b, a % b);
            if !rest.is_zero() && rest.is_negative() != b.is_negative() {
                quotient -= 1;
                rest += b;
            }
            Value::int(if op == Binary::Mod { rest } else { quotient })
        }
    }
}

fn power(a: &BigInt, b: &BigInt) -> Outcome<Value> {
    if b.sign() == Sign::Minus {
        let (Some(a), Some(b)) = (a.to_f64(), b.to_f64()) else { return Err(Failure::new("too large")) };
        return float_op(Binary::Pow, a, b);
    }
    if a.bits() <= 1 {
        // 0, 1 and -1 to any power
        let is_odd = b.bit(0);
        return Value::int(match a.sign() {
            Sign::NoSign => BigInt::from(u8::from(b.is_zero())),
            Sign::Minus if is_odd => BigInt::from(-1),
            _ => BigInt::from(1),
        });
    }
    let exponent = b.to_u32().filter(|b| a.bits().saturating_mul(u64::from(*b)) <= 2 * BITS);
    match exponent {
        Some(exponent) => Value::int(a.pow(exponent)),
        None => Err(Failure::template(format!("a number has over {BITS} bits"))),
    }
}

fn float_op(op: Binary, a: f64, b: f64) -> Outcome<Value> {
    let is_division = matches!(op, Binary::Div | Binary::FloorDiv | Binary::Mod);
    if b == 0.0 && is_division || op == Binary::Pow && a == 0.0 && b < 0.0 {
        return Err(zero_division());
    }
    Ok(Value::Float(match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::FloorDiv => floor_division(a, b).0,
        Binary::Mod => floor_division(a, b).1,
        Binary::Pow => {
            if a < 0.0 && a.is_finite() && b.is_finite() && b.fract() != 0.0 {
                return Err(Failure::refused("a complex number"));
            }
            let power = a.powf(b);
            if power.is_infinite() && a.is_finite() && b.is_finite() {
                return Err(Failure::new("numerical result out of range"));
            }
            power
        }
    }))
}

/// Returns quotient and remainder as Python's `divmod`: the remainder has the sign of the divisor.
fn floor_division(a: f64, b: f64) -> (f64, f64) {
    let mut rest = a % b;
    let mut quotient = (a - rest) / b;
    if rest == 0.0 {
        rest = 0.0_f64.copysign(b);
    } else if (b < 0.0) != (rest < 0.0) {
        rest += b;
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return (0.0_f64.copysign(a / b), rest);
    }
    let floor = quotient.floor();
    (if quotient - floor > 0.5 { floor + 1.0 } else { floor }, rest)
}

/// `repr` of a floating number: the fewest digits that read back as it.
pub(super) fn float_text(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "nan"
        } else if x > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let shortest = format!("{x:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = x.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    exponential(digits, exponent)
}

/// Digits and an exponent of at least two digits.
pub(super) fn exponential(digits: &str, exponent: i32) -> String {
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// Returns the digits of a whole number.
///
/// # Errors
/// Beyond 4,300 of them, where Python writes none either.
pub(super) fn big_text(number: &BigInt) -> Outcome<String> {
    let text = number.to_string();
    if text.trim_start_matches('-').len() > 4300 {
        return Err(Failure::new("a number has more than 4300 digits"));
    }
    Ok(text)
}

/// Removes the single `_` that may join digits of a base; `None` if one is misplaced.
fn joined(text: &str, radix: u32) -> Option<String> {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(|digit| char::from(*digit).is_digit(radix));
    let joins = |at: usize| at > 0 && is_digit(at - 1) && is_digit(at + 1);
    let is_right = text.match_indices('_').all(|(at, _)| joins(at));
    is_right.then(|| text.replace('_', ""))
}

fn ascii(text: &str) -> Outcome<&str> {
    let text = trim(text);
    match text.chars().find(|c| !c.is_ascii() && DECIMAL.has(*c)) {
        Some(_) => Err(Failure::refused("a number of other digits than 0 to 9")),
        None => Ok(text),
    }
}

/// Reads as `int(text, base)` does; `None` if the text is not a number or the base is invalid.
///
/// # Errors
/// When the number is too long, or of digits that are not supported.
pub(super) fn read_int(text: &str, base: i64) -> Outcome<Option<BigInt>> {
    let text = ascii(text)?;
    if base != 0 && !(2..=36).contains(&base) {
        return Ok(None);
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let prefixed = |letter: char, radix: u32| {
        let rest = digits.strip_prefix('0')?.strip_prefix([letter, letter.to_ascii_uppercase()])?;
        let rest = rest.strip_prefix('_').unwrap_or(rest);
        (base == 0 || base == i64::from(radix)).then_some((rest, radix))
    };
    let found = prefixed('x', 16).or_else(|| prefixed('o', 8)).or_else(|| prefixed('b', 2));
    let is_plain = base == 0 && found.is_none();
    let (digits, radix) = found.unwrap_or((digits, if base == 0 { 10 } else { base as u32 }));
    let Some(digits) = joined(digits, radix).filter(|digits| digits.chars().all(|c| c.is_digit(radix)))
    else {
        return Ok(None);
    };
    let is_long = !radix.is_power_of_two() && digits.len() > 4300;
    if is_long || is_plain && digits.starts_with('0') && !digits.trim_matches('0').is_empty() {
        return Ok(None);
    }
    if digits.len() as u64 * 6 > 2 * BITS {
        return Err(Failure::template(format!("a number has over {BITS} bits")));
    }
    let number = BigInt::parse_bytes(digits.as_bytes(), radix);
    Ok(number.map(|number| if text.starts_with('-') { -number } else { number }))
}

/// Reads as `float(text)` does; `None` if the text is not a number.
///
/// # Errors
/// On digits that are not supported.
pub(super) fn read_float(text: &str) -> Outcome<Option<f64>> {
    Ok(joined(ascii(text)?, 10).and_then(|text| text.parse().ok()))
}

/// `round(x, digits)`.
pub(super) fn round(x: f64, digits: i64) -> f64 {
    if !x.is_finite() || digits > 400 {
        return x;
    }
    if digits >= 0 {
        return format!("{x:.*}", digits as usize).parse().unwrap_or(x);
    }
    let whole = BigInt::from_f64(x.trunc()).unwrap_or_default();
    let rounded = round_whole(&whole, digits, x.fract() != 0.0).to_f64().unwrap_or(0.0);
    if rounded == 0.0 { 0.0_f64.copysign(x) } else { rounded }
}

/// Rounds a whole number to `-digits` digits before the point; half goes to the even side, unless there is
/// `more` after the point.
pub(super) fn round_whole(number: &BigInt, digits: i64, more: bool) -> BigInt {
    let Some(unit) = u32::try_from(-digits).ok().filter(|n| *n < 400).map(|n| BigInt::from(10).pow(n)) else {
        return BigInt::zero();
    };
    let (size, is_negative) = (number.abs(), number.is_negative());
    let (mut quotient, rest) = (&size / &unit, &size % &unit);
    let is_up = match (rest * 2_u8).cmp(&unit) {
        Ordering::Less => false,
        Ordering::Equal => more || quotient.bit(0),
        Ordering::Greater => true,
    };
    if is_up {
        quotient += 1;
    }
    let rounded = quotient * unit;
    if is_negative { -rounded } else { rounded }
}
