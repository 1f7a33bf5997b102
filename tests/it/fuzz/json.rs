//! Changes of JSON: values, keys and the shape of the whole.

use serde_json::{Map, Value};

use super::dice::Dice;
use super::text;

/// Begins a text that is written without its quotes: what no value can say.
const RAW: &str = "@raw:";
/// Begins a key that is there already.
const AGAIN: &str = "@again:";

/// Changes a JSON text; `keys` are those that may be put into its objects.
pub fn changed(dice: &mut Dice, bytes: &[u8], keys: &str) -> Vec<u8> {
    let Ok(mut whole) = serde_json::from_slice::<Value>(bytes).map_err(drop).and_then(|value| {
        // One in ten is changed as text
        if dice.chance(10) { Err(()) } else { Ok(value) }
    }) else {
        return text::changed(dice, bytes.to_vec(), "{¦}¦[¦]¦,¦:¦null¦\"\"¦\\u0000");
    };
    for _ in 0..dice.few() {
        change(dice, &mut whole, keys);
    }
    written(&whole).into_bytes()
}

/// Changes every value of JSON lines that is drawn.
pub fn lines_changed(dice: &mut Dice, bytes: &[u8], keys: &str) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    for _ in 0..dice.few() {
        let line = dice.below(lines.len());
        lines[line] = changed(dice, &lines[line].clone(), keys);
    }
    let whole = lines.join(&b'\n');
    if dice.chance(30) { text::changed(dice, whole, "{}¦[]¦null") } else { whole }
}

/// Changes something inside.
pub fn change(dice: &mut Dice, whole: &mut Value, keys: &str) {
    let depth = 1 + dice.below(5);
    match descend(dice, whole, depth) {
        Value::Object(map) if dice.chance(60) => change_object(dice, map, keys),
        value if dice.chance(55) => *value = extreme(dice),
        value => near(dice, value),
    }
}

/// A value at most so far down.
fn descend<'a>(dice: &mut Dice, value: &'a mut Value, depth: usize) -> &'a mut Value {
    let children = match value {
        Value::Object(map) => map.len(),
        Value::Array(list) => list.len(),
        _ => 0,
    };
    if depth == 0 || children == 0 {
        return value;
    }
    let place = dice.below(children);
    let child = match value {
        Value::Object(map) => map.values_mut().nth(place),
        Value::Array(list) => list.get_mut(place),
        _ => None,
    };
    descend(dice, child.unwrap(), depth - 1)
}

fn change_object(dice: &mut Dice, map: &mut Map<String, Value>, keys: &str) {
    let place = dice.below(map.len());
    let key = map.keys().nth(place).cloned().unwrap_or_default();
    match dice.below(10) {
        0..2 => drop(map.remove(&key)),
        2 => {
            let value = map.remove(&key).unwrap_or_default();
            let name = if dice.chance(50) { format!("{key}x") } else { text::text(dice) };
            map.insert(name, value);
        }
        3 => drop(map.insert(format!("{AGAIN}{key}"), extreme(dice))),
        4 => {
            let other = map.keys().nth(dice.below(map.len())).cloned().unwrap_or_default();
            let values = [&key, &other].map(|key| map.get(key).cloned().unwrap_or_default());
            map.extend([other, key].into_iter().zip(values));
        }
        5..8 if !keys.is_empty() => {
            map.insert(dice.word(keys).to_owned(), extreme(dice));
        }
        _ => drop(map.insert(key, extreme(dice))),
    }
}

/// A value at the end of what its type holds, or of another type.
pub fn extreme(dice: &mut Dice) -> Value {
    match dice.below(24) {
        0..9 => raw(text::number(dice)),
        9 => Value::Null,
        10 => Value::Bool(dice.chance(50)),
        11..14 => Value::String(text::text(dice)),
        14 => Value::Array(Vec::new()),
        15 => Value::Object(Map::new()),
        16 => (0..1 + dice.below(4)).map(|_| raw(text::number(dice))).collect(),
        17 => {
            let depth = [2, 100, 127, 128, 129, 1_000, 100_000][dice.below(7)];
            let (open, close) = if dice.chance(50) { ("[", "]") } else { ("{\"a\":", "}") };
            raw(&format!("{}1{}", open.repeat(depth), close.repeat(depth)))
        }
        18 => raw(&format!("[{}0]", "0,".repeat(dice.count()))),
        19 => (0..dice.count()).map(|i| (i.to_string(), Value::from(i))).collect::<Map<_, _>>().into(),
        20 => (0..dice.count()).map(|i| Value::from(format!("t{i}"))).collect(),
        21 => Value::Array(vec![Value::Null, Value::from("a"), Value::from(1), Value::Array(Vec::new())]),
        22 => raw("\"\\ud800\""),
        _ => Value::Object([(text::text(dice), raw(text::number(dice)))].into_iter().collect()),
    }
}

/// Something like it.
fn near(dice: &mut Dice, value: &mut Value) {
    match value {
        Value::Number(number) => {
            let x = number.as_f64().unwrap_or(1.0);
            *value = match (dice.below(8), number.as_i64()) {
                (0..3, Some(n)) => Value::from(n.wrapping_add([1, -1, 2, -2][dice.below(4)])),
                (3, Some(n)) => Value::from(n.wrapping_mul(2)),
                (4, Some(n)) => Value::from(n / 2),
                (5, _) => Value::String(number.to_string()),
                (6, _) => raw(&format!("{}", -x)),
                _ => raw(&format!("{}", x * [10.0, 0.1, 1e6, 1.5][dice.below(4)])),
            };
        }
        Value::String(text) => match dice.below(5) {
            0 => *text = text.to_uppercase(),
            1 => *text = format!(" {text} "),
            2 => drop(text.pop()),
            3 => *text = text.repeat(2),
            _ => {
                let bytes = text::changed(dice, text.clone().into_bytes(), "");
                *text = String::from_utf8_lossy(&bytes).into_owned();
            }
        },
        Value::Array(list) => match dice.below(4) {
            0 => list.reverse(),
            1 => list.extend_from_within(..),
            2 => drop(list.pop()),
            _ => list.push(extreme(dice)),
        },
        Value::Bool(flag) => *flag = !*flag,
        other => *other = Value::Array(vec![other.take()]),
    }
}

fn raw(text: &str) -> Value {
    Value::String(format!("{RAW}{text}"))
}

/// The text of a value, with what stands for itself as it is.
pub fn written(value: &Value) -> String {
    let text = serde_json::to_string(value).unwrap().replace(&format!("\"{AGAIN}"), "\"");
    let mark = format!("\"{RAW}");
    let mut parts = text.split(&mark);
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // Inside of it quotes are escaped, so the first bare one ends it
        let mut end = 0;
        while let Some(i) = part[end..].find('"').map(|i| end + i) {
            end = i + 1;
            if i == 0 || part.as_bytes()[i - 1] != b'\\' {
                break;
            }
        }
        let inside = part[..end.saturating_sub(1)].replace("\\\"", "\"").replace("\\\\", "\\");
        whole.extend([&inside, &part[end..]]);
    }
    whole
}
